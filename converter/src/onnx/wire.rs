//! How much memory a model takes once it is decoded, found without decoding it. A message that says
//! nothing takes two bytes in a file and hundreds in memory, so a small file could fill a machine.

use super::proto::{
    AttributeProto, DimensionProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Dim,
    Entry,
    Opset,
    Function,
    /// A string, bytes, or packed numbers.
    Leaf,
}

impl Kind {
    /// The message in a field, by the tags of `proto.rs`. `None` where the field is skipped.
    fn field(self, tag: u64) -> Option<Self> {
        Some(match (self, tag) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Model | Self::Function, 8 | 9) => Self::Opset,
            (Self::Model, 14) | (Self::Tensor, 13) => Self::Entry,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Graph | Self::Attribute, 5) | (Self::Sparse, 1) => Self::Tensor,
            (Self::Graph, 11..=13) => Self::ValueInfo,
            (Self::Graph, 15) => Self::Sparse,
            (Self::Node, 5) | (Self::Function, 11) => Self::Attribute,
            (Self::ValueInfo, 2) => Self::Type,
            (Self::Type, 1) => Self::TensorType,
            (Self::TensorType, 2) => Self::Shape,
            (Self::Shape, 1) => Self::Dim,
            (Self::Node, 1 | 2) | (Self::Function, 4..=6) | (Self::Attribute, 9) => Self::Leaf,
            _ => return None,
        })
    }

    /// What one takes in a list.
    fn size(self) -> usize {
        match self {
            Self::Model => size_of::<ModelProto>(),
            Self::Graph => size_of::<GraphProto>(),
            Self::Node => size_of::<NodeProto>(),
            Self::Attribute => size_of::<AttributeProto>(),
            Self::Tensor => size_of::<TensorProto>(),
            Self::Sparse => size_of::<SparseTensorProto>(),
            Self::ValueInfo => size_of::<ValueInfoProto>(),
            Self::Type => size_of::<TypeProto>(),
            Self::TensorType => size_of::<TensorTypeProto>(),
            Self::Shape => size_of::<TensorShapeProto>(),
            Self::Dim => size_of::<DimensionProto>(),
            Self::Entry => size_of::<StringStringEntryProto>(),
            Self::Opset => size_of::<OperatorSetIdProto>(),
            Self::Function => size_of::<FunctionProto>(),
            Self::Leaf => size_of::<String>(),
        }
    }
}

/// The decoder refuses what is nested deeper.
const MAX_DEPTH: usize = 100;

/// Bytes of the messages in memory, without the bytes that they share with the file. Of a broken file,
/// those before the place where it is broken: the decoder says what is wrong.
pub(super) fn decoded_size(bytes: &[u8]) -> usize {
    let mut total = 0;
    messages(Kind::Model, bytes, MAX_DEPTH, &mut total);
    total
}

fn messages(kind: Kind, mut bytes: &[u8], depth: usize, total: &mut usize) -> Option<()> {
    *total += kind.size();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let skipped = match key & 7 {
            0 => {
                varint(&mut bytes)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).ok()?,
            5 => 4,
            // Groups are of no use in ONNX; what is in one counts as if it were not.
            3 | 4 => continue,
            _ => return None,
        };
        let (field, rest) = bytes.split_at_checked(skipped)?;
        bytes = rest;
        match kind.field(key >> 3) {
            Some(Kind::Leaf) => *total += Kind::Leaf.size(),
            Some(inner) if key & 7 == 2 => messages(inner, field, depth.checked_sub(1)?, total)?,
            _ => {}
        }
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift).unwrap_or(0);
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn every_message_counts() {
        let node = NodeProto { attribute: vec![AttributeProto::default(); 3], ..NodeProto::default() };
        let graph = GraphProto { node: vec![node; 5], ..GraphProto::default() };
        let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        let expected = size_of::<ModelProto>()
            + size_of::<GraphProto>()
            + 5 * (size_of::<NodeProto>() + 3 * size_of::<AttributeProto>());
        assert_eq!(decoded_size(&model.encode_to_vec()), expected);
        assert_eq!(decoded_size(&[0xff; 20]), size_of::<ModelProto>());
    }
}
