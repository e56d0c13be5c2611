//! Makes the CUDA libraries of the `nvidia-*` Python packages known to the process.
//!
//! The provider asks the loader for them by bare name, and the loader does not look inside Python packages.

use std::path::{Path, PathBuf};

/// Loads what lies in `site-packages/nvidia/*/lib` beside the given ONNX Runtime library, in dependency order.
///
/// Missing packages are no error here: the libraries may be installed system-wide, and if not, registering the
/// provider says which one it misses.
pub(crate) fn preload(library: &Path) {
    let dirs = package_dirs(library);
    for name in ep_libraries() {
        let Some(file) = dirs.iter().map(|dir| dir.join(name)).find(|file| file.is_file()) else {
            continue;
        };
        if let Err(error) = ort::util::preload_dylib(&file) {
            tracing::debug!(file = %file.display(), %error, "could not preload a CUDA library");
        }
    }
}

fn ep_libraries() -> impl Iterator<Item = &'static str> {
    ort::ep::cuda::CUDA_DYLIBS.iter().chain(ort::ep::cuda::CUDNN_DYLIBS).copied()
}

/// `<site>/nvidia/*/lib` for a library at `<site>/onnxruntime/capi/libonnxruntime.so`, sorted.
fn package_dirs(library: &Path) -> Vec<PathBuf> {
    let Some(site) = library.ancestors().nth(3) else {
        return Vec::new();
    };
    let Ok(listing) = std::fs::read_dir(site.join("nvidia")) else {
        return Vec::new();
    };
    let mut dirs: Vec<PathBuf> = listing.flatten().map(|entry| entry.path().join("lib")).collect();
    dirs.sort();
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_beside_the_library_are_found_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (cudnn, cuda) = (dir.path().join("nvidia/cudnn/lib"), dir.path().join("nvidia/cu13/lib"));
        std::fs::create_dir_all(&cudnn).unwrap();
        std::fs::create_dir_all(&cuda).unwrap();
        let library = dir.path().join("onnxruntime/capi/libonnxruntime.so.1.31.1");
        assert_eq!(package_dirs(&library), [cuda, cudnn]);
        assert!(package_dirs(Path::new("libonnxruntime.so")).is_empty());
    }
}
