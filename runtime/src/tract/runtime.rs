//! tract behind the [`Runtime`] trait: a second, independent implementation to check ONNX Runtime against.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use tract_onnx::pb;
use tract_onnx::prelude::*;

use crate::session::error::{RuntimeError, one_line};
use crate::session::tensor::HostTensor;
use crate::session::wiring::{Link, Wiring};
use crate::session::{Io, LoadOptions, Runtime, Session, check_inputs};
use crate::tract::types::{declared, from_tract, to_tract};
use dijiang_format::dtype::DType;
use dijiang_format::serving::Device;

const NAME: &str = "tract";

/// Prepared plans kept per session; a decoder alternates between a few shapes.
const PLANS: usize = 8;

/// tract's messages carry whole nodes; beyond this they only bury the cause.
const LONGEST_REASON: usize = 800;

/// tract, built into this program. It computes on one thread of the processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct TractRuntime;

impl Runtime for TractRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        // The dependency is pinned to this version.
        "0.23.9".to_owned()
    }

    /// Parses the model. Operators are checked against tract's list here; everything that depends on shapes, such as
    /// a dtype an operator cannot compute, is an error of the first run with those shapes.
    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, RuntimeError> {
        if options.device != Device::Cpu {
            return Err(RuntimeError::Device {
                runtime: NAME,
                device: options.device,
                reason: "it computes on the processor only".to_owned(),
                hint: "use --device cpu or --runtime ort",
            });
        }
        let session = guarded(|| parse(model, options.optimize)).map_err(|reason| RuntimeError::Load {
            runtime: NAME,
            model: model.to_path_buf(),
            reason,
        })?;
        Ok(Box::new(session))
    }
}

fn parse(model: &Path, optimize: bool) -> Result<TractSession, String> {
    // The symbols of recorded intermediate shapes contradict the fixed shapes that a run brings.
    let onnx = tract_onnx::onnx().with_ignore_value_info(true);
    let proto = onnx.proto_model_for_path(model).map_err(reason)?;
    let graph = proto.graph.as_ref().ok_or("the file holds no graph; is it an ONNX model?")?;
    check_operators(&onnx, graph)?;
    let initialized = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let fed = graph.input.iter().filter(|input| !initialized(&input.name));
    let inputs: Vec<Io> = fed.map(declared).collect::<Result<_, _>>()?;
    let outputs = graph.output.iter().map(declared).collect::<Result<_, _>>()?;
    let dir = model.parent().and_then(Path::to_str);
    let parsed = onnx.parse(&proto, dir).map_err(reason)?.model;
    Ok(TractSession {
        path: model.to_path_buf(),
        parsed,
        wiring: Wiring::none(&inputs),
        inputs,
        outputs,
        optimize,
        plans: Vec::new(),
        carried: Vec::new(),
    })
}

fn check_operators(onnx: &tract_onnx::Onnx, graph: &pb::GraphProto) -> Result<(), String> {
    // tract looks operators up by bare name, so another domain's operator must not pass for a standard one.
    let standard = |node: &pb::NodeProto| matches!(node.domain.as_str(), "" | "ai.onnx");
    let known = |node: &pb::NodeProto| standard(node) && onnx.op_register.0.contains_key(&node.op_type);
    match graph.node.iter().find(|node| !known(node)) {
        None => Ok(()),
        Some(node) => {
            let domain = if node.domain.is_empty() { "ai.onnx" } else { &node.domain };
            Err(format!(
                "node `{}` is {domain}::{}, which tract does not have; convert with --target portable, or use --runtime ort",
                node.name, node.op_type
            ))
        }
    }
}

type Plan = Arc<TypedRunnableModel>;

#[derive(Debug)]
struct TractSession {
    path: PathBuf,
    parsed: InferenceModel,
    inputs: Vec<Io>,
    outputs: Vec<Io>,
    optimize: bool,
    /// Most recently used first.
    plans: Vec<(Vec<Vec<usize>>, Plan)>,
    wiring: Wiring,
    /// In the order of the links.
    carried: Vec<TValue>,
}

impl Session for TractSession {
    fn inputs(&self) -> &[Io] {
        &self.inputs
    }

