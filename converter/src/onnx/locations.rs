//! Where the external data of a model lies, without the model being read as a graph.

use super::import::{ImportError, decode_file};
use super::proto::{EXTERNAL, GraphProto, NodeProto, TensorProto};
use std::collections::BTreeSet;
use std::path::Path;

/// The files that tensors of a model file name, as they name them: from the directory of the file.
pub fn locations(path: &Path) -> Result<BTreeSet<String>, ImportError> {
    let model = decode_file(path)?;
    let mut found = BTreeSet::new();
    of_graph(&model.graph.unwrap_or_default(), &mut found);
    for function in &model.functions {
        function.node.iter().for_each(|node| of_node(node, &mut found));
    }
    Ok(found)
}

fn of_graph(graph: &GraphProto, found: &mut BTreeSet<String>) {
    graph.initializer.iter().for_each(|tensor| of_tensor(tensor, found));
    graph.node.iter().for_each(|node| of_node(node, found));
}

/// Decoding bounds how deep graphs lie in each other.
fn of_node(node: &NodeProto, found: &mut BTreeSet<String>) {
    for attribute in &node.attribute {
        attribute.t.iter().for_each(|tensor| of_tensor(tensor, found));
        attribute.g.iter().chain(&attribute.graphs).for_each(|graph| of_graph(graph, found));
    }
}

fn of_tensor(tensor: &TensorProto, found: &mut BTreeSet<String>) {
    if tensor.data_location == EXTERNAL {
        let location = tensor.external_data.iter().find(|entry| entry.key == "location");
        found.extend(location.map(|entry| entry.value.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::{AttributeProto, ModelProto, StringStringEntryProto};
    use super::*;
    use prost::Message as _;

    fn external(location: &str) -> TensorProto {
        let entry =
            |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
        let external_data = vec![entry("offset", "0"), entry("location", location)];
        TensorProto { data_location: EXTERNAL, external_data, ..TensorProto::default() }
    }

    #[test]
    fn every_tensor_is_looked_at() {
        let branch =
            GraphProto { initializer: vec![external("b"), TensorProto::default()], ..GraphProto::default() };
        let constant = AttributeProto { t: Some(external("deep/c")), ..AttributeProto::default() };
        let branch = AttributeProto { g: Some(branch), ..AttributeProto::default() };
        let node = NodeProto { attribute: vec![constant, branch], ..NodeProto::default() };
        let initializer = vec![external("a"), external("a")];
        let graph = GraphProto { node: vec![node], initializer, ..GraphProto::default() };
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("m.onnx");
        let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        std::fs::write(&path, model.encode_to_vec()).expect("it is written");
        let found = locations(&path).expect("a model");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "deep/c"]);
        std::fs::write(&path, "no model").expect("it is written");
        assert!(locations(&path).is_err());
    }
}
