//! Checkpoints outside the repository, where they lie beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The unpacked checkpoints of `shared/exports.tar.xz` beside the repository, if it is there.
pub(crate) fn exports() -> Option<PathBuf> {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/exports.tar.xz");
    if !archive.is_file() {
        eprintln!("skipped the exports: there is no shared/exports.tar.xz beside the repository");
        return None;
    }
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let unpacked = home.join("exports");
    if !unpacked.exists() {
        unpack(&archive, home, &unpacked);
    }
    Some(unpacked)
}

/// Through a directory of its own, so that a run that is killed leaves nothing that looks whole.
fn unpack(archive: &Path, home: &Path, target: &Path) {
    let temporary = tempfile::tempdir_in(home).expect("a temporary directory");
    let done =
        Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(temporary.path()).arg("./ckpt").status();
    assert!(done.is_ok_and(|status| status.success()), "tar could not unpack {}", archive.display());
    let renamed = std::fs::rename(temporary.path(), target);
    // Another run may have been faster.
    assert!(renamed.is_ok() || target.exists(), "{}: {renamed:?}", target.display());
}
