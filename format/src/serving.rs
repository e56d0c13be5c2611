//! Which graph of a bundle serves where.

use crate::dtype::DType;
use crate::files;
use crate::manifest::Manifest;
use std::fmt;
use std::str::FromStr;

/// What runs the graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// ONNX Runtime.
    #[default]
    Ort,
    /// ONNX Runtime over `prefill.onnx` and `decode.onnx`, with weights and state bound once; what a GPU gets
    /// where the bundle has these graphs.
    OrtBound,
    /// tract, on the CPU only.
    Tract,
}

/// Where a graph computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its index.
    Cuda(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// The text names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device `{0}`; use cpu, cuda or cuda:N")]
pub struct UnknownDevice(pub String);

impl FromStr for Device {
    type Err = UnknownDevice;

    /// Reads `cpu`, `cuda` (the first GPU) or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownDevice(text.to_owned());
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl Manifest {
    /// The file of the graph that an engine steps through a text on a device. tract has no `LinearAttention`, and the
    /// CPU no bf16 arithmetic: these run the same model in standard operators and f32. [`Engine::OrtBound`] steps
    /// through `prefill.onnx` and `decode.onnx` as well, which are over the weights of this graph.
    pub fn serving_graph(&self, engine: Engine, device: Device) -> &'static str {
        let without_bf16 = self.dtype == DType::BF16 && device == Device::Cpu;
        match engine {
            Engine::Ort | Engine::OrtBound if !without_bf16 => files::MODEL,
            _ => self.plain_graph(),
        }
    }

    /// The file of the served model in standard operators and f32.
    pub fn plain_graph(&self) -> &'static str {
        match self.sites.iter().any(|site| site.lowered) {
            true => files::CHUNKED,
            false => files::SOFTMAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest_of;

    #[test]
    fn devices_read_back_as_they_are_printed() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        let error = "cuda:x".parse::<Device>().expect_err("it is no device");
        assert_eq!(error.to_string(), "unknown device `cuda:x`; use cpu, cuda or cuda:N");
    }

    #[test]
    fn what_has_no_operator_for_a_graph_gets_the_plain_one() {
        let graph =
            |dtype, lowered, engine, device| manifest_of(dtype, lowered).serving_graph(engine, device);
        let cuda = Device::Cuda(0);
        assert_eq!(graph(DType::F32, true, Engine::Ort, Device::Cpu), "model.onnx");
        assert_eq!(graph(DType::F32, true, Engine::Tract, Device::Cpu), "chunked.onnx");
        assert_eq!(graph(DType::F32, false, Engine::Tract, Device::Cpu), "softmax.onnx");
        assert_eq!(graph(DType::BF16, true, Engine::Ort, Device::Cpu), "chunked.onnx");
        assert_eq!(graph(DType::BF16, true, Engine::OrtBound, cuda), "model.onnx");
    }
}
