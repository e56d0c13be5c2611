//! Constant tensors in both directions: elements in the model file, or described as
//! lying in another one ([`super::external`]).

use super::dtype;
use super::proto::{EXTERNAL, StringStringEntryProto, TensorProto};
use bytes::Bytes;
use dijiang_format::dtype::DType;
use dijiang_passes::ir::tensor::Tensor;
use std::sync::Arc;

fn described(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        dims: tensor.dims().iter().map(|d| *d as i64).collect(),
        data_type: dtype::to_number(tensor.dtype()),
        name: name.to_owned(),
        ..TensorProto::default()
    }
}

/// A tensor whose elements lie in the message.
pub(super) fn inline(name: &str, tensor: &Tensor) -> TensorProto {
    let raw_data = Some(Bytes::from(tensor.bytes().into_owned()));
    TensorProto { raw_data, ..described(name, tensor) }
}

/// A tensor whose elements lie at `offset` of the file `location`.
pub(super) fn external(name: &str, tensor: &Tensor, location: &str, offset: u64) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
    let external_data = vec![
        entry("location", location.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", tensor.byte_len().to_string()),
    ];
    TensorProto { external_data, data_location: EXTERNAL, ..described(name, tensor) }
}

pub(super) fn dims(proto: &TensorProto) -> Result<Vec<u64>, String> {
    let dim = |d: &i64| u64::try_from(*d).map_err(|_| format!("dims {:?} are negative", proto.dims));
    proto.dims.iter().map(dim).collect()
}

/// A tensor whose elements must lie in the message. Raw elements are shared, not copied.
pub(super) fn read_inline(proto: &TensorProto) -> Result<Tensor, String> {
    if proto.data_location == EXTERNAL {
        return Err("external data is not allowed here".to_owned());
    }
    let (dtype, dims) = (dtype::from_number(proto.data_type)?, dims(proto)?);
    let tensor = match &proto.raw_data {
        Some(raw) if !raw.is_empty() => Tensor::view(dtype, dims, Arc::new(raw.clone()), 0, raw.len()),
        _ => Tensor::from_bytes(dtype, dims, typed_elements(proto, dtype)),
    };
    tensor.map_err(|e| e.to_string())
}

/// The elements of the list that `onnx.proto` names for the element type.
fn typed_elements(proto: &TensorProto, dtype: DType) -> Vec<u8> {
    let ints = &proto.int32_data;
    match dtype {
        DType::F32 => proto.float_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F64 => proto.double_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::I64 => proto.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::U64 => proto.uint64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::U32 => proto.uint64_data.iter().flat_map(|x| (*x as u32).to_le_bytes()).collect(),
        DType::I32 => ints.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => {
            ints.iter().flat_map(|x| (*x as u16).to_le_bytes()).collect()
        }
        DType::I8 | DType::U8 | DType::Bool => ints.iter().map(|x| *x as u8).collect(),
    }
}
