//! Functions that a model brings along: found by name, and put in the place of their calls.

use super::domain;
use super::proto::{AttributeProto, FunctionProto, ModelProto, NodeProto};
use crate::report::message::shown;
use prost::Message;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Domain, name and overload.
type Key<'m> = (&'m str, &'m str, &'m str);

/// The functions of a model.
pub(super) struct Functions<'m>(BTreeMap<Key<'m>, &'m FunctionProto>);

impl<'m> Functions<'m> {
    /// The error names a function that is there twice.
    pub(super) fn of(model: &'m ModelProto) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for function in &model.functions {
            let key = (domain(&function.domain), function.name.as_str(), function.overload.as_str());
            if all.insert(key, function).is_some() {
                return Err(full_name(function));
            }
        }
        Ok(Self(all))
    }

    /// The function that a node calls, if it does.
    pub(super) fn called(&self, node: &NodeProto) -> Option<&'m FunctionProto> {
        let key: Key<'_> = (domain(&node.domain), &node.op_type, &node.overload);
        self.0.get(&key).copied()
    }
}

/// `domain.name:overload`, as far as they are there.
pub(super) fn full_name(function: &FunctionProto) -> String {
    let domain = if function.domain.is_empty() { String::new() } else { format!("{}.", function.domain) };
    let overload =
        if function.overload.is_empty() { String::new() } else { format!(":{}", function.overload) };
    shown(&format!("{domain}{}{overload}", function.name))
}

/// Attributes by the names that a function's nodes refer to them with.
pub(super) type Given = BTreeMap<String, AttributeProto>;

/// The attributes of a call, and the function's own defaults where it gives none.
pub(super) fn attributes(function: &FunctionProto, call: &NodeProto) -> Given {
    let defaults = function.attribute_proto.iter();
    defaults.chain(&call.attribute).map(|a| (a.name.clone(), a.clone())).collect()
}

/// Bytes of a node with its references replaced. Not counted further than to `most`.
pub(super) fn resolved_size(node: &NodeProto, given: &Given, most: usize) -> usize {
    let mut size = node.encoded_len();
    for attribute in node.attribute.iter().filter_map(|a| given.get(&a.ref_attr_name)) {
        size += attribute.encoded_len();
        if size > most {
            break;
        }
    }
    size
}

/// A node of a function with its references to attributes replaced. One that the call leaves open, and
/// that has no default, is left out.
pub(super) fn resolved<'n>(node: &'n NodeProto, given: &Given) -> Cow<'n, NodeProto> {
    if node.attribute.iter().all(|a| a.ref_attr_name.is_empty()) {
        return Cow::Borrowed(node);
    }
    let resolve = |a: &AttributeProto| match a.ref_attr_name.as_str() {
        "" => Some(a.clone()),
        name => given.get(name).map(|given| AttributeProto { name: a.name.clone(), ..given.clone() }),
    };
    let attribute = node.attribute.iter().filter_map(resolve).collect();
    Cow::Owned(NodeProto { attribute, ..node.clone() })
}
