//! What serving needs to know of a bundle: which of its graphs a runtime can run.

use std::path::Path;

use serde::Deserialize;

use crate::error::RuntimeError;
use crate::serving::Engine;
use crate::session::Device;

const MANIFEST: &str = "dijiang.json";

/// The part of the manifest that is read here.
#[derive(Debug, Deserialize)]
pub(crate) struct ServedBundle {
    dtype: String,
    target: String,
    sites: Vec<Site>,
}

#[derive(Debug, Deserialize)]
struct Site {
    lowered: bool,
}

impl ServedBundle {
    pub(crate) fn read(bundle: &Path) -> Result<Self, RuntimeError> {
        let path = bundle.join(MANIFEST);
        let failed = |reason: String| RuntimeError::Bundle { path: path.clone(), reason };
        let bytes = std::fs::read(&path).map_err(|e| failed(e.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))
    }

    pub(crate) fn released_opsets_only(&self) -> bool {
        self.target != "onnx27"
    }

    /// The graph file. tract has no `LinearAttention`, and the CPU no bf16 arithmetic: these run the same model in
    /// standard operators and f32.
    pub(crate) fn graph(&self, engine: Engine, device: Device) -> &'static str {
        let without_bf16 = self.dtype == "bf16" && device == Device::Cpu;
        match engine {
            Engine::Ort | Engine::OrtBound if !without_bf16 => "model.onnx",
            _ if self.sites.iter().any(|site| site.lowered) => "chunked.onnx",
            _ => "softmax.onnx",
        }
    }
}
