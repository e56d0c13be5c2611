//! One attribute of a node, in both directions.

use super::initializer;
use super::proto::{AttributeProto, attribute_type as kind};
use bytes::Bytes;
use dijiang_passes::ir::op::Attr;

pub(super) fn to_proto(name: &str, attr: &Attr) -> AttributeProto {
    let mut proto = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    proto.r#type = match attr {
        Attr::Int(x) => {
            proto.i = Some(*x);
            kind::INT
        }
        Attr::Float(x) => {
            proto.f = Some(*x);
            kind::FLOAT
        }
        Attr::Str(x) => {
            proto.s = Some(Bytes::copy_from_slice(x.as_bytes()));
            kind::STRING
        }
        Attr::Ints(x) => {
            proto.ints.clone_from(x);
            kind::INTS
        }
        Attr::Floats(x) => {
            proto.floats.clone_from(x);
            kind::FLOATS
        }
        Attr::Tensor(x) => {
            proto.t = Some(initializer::inline("", x));
            kind::TENSOR
        }
    };
    proto
}

/// The error says what the attribute holds instead.
pub(super) fn from_proto(proto: &AttributeProto) -> Result<Attr, String> {
    if !proto.ref_attr_name.is_empty() {
        return Err("it refers to an attribute of a function".to_owned());
    }
    match proto.r#type {
        kind::INT => Ok(Attr::Int(proto.i.unwrap_or_default())),
        kind::FLOAT => Ok(Attr::Float(proto.f.unwrap_or_default())),
        kind::STRING => {
            let bytes = proto.s.as_deref().unwrap_or_default();
            let text = std::str::from_utf8(bytes).map_err(|_| "its string is not UTF-8".to_owned())?;
            Ok(Attr::Str(text.to_owned()))
        }
        kind::INTS => Ok(Attr::Ints(proto.ints.clone())),
        kind::FLOATS => Ok(Attr::Floats(proto.floats.clone())),
        kind::TENSOR => match &proto.t {
            Some(tensor) => initializer::read_inline(tensor).map(Attr::Tensor),
            None => Err("its tensor is missing".to_owned()),
        },
        kind::GRAPH | kind::GRAPHS => {
            Err("it is a subgraph, which is supported in If only (hint: export the model without loops)"
                .to_owned())
        }
        kind::STRINGS => Err("it is a list of strings, which is not supported".to_owned()),
        kind::UNDEFINED => Err("its type is missing".to_owned()),
        other => Err(format!("its type {other} is not supported")),
    }
}
