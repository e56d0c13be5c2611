//! What can go wrong with a model of the hub.

use super::name::HubModel;
use crate::checkpoint::CheckpointError;
use dijiang_format::manifest::ManifestError;
use hf_hub::api::sync::ApiError;
use std::io;
use std::path::PathBuf;

/// A model of the hub cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "{model}: nothing lies at this path, and the cache does not hold a model of the hub of this name (cache: {}; hint: leave --offline and HF_HUB_OFFLINE out to download it)",
        cache.display()
    )]
    Offline { model: HubModel, cache: PathBuf },
    #[error(
        "{model}: nothing lies at this path, and {endpoint} cannot be reached for a model of this name: {reason} (hint: check the path, or download elsewhere with `hf download {} --local-dir DIR` and name DIR)",
        model.id()
    )]
    Unreachable { model: HubModel, endpoint: String, reason: String },
    #[error(
        "{model}: nothing lies at this path, and {endpoint} has no such model, revision or file (HTTP {status}; hint: check the name; a private model needs HF_TOKEN)"
    )]
    Unknown { model: HubModel, endpoint: String, status: u16 },
    #[error(
        "{model}: {endpoint} refuses it (HTTP {status}; hint: check the name; a private or gated model needs its terms accepted on its page, and a token in HF_TOKEN)"
    )]
    Refused { model: HubModel, endpoint: String, status: u16 },
    #[error(
        "{model}: {endpoint} calls a commit or a file `{name}`, expected letters and digits: nothing was written (hint: is HF_ENDPOINT a hub that you trust?)"
    )]
    Name { model: HubModel, endpoint: String, name: String },
    #[error("{model}: another process downloads it (hint: run the same command again when that one is done)")]
    Busy { model: HubModel },
    #[error(
        "{model}: the download broke off: {reason} (hint: what has come is kept; the same command goes on from there)"
    )]
    Broken { model: HubModel, reason: String },
    #[error("{model}: {found} (hint: {hint})")]
    NothingToRead { model: HubModel, found: &'static str, hint: String },
    #[error(
        "{model}: its weights take {} MB, and {} MB are free at {} (hint: HF_HOME names another place)",
        bytes.div_ceil(1_000_000), free / 1_000_000, cache.display()
    )]
    NoRoom { model: HubModel, cache: PathBuf, bytes: u64, free: u64 },
    #[error(
        "{}: its SHA-256 is {found}, where the hub says {expected}; it was removed (hint: run the same command again)",
        path.display()
    )]
    Damaged { path: PathBuf, expected: String, found: String },
    #[error("{}: {source} (hint: HF_HOME names another place for the cache)", path.display())]
    Cache { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Digest(#[from] ManifestError),
    #[error(transparent)]
    Index(Box<CheckpointError>),
}

impl HubError {
    /// Of a call to the hub.
    pub(super) fn of_call(model: &HubModel, endpoint: &str, error: ApiError) -> Self {
        let (model, endpoint) = (model.clone(), endpoint.to_owned());
        match error {
            ApiError::LockAcquisition(_) => Self::Busy { model },
            ApiError::TooManyRetries(last) => Self::Broken { model, reason: last.to_string() },
            ApiError::RequestError(call) => match *call {
                ureq::Error::StatusCode(status @ 404) => Self::Unknown { model, endpoint, status },
                ureq::Error::StatusCode(status @ (401 | 403)) => Self::Refused { model, endpoint, status },
                other => Self::Unreachable { model, endpoint, reason: other.to_string() },
            },
            other => Self::Broken { model, reason: other.to_string() },
        }
    }
}

/// What a server answered that was no answer.
pub(super) fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(call) => match **call {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}
