//! Whether the disk can hold a bundle, and memory its proof, asked before anything of it is written.

use std::io;
use std::path::{Path, PathBuf};

/// Bytes that can still be written into a directory.
pub type FreeSpace = fn(&Path) -> io::Result<u64>;

/// The disk cannot hold the bundle.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: the bundle takes up to {} MB, and {} MB are free (hint: choose another disk with --output, or --link, which copies nothing that stays as it is)",
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

/// Bytes of memory that processes can still have, where the system tells (Linux), and no more than the limit of the group
/// of processes that this one is in, as a container has one.
pub fn free_memory() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = limit(&group, Path::new("/sys/fs/cgroup"));
    Some(available(&told)?.min(limit.unwrap_or(u64::MAX)))
}

/// The smallest limit of the groups that a process is in, by its `/proc/self/cgroup`. `root` is where groups are told of.
fn limit(told: &str, root: &Path) -> Option<u64> {
    let limits = told.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, name) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ => (root.join("memory"), "memory.limit_in_bytes"),
        };
        let is_memory = controllers.is_empty() || controllers.split(',').any(|one| one == "memory");
        // A limit of one above holds too. Inside a container the upper ones are not there.
        let groups = Path::new(group.trim_start_matches('/')).ancestors().map(Path::to_owned);
        groups.filter(move |_| is_memory).map(move |group| root.join(group).join(name))
    });
    // Without a limit there is a word in place of a number, or a number larger than any memory.
    limits.filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok()).min()
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
            "out/bundle: the bundle takes up to 6 MB, and 5 MB are free (hint: choose another disk with --output, or --link, which copies nothing that stays as it is)"
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
    fn the_smallest_limit_of_all_groups_counts() {
        let home = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("it is made");
            std::fs::write(path, text).expect("it is written");
        };
        let of = |told: &str| limit(told, home.path());
        write("a/b/memory.max", "max\n");
        assert_eq!(of("0::/a/b\n"), None);
        write("a/memory.max", "4000\n");
        assert_eq!(of("0::/a/b\n"), Some(4000));
        write("memory.max", "3000\n");
        assert_eq!(
            (of("0::/a/b\n"), of("0::/\n"), of("0::/elsewhere\n")),
            (Some(3000), Some(3000), Some(3000))
        );
        write("memory/job/memory.limit_in_bytes", "2000\n");
        let older = "5:cpu,cpuacct:/job\n4:memory:/job\n";
        assert_eq!((of(older), of("5:cpu,cpuacct:/job\n"), of("")), (Some(2000), None, None));
    }

    #[test]
    fn this_file_system_tells() {
        let told = free_space(&std::env::temp_dir()).expect("it tells");
        assert!(told > 0 && room_for(u64::MAX, free_space).is_err());
    }
}
