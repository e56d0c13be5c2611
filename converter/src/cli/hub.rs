//! Sources that are named as models of the Hugging Face hub.

use super::Failure;
use super::bar::Bar;
use crate::hub::{Hub, HubError, HubModel};
use std::path::{Path, PathBuf};

/// What a call says of the hub.
#[derive(Debug, clap::Args)]
pub(super) struct HubArgs {
    /// Download nothing: a model of the Hugging Face hub comes from the cache ($HF_HOME), or not at all
    #[arg(long)]
    offline: bool,
}

impl HubArgs {
    /// Where a source lies, which is downloaded where it is a model of the hub that the cache does not hold.
    pub(super) fn located(&self, source: &Path) -> Result<PathBuf, Failure> {
        match HubModel::named_by(source) {
            None => Ok(source.to_owned()),
            Some(model) => Ok(self.located_model(&model)?),
        }
    }

    /// Where a model lies in the cache, which it is downloaded into.
    pub(super) fn located_model(&self, model: &HubModel) -> Result<PathBuf, HubError> {
        Hub::of_environment(self.offline).locate(model, &mut Bar::new())
    }

    /// Where it lies, if it is in the cache.
    pub(super) fn in_the_cache(model: &HubModel) -> Option<PathBuf> {
        Hub::of_environment(true).find(model)
    }
}
