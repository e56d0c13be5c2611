//! The command on a machine without ONNX Runtime.

use std::process::Command;

/// Where no Python is found, and no library is named. The system's library directories are still searched.
pub(crate) fn without_runtime(command: &mut Command) -> &mut Command {
    for name in ["ORT_DYLIB_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"] {
        command.env_remove(name);
    }
    command.env("PATH", "/no-such-directory")
}
