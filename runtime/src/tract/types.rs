//! Translates dtypes, shapes and tensors to and from tract's.

use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::type_proto::Value;
use tract_onnx::prelude::*;

use crate::session::error::one_line;
use crate::session::tensor::HostTensor;
use crate::session::{DimSpec, Io};
use dijiang_format::dtype::DType;

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

fn dtype_of(elem_type: i32) -> Option<DType> {
    Some(match DataType::try_from(elem_type).ok()? {
        DataType::Double => DType::F64,
        DataType::Float => DType::F32,
        DataType::Float16 => DType::F16,
        DataType::Bfloat16 => DType::BF16,
        DataType::Int64 => DType::I64,
        DataType::Int32 => DType::I32,
        DataType::Int16 => DType::I16,
        DataType::Int8 => DType::I8,
        DataType::Uint64 => DType::U64,
        DataType::Uint32 => DType::U32,
        DataType::Uint16 => DType::U16,
        DataType::Uint8 => DType::U8,
        DataType::Bool => DType::Bool,
        _ => return None,
    })
}

/// tract's name of a dtype; an error for bf16, which it does not have.
pub(crate) fn datum_type(dtype: DType) -> Result<DatumType, String> {
    Ok(match dtype {
        DType::F64 => DatumType::F64,
        DType::F32 => DatumType::F32,
        DType::F16 => DatumType::F16,
        DType::BF16 => return Err("tract has no bf16; convert with --dtype f32 or f16".to_owned()),
        DType::I64 => DatumType::I64,
        DType::I32 => DatumType::I32,
        DType::I16 => DatumType::I16,
        DType::I8 => DatumType::I8,
        DType::U64 => DatumType::U64,
        DType::U32 => DatumType::U32,
        DType::U16 => DatumType::U16,
        DType::U8 => DatumType::U8,
        DType::Bool => DatumType::Bool,
    })
}

/// Copies a host tensor into a tract tensor.
pub(crate) fn to_tract(tensor: &HostTensor) -> Result<Tensor, String> {
    let dtype = datum_type(tensor.dtype())?;
    // SAFETY: the bytes are plain numbers of this dtype, in number as the shape says; tract checks the length again.
    unsafe { Tensor::from_raw_dt(dtype, tensor.shape(), tensor.bytes()) }.map_err(one_line)
}

/// Copies a tract tensor out. tract computes shape arithmetic in a type of its own, hence the cast.
pub(crate) fn from_tract(value: &Tensor, dtype: DType) -> Result<HostTensor, String> {
    let value = value.cast_to_dt(datum_type(dtype)?).map_err(one_line)?;
    HostTensor::new(dtype, value.shape().to_vec(), value.as_bytes().to_vec()).map_err(one_line)
}
