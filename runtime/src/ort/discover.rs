//! Finds the ONNX Runtime shared library, without loading anything.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Looks up an environment variable; a parameter so that tests need not touch the process.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The variable that names the library and ends the search.
pub(crate) const PATH_VARIABLE: &str = "ORT_DYLIB_PATH";

/// What an error says about where we looked.
pub(crate) const LOOKED: &str = "ORT_DYLIB_PATH, the environment of this program, VIRTUAL_ENV, CONDA_PREFIX, .venv, target/venv, python3, the system's library directories";

/// Asks Python where the package lies. `find_spec` does not import it, which would take seconds.
const ASK_PYTHON: &str = "import importlib.util as u; s = u.find_spec('onnxruntime'); \
     print(*(s.submodule_search_locations or []) if s else [], sep='\\n')";

/// The library named outright by `ORT_DYLIB_PATH`, whether or not it exists.
pub(crate) fn named(lookup: Lookup<'_>) -> Option<PathBuf> {
    lookup(PATH_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The Python environment that a program was installed into, as `ENVIRONMENT/bin/PROGRAM`, whichever link it was called by.
pub(crate) fn environment_of(program: &Path) -> Option<PathBuf> {
    let real = program.canonicalize().ok()?;
    Some(real.parent()?.parent()?.to_owned())
}

/// All other places, best first: `own` is the environment of this program. Python is asked only when the iterator gets that far.
pub(crate) fn candidates<'a>(
    lookup: Lookup<'a>,
    current_dir: &Path,
    own: Option<&Path>,
) -> impl Iterator<Item = PathBuf> + use<'a> {
    let mut environments: Vec<PathBuf> = own.map(in_environment).unwrap_or_default();
    environments.extend(in_environments(lookup, current_dir));
    let lazy = [from_python as fn(Lookup<'_>) -> Vec<PathBuf>, in_system];
    environments.into_iter().chain(lazy.into_iter().flat_map(move |find| find(lookup)))
}

fn in_environments(lookup: Lookup<'_>, current_dir: &Path) -> Vec<PathBuf> {
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| lookup(name)).map(PathBuf::from);
    let local = [".venv", "target/venv"].iter().map(|name| current_dir.join(name));
    active.chain(local).flat_map(|root| in_environment(&root)).collect()
}

/// The library inside one Python environment, whichever Python version it has.
fn in_environment(root: &Path) -> Vec<PathBuf> {
    let windows = root.join("Lib").join("site-packages");
    let unix = entries(&root.join("lib"), |name| name.starts_with("python"));
    let sites = unix.into_iter().map(|python| python.join("site-packages")).chain([windows]);
    sites.flat_map(|site| in_package(&site.join("onnxruntime"))).collect()
}

fn in_package(package: &Path) -> Vec<PathBuf> {
    libraries_in(&package.join("capi"))
}

fn from_python(_: Lookup<'_>) -> Vec<PathBuf> {
    let printed = output(Command::new("python3").args(["-c", ASK_PYTHON]));
    printed.lines().flat_map(|line| in_package(Path::new(line))).collect()
}

fn in_system(lookup: Lookup<'_>) -> Vec<PathBuf> {
    let searched = lookup("LD_LIBRARY_PATH").map(|dirs| std::env::split_paths(&dirs).collect::<Vec<_>>());
    let usual = ["/usr/local/lib", "/usr/lib", "/usr/lib64", "/lib", "/opt/homebrew/lib"].map(PathBuf::from);
    let dirs = searched.unwrap_or_default().into_iter().chain(usual);
    let cached = in_linker_cache(&output(Command::new("ldconfig").arg("-p")));
    dirs.flat_map(|dir| libraries_in(&dir)).chain(cached).collect()
}

/// Reads lines such as `libonnxruntime.so.1 (libc6,x86-64) => DIR/libonnxruntime.so.1`.
fn in_linker_cache(printed: &str) -> Vec<PathBuf> {
    let library = |line: &str| {
        let (name, path) = line.split_once(" => ")?;
        is_library(name.split_whitespace().next()?).then(|| PathBuf::from(path.trim()))
    };
    printed.lines().filter_map(library).collect()
}

/// The library files of one directory, the newest version first.
fn libraries_in(dir: &Path) -> Vec<PathBuf> {
    let mut found = entries(dir, is_library);
    found.sort_by_cached_key(|path| std::cmp::Reverse(version_in_name(path)));
    found
}

fn is_library(name: &str) -> bool {
    let unix = name.strip_prefix("libonnxruntime.");
    unix.is_some_and(|rest| rest.starts_with("so") || rest.ends_with("dylib")) || name == "onnxruntime.dll"
}

fn version_in_name(path: &Path) -> Vec<u32> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split('.').filter_map(|part| part.parse().ok()).collect()
}

/// The entries of a directory by name, sorted; none when it cannot be read.
fn entries(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(listing) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let named = listing.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
    let mut paths: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// What a program prints; nothing when it is not there or fails.
fn output(command: &mut Command) -> String {
    match command.output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str) -> PathBuf {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, b"").unwrap();
        file
    }

    #[test]
    fn the_active_environment_comes_before_the_local_one() {
        let dir = tempfile::tempdir().unwrap();
        let local =
            put(dir.path(), ".venv/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime.so.1.31.1");
        let active =
            put(dir.path(), "a/lib/python3.12/site-packages/onnxruntime/capi/libonnxruntime.so.1.31.1");
        put(dir.path(), "a/lib/python3.12/site-packages/onnxruntime/capi/libonnxruntime_providers_shared.so");
        let root = dir.path().join("a");
        let lookup = move |name: &str| (name == "VIRTUAL_ENV").then(|| root.clone().into_os_string());
        let found: Vec<PathBuf> = candidates(&lookup, dir.path(), None).take(2).collect();
        assert_eq!(found, [active.clone(), local]);
        // As a tool of its own is installed, which a link leads to.
        let program = put(dir.path(), "tool/bin/dijiang");
        let own =
            put(dir.path(), "tool/lib/python3.12/site-packages/onnxruntime/capi/libonnxruntime.so.1.31.1");
        let link = dir.path().join("dijiang");
        std::os::unix::fs::symlink(program, &link).unwrap();
        let environment = environment_of(&link).unwrap();
        let found: Vec<PathBuf> = candidates(&lookup, dir.path(), Some(&environment)).take(2).collect();
        assert_eq!(found, [own.canonicalize().unwrap(), active]);
    }

    #[test]
    fn the_newest_library_of_a_directory_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let old = put(dir.path(), "libonnxruntime.so.1.9.0");
        let new = put(dir.path(), "libonnxruntime.so.1.31.1");
        assert_eq!(libraries_in(dir.path()), [new, old]);
    }

    #[test]
    fn an_empty_variable_names_nothing() {
        assert_eq!(named(&|_| Some(OsString::new())), None);
        assert_eq!(named(&|_| Some(OsString::from("x.so"))), Some(PathBuf::from("x.so")));
    }

    #[test]
    fn the_linker_cache_is_read() {
        let printed =
            "\tlibonnxruntime.so.1 (libc6,x86-64) => here/libonnxruntime.so.1\n\tlibz.so.1 (libc6) => z\n";
        assert_eq!(in_linker_cache(printed), [PathBuf::from("here/libonnxruntime.so.1")]);
    }
}
