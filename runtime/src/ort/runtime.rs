//! ONNX Runtime behind the [`Runtime`] trait.

use std::path::{Path, PathBuf};

use ort::ep;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::IoBinding;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{
    DynTensor, DynTensorValueType, DynValue, Outlet, TensorElementType, Value, ValueType, ValueTypeMarker,
};

use crate::ort::cuda_libraries;
use crate::ort::library::{self, Library, library};
use crate::ort::load_environment;
use crate::session::error::{RuntimeError, one_line};
use crate::session::tensor::{HostTensor, byte_len};
use crate::session::wiring::{Link, Wiring};
use crate::session::{DimSpec, Factors, Io, LoadOptions, Runtime, Session, check_inputs};
use dijiang_format::dtype::DType;
use dijiang_format::serving::Device;

const NAME: &str = "onnxruntime";

/// ONNX Runtime, loaded from a shared library that is found when the program runs.
#[derive(Clone, Debug)]
pub struct OrtRuntime {
    library: Library,
}

impl OrtRuntime {
    /// Finds and loads the library: `ORT_DYLIB_PATH`, then a Python environment's `onnxruntime` package, then the
    /// system. An error that names the one command that installs it when there is none, and both versions when it is
    /// too old. The library stays loaded for the life of the process; later calls are free.
    pub fn new() -> Result<Self, RuntimeError> {
        Ok(Self { library: library()? })
    }

    /// The version of the library that [`OrtRuntime::new`] would load, where there is one.
    pub fn installed() -> Option<String> {
        library::installed()
    }

    /// Whether `ORT_DYLIB_PATH` names the library: one that was named and does not load is a mistake of the caller's,
    /// not the lack of a runtime.
    pub fn is_named() -> bool {
        library::is_named()
    }

    /// The library file in use.
    pub fn library_path(&self) -> &Path {
        &self.library.path
    }
}

impl Runtime for OrtRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> String {
        self.library.version.clone()
    }

    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, RuntimeError> {
        let failed = |reason: String| load_failed(model, reason);
        let session = self.session(GraphSource::File(model), options)?;
        let inputs = declared(session.inputs()).map_err(failed)?;
        let outputs = declared(session.outputs()).map_err(failed)?;
        Ok(Box::new(OrtSession {
            session,
            wiring: Wiring::none(&inputs),
            carried: Vec::new(),
            inputs,
            outputs,
            model: model.to_path_buf(),
            device: options.device,
        }))
    }
}

pub(crate) fn load_failed(model: &Path, reason: String) -> RuntimeError {
    RuntimeError::Load { runtime: NAME, model: model.to_path_buf(), reason }
}

pub(crate) fn run_failed(model: &Path, reason: String) -> RuntimeError {
    RuntimeError::Run { runtime: NAME, model: model.to_path_buf(), reason }
}

/// Where ONNX Runtime looks for the weights of a graph that comes from memory.
const WEIGHTS_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// What is loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GraphSource<'a> {
    File(&'a Path),
    /// The bytes of an ONNX file, made of a file in whose folder the weights lie.
    Made {
        bytes: &'a [u8],
        from: &'a Path,
    },
}

impl<'a> GraphSource<'a> {
    /// The file that messages name.
    pub(crate) fn path(self) -> &'a Path {
        match self {
            Self::File(path) | Self::Made { from: path, .. } => path,
        }
    }
}

impl OrtRuntime {
    pub(crate) fn session(
        &self,
        graph: GraphSource<'_>,
        options: &LoadOptions,
    ) -> Result<ort::session::Session, RuntimeError> {
        let failed = |reason: String| load_failed(graph.path(), reason);
        // Before the provider is made, which reads the environment too.
        let told = load_environment::tell(options);
        let builder = SessionBuilder::new(&self.library.environment).map_err(|e| failed(one_line(e)))?;
        let builder = configure(builder, options).map_err(failed)?;
        let mut builder = self.place(builder, options)?;
        let session = match graph {
            GraphSource::File(path) => builder.commit_from_file(path),
            GraphSource::Made { bytes, from } => {
                let folder = from.parent().unwrap_or(Path::new("")).to_string_lossy();
                builder
                    .with_config_entry(WEIGHTS_FOLDER, folder)
                    .map_err(|e| failed(one_line(e)))?
                    .commit_from_memory(bytes)
            }
        };
        drop(told);
        session.map_err(|e| failed(one_line(e)))
    }

    fn place(&self, builder: SessionBuilder, options: &LoadOptions) -> Result<SessionBuilder, RuntimeError> {
        let device = options.device;
        let Device::Cuda(index) = device else {
            return Ok(builder);
        };
        cuda_libraries::preload(&self.library.path);
        // What is asked for and no more: the arena's own rule rounds up to powers of two, which a large cache
        // pays for twice.
        let provider = ep::CUDA::default()
            .with_device_id(index as i32)
            .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
            .with_cuda_graph(options.cuda_graph)
            .with_tf32(options.factors == Factors::Tf32)
            .build()
            .error_on_failure();
        builder.with_execution_providers([provider]).map_err(|error| RuntimeError::Device {
            runtime: NAME,
            device,
            reason: one_line(error.message()),
            hint: "`pip install onnxruntime-gpu[cuda,cudnn]==1.31.1` brings the provider and its libraries",
        })
    }
}

