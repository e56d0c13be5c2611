//! Loads the ONNX Runtime library once per process, after asking it for its version.
//!
//! `ort` panics on a library that is missing or broken, so nothing of `ort` is touched before these checks.

use std::ffi::{CStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

use crate::ort::discover;
use crate::session::error::{RuntimeError, one_line};

/// The package that brings the library.
pub(crate) const PACKAGE: &str = "onnxruntime==1.31.1";

/// The loaded library; `ort` allows one environment per process, so it is shared and never dropped.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    pub(crate) environment: Environment,
    pub(crate) path: PathBuf,
    pub(crate) version: String,
}

static LOADED: Mutex<Option<Library>> = Mutex::new(None);

/// The library of this process, found and loaded on the first call that succeeds.
pub(crate) fn library() -> Result<Library, RuntimeError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = loaded.as_ref() {
        return Ok(library.clone());
    }
    let lookup = |name: &str| -> Option<OsString> { std::env::var_os(name) };
    let current_dir = std::env::current_dir().unwrap_or_default();
    let (path, version) = find(&lookup, &current_dir)?;
    let library = Library { environment: start(&path)?, path, version };
    tracing::debug!(path = %library.path.display(), version = library.version, "loaded ONNX Runtime");
    *loaded = Some(library.clone());
    Ok(library)
}

/// The version of the library that this process would load, without loading it for good.
pub(crate) fn installed() -> Option<String> {
    let current_dir = std::env::current_dir().unwrap_or_default();
    find(&|name: &str| std::env::var_os(name), &current_dir).ok().map(|(_, version)| version)
}

/// Whether `ORT_DYLIB_PATH` names the library.
pub(crate) fn is_named() -> bool {
    discover::named(&|name: &str| std::env::var_os(name)).is_some()
}

/// The first library that is new enough. One named outright is taken or refused, never passed over.
fn find(lookup: discover::Lookup<'_>, current_dir: &Path) -> Result<(PathBuf, String), RuntimeError> {
    if let Some(path) = discover::named(lookup) {
        // A relative path means the current directory; `ort` would take it from the program's own.
        return check(current_dir.join(path));
    }
    let own = std::env::current_exe().ok().and_then(|program| discover::environment_of(&program));
    first_usable(discover::candidates(lookup, current_dir, own.as_deref()))
}

/// The first library that will do; if none does, why the first one found does not.
fn first_usable(paths: impl Iterator<Item = PathBuf>) -> Result<(PathBuf, String), RuntimeError> {
    let mut refused = None;
    for path in paths {
        match check(path) {
            Ok(found) => return Ok(found),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| RuntimeError::LibraryMissing {
        looked: discover::LOOKED.to_owned(),
        package: PACKAGE.to_owned(),
    }))
}

fn check(path: PathBuf) -> Result<(PathBuf, String), RuntimeError> {
    match version_of(&path) {
        Ok(version) => check_version(path, version),
        Err(reason) => Err(RuntimeError::LibraryBad { path, reason }),
    }
}

fn check_version(path: PathBuf, found: String) -> Result<(PathBuf, String), RuntimeError> {
    if minor(&found) >= ort::MINOR_VERSION {
        return Ok((path, found));
    }
    let needed = format!("1.{}", ort::MINOR_VERSION);
    Err(RuntimeError::LibraryTooOld { path, found, needed, package: PACKAGE.to_owned() })
}

/// The minor version; major version 0 and malformed versions count as too old, later major versions as new enough.
fn minor(version: &str) -> u32 {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    match parts.next() {
        Some(1) => parts.next().unwrap_or(0),
        Some(2..) => u32::MAX,
        _ => 0,
    }
}

fn version_of(path: &Path) -> Result<String, String> {
    if !path.is_file() {
        return Err("there is no such file".to_owned());
    }
    // SAFETY: a shared library may run code as it is loaded. This one was named by the user or lies where packages
    // are installed, and loading it is what the caller asks for.
    let library = unsafe { libloading::Library::new(path) }.map_err(one_line)?;
    // SAFETY: ONNX Runtime has exported this function with this signature since its first release.
    let base = unsafe {
        let get: libloading::Symbol<'_, unsafe extern "C" fn() -> *const ort::sys::OrtApiBase> =
            library.get(b"OrtGetApiBase").map_err(|_| "it does not export OrtGetApiBase".to_owned())?;
        get()
    };
    if base.is_null() {
        return Err("OrtGetApiBase returned nothing".to_owned());
    }
    // SAFETY: `base` points at static memory of the library, which is still loaded, and so does the string.
    let version = unsafe { CStr::from_ptr(((*base).GetVersionString)()) };
    Ok(version.to_string_lossy().into_owned())
}

fn start(path: &Path) -> Result<Environment, RuntimeError> {
    let bad = |reason: String| RuntimeError::LibraryBad { path: path.to_path_buf(), reason };
    let builder = ort::init_from(path).map_err(|e| bad(one_line(e)))?;
    let builder = builder.with_name("dijiang").with_telemetry(false).with_logger(Arc::new(log));
    let environment = builder.build().map_err(|e| bad(one_line(e)))?;
    // The callback crosses into C for every message, so only take those that somebody reads.
    environment.set_log_level(LogLevel::Warning);
    Ok(environment)
}

fn log(level: LogLevel, category: &str, _id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Verbose | LogLevel::Info => {
            tracing::debug!(target: "onnxruntime", category, location, "{message}");
        }
        // Most warnings are about the graph optimiser's own business, and none of them changes a result. The text of
        // an error is returned by the call that failed.
        LogLevel::Warning | LogLevel::Error => {
            tracing::info!(target: "onnxruntime", category, location, "{message}");
        }
        LogLevel::Fatal => {
            tracing::warn!(target: "onnxruntime", category, location, "{message}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_named_library_is_one_line_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let lookup = |name: &str| (name == discover::PATH_VARIABLE).then(|| OsString::from("no.so"));
        let error = find(&lookup, dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("no.so is not a usable ONNX Runtime library: there is no such file"),
            "{error}"
        );
        assert!(error.contains("ORT_DYLIB_PATH") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("libonnxruntime.so");
        std::fs::write(&file, b"not a library").unwrap();
        let error = check(file).unwrap_err().to_string();
        assert!(error.contains("is not a usable ONNX Runtime library") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn where_there_is_none_the_error_installs_one() {
        let error = first_usable(std::iter::empty()).unwrap_err().to_string();
        assert!(error.contains("`pip install onnxruntime==1.31.1`"), "{error}");
    }

    #[test]
    fn a_bad_library_is_passed_over_and_reported_last() {
        let error = first_usable(["a.so", "b.so"].map(PathBuf::from).into_iter()).unwrap_err().to_string();
        assert!(error.starts_with("a.so is not a usable ONNX Runtime library"), "{error}");
    }

    #[test]
    fn an_old_library_is_refused_with_both_versions() {
        let error = check_version(PathBuf::from("old.so"), "1.20.1".to_owned()).unwrap_err().to_string();
        let expected = "ONNX Runtime 1.20.1 at old.so is too old, 1.31 or newer is needed; \
                        `pip install onnxruntime==1.31.1` brings one";
        assert_eq!(error, expected);
        assert!(check_version(PathBuf::from("new.so"), "1.31.0".to_owned()).is_ok());
    }

    #[test]
    fn old_versions_compare_by_number() {
        assert!(minor("1.9.0") < 31);
        assert_eq!(minor("1.31.1"), 31);
        assert_eq!(minor("2.0.0"), u32::MAX);
        assert_eq!(minor("junk"), 0);
    }
}
