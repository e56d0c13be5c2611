//! Element types under their ONNX numbers (`TensorProto.DataType`).

use dijiang_format::dtype::DType;

const NUMBERS: [(DType, i32); 13] = [
    (DType::F32, 1),
    (DType::U8, 2),
    (DType::I8, 3),
    (DType::U16, 4),
    (DType::I16, 5),
    (DType::I32, 6),
    (DType::I64, 7),
    (DType::Bool, 9),
    (DType::F16, 10),
    (DType::F64, 11),
    (DType::U32, 12),
    (DType::U64, 13),
    (DType::BF16, 16),
];

/// The names of the numbers that have no [`DType`], for error messages.
const OTHERS: [(i32, &str); 12] = [
    (0, "undefined"),
    (8, "string"),
    (14, "complex64"),
    (15, "complex128"),
    (17, "float8e4m3fn"),
    (18, "float8e4m3fnuz"),
    (19, "float8e5m2"),
    (20, "float8e5m2fnuz"),
    (21, "uint4"),
    (22, "int4"),
    (23, "float4e2m1"),
    (24, "float8e8m0"),
];

pub(super) fn to_number(dtype: DType) -> i32 {
    NUMBERS.iter().find(|(d, _)| *d == dtype).map_or(0, |(_, n)| *n)
}

/// The error says what the number stands for.
pub(super) fn from_number(number: i32) -> Result<DType, String> {
    if let Some((dtype, _)) = NUMBERS.iter().find(|(_, n)| *n == number) {
        return Ok(*dtype);
    }
    let name = OTHERS.iter().find(|(n, _)| *n == number).map_or("unknown", |(_, name)| name);
    Err(format!("element type {number} ({name}) is not supported, expected a float, an integer or bool"))
}

/// Why elements of a type that is well-defined, but holds no numbers, cannot be read.
pub(super) fn unreadable(number: i32) -> Option<String> {
    (number == STRING).then(|| "strings are not supported".to_owned())
}

const STRING: i32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_type_has_a_number() {
        for (dtype, number) in NUMBERS {
            assert_eq!(from_number(to_number(dtype)), Ok(dtype));
            assert_eq!(to_number(dtype), number);
        }
        let reason = from_number(8).expect_err("strings are not supported");
        assert_eq!(reason, "element type 8 (string) is not supported, expected a float, an integer or bool");
    }
}