fn configure(builder: SessionBuilder, options: &LoadOptions) -> Result<SessionBuilder, String> {
    let level = if options.optimize { GraphOptimizationLevel::All } else { GraphOptimizationLevel::Disable };
    let builder = builder.with_optimization_level(level).map_err(one_line)?;
    // What is recorded keeps the memory of the run before it: no block may come on top in the meantime.
    let plans = options.optimize && !options.records();
    let mut builder = builder.with_memory_pattern(plans).map_err(one_line)?;
    if let Some(threads) = options.threads {
        builder = builder.with_intra_threads(threads).map_err(one_line)?;
    }
    for (name, size) in &options.dims {
        builder = builder.with_dimension_override(name, *size as i64).map_err(one_line)?;
    }
    if let Some(path) = &options.profile {
        builder = builder.with_profiling(path).map_err(one_line)?;
    }
    Ok(builder)
}

#[derive(Debug)]
struct OrtSession {
    session: ort::session::Session,
    inputs: Vec<Io>,
    outputs: Vec<Io>,
    model: PathBuf,
    device: Device,
    wiring: Wiring,
    /// Where the last run left them, on the device; in the order of the links.
    carried: Vec<DynValue>,
}

impl Session for OrtSession {
    fn inputs(&self) -> &[Io] {
        &self.inputs
    }

    fn outputs(&self) -> &[Io] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, &HostTensor)]) -> Result<Vec<HostTensor>, RuntimeError> {
        let tensors = check_inputs(&self.wiring.open_inputs, inputs)?;
        self.run_checked(&tensors).map_err(|reason| self.failed(reason))
    }

    fn carry(&mut self, links: &[Link], initial: &[HostTensor]) -> Result<(), RuntimeError> {
        let wiring = Wiring::new(&self.inputs, &self.outputs, links, initial)?;
        let carried = initial.iter().map(|tensor| Ok(to_ort(tensor)?.into_dyn())).collect::<Result<_, _>>();
        self.carried = carried.map_err(|reason| self.failed(reason))?;
        self.wiring = wiring;
        Ok(())
    }

    fn carried(&self) -> Result<Vec<HostTensor>, RuntimeError> {
        let tensors = self.carried.iter().map(from_ort).collect::<Result<_, _>>();
        tensors.map_err(|reason| self.failed(reason))
    }

    fn carried_bytes(&self) -> usize {
        self.carried.iter().map(bytes).sum()
    }
}

impl OrtSession {
    fn failed(&self, reason: String) -> RuntimeError {
        run_failed(&self.model, reason)
    }

    fn run_checked(&mut self, tensors: &[&HostTensor]) -> Result<Vec<HostTensor>, String> {
        let binding = self.bind(tensors)?;
        let values = self.session.run_binding(&binding).map_err(|e| one_line(e.message()))?;
        let values: Vec<DynValue> = values.into_iter().map(|(_, value)| value).collect();
        let (open, carried) = self.wiring.split(values);
        let open = open.iter().map(from_ort).collect::<Result<_, _>>()?;
        self.carried = carried;
        Ok(open)
    }

    /// A fresh binding each time: a used one would write into the outputs of the run before, which are carried.
    fn bind(&self, tensors: &[&HostTensor]) -> Result<IoBinding, String> {
        let said = |e: ort::Error| one_line(e.message());
        let mut binding = self.session.create_binding().map_err(said)?;
        for (io, tensor) in self.wiring.open_inputs.iter().zip(tensors) {
            binding.bind_input(&io.name, &to_ort(tensor)?).map_err(said)?;
        }
        for (link, value) in self.wiring.links.iter().zip(&self.carried) {
            binding.bind_input(&self.inputs[link.input].name, value).map_err(said)?;
        }
        let (host, device) = (memory(Device::Cpu)?, memory(self.device)?);
        for (output, io) in self.outputs.iter().enumerate() {
            let place = if self.wiring.carries(output) { &device } else { &host };
            binding.bind_output_to_device(&io.name, place).map_err(said)?;
        }
        Ok(binding)
    }
}

pub(crate) fn memory(device: Device) -> Result<MemoryInfo<'static>, String> {
    let (name, index) = match device {
        Device::Cpu => (AllocationDevice::CPU, 0),
        Device::Cuda(index) => (AllocationDevice::CUDA, index as i32),
    };
    MemoryInfo::new(name, index, AllocatorType::Device, MemoryType::Default)
        .map_err(|e| one_line(e.message()))
}

