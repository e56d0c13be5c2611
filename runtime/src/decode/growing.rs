//! Greedy decoding with everything bound where it is computed: a growing cache is one buffer, which is past and
//! present at once, and a state of fixed size is two, which change places. A step moves one token per row.

use std::fmt;
use std::path::{Path, PathBuf};

use ort::AsPointer as _;
use ort::memory::Allocator;
use ort::session::IoBinding;
use ort::value::DynTensor;

use crate::decode::layout::{StateIo, states};
use crate::ort::runtime::{self, OrtRuntime, bytes, declared, element_type, from_ort, memory, to_ort};
use crate::session::error::{RuntimeError, one_line};
use crate::session::tensor::HostTensor;
use crate::session::{Io, LoadOptions};
use dijiang_format::dtype::DType;
use dijiang_format::names::{IDS, MASK, NEXT, POSITIONS};
use dijiang_format::serving::Device;

/// How to decode.
#[derive(Clone, Debug)]
pub struct GrowingOptions {
    pub device: Device,
    pub threads: Option<usize>,
    /// A directory for ONNX Runtime's profile of the graph.
    pub profile: Option<PathBuf>,
    /// Tokens that a growing cache has room for.
    pub capacity: usize,
}

/// A model whose graph gives [`NEXT`] beside its states, and the rows decoded side by side.
pub struct GrowingDecoder {
    session: ort::session::Session,
    model: PathBuf,
    options: GrowingOptions,
    states: Vec<StateIo>,
    takes_mask: bool,
    takes_positions: bool,
    rows: Option<GrowingRows>,
}

impl fmt::Debug for GrowingDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrowingDecoder({})", self.model.display())
    }
}

struct GrowingRows {
    batch: usize,
    length: usize,
    /// One that reads the first buffers and writes the second, and one the other way round.
    bindings: [IoBinding; 2],
    turn: usize,
    /// Kept while they are bound.
    buffers: Vec<DynTensor>,
    /// What the mask is a window of.
    ones: Option<DynTensor>,
}

impl GrowingDecoder {
    pub fn open(runtime: &OrtRuntime, model: &Path, options: GrowingOptions) -> Result<Self, RuntimeError> {
        let load = LoadOptions { device: options.device, threads: options.threads, ..LoadOptions::default() };
        let load = load.profiled(options.profile.as_deref(), model);
        let session = runtime.session(model, &load)?;
        let failed = |reason: String| runtime::load_failed(model, reason);
        let inputs = declared(session.inputs()).map_err(failed)?;
        let outputs = declared(session.outputs()).map_err(failed)?;
        if !outputs.iter().any(|io| io.name == NEXT) {
            return Err(failed(format!("it has no output `{NEXT}`")));
        }
        let has = |name: &str| inputs.iter().any(|io: &Io| io.name == name && io.dtype == DType::I64);
        if !has(IDS) {
            return Err(failed(format!("it has no input `{IDS}` of i64")));
        }
        Ok(Self {
            states: states(&inputs, &outputs)?,
            takes_mask: has(MASK),
            takes_positions: has(POSITIONS),
            session,
            model: model.to_owned(),
            options,
            rows: None,
        })
    }

    /// Whether the state has room for so many tokens only.
    pub fn grows(&self) -> bool {
        self.states.iter().any(|state| state.grows)
    }

    /// Forgets everything, gives the memory of the rows before back, and makes room for new ones.
    pub fn start(&mut self, batch: usize) -> Result<(), RuntimeError> {
        self.rows = None;
        self.rows = Some(self.new_rows(batch).map_err(|reason| self.failed(reason))?);
        Ok(())
    }

