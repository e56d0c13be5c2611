//! Whether the disk can hold what a run writes, asked before it trains.

use super::TrainError;
use crate::bundle::room;
use dijiang_format::files;
use std::path::Path;

/// Bytes of a trained number in a checkpoint: itself and its two moments.
const CHECKPOINT: u64 = 12;

/// Refuses a run that trains so many numbers and writes checkpoints of them, or none, where less is free than its new weights
/// and those take.
pub(super) fn check(bundle: &Path, in_checkpoints: usize) -> Result<(), TrainError> {
    let path = bundle.join(files::WEIGHTS);
    let Ok(weights) = std::fs::metadata(&path) else { return Ok(()) };
    let needed = weights.len().saturating_add((in_checkpoints as u64).saturating_mul(CHECKPOINT));
    check_free(&path, needed, room::free_space)
}

fn check_free(path: &Path, needed: u64, free_space: room::FreeSpace) -> Result<(), TrainError> {
    let Some(free) = path.parent().and_then(|bundle| free_space(bundle).ok()) else { return Ok(()) };
    match needed <= free {
        true => Ok(()),
        false => Err(TrainError::Disk { path: path.to_owned(), needed, free }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_the_disk_cannot_hold_is_refused() {
        let found =
            |needed: u64| check_free(Path::new("bundle/model.safetensors"), needed, |_| Ok(5_000_000));
        assert!(found(5_000_000).is_ok());
        assert_eq!(
            found(7_000_000).expect_err("too much").to_string(),
            "bundle/model.safetensors: the trained weights and their checkpoints take 7.00 MB beside it, and 5.00 MB are free (hint: make room, or copy the bundle to another disk)"
        );
    }
}