    fn outputs(&self) -> &[Io] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, &HostTensor)]) -> Result<Vec<HostTensor>, RuntimeError> {
        let tensors = check_inputs(&self.wiring.open_inputs, inputs)?;
        guarded(|| self.run_checked(&tensors)).map_err(|reason| self.failed(reason))
    }

    fn carry(&mut self, links: &[Link], initial: &[HostTensor]) -> Result<(), RuntimeError> {
        let wiring = Wiring::new(&self.inputs, &self.outputs, links, initial)?;
        let carried =
            initial.iter().map(|tensor| Ok(to_tract(tensor)?.into_tvalue())).collect::<Result<_, _>>();
        self.carried = carried.map_err(|reason| self.failed(reason))?;
        self.wiring = wiring;
        Ok(())
    }

    fn carried(&self) -> Result<Vec<HostTensor>, RuntimeError> {
        let dtypes = self.wiring.links.iter().map(|link| self.inputs[link.input].dtype);
        let tensors = self.carried.iter().zip(dtypes).map(|(value, dtype)| from_tract(value, dtype));
        tensors.collect::<Result<_, _>>().map_err(|reason| self.failed(reason))
    }

    fn carried_bytes(&self) -> usize {
        self.carried.iter().map(|value| value.as_bytes().len()).sum()
    }
}

impl TractSession {
    fn failed(&self, reason: String) -> RuntimeError {
        RuntimeError::Run { runtime: NAME, model: self.path.clone(), reason }
    }

    fn run_checked(&mut self, tensors: &[&HostTensor]) -> Result<Vec<HostTensor>, String> {
        let given = tensors.iter().map(|tensor| Ok(to_tract(tensor)?.into_tvalue()));
        let feeds = self.wiring.merge(given.collect::<Result<_, String>>()?, self.carried.clone());
        let plan = self.plan(&feeds)?;
        let values = plan.run(feeds.into()).map_err(reason)?.into_vec();
        let dtypes: Vec<DType> = self.outputs.iter().map(|io| io.dtype).collect();
        let (open, carried) = self.wiring.split(values.into_iter().zip(dtypes).collect());
        let open = open.iter().map(|(value, dtype)| from_tract(value, *dtype)).collect::<Result<_, _>>()?;
        self.carried = carried.into_iter().map(|(value, _)| value).collect();
        Ok(open)
    }

    /// The plan for these input shapes, prepared on first use.
    fn plan(&mut self, feeds: &[TValue]) -> Result<Plan, String> {
        let shapes: Vec<Vec<usize>> = feeds.iter().map(|tensor| tensor.shape().to_vec()).collect();
        let known = self.plans.iter().position(|(known, _)| *known == shapes);
        let entry = if let Some(position) = known {
            self.plans.remove(position)
        } else {
            let plan = self.prepare(feeds)?;
            tracing::debug!(model = %self.path.display(), ?shapes, "prepared a plan");
            (shapes, plan)
        };
        self.plans.truncate(PLANS - 1);
        let plan = Arc::clone(&entry.1);
        self.plans.insert(0, entry);
        Ok(plan)
    }

    fn prepare(&self, feeds: &[TValue]) -> Result<Plan, String> {
        let mut model = self.parsed.clone();
        for (i, tensor) in feeds.iter().enumerate() {
            let fact = InferenceFact::dt_shape(tensor.datum_type(), tensor.shape());
            model.set_input_fact(i, fact).map_err(reason)?;
        }
        let typed = if self.optimize { model.into_optimized() } else { model.into_typed() };
        typed.and_then(TypedModel::into_runnable).map_err(reason)
    }
}

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the panics of guarded work off stderr, as their text is returned; all others are shown as before.
fn silence_guarded() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                before(info);
            }
        }));
    });
}

/// Turns a panic into an error: tract indexes out of bounds where an id lies outside a table, for one.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    silence_guarded();
    IS_GUARDED.set(true);
    // Nothing half-done is seen afterwards: a session changes only by whole plans moving in and out of its list.
    let done = std::panic::catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(false);
    done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("it panicked: {}", one_line(text)))
    })
}

/// A whole error chain in one line of bearable length.
fn reason(error: impl std::fmt::Display) -> String {
    let mut text = one_line(format!("{error:#}"));
    if let Some((cut, _)) = text.char_indices().nth(LONGEST_REASON) {
        text.truncate(cut);
        text.push('…');
    }
    text
}