    fn new_rows(&self, batch: usize) -> Result<GrowingRows, String> {
        let said = |e: ort::Error| one_line(e.message());
        let host = memory(Device::Cpu)?;
        let mut bindings =
            [self.session.create_binding().map_err(said)?, self.session.create_binding().map_err(said)?];
        let mut buffers = Vec::new();
        for state in &self.states {
            let shape = state.shape(batch, self.options.capacity);
            let name = &state.input.name;
            let mut first = self.allocate(state.input.dtype, &shape)?;
            if state.grows {
                for binding in &mut bindings {
                    binding.bind_input(name, &first).map_err(said)?;
                    binding.bind_output(&state.present, &mut first).map_err(said)?;
                }
            } else {
                let mut second = self.allocate(state.input.dtype, &shape)?;
                let [there, back] = &mut bindings;
                there.bind_input(name, &first).map_err(said)?;
                there.bind_output(&state.present, &mut second).map_err(said)?;
                back.bind_input(name, &second).map_err(said)?;
                back.bind_output(&state.present, &mut first).map_err(said)?;
                buffers.push(second);
            }
            buffers.push(first);
        }
        for binding in &mut bindings {
            binding.bind_output_to_device(NEXT, &host).map_err(said)?;
        }
        Ok(GrowingRows { batch, length: 0, bindings, turn: 0, buffers, ones: None })
    }

    /// Declares that so many tokens came before, whatever the buffers hold: the time of a step does not depend on it.
    pub fn skip_to(&mut self, length: usize) -> Result<(), RuntimeError> {
        if self.grows() && length > self.options.capacity {
            return Err(self.full(length));
        }
        if let Some(rows) = &mut self.rows {
            rows.length = length;
        }
        Ok(())
    }

    /// Feeds prompts of one length, at most `segment` tokens at a time, and returns the tokens after them.
    pub fn prefill(&mut self, prompts: &[Vec<i64>], segment: usize) -> Result<Vec<i64>, RuntimeError> {
        let length = prompts.first().map_or(0, Vec::len);
        if length == 0 || segment == 0 || prompts.iter().any(|row| row.len() != length) {
            let reason = "prompts and segments of one length each are expected, and no empty ones".to_owned();
            return Err(RuntimeError::BadCall { place: "prefill", reason });
        }
        let mut next = Vec::new();
        for start in (0..length).step_by(segment) {
            let end = (start + segment).min(length);
            let part: Vec<&[i64]> = prompts.iter().map(|row| &row[start..end]).collect();
            next = self.step(&part)?;
        }
        Ok(next)
    }

    /// Feeds one token per row, and returns the next ones.
    pub fn decode(&mut self, tokens: &[i64]) -> Result<Vec<i64>, RuntimeError> {
        let rows: Vec<&[i64]> = tokens.chunks(1).collect();
        self.step(&rows)
    }

    /// Bytes of all buffers that states lie in.
    pub fn state_bytes(&self) -> usize {
        self.rows.iter().flat_map(|rows| &rows.buffers).map(bytes).sum()
    }

    fn step(&mut self, tokens: &[&[i64]]) -> Result<Vec<i64>, RuntimeError> {
        let columns = tokens.first().map_or(0, |row| row.len());
        let grows = self.grows();
        let Some(mut rows) = self.rows.take().filter(|rows| rows.batch == tokens.len()) else {
            let reason = format!("{} rows were given, but not as many started", tokens.len());
            return Err(RuntimeError::BadCall { place: "step", reason });
        };
        let total = rows.length + columns;
        if grows && total > self.options.capacity {
            self.rows = Some(rows);
            return Err(self.full(total));
        }
        let next = self.run(&mut rows, tokens, columns);
        if next.is_ok() {
            rows.turn = 1 - rows.turn;
            rows.length = total;
        }
        self.rows = Some(rows);
        next.map_err(|reason| self.failed(reason))
    }

