//! `generation_config.json`: the ids that begin, end and pad a text. transformers reads them there first, and in
//! `config.json` where that says nothing.

use super::ModelMeta;
use super::config::Config;
use super::error::CheckpointError;
use std::path::Path;

const FILE: &str = "generation_config.json";

/// Puts the ids of the file in `dir`, where there is one, in place of the config's.
pub(crate) fn take_tokens(dir: &Path, meta: &mut ModelMeta) -> Result<(), CheckpointError> {
    let path = dir.join(FILE);
    if !path.exists() {
        return Ok(());
    }
    let config = Config::read(&path)?;
    let eos = config.tokens("eos_token_id")?;
    if !eos.is_empty() {
        meta.eos = eos;
    }
    meta.bos = config.token("bos_token_id")?.or(meta.bos);
    meta.pad = config.token("pad_token_id")?.or(meta.pad);
    Ok(())
}
