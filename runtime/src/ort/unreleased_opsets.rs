//! Lets ONNX Runtime load opsets that it does not call released yet.
//!
//! Version 1.31 reads this from the environment only; the session option of the same meaning changes nothing.

use std::ffi::OsString;
use std::sync::{Mutex, MutexGuard, PoisonError};

const VARIABLE: &str = "ALLOW_RELEASED_ONNX_OPSET_ONLY";

static LOADING: Mutex<()> = Mutex::new(());

/// Held while a model loads, so that one load's permission is never another's.
pub(crate) struct Permission {
    changed: bool,
    /// The variable before it was changed.
    before: Option<OsString>,
    _loading: MutexGuard<'static, ()>,
}

/// Waits for other loads, and permits unreleased opsets until the returned value is dropped if asked to.
pub(crate) fn permit(unreleased: bool) -> Permission {
    let loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = std::env::var_os(VARIABLE);
    if unreleased {
        set(Some("0".into()));
    }
    Permission { changed: unreleased, before, _loading: loading }
}

impl Drop for Permission {
    fn drop(&mut self) {
        if self.changed {
            set(self.before.take());
        }
    }
}

fn set(value: Option<OsString>) {
    // SAFETY: all of Rust's own accesses take std's lock, and all loads of ONNX Runtime, which reads the environment
    // from C, take ours. Sessions that are running do not read it.
    unsafe {
        match value {
            Some(value) => std::env::set_var(VARIABLE, value),
            None => std::env::remove_var(VARIABLE),
        }
    }
}
