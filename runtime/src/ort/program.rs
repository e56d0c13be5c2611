//! Graphs that work on memory of a device: every input and output is a tensor that was put there once, so that
//! a run moves nothing between host and device.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ort::memory::{Allocator, MemoryInfo};
use ort::session::{IoBinding, RunOptions};
use ort::value::{DynTensor, Shape, Tensor, TensorRefMut};
use ort::{AsPointer, ortsys, sys};

use crate::ort::runtime::{self, GraphSource, OrtRuntime, element_type, memory};
use crate::session::error::{RuntimeError, one_line};
use crate::session::tensor::HostTensor;
use crate::session::{Io, LoadOptions};
use dijiang_format::dtype::DType;
use dijiang_format::serving::Device;

/// A tensor on a device; clones are the same memory.
#[derive(Clone)]
pub struct DeviceTensor {
    value: Arc<Mutex<DynTensor>>,
    dtype: DType,
    shape: Vec<usize>,
    /// Whether the host can read and write it where it is.
    is_on_host: bool,
}

impl fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceTensor({} {:?})", self.dtype, self.shape)
    }
}

/// A tensor, or a part of one, as an input or an output: numbers that lie in a row, with a shape of their own.
struct View {
    value: NonNull<sys::OrtValue>,
    /// Keeps the memory.
    of: DeviceTensor,
}

// SAFETY: the runtime's values may be used and released from any thread.
unsafe impl Send for View {}

impl Drop for View {
    fn drop(&mut self) {
        ortsys![unsafe ReleaseValue(self.value.as_ptr())];
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View of {:?}", self.of)
    }
}

impl View {
    /// The numbers from `at` on.
    fn new(of: &DeviceTensor, at: usize, shape: &[usize]) -> Result<Self, String> {
        let (len, whole) = (shape.iter().product::<usize>(), of.shape.iter().product::<usize>());
        if at + len > whole {
            return Err(format!("{shape:?} from number {at} on does not lie in {:?}", of.shape));
        }
        let size = of.dtype.size();
        let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        let mut memory = of.value.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the part lies in the tensor, as was just checked.
        let begin = unsafe { memory.data_ptr_mut().cast::<u8>().add(at * size) };
        let info = memory.memory_info();
        let value = create_value(info, begin, &dims, of.dtype).map_err(|e| one_line(e.message()))?;
        drop(memory);
        let value = NonNull::new(value).ok_or("the runtime made no tensor")?;
        Ok(Self { value, of: of.clone() })
    }
}

fn create_value(
    info: &MemoryInfo<'_>,
    begin: *mut u8,
    dims: &[i64],
    dtype: DType,
) -> ort::Result<*mut sys::OrtValue> {
    let mut value = ptr::null_mut();
    let bytes = dims.iter().product::<i64>() as usize * dtype.size();
    ortsys![unsafe CreateTensorWithDataAsOrtValue(
        info.ptr(), begin.cast(), bytes, dims.as_ptr(), dims.len(), element_type(dtype).into(), &raw mut value
    )?];
    Ok(value)
}

/// A loaded graph, which several programs may run.
#[derive(Debug)]
struct Loaded {
    session: ort::session::Session,
    /// The last number of a recording.
    last_number: u32,
}

impl Loaded {
    fn next_number(&mut self) -> u32 {
        self.last_number += 1;
        self.last_number
    }
}

/// Whether a GPU replays runs. The number names the recording among those of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recording {
    Never,
    Wanted(u32),
    There(u32),
    /// It was tried in vain: runs go kernel by kernel.
    Failed,
}

/// How often a recording is tried.
const ATTEMPTS: usize = 2;

/// A loaded graph and the tensors it works on.
#[derive(Debug)]
pub struct Program {
    loaded: Arc<Mutex<Loaded>>,
    recording: Recording,
    binding: IoBinding,
    inputs: Vec<Io>,
    outputs: Vec<Io>,
    /// What the binding points to.
    bound: BTreeMap<String, View>,
    device: Device,
    model: PathBuf,
}

impl Program {
    /// Loads a graph. Nothing is bound yet.
    pub fn load(runtime: &OrtRuntime, model: &Path, options: &LoadOptions) -> Result<Self, RuntimeError> {
        Self::of(runtime, GraphSource::File(model), options)
    }

