//! Checkpoints outside the repository, where they lie beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The architectures of decoders that there are checkpoints and exports of.
pub(crate) const DECODERS: [&str; 4] = ["llama_mha", "llama_gqa", "gpt_neox", "opt"];

/// The unpacked checkpoints of `shared/exports.tar.xz` beside the repository, and what optimum exported of
/// [`DECODERS`] with a cache, if it is there.
pub(crate) fn exports() -> Option<PathBuf> {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/exports.tar.xz");
    if !archive.is_file() {
        eprintln!("skipped the exports: there is no shared/exports.tar.xz beside the repository");
        return None;
    }
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let unpacked = home.join("exports_of_optimum");
    if !unpacked.exists() {
        unpack(&archive, home, &unpacked);
    }
    Some(unpacked)
}

/// Through a directory of its own, so that a run that is killed leaves nothing that looks complete.
fn unpack(archive: &Path, home: &Path, target: &Path) {
    let temporary = tempfile::tempdir_in(home).expect("a temporary directory");
    let exported = DECODERS.map(|name| format!("./{name}__optimum_past"));
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(archive).arg("-C").arg(temporary.path()).arg("./ckpt").args(exported);
    let done = tar.status();
    assert!(done.is_ok_and(|status| status.success()), "tar could not unpack {}", archive.display());
    let renamed = std::fs::rename(temporary.path(), target);
    // Another run may have been faster.
    assert!(renamed.is_ok() || target.exists(), "{}: {renamed:?}", target.display());
}