pub(crate) fn to_ort(tensor: &HostTensor) -> Result<DynTensor, String> {
    let mut value = DynTensor::new(&Allocator::default(), element_type(tensor.dtype()), tensor.shape())
        .map_err(|e| one_line(e.message()))?;
    if !tensor.is_empty() {
        let target = value.data_ptr_mut().cast::<u8>();
        // SAFETY: `value` was just made on the CPU with this dtype and shape, so it holds exactly these many bytes.
        unsafe { target.copy_from_nonoverlapping(tensor.bytes().as_ptr(), tensor.byte_len()) };
    }
    Ok(value)
}

pub(crate) fn bytes<T: ValueTypeMarker + ?Sized>(value: &Value<T>) -> usize {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else { return 0 };
    let elements: usize = shape.iter().map(|&dim| dim as usize).product();
    elements * dtype_of(*ty).map_or(0, DType::size)
}

pub(crate) fn from_ort(value: &DynValue) -> Result<HostTensor, String> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(format!("an output is a {}, not a tensor", value.dtype()));
    };
    let dtype =
        dtype_of(*ty).ok_or_else(|| format!("an output holds {ty} elements, which are not supported"))?;
    let shape: Vec<usize> = shape.iter().map(|&dim| dim as usize).collect();
    let tensor = value.view().downcast::<DynTensorValueType>().map_err(|e| one_line(e.message()))?;
    tensor_from_ort(&tensor, dtype, shape)
}

/// The numbers of a tensor, wherever it lies.
pub(crate) fn tensor_from_ort(
    tensor: &DynTensor,
    dtype: DType,
    shape: Vec<usize>,
) -> Result<HostTensor, String> {
    if tensor.memory_info().is_cpu_accessible() {
        return copied(dtype, shape, tensor);
    }
    let tensor = tensor.to(AllocationDevice::CPU, 0).map_err(|e| one_line(e.message()))?;
    copied(dtype, shape, &tensor)
}

fn copied(dtype: DType, shape: Vec<usize>, tensor: &DynTensor) -> Result<HostTensor, String> {
    let len = byte_len(dtype, &shape).map_err(one_line)?;
    let data = if len == 0 {
        Vec::new()
    } else {
        // SAFETY: the tensor lies in CPU memory, and one of this dtype and shape is this many bytes long.
        unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), len) }.to_vec()
    };
    HostTensor::new(dtype, shape, data).map_err(one_line)
}

pub(crate) fn declared(outlets: &[Outlet]) -> Result<Vec<Io>, String> {
    outlets.iter().map(declared_one).collect()
}

fn declared_one(outlet: &Outlet) -> Result<Io, String> {
    let name = outlet.name().to_owned();
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(format!("`{name}` is a {}, not a tensor", outlet.dtype()));
    };
    let dtype =
        dtype_of(*ty).ok_or_else(|| format!("`{name}` holds {ty} elements, which are not supported"))?;
    let dim = |(&size, symbol): (&i64, &String)| match usize::try_from(size) {
        Ok(size) => DimSpec::Fixed(size),
        Err(_) => DimSpec::Dynamic(Some(symbol.clone()).filter(|symbol| !symbol.is_empty())),
    };
    Ok(Io { name, dtype, shape: shape.iter().zip(dimension_symbols.iter()).map(dim).collect() })
}

pub(crate) fn element_type(dtype: DType) -> TensorElementType {
    match dtype {
        DType::F64 => TensorElementType::Float64,
        DType::F32 => TensorElementType::Float32,
        DType::F16 => TensorElementType::Float16,
        DType::BF16 => TensorElementType::Bfloat16,
        DType::I64 => TensorElementType::Int64,
        DType::I32 => TensorElementType::Int32,
        DType::I16 => TensorElementType::Int16,
        DType::I8 => TensorElementType::Int8,
        DType::U64 => TensorElementType::Uint64,
        DType::U32 => TensorElementType::Uint32,
        DType::U16 => TensorElementType::Uint16,
        DType::U8 => TensorElementType::Uint8,
        DType::Bool => TensorElementType::Bool,
    }
}

fn dtype_of(ty: TensorElementType) -> Option<DType> {
    Some(match ty {
        TensorElementType::Float64 => DType::F64,
        TensorElementType::Float32 => DType::F32,
        TensorElementType::Float16 => DType::F16,
        TensorElementType::Bfloat16 => DType::BF16,
        TensorElementType::Int64 => DType::I64,
        TensorElementType::Int32 => DType::I32,
        TensorElementType::Int16 => DType::I16,
        TensorElementType::Int8 => DType::I8,
        TensorElementType::Uint64 => DType::U64,
        TensorElementType::Uint32 => DType::U32,
        TensorElementType::Uint16 => DType::U16,
        TensorElementType::Uint8 => DType::U8,
        TensorElementType::Bool => DType::Bool,
        _ => return None,
    })
}
