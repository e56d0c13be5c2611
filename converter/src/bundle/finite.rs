//! NaN and infinite numbers among weights: a model that holds them gives no numbers.

use crate::report::message::shown;
use dijiang_format::dtype::DType;

/// Elements looked at together.
const BLOCK: usize = 4096;

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct NotFinite {
    nan: usize,
    infinite: usize,
}

impl NotFinite {
    /// Counts those among whole elements.
    pub(crate) fn count(&mut self, dtype: DType, bytes: &[u8]) {
        match dtype {
            DType::F64 => self.tally(bytes, |b| i64::from_le_bytes(b) & i64::MAX, 0x7ff0_0000_0000_0000),
            DType::F32 => self.tally(bytes, |b| i32::from_le_bytes(b) & i32::MAX, 0x7f80_0000),
            DType::F16 => self.tally(bytes, |b| i16::from_le_bytes(b) & i16::MAX, 0x7c00),
            DType::BF16 => self.tally(bytes, |b| i16::from_le_bytes(b) & i16::MAX, 0x7f80),
            _ => {}
        }
    }

    /// Whether there are none.
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }

    /// `magnitude` are an element's bits without the sign: those of infinity, and for NaN more.
    fn tally<const N: usize, B: Ord + Copy + Default>(
        &mut self,
        bytes: &[u8],
        magnitude: impl Fn([u8; N]) -> B,
        infinity: B,
    ) {
        let (elements, _) = bytes.as_chunks::<N>();
        for block in elements.chunks(BLOCK) {
            // The largest is found many elements at a time, as a count of them is not.
            let largest = block.iter().fold(B::default(), |largest, e| largest.max(magnitude(*e)));
            if largest < infinity {
                continue;
            }
            for element in block {
                let found = magnitude(*element);
                self.nan += usize::from(found > infinity);
                self.infinite += usize::from(found == infinity);
            }
        }
    }

    /// A line about a weight, where there are any.
    pub(crate) fn line(self, name: &str, elements: usize) -> Option<String> {
        let found = [(self.nan, "NaN"), (self.infinite, "infinite")].into_iter().filter(|(n, _)| *n > 0);
        let found: Vec<String> = found.map(|(n, what)| format!("{n} {what}")).collect();
        (!found.is_empty()).then(|| {
            format!(
                "weight `{}` holds numbers that are not finite: {} of {elements}",
                shown(name),
                found.join(" and ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_passes::ir::tensor::Tensor;

    #[test]
    fn they_are_counted_in_every_float_type() {
        let numbers =
            [1.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY, f32::MIN, -0.0];
        let wide = Tensor::from_f32(&[8], &numbers);
        for (dtype, infinite) in [
            (DType::F32, 3),
            (DType::F64, 3),
            // The largest f32 is beyond them.
            (DType::F16, 4),
            (DType::BF16, 4),
        ] {
            let mut found = NotFinite::default();
            found.count(dtype, &wide.cast(dtype).bytes());
            assert_eq!(found, NotFinite { nan: 2, infinite }, "{dtype}");
        }
        // After whole blocks without any, and in a block that is not whole.
        let mut many = vec![1.0f32; 3 * BLOCK];
        many.extend(numbers);
        let many = Tensor::from_f32(&[many.len() as u64], &many);
        let mut found = NotFinite::default();
        found.count(DType::BF16, &many.cast(DType::BF16).bytes());
        assert_eq!(found, NotFinite { nan: 2, infinite: 4 });
        let mut found = NotFinite::default();
        found.count(DType::I64, &[0xff; 16]);
        assert_eq!(found.line("w", 2), None);
    }
}
