//! What ONNX Runtime reads from the environment while a model loads, and from nowhere else.

use std::ffi::{OsStr, OsString};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::session::LoadOptions;
use dijiang_format::serving::Device;

/// Lets opsets load that are not called released yet. The session option of the same meaning changes nothing in 1.31.
const RELEASED_ONLY: &str = "ALLOW_RELEASED_ONNX_OPSET_ONLY";
/// Into how many groups of threads CUDA's kernel of `LinearAttention` cuts the features of one head's state. It takes 8
/// however many states there are. What is set already is left.
const ROW_SPLIT: &str = "ORT_LINEAR_ATTENTION_ROW_SPLIT";

/// States from which two groups are enough to fill a GPU: 2,048 states take 15.4 us for 25.6 with eight groups. 16 states
/// take as long with four as with eight (docs/performance.md).
const MANY_STATES: usize = 1024;

static LOADING: Mutex<()> = Mutex::new(());

/// Held while a model loads, so that what one load is told is never told to another.
pub(crate) struct Told {
    /// Those that were changed, as they were before.
    before: Vec<(&'static str, Option<OsString>)>,
    _loading: MutexGuard<'static, ()>,
}

/// Waits for other loads, and tells the one of these options what it asks for until the returned value is dropped.
pub(crate) fn tell(options: &LoadOptions) -> Told {
    let loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut told = Told { before: Vec::new(), _loading: loading };
    for (name, value) in variables(options, std::env::var_os(ROW_SPLIT).is_some()) {
        let before = std::env::var_os(name);
        if before.as_deref() != Some(OsStr::new(value)) {
            told.before.push((name, before));
            set(name, Some(value.into()));
        }
    }
    told
}

fn variables(options: &LoadOptions, split_is_set: bool) -> Vec<(&'static str, &'static str)> {
    let released = (!options.released_opsets_only).then_some((RELEASED_ONLY, "0"));
    let split = options.states.filter(|_| options.device != Device::Cpu && !split_is_set);
    let split = split.map(|states| (ROW_SPLIT, if states >= MANY_STATES { "2" } else { "4" }));
    released.into_iter().chain(split).collect()
}

impl Drop for Told {
    fn drop(&mut self) {
        for (name, value) in self.before.drain(..) {
            set(name, value);
        }
    }
}

fn set(name: &str, value: Option<OsString>) {
    // SAFETY: all of Rust's own accesses take std's lock, and all loads of ONNX Runtime, which reads the environment
    // from C, take ours. A session that runs on another thread meanwhile must not: CUDA's `LinearAttention` looks for a
    // variable whenever it is launched. Nothing here loads while it decodes; a library that wants both sets the
    // variables itself, before its first thread, and then nothing is set here.
    unsafe {
        match value {
            Some(value) => std::env::set_var(name, value),
            None => std::env::remove_var(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_told_by_the_number_of_states() {
        let of = |device, states, is_set| {
            variables(&LoadOptions { device, states, ..LoadOptions::default() }, is_set)
        };
        let gpu = Device::Cuda(0);
        assert_eq!(of(gpu, Some(MANY_STATES - 1), false), [(ROW_SPLIT, "4")]);
        assert_eq!(of(gpu, Some(MANY_STATES), false), [(ROW_SPLIT, "2")]);
        assert!(of(gpu, None, false).is_empty() && of(Device::Cpu, Some(2048), false).is_empty());
        assert!(of(gpu, Some(2048), true).is_empty(), "what is set stays");
    }

    #[test]
    fn what_was_told_is_forgotten() {
        let options = LoadOptions { released_opsets_only: false, ..LoadOptions::default() };
        let told = tell(&options);
        assert_eq!(std::env::var_os(RELEASED_ONLY), Some("0".into()));
        drop(told);
        // Another load of this program may be under way, which waits for this.
        let told = tell(&LoadOptions::default());
        assert_eq!(std::env::var_os(RELEASED_ONLY), None);
        drop(told);
    }
}
