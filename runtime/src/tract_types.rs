//! Translates dtypes, shapes and tensors to and from tract's.

use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::type_proto::Value;
use tract_onnx::prelude::*;

use crate::error::one_line;
use crate::session::{DimSpec, Io};
use crate::tensor::{Dtype, HostTensor};

/// Reads a declared input or output of a graph.
pub(crate) fn declared(info: &pb::ValueInfoProto) -> Result<Io, String> {
    let name = info.name.clone();
    let Some(Value::TensorType(tensor)) = info.r#type.as_ref().and_then(|ty| ty.value.as_ref()) else {
        return Err(format!("`{name}` is not a tensor, or has no declared type"));
    };
    let Some(shape) = &tensor.shape else {
        return Err(format!("`{name}` has no declared shape"));
    };
    let dtype = dtype_of(tensor.elem_type).ok_or_else(|| {
        format!("`{name}` holds ONNX data type {}, which is not supported", tensor.elem_type)
    })?;
    Ok(Io { name, dtype, shape: shape.dim.iter().map(dim).collect() })
}

fn dim(dim: &Dimension) -> DimSpec {
    match &dim.value {
        Some(dimension::Value::DimValue(size)) if *size >= 0 => DimSpec::Fixed(*size as usize),
        Some(dimension::Value::DimParam(name)) if !name.is_empty() => DimSpec::Dynamic(Some(name.clone())),
        _ => DimSpec::Dynamic(None),
    }
}

fn dtype_of(elem_type: i32) -> Option<Dtype> {
    Some(match DataType::try_from(elem_type).ok()? {
        DataType::Double => Dtype::F64,
        DataType::Float => Dtype::F32,
        DataType::Float16 => Dtype::F16,
        DataType::Bfloat16 => Dtype::BF16,
        DataType::Int64 => Dtype::I64,
        DataType::Int32 => Dtype::I32,
        DataType::Int16 => Dtype::I16,
        DataType::Int8 => Dtype::I8,
        DataType::Uint64 => Dtype::U64,
        DataType::Uint32 => Dtype::U32,
        DataType::Uint16 => Dtype::U16,
        DataType::Uint8 => Dtype::U8,
        DataType::Bool => Dtype::Bool,
        _ => return None,
    })
}

/// tract's name of a dtype; an error for bf16, which it does not have.
pub(crate) fn datum_type(dtype: Dtype) -> Result<DatumType, String> {
    Ok(match dtype {
        Dtype::F64 => DatumType::F64,
        Dtype::F32 => DatumType::F32,
        Dtype::F16 => DatumType::F16,
        Dtype::BF16 => return Err("tract has no bf16; convert with --dtype f32 or f16".to_owned()),
        Dtype::I64 => DatumType::I64,
        Dtype::I32 => DatumType::I32,
        Dtype::I16 => DatumType::I16,
        Dtype::I8 => DatumType::I8,
        Dtype::U64 => DatumType::U64,
        Dtype::U32 => DatumType::U32,
        Dtype::U16 => DatumType::U16,
        Dtype::U8 => DatumType::U8,
        Dtype::Bool => DatumType::Bool,
    })
}

/// Copies a host tensor into a tract tensor.
pub(crate) fn to_tract(tensor: &HostTensor) -> Result<Tensor, String> {
    let dtype = datum_type(tensor.dtype())?;
    // SAFETY: the bytes are plain numbers of this dtype, in number as the shape says; tract checks the length again.
    unsafe { Tensor::from_raw_dt(dtype, tensor.shape(), tensor.bytes()) }.map_err(one_line)
}

/// Copies a tract tensor out. tract computes shape arithmetic in a type of its own, hence the cast.
pub(crate) fn from_tract(value: &Tensor, dtype: Dtype) -> Result<HostTensor, String> {
    let value = value.cast_to_dt(datum_type(dtype)?).map_err(one_line)?;
    HostTensor::new(dtype, value.shape().to_vec(), value.as_bytes().to_vec()).map_err(one_line)
}
