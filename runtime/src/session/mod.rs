//! What a runtime is, seen from outside: it loads a model file and runs it on named host tensors. ONNX Runtime is in
//! `ort`, tract in `tract`.

pub(crate) mod error;
pub(crate) mod tensor;
pub(crate) mod wiring;

use std::fmt::Debug;
use std::path::Path;

use crate::session::error::RuntimeError;
use crate::session::tensor::HostTensor;
use crate::session::wiring::Link;
use dijiang_format::dtype::DType;
use dijiang_format::serving::Device;

/// One dimension of a declared input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DimSpec {
    /// Always this many.
    Fixed(usize),
    /// Known only when the model runs; the name, where the model gives one.
    Dynamic(Option<String>),
}

impl std::fmt::Display for DimSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DimSpec::Fixed(n) => write!(f, "{n}"),
            DimSpec::Dynamic(Some(name)) => f.write_str(name),
            DimSpec::Dynamic(None) => f.write_str("?"),
        }
    }
}

/// A declared input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Io {
    /// Its name in the graph.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its declared shape.
    pub shape: Vec<DimSpec>,
}

impl Io {
    /// The declared shape as text, such as `[batch, ?, 64]`.
    pub fn shape_text(&self) -> String {
        let dims: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        format!("[{}]", dims.join(", "))
    }
}

/// What f32 factors of a product are on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Factors {
    /// Rounded to the ten bits of a mantissa that TF32 has, several times as fast.
    #[default]
    Tf32,
    /// All of them.
    Whole,
}

/// How to load a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Threads inside one operator; the runtime's own choice when absent.
    pub threads: Option<usize>,
    /// Where to compute.
    pub device: Device,
    /// Whether the runtime may rewrite the graph and plan a run's memory as one block once it has seen a run; off, it
    /// runs the graph as written and takes memory as it goes. The block comes on top of what the first run took, so
    /// graphs that fill a device are better off without.
    pub optimize: bool,
    /// Whether to refuse opsets that the runtime does not call released yet.
    pub released_opsets_only: bool,
    /// Where ONNX Runtime writes how long each node took: a file whose name begins so.
    pub profile: Option<std::path::PathBuf>,
    /// Numbers for open dimensions by their names: ONNX Runtime then computes shapes at load.
    pub dims: Vec<(String, usize)>,
    /// How many states of a head a call steps, over all rows: ONNX Runtime's `LinearAttention` cuts its work by it on a
    /// GPU. Its own choice when absent.
    pub states: Option<usize>,
    /// On a GPU: records the kernels of the first runs and launches them all at once afterwards. For graphs of one
    /// shape whose inputs and outputs stay where they are ([`crate::Program`]), without control flow.
    pub cuda_graph: bool,
    /// What f32 factors of a product are on a GPU.
    pub factors: Factors,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            threads: None,
            device: Device::Cpu,
            optimize: true,
            released_opsets_only: true,
            profile: None,
            dims: Vec::new(),
            states: None,
            cuda_graph: false,
            factors: Factors::default(),
        }
    }
}

impl LoadOptions {
    /// Whether runs are recorded.
    pub(crate) fn records(&self) -> bool {
        self.cuda_graph && self.device != Device::Cpu
    }

    /// The same with the profile of a model in a directory, under the model's own name.
    #[must_use]
    pub fn profiled(self, directory: Option<&Path>, model: &Path) -> Self {
        let profile = directory.zip(model.file_stem()).map(|(directory, stem)| directory.join(stem));
        Self { profile, ..self }
    }
}

/// Something that loads ONNX models.
pub trait Runtime: Debug + Send + Sync {
    /// A short name for messages and reports.
    fn name(&self) -> &'static str;

    /// The runtime's own version.
    fn version(&self) -> String;

    /// Loads a model file together with the external data beside it.
    ///
    /// An error when the file cannot be read or parsed, when an operator is not known, or when the device cannot be
    /// used: there is no silent move to another device.
    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, RuntimeError>;
}

/// A loaded model.
pub trait Session: Debug + Send {
    /// Declared inputs, in the graph's order.
    fn inputs(&self) -> &[Io];

    /// Declared outputs, in the graph's order.
    fn outputs(&self) -> &[Io];

    /// Runs the model once and returns its outputs in the order of [`Session::outputs`].
    ///
    /// Every declared input is given once, in any order. Names, dtypes, ranks and fixed dimensions are checked before
    /// the runtime sees them, so the errors are the same for every runtime.
    fn run(&mut self, inputs: &[(&str, &HostTensor)]) -> Result<Vec<HostTensor>, RuntimeError>;

    /// Keeps some outputs inside the session, where each becomes an input of the next run; they never pass through
    /// host memory. Each link starts from its tensor in `initial`.
    ///
    /// From here on [`Session::run`] neither takes the linked inputs nor returns the linked outputs. A new call
    /// replaces all links; one without links ends this. A run that fails leaves what is carried as it was.
    fn carry(&mut self, links: &[Link], initial: &[HostTensor]) -> Result<(), RuntimeError>;