    /// The same of bytes that stand for a file.
    pub(crate) fn of(
        runtime: &OrtRuntime,
        graph: GraphSource<'_>,
        options: &LoadOptions,
    ) -> Result<Self, RuntimeError> {
        let session = runtime.session(graph, options)?;
        let model = graph.path();
        let failed = |reason: String| runtime::load_failed(model, reason);
        let binding = session.create_binding().map_err(|e| failed(one_line(e.message())))?;
        let inputs = runtime::declared(session.inputs()).map_err(failed)?;
        let outputs = runtime::declared(session.outputs()).map_err(failed)?;
        let device = options.device;
        Ok(Self {
            loaded: Arc::new(Mutex::new(Loaded { session, last_number: 1 })),
            recording: if options.records() { Recording::Wanted(1) } else { Recording::Never },
            binding,
            inputs,
            outputs,
            bound: BTreeMap::new(),
            device,
            model: model.to_path_buf(),
        })
    }

    /// The same graph for other tensors: loaded once, and nothing is bound.
    pub fn again(&self) -> Result<Self, RuntimeError> {
        let mut loaded = self.loaded();
        let number = loaded.next_number();
        let binding = loaded.session.create_binding().map_err(|e| self.failed(one_line(e.message())))?;
        Ok(Self {
            loaded: Arc::clone(&self.loaded),
            recording: match self.recording {
                Recording::Never => Recording::Never,
                _ => Recording::Wanted(number),
            },
            binding,
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            bound: BTreeMap::new(),
            device: self.device,
            model: self.model.clone(),
        })
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the first run makes a recording that later ones replay. It then runs several times, and what is bound must
    /// stay bound.
    pub fn is_recorded(&self) -> bool {
        self.recording != Recording::Never
    }

    pub fn inputs(&self) -> &[Io] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[Io] {
        &self.outputs
    }

    /// A tensor of zeros where the program computes.
    pub fn allocate(&self, dtype: DType, shape: &[usize]) -> Result<DeviceTensor, RuntimeError> {
        let value = self.allocated(dtype, shape).map_err(|reason| self.failed(reason))?;
        let is_on_host = value.memory_info().is_cpu_accessible();
        let tensor =
            DeviceTensor { value: Arc::new(Mutex::new(value)), dtype, shape: shape.to_vec(), is_on_host };
        // `ort` clears memory of the host only.
        if !is_on_host {
            tensor.clear()?;
        }
        Ok(tensor)
    }

    fn allocated(&self, dtype: DType, shape: &[usize]) -> Result<DynTensor, String> {
        let said = |e: ort::Error| one_line(e.message());
        let allocator = match self.device {
            Device::Cpu => Allocator::default(),
            Device::Cuda(_) => {
                let place: MemoryInfo<'static> = memory(self.device)?;
                Allocator::new(&self.loaded().session, place).map_err(said)?
            }
        };
        DynTensor::new(&allocator, element_type(copied_as(dtype)), shape).map_err(said)
    }

    /// A tensor of zeros for a declared input or output.
    pub fn allocate_like(&self, name: &str) -> Result<DeviceTensor, RuntimeError> {
        let io = self.io(name)?;
        let dims = io.shape.iter().map(|dim| match dim {
            crate::session::DimSpec::Fixed(n) => Ok(*n),
            crate::session::DimSpec::Dynamic(_) => {
                Err(self.failed(format!("`{name}` {} must have numbers for dims", io.shape_text())))
            }
        });
        let dims = dims.collect::<Result<Vec<usize>, _>>()?;
        self.allocate(io.dtype, &dims)
    }

    fn io(&self, name: &str) -> Result<&Io, RuntimeError> {
        let found = self.inputs.iter().chain(&self.outputs).find(|io| io.name == name);
        found.ok_or_else(|| self.failed(format!("it has no input or output `{name}`")))
    }

    /// Reads an input from a tensor from now on.
    pub fn bind_input(&mut self, name: &str, tensor: &DeviceTensor) -> Result<(), RuntimeError> {
        self.bind_input_part(name, tensor, 0, tensor.shape())
    }

    /// Reads an input from the numbers of a tensor from `at` on.
    pub fn bind_input_part(
        &mut self,
        name: &str,
        tensor: &DeviceTensor,
        at: usize,
        shape: &[usize],
    ) -> Result<(), RuntimeError> {
        let view = self.view(name, tensor, at, shape)?;
        self.bind(name, view, |binding, name, value| {
            ortsys![unsafe BindInput(binding, name, value)?];
            Ok(())
        })
    }

    /// Writes an output to a tensor from now on. It may be that of an input, where the graph reads the old
    /// value before it writes the new one.
    pub fn bind_output(&mut self, name: &str, tensor: &DeviceTensor) -> Result<(), RuntimeError> {
        self.bind_output_part(name, tensor, 0, tensor.shape())
    }

    /// Writes an output to the numbers of a tensor from `at` on.
    pub fn bind_output_part(
        &mut self,
        name: &str,
        tensor: &DeviceTensor,
        at: usize,
        shape: &[usize],
    ) -> Result<(), RuntimeError> {
        let view = self.view(name, tensor, at, shape)?;
        self.bind(name, view, |binding, name, value| {
            ortsys![unsafe BindOutput(binding, name, value)?];
            Ok(())
        })
    }

    fn view(
        &self,
        name: &str,
        tensor: &DeviceTensor,
        at: usize,
        shape: &[usize],
    ) -> Result<View, RuntimeError> {
        let declared = self.io(name)?.dtype;
        if declared != tensor.dtype {
            return Err(self.failed(format!("`{name}` is {declared}, not {}", tensor.dtype)));
        }
        View::new(tensor, at, shape).map_err(|reason| self.failed(format!("`{name}`: {reason}")))
    }

    /// `ort`'s own binding copies parts of tensors, so that is done on the runtime's interface.
    fn bind(
        &mut self,
        name: &str,
        view: View,
        how: fn(*mut sys::OrtIoBinding, *const std::ffi::c_char, *const sys::OrtValue) -> ort::Result<()>,
    ) -> Result<(), RuntimeError> {
        let c_name = CString::new(name).map_err(|e| self.failed(e.to_string()))?;
        how(self.binding.ptr_mut(), c_name.as_ptr(), view.value.as_ptr())
            .map_err(|e| self.failed(one_line(e.message())))?;
        self.bound.insert(name.to_owned(), view);
        Ok(())
    }

    /// Runs the graph on what is bound.
    pub fn run(&mut self) -> Result<(), RuntimeError> {
        match self.recording {
            Recording::Never => self.run_with(None),
            Recording::Wanted(number) => self.record(number),
            Recording::There(number) => self.run_with(Some(graph_id(&number))),
            Recording::Failed => self.run_with(Some(graph_id(&NOT_RECORDED))),
        }
    }

    /// The first run, and its recording. While one is made no memory may be asked for, so that it is tried again where
    /// a run before it has left the memory in other pieces than it needs.
    fn record(&mut self, mut number: u32) -> Result<(), RuntimeError> {
        for _ in 0..ATTEMPTS {
            self.run_with(Some(graph_id(&NOT_RECORDED)))?;
            match self.run_with(Some(graph_id(&number))) {
                Ok(()) => {
                    self.recording = Recording::There(number);
                    return Ok(());
                }
                Err(error) => tracing::info!("no recording was made: {error}"),
            }
            // What is left of one must not be taken for the next.
            number = self.loaded().next_number();
        }
        self.recording = Recording::Failed;
        self.run_with(Some(graph_id(&NOT_RECORDED)))
    }

    /// Runs the graph on what is bound, and gives the memory back that the run took for itself.
    pub fn run_and_release(&mut self) -> Result<(), RuntimeError> {
        let place = match self.device {
            Device::Cpu => "cpu:0".to_owned(),
            Device::Cuda(index) => format!("gpu:{index}"),
        };
        self.run_with(Some(("memory.enable_memory_arena_shrinkage", place)))
    }

    fn run_with(&mut self, option: Option<(&str, String)>) -> Result<(), RuntimeError> {
        let run = || {
            let mut options = RunOptions::new()?;
            if let Some((name, value)) = option {
                options.set(name, value)?;
            }
            let mut loaded = self.loaded();
            ortsys![unsafe RunWithBinding(loaded.session.ptr_mut(), options.ptr(), self.binding.ptr())?];
            Ok(())
        };
        run().map_err(|e: ort::Error| self.failed(one_line(e.message())))
    }

    fn failed(&self, reason: String) -> RuntimeError {
        runtime::run_failed(&self.model, reason)
    }
}

/// The number of no recording.
const NOT_RECORDED: i32 = -1;

fn graph_id(number: &dyn fmt::Display) -> (&'static str, String) {
    ("gpu_graph_id", number.to_string())
}

impl DeviceTensor {
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether both are the same memory.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.value, &other.value)
    }

    /// Makes it zeros.
    pub fn clear(&self) -> Result<(), RuntimeError> {
        let bytes = self.shape.iter().product::<usize>() * self.dtype.size();
        if self.is_on_host || bytes <= PIECE || !bytes.is_multiple_of(size_of::<f32>()) {
            return self.write(&HostTensor::zeros(self.dtype, &self.shape)?);
        }
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        clear_pieces(&mut value, bytes, PIECE).map_err(|e| copy_failed(one_line(e.message())))
    }

    /// Puts numbers there.
    pub fn write(&self, from: &HostTensor) -> Result<(), RuntimeError> {
        if (from.dtype(), from.shape()) != (self.dtype, self.shape.as_slice()) {
            let (found, want) = ((from.dtype(), from.shape()), (self.dtype, &self.shape));
            return Err(copy_failed(format!("a tensor {found:?} does not fit {want:?}")));
        }
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_on_host {
            let target = value.data_ptr_mut().cast::<u8>();
            // SAFETY: the tensor lies in host memory, holds as many bytes as `from` of the same dtype and shape, and
            // the lock keeps others away; a run that reads it is not under way, as `run` returns when it is done.
            unsafe { target.copy_from_nonoverlapping(from.bytes().as_ptr(), from.byte_len()) };
            return Ok(());
        }
        let bytes = HostTensor::new(copied_as(self.dtype), self.shape.clone(), from.bytes().to_vec())?;
        let host = runtime::to_ort(&bytes).map_err(copy_failed)?;
        host.copy_into(&mut *value).map_err(|e| copy_failed(one_line(e.message())))
    }

    /// What is there now.
    pub fn read(&self) -> Result<HostTensor, RuntimeError> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        runtime::tensor_from_ort(&value, self.dtype, self.shape.clone()).map_err(copy_failed)
    }
}

