//! `genai_config.json`, so that onnxruntime-genai opens a bundle as it is.
//!
//! genai finds `past_key_values.{i}.recurrent_state` and `conv_state` by their names, and takes those of every layer for as
//! large as those of the first.

use crate::checkpoint::ModelMeta;
use dijiang_format::files;
use dijiang_format::names::{IDS, LOGITS, MASK, PAST, POSITIONS, PRESENT, StatePart};
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::ir::shape::show;
use serde_json::{Map, Value, json};

/// Context length of a model that has no limit of its own: genai wants a number.
const UNBOUNDED: u64 = 1 << 20;

/// What stands for the number of the layer.
const LAYER: &str = "%d";

/// Why genai cannot open a serving graph, where it cannot: two layers have states of different sizes.
pub fn refusal(graph: &Graph) -> Option<String> {
    let of = |part: StatePart| {
        let states = graph.inputs().iter().map(|v| graph.value(*v)).filter(|v| part.is_past(&v.name));
        let mut states = states.map(|v| (v.name.as_str(), show(v.ty.shape.as_deref().unwrap_or_default())));
        let (first, size) = states.next()?;
        let (other, found) = states.find(|(_, found)| *found != size)?;
        Some(format!(
            "{} is not written: onnxruntime-genai takes the states of all layers for as large as the first one's, and `{other}` is {found} where `{first}` is {size} (hint: `dijiang generate` serves the bundle)",
            files::GENAI_CONFIG
        ))
    };
    [StatePart::Sums, StatePart::Normalizer].into_iter().find_map(of)
}

/// The file's contents for a serving graph.
pub fn config(meta: &ModelMeta, graph: &Graph) -> Value {
    let cache = format!(".{}", StatePart::Key.name());
    let linear = graph.inputs().iter().all(|v| !graph.value(*v).name.ends_with(&cache));
    let context = match (meta.learned_positions, linear) {
        (Some(n), _) => n,
        (None, true) => UNBOUNDED,
        (None, false) => meta.max_positions.unwrap_or(UNBOUNDED),
    };
    let pad = meta.pad.or_else(|| meta.eos.first().copied()).unwrap_or(0);
    json!({
        "model": {
            "type": "decoder",
            "bos_token_id": meta.bos.unwrap_or(pad),
            "eos_token_id": meta.eos,
            "pad_token_id": pad,
            "context_length": context,
            "vocab_size": meta.vocab,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": files::MODEL,
                "head_size": meta.head_dim,
                "hidden_size": meta.hidden,
                "num_attention_heads": meta.heads,
                "num_key_value_heads": meta.kv_heads,
                "num_hidden_layers": meta.layers,
                "inputs": inputs(graph, linear),
                "outputs": outputs(linear),
            },
        },
        "search": {
            "do_sample": false,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": false,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    })
}

fn of_each_layer(prefix: &str, part: StatePart) -> String {
    format!("{prefix}{LAYER}.{}", part.name())
}

fn inputs(graph: &Graph, linear: bool) -> Value {
    let mut map = Map::new();
    for name in [IDS, MASK, POSITIONS] {
        if graph.input(name).is_some() {
            map.insert(name.to_owned(), json!(name));
        }
    }
    if !linear {
        map.insert("past_key_names".to_owned(), json!(of_each_layer(PAST, StatePart::Key)));
        map.insert("past_value_names".to_owned(), json!(of_each_layer(PAST, StatePart::Value)));
    }
    Value::Object(map)
}

fn outputs(linear: bool) -> Value {
    let mut map = Map::new();
    map.insert("logits".to_owned(), json!(LOGITS));
    if !linear {
        map.insert("present_key_names".to_owned(), json!(of_each_layer(PRESENT, StatePart::Key)));
        map.insert("present_value_names".to_owned(), json!(of_each_layer(PRESENT, StatePart::Value)));
    }
    Value::Object(map)
}
