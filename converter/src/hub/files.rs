//! Which files of a model are needed.

use super::error::HubError;
use super::name::HubModel;
use crate::checkpoint::{self, INDEX, SINGLE};
use crate::convert::manifest::{LICENCES, copied};
use dijiang_format::files;
use std::path::Path;

/// The files that a conversion reads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) texts: Vec<String>,
    /// What names the weight files, where there are several.
    pub(super) index: Option<String>,
    pub(super) weights: Vec<String>,
}

/// Of the files that a model has.
pub(super) fn wanted(model: &HubModel, siblings: &[String]) -> Result<Wanted, HubError> {
    let has = |name: &str| siblings.iter().any(|file| file == name);
    if let Some(file) = model.file() {
        if !has(file) {
            let hint = "its page lists its files".to_owned();
            return Err(HubError::NothingToRead {
                model: model.clone(),
                found: "there is no such file",
                hint,
            });
        }
        // What it says of itself stands in the file.
        let texts = LICENCES.into_iter().filter(|name| has(name)).map(str::to_owned).collect();
        return Ok(Wanted { texts, index: None, weights: vec![file.to_owned()] });
    }
    let texts = copied().filter(|name| has(name)).map(str::to_owned).collect();
    if !has(files::CONFIG) || !(has(SINGLE) || has(INDEX)) {
        return Err(without_safetensors(model, siblings));
    }
    let index = has(INDEX).then(|| INDEX.to_owned());
    let weights = if index.is_some() { Vec::new() } else { vec![SINGLE.to_owned()] };
    Ok(Wanted { texts, index, weights })
}

/// What a model has in place of safetensors, and what to do about it.
fn without_safetensors(model: &HubModel, siblings: &[String]) -> HubError {
    let first = |extension: &str| {
        let ends = |name: &&String| Path::new(name).extension().is_some_and(|e| e == extension);
        siblings.iter().find(ends)
    };
    let id = model.id();
    let (found, hint) = if let Some(gguf) = first("gguf") {
        ("it holds GGUF files", format!("name one of them: {model}/{gguf}"))
    } else if first("onnx").is_some() {
        ("it holds ONNX files", format!("`hf download {id} --local-dir DIR`, and then name the file in DIR"))
    } else if first("bin").is_some() || first("pth").is_some() {
        (
            "its weights are PyTorch pickles, which run code where they are read",
            "`save_pretrained` of transformers writes them as safetensors".to_owned(),
        )
    } else {
        ("it holds no config.json and safetensors", "name a model that was saved by transformers".to_owned())
    };
    HubError::NothingToRead { model: model.clone(), found, hint }
}

/// The weight files that an index names.
pub(super) fn named_by(index: &Path) -> Result<Vec<String>, HubError> {
    checkpoint::shard_names(index).map_err(|error| HubError::Index(Box::new(error)))
}

/// Whether a snapshot has all that is needed of a model but texts, which come first; its tokenizer if that is wanted.
pub(super) fn are_all_in(snapshot: &Path, model: &HubModel, wants_tokenizer: bool) -> bool {
    if let Some(file) = model.file() {
        return snapshot.join(file).is_file();
    }
    let has = |name: &str| snapshot.join(name).is_file();
    has(files::CONFIG) && (!wants_tokenizer || has(files::TOKENIZER)) && checkpoint::files(snapshot).is_ok()
}