/// Bytes that are cleared at a time. A copy takes as much memory of the device again.
const PIECE: usize = 16 << 20;

/// Zeros are the same in every type. They come from the host, piece by piece: `ort` copies a part of a tensor only to
/// where it is told, and locks itself out where it is told to copy from one.
fn clear_pieces(value: &mut DynTensor, bytes: usize, piece: usize) -> ort::Result<()> {
    let begin = value.data_ptr_mut().cast::<u8>();
    let numbers = piece / size_of::<f32>();
    let zeros = Tensor::from_array(([numbers], vec![0f32; numbers]))?;
    for at in (0..bytes).step_by(piece) {
        let info = value.memory_info().to_owned();
        let shape = Shape::new([numbers as i64]);
        // The last one may overlap the one before.
        let at = at.min(bytes - piece);
        // SAFETY: the part lies in the tensor, whose memory the caller keeps from others.
        let part = unsafe { TensorRefMut::<f32>::from_raw(info, begin.add(at).cast(), shape) }?;
        zeros.copy_into(part)?;
    }
    Ok(())
}

/// `ort` copies no bf16 between host and device, but what is as wide.
fn copied_as(dtype: DType) -> DType {
    match dtype {
        DType::BF16 => DType::F16,
        other => other,
    }
}

fn copy_failed(reason: String) -> RuntimeError {
    RuntimeError::Copy { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_zeros_to_the_last_number() {
        match OrtRuntime::new() {
            Ok(_) => {}
            Err(e) if std::env::var("DIJIANG_REQUIRE_ORT").is_ok_and(|v| v == "1") => panic!("{e}"),
            Err(_) => return,
        }
        for count in [4, 8, 10] {
            let ones = HostTensor::from_f32(&[count], &vec![1.0; count]).expect("a tensor");
            let mut value = runtime::to_ort(&ones).expect("a tensor of the runtime");
            clear_pieces(&mut value, ones.byte_len(), 4 * size_of::<f32>()).expect("copies");
            let found = runtime::from_ort(&value.into_dyn()).expect("a tensor").to_f32();
            assert_eq!(found.expect("floats"), vec![0.0; count]);
        }
    }
}
