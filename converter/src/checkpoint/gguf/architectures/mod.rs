//! The architectures that are read of GGUF, one row each: which family a model is of, what its keys and tensors are called
//! there, and what llama.cpp's converter did to them.

mod decoders;
mod gemmas;
mod llamas;
mod older;

use super::config::Draft;
use super::error::GgufError;
use super::header::Header;
use super::rope;
use crate::checkpoint::error::CheckpointError;

/// An architecture. A model is of the first whose name it has and whose condition it meets.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`
    pub(super) name: &'static str,
    /// Of transformers.
    pub(super) model_type: &'static str,
    pub(super) when: fn(&Header) -> bool,
    pub(super) sizes: &'static Sizes,
    /// Keys below the architecture's name that not all have.
    pub(super) keys: &'static [Key],
    /// Modules outside the layers.
    pub(super) top: &'static [Module],
    /// What the layers are called in transformers.
    pub(super) layers: &'static str,
    /// Modules of a layer.
    pub(super) layer: &'static [Module],
    /// Settings that no key tells.
    pub(super) rest: fn(&mut Draft<'_>) -> Result<(), CheckpointError>,
}

impl Architecture {
    /// What a file calls the tensor that transformers calls so.
    pub(super) fn name_in_file(&self, name: &str) -> Option<String> {
        let (module, part) = name.rsplit_once('.')?;
        let called = |modules: &[Module], name: &str| modules.iter().find(|m| m.name == name).map(|m| m.gguf);
        let Some(inner) = module.strip_prefix(self.layers).and_then(|inner| inner.strip_prefix('.')) else {
            return Some(format!("{}.{part}", called(self.top, module)?));
        };
        let (layer, module) = inner.split_once('.')?;
        Some(format!("blk.{layer}.{}.{part}", called(self.layer, module)?))
    }
}

/// What a family calls the sizes that every model has.
#[derive(Debug)]
pub(super) struct Sizes {
    pub(super) hidden: &'static str,
    pub(super) layers: &'static str,
    pub(super) heads: &'static str,
    pub(super) kv_heads: Option<&'static str>,
    pub(super) width: &'static str,
    pub(super) positions: &'static str,
    pub(super) norm: Epsilon,
}

/// What is added to a variance: its key here and there.
#[derive(Debug)]
pub(super) enum Epsilon {
    Rms(&'static str),
    Layer(&'static str),
}

/// A key and what the config calls it.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) gguf: &'static str,
    pub(super) config: &'static str,
}

/// A module and what transformers calls it.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) gguf: &'static str,
    pub(super) name: &'static str,
    pub(super) how: How,
}

/// How a module's tensors were stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    AsIs,
    /// Rows of query heads whose halves lie in turns.
    Queries,
    /// The same of key heads.
    Keys,
    /// Queries, keys and values of all heads, which are to lie by groups.
    Groups,
    /// One more than they are.
    OneMore,
    /// The weight the other way round.
    Transposed,
    /// One row of a tensor for each head, `{head}` in the name.
    PerHead,
    /// What the model does not read, or what was read into the config.
    NotRead,
}

pub(super) const fn key(gguf: &'static str, config: &'static str) -> Key {
    Key { gguf, config }
}

pub(super) const fn module(gguf: &'static str, name: &'static str) -> Module {
    Module { gguf, name, how: How::AsIs }
}

pub(super) const fn changed(gguf: &'static str, name: &'static str, how: How) -> Module {
    Module { gguf, name, how }
}

/// Every architecture, in the order of their names; of one name, the one with more tensors first.
const ARCHITECTURES: &[&Architecture] = &[
    &decoders::COMMAND_R,
    &older::FALCON_40B,
    &older::FALCON,
    &gemmas::GEMMA,
    &gemmas::GEMMA2,
    &gemmas::GEMMA3,
    &older::GPT2,
    &older::GPTNEOX,
    &llamas::GRANITE,
    &llamas::LLAMA,
    &decoders::OLMO2,
    &decoders::PHI2,
    &decoders::PHI3,
    &decoders::QWEN2,
    &decoders::QWEN3,
    &llamas::SMOLLM3,
    &decoders::STABLELM,
    &decoders::STARCODER2,
];

const NAME: &str = "general.architecture";

/// The architecture of a file.
pub(super) fn find(header: &Header) -> Result<&'static Architecture, CheckpointError> {
    let Some(name) = header.text(NAME)? else {
        let expected = "the name of an architecture";
        return Err(
            GgufError::MissingKey { path: header.path.clone(), key: NAME.to_owned(), expected }.into()
        );
    };
    let found = ARCHITECTURES.iter().copied().find(|a| a.name == name && (a.when)(header));
    found.ok_or_else(|| {
        let mut read: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
        read.dedup();
        GgufError::Architecture { path: header.path.clone(), found: name.to_owned(), read: read.join(", ") }
            .into()
    })
}

pub(super) fn always(_: &Header) -> bool {
    true
}

pub(super) fn nothing(_: &mut Draft<'_>) -> Result<(), CheckpointError> {
    Ok(())
}

/// As Llama calls its sizes, and most do.
pub(super) const SIZES: Sizes = Sizes {
    hidden: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    kv_heads: Some("num_key_value_heads"),
    width: "intermediate_size",
    positions: "max_position_embeddings",
    norm: Epsilon::Rms("rms_norm_eps"),
};

/// Of architectures that may rotate a part of each head.
pub(super) const PART: Key = key(rope::SHARE, "partial_rotary_factor");

pub(super) const TOP: &[Module] = &[
    module("token_embd", "model.embed_tokens"),
    module("output_norm", "model.norm"),
    module("output", "lm_head"),
    changed("rope_freqs", "", How::NotRead),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn architectures_are_in_order_and_no_module_stands_twice() {
        assert!(ARCHITECTURES.is_sorted_by_key(|a| a.name));
        for architecture in ARCHITECTURES {
            for modules in [architecture.top, architecture.layer] {
                let names: BTreeSet<&str> = modules.iter().map(|m| m.gguf).collect();
                assert_eq!(names.len(), modules.len(), "{}", architecture.name);
            }
        }
    }
}