    fn run(&mut self, rows: &mut GrowingRows, tokens: &[&[i64]], columns: usize) -> Result<Vec<i64>, String> {
        let said = |e: ort::Error| one_line(e.message());
        let (batch, length) = (rows.batch, rows.length);
        let host = |values: &[i64]| -> Result<DynTensor, String> {
            to_ort(&HostTensor::from_i64(&[batch, columns], values).map_err(one_line)?)
        };
        rows.bindings[rows.turn].bind_input(IDS, &host(&tokens.concat())?).map_err(said)?;
        if self.takes_positions {
            let row: Vec<i64> = (length..length + columns).map(|at| at as i64).collect();
            rows.bindings[rows.turn].bind_input(POSITIONS, &host(&row.repeat(batch))?).map_err(said)?;
        }
        if self.takes_mask {
            self.bind_mask(rows, if self.grows() { length + columns } else { columns })?;
        }
        let outputs = self.session.run_binding(&rows.bindings[rows.turn]).map_err(said)?;
        let next = outputs.get(NEXT).ok_or_else(|| format!("it gave no `{NEXT}`"))?;
        from_ort(next)?.to_i64().map_err(one_line)
    }

    /// All tokens are real, so that a mask of any length is a window of one buffer.
    fn bind_mask(&self, rows: &mut GrowingRows, columns: usize) -> Result<(), String> {
        let said = |e: ort::Error| one_line(e.message());
        let needed = rows.batch * columns;
        let there = |ones: &DynTensor| ones.shape().num_elements();
        if rows.ones.as_ref().is_none_or(|ones| there(ones) < needed) {
            let width = if self.grows() { self.options.capacity } else { columns };
            let ones = HostTensor::from_i64(&[rows.batch * width], &vec![1; rows.batch * width]);
            let ones = to_ort(&ones.map_err(one_line)?)?;
            rows.ones = Some(match self.options.device {
                Device::Cpu => ones,
                Device::Cuda(_) => {
                    let mut there = self.allocate(DType::I64, &[rows.batch * width])?;
                    ones.copy_into(&mut there).map_err(said)?;
                    there
                }
            });
        }
        let Some(ones) = &mut rows.ones else { return Ok(()) };
        let window = window(ones, self.options.device, [rows.batch, columns])?;
        rows.bindings[rows.turn].bind_input(MASK, &window).map_err(said)
    }

    fn allocate(&self, dtype: DType, shape: &[usize]) -> Result<DynTensor, String> {
        let said = |e: ort::Error| one_line(e.message());
        let allocator = match self.options.device {
            Device::Cpu => Allocator::default(),
            device @ Device::Cuda(_) => Allocator::new(&self.session, memory(device)?).map_err(said)?,
        };
        DynTensor::new(&allocator, element_type(dtype), shape).map_err(said)
    }

    fn full(&self, tokens: usize) -> RuntimeError {
        let reason = format!("{tokens} tokens do not fit a cache for {}", self.options.capacity);
        RuntimeError::BadCall { place: "past_key_values", reason }
    }

    fn failed(&self, reason: String) -> RuntimeError {
        runtime::run_failed(&self.model, reason)
    }
}

/// The first numbers of a buffer of i64, as a tensor of this shape. `ort` copies what it knows to be borrowed when it
/// binds it, so this is made by the C interface.
fn window(buffer: &mut DynTensor, device: Device, shape: [usize; 2]) -> Result<DynTensor, String> {
    let place = memory(device)?;
    let dims = shape.map(|dim| dim as i64);
    let bytes = shape.iter().product::<usize>() * DType::I64.size();
    let mut made = std::ptr::null_mut();
    // SAFETY: the buffer holds at least as many numbers and lies where `place` says. It outlives the binding that reads
    // the window: rows drop both, and a larger buffer takes its place together with a larger window.
    let status = unsafe {
        (ort::api().CreateTensorWithDataAsOrtValue)(
            place.ptr(),
            buffer.data_ptr_mut().cast(),
            bytes,
            dims.as_ptr(),
            dims.len(),
            ort::sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
            &raw mut made,
        )
    };
    // SAFETY: a status is null, or an error that is ours to turn into one of `ort`'s.
    unsafe { ort::Error::result_from_status(status) }.map_err(|e| one_line(e.message()))?;
    let made = std::ptr::NonNull::new(made).ok_or("ONNX Runtime made no tensor")?;
    // SAFETY: the value was just made, and is a tensor.
    Ok(unsafe { DynTensor::from_ptr(made, Some(&Allocator::default())) })
}
