//! Whether the disk can hold a bundle, and memory its proof, asked before anything of it is written.

use std::io;
use std::path::{Path, PathBuf};

/// Bytes that can still be written into a directory.
pub type FreeSpace = fn(&Path) -> io::Result<u64>;

/// The disk cannot hold the bundle.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: the bundle takes {} MB, and {} MB are free (hint: choose another disk with --output, or --link, which copies nothing that stays as it is)",
    path.display(), .needed.div_ceil(MB), free / MB
)]
pub struct NoRoom {
    pub path: PathBuf,
    pub needed: u64,
    pub free: u64,
}

const MB: u64 = 1_000_000;

/// What the file system tells. Where it tells nothing, writing will.
pub fn free_space(directory: &Path) -> io::Result<u64> {
    let told = rustix::fs::statvfs(directory)?;
    Ok(told.f_bavail.saturating_mul(told.f_frsize))
}

/// Bytes of memory that processes can still have, where the system tells (Linux). A container's limit is not in it.
pub fn free_memory() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    available(&told)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes.saturating_mul(1024))
}

/// Refuses a bundle of `needed` bytes that `directory` has no room for; `target` is what the error names.
pub fn check(directory: &Path, target: &Path, needed: u64, free_space: FreeSpace) -> Result<(), NoRoom> {
    let Ok(free) = free_space(directory) else { return Ok(()) };
    if needed <= free {
        return Ok(());
    }
    Err(NoRoom { path: target.to_owned(), needed, free })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room_for(needed: u64, free_space: FreeSpace) -> Result<(), NoRoom> {
        check(Path::new("."), Path::new("out/bundle"), needed, free_space)
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let exact: FreeSpace = |_| Ok(5_000_000);
        assert!(room_for(5_000_000, exact).is_ok());
        assert_eq!(
            room_for(5_000_001, exact).expect_err("one byte too many").to_string(),
            "out/bundle: the bundle takes 6 MB, and 5 MB are free (hint: choose another disk with --output, or --link, which copies nothing that stays as it is)"
        );
        assert!(room_for(u64::MAX, exact).is_err());
    }

    #[test]
    fn a_file_system_that_tells_nothing_is_tried() {
        assert!(room_for(u64::MAX, |_| Err(io::ErrorKind::Unsupported.into())).is_ok());
    }

    #[test]
    fn free_memory_is_read_from_its_line() {
        let told = "MemTotal:       24684212 kB\nMemFree:  1 kB\nMemAvailable:   22000000 kB\n";
        assert_eq!(available(told), Some(22_000_000 * 1024));
        assert_eq!(available("MemFree: 1 kB\n"), None);
        assert_eq!(available("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn this_file_system_tells() {
        let told = free_space(&std::env::temp_dir()).expect("it tells");
        assert!(told > 0 && room_for(u64::MAX, free_space).is_err());
    }
}