    /// A copy of what is carried now, in the order of the links.
    fn carried(&self) -> Result<Vec<HostTensor>, RuntimeError>;

    /// Bytes of what is carried now, by the shapes the tensors have, whatever the model declares.
    fn carried_bytes(&self) -> usize;
}

/// Checks what a caller gives against what the model declares, and returns it in the model's order.
pub(crate) fn check_inputs<'t>(
    declared: &[Io],
    given: &[(&str, &'t HostTensor)],
) -> Result<Vec<&'t HostTensor>, RuntimeError> {
    for (i, (name, _)) in given.iter().enumerate() {
        if !declared.iter().any(|io| io.name == *name) {
            return Err(RuntimeError::UnknownInput { name: (*name).to_owned(), known: names(declared) });
        }
        if given[..i].iter().any(|(earlier, _)| earlier == name) {
            return Err(RuntimeError::RepeatedInput { name: (*name).to_owned() });
        }
    }
    declared.iter().map(|io| check_input(declared, io, given)).collect()
}

fn check_input<'t>(
    declared: &[Io],
    io: &Io,
    given: &[(&str, &'t HostTensor)],
) -> Result<&'t HostTensor, RuntimeError> {
    let name = io.name.clone();
    let Some((_, tensor)) = given.iter().find(|(given, _)| *given == io.name) else {
        return Err(RuntimeError::MissingInput { name, known: names(declared) });
    };
    if tensor.dtype() != io.dtype {
        return Err(RuntimeError::InputDtype { name, expected: io.dtype, found: tensor.dtype() });
    }
    if !shape_fits(&io.shape, tensor.shape()) {
        return Err(RuntimeError::InputShape {
            name,
            expected: io.shape_text(),
            found: tensor.shape().to_vec(),
        });
    }
    Ok(tensor)
}

pub(crate) fn shape_fits(declared: &[DimSpec], found: &[usize]) -> bool {
    let fits = |(spec, &dim): (&DimSpec, &usize)| match spec {
        DimSpec::Fixed(n) => *n == dim,
        DimSpec::Dynamic(_) => true,
    };
    declared.len() == found.len() && declared.iter().zip(found).all(fits)
}

fn names(ios: &[Io]) -> String {
    if ios.is_empty() {
        return "none".to_owned();
    }
    ios.iter().map(|io| format!("`{}`", io.name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared() -> Vec<Io> {
        let ids = vec![DimSpec::Dynamic(Some("batch".to_owned())), DimSpec::Dynamic(None)];
        let state = vec![DimSpec::Dynamic(None), DimSpec::Fixed(2)];
        vec![
            Io { name: "ids".to_owned(), dtype: DType::I64, shape: ids },
            Io { name: "state".to_owned(), dtype: DType::F32, shape: state },
        ]
    }

    fn message(given: &[(&str, &HostTensor)]) -> String {
        check_inputs(&declared(), given).unwrap_err().to_string()
    }

    #[test]
    fn inputs_come_back_in_the_order_of_the_model() {
        let ids = HostTensor::from_i64(&[1, 3], &[1, 2, 3]).unwrap();
        let state = HostTensor::zeros(DType::F32, &[1, 2]).unwrap();
        let checked = check_inputs(&declared(), &[("state", &state), ("ids", &ids)]).unwrap();
        assert_eq!(checked, [&ids, &state]);
    }

    #[test]
    fn every_wrong_input_has_its_own_line() {
        let ids = HostTensor::from_i64(&[1, 3], &[1, 2, 3]).unwrap();
        let state = HostTensor::zeros(DType::F32, &[1, 2]).unwrap();
        let wide = HostTensor::zeros(DType::F32, &[1, 3]).unwrap();
        let flat = HostTensor::zeros(DType::F32, &[2]).unwrap();
        assert_eq!(message(&[("ids", &ids)]), "input `state` is missing; the model takes `ids`, `state`");
        assert_eq!(message(&[("id", &ids)]), "the model has no input `id`; it takes `ids`, `state`");
        assert_eq!(
            message(&[("ids", &ids), ("ids", &ids)]),
            "input `ids` is given twice; give each input once"
        );
        assert_eq!(message(&[("ids", &state), ("state", &state)]), "input `ids` is f32, the model takes i64");
        assert_eq!(
            message(&[("ids", &ids), ("state", &wide)]),
            "input `state` has shape [1, 3], the model takes [?, 2]"
        );
        assert_eq!(
            message(&[("ids", &ids), ("state", &flat)]),
            "input `state` has shape [2], the model takes [?, 2]"
        );
    }

    #[test]
    fn devices_read_back_as_they_print() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert!("cuda:x".parse::<Device>().is_err());
        assert!("tpu".parse::<Device>().is_err());
    }
}
