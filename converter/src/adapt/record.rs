//! What of a run is done, in the bundle's directory `train`: the same call goes on after it.

use super::AdaptError;
use crate::bundle::replace::replace_file;
use crate::train::calibrate::Calibrated;
use crate::train::finetune::{self, Finetuned};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FILE: &str = "adapt.json";

/// What a part of the training gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    pub steps: usize,
    pub tokens: usize,
    pub seconds: f64,
    /// Of what is validated on.
    pub perplexity_before: f64,
    pub perplexity: f64,
}

impl From<&Calibrated> for Trained {
    fn from(done: &Calibrated) -> Self {
        Self {
            steps: done.steps,
            tokens: done.tokens,
            seconds: done.seconds,
            perplexity_before: done.valid_perplexity_before,
            perplexity: done.valid_perplexity,
        }
    }
}

impl From<&Finetuned> for Trained {
    fn from(done: &Finetuned) -> Self {
        Self {
            steps: done.steps,
            tokens: done.tokens,
            seconds: done.seconds,
            perplexity_before: done.valid_perplexity_before,
            perplexity: done.valid_perplexity,
        }
    }
}

/// A figure of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub task: String,
    pub metric: String,
    pub value: f64,
    pub standard_error: Option<f64>,
    pub n: usize,
}

/// What is done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What the call said that changes what comes of it.
    pub asked: BTreeMap<String, String>,
    /// Steps of calibration, as they were foretold.
    #[serde(default)]
    pub calibrate_steps: Option<usize>,
    /// The perplexity of the model with softmax, untrained.
    pub softmax_perplexity: Option<f64>,
    /// And its figures.
    pub softmax_tasks: Option<Vec<Figure>>,
    pub calibrated: Option<Trained>,
    /// Steps of fine-tuning, settled when it begins.
    pub finetune_steps: Option<usize>,
    pub finetuned: Option<Trained>,
    pub tasks: Option<Vec<Figure>>,
    /// Whether every check of the proof held.
    pub verified: Option<bool>,
}

impl Record {
    pub(super) fn path(bundle: &Path) -> PathBuf {
        bundle.join(finetune::DIR).join(FILE)
    }

    /// Of a bundle that [`super::adapt`] made.
    pub(super) fn read(bundle: &Path) -> Result<Option<Self>, AdaptError> {
        let path = Self::path(bundle);
        match std::fs::read(&path) {
            Ok(text) => {
                Ok(Some(serde_json::from_slice(&text).map_err(|source| AdaptError::Record { path, source })?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AdaptError::Io { path, source }),
        }
    }

    pub(super) fn write(&self, bundle: &Path) -> Result<(), AdaptError> {
        let path = Self::path(bundle);
        let io = |source| AdaptError::Io { path: path.clone(), source };
        std::fs::create_dir_all(bundle.join(finetune::DIR)).map_err(io)?;
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::from).map_err(io)?;
        replace_file(&path, text.as_bytes()).map_err(io)
    }

    /// What of two calls differs: the option, what it was and what it is.
    pub(super) fn difference(&self, asked: &BTreeMap<String, String>) -> Option<(String, String, String)> {
        let names = self.asked.keys().chain(asked.keys());
        let of = |map: &BTreeMap<String, String>, name: &str| {
            map.get(name).cloned().unwrap_or_else(|| super::NONE.to_owned())
        };
        let mut differing = names.map(|name| (name.clone(), of(&self.asked, name), of(asked, name)));
        differing.find(|(_, was, is)| was != is)
    }
}
