//! Mapped files that another program shortens: whoever then looks at what is gone is sent SIGBUS, which would end the
//! program without a word. Nothing here maps weights, but ONNX Runtime does.

use super::show;
use crate::batch::run::children;
use dijiang_runtime::temporary;
use libc::c_int;
use signal_hook::low_level::exit;
use std::io::{self, Read as _};
use std::os::fd::IntoRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

const HINT: &str = "(hint: is another program writing it? Begin again when it is complete)";

/// Wrong input.
const CODE: i32 = 2;

/// Where the handler writes. A thread that may do anything reads there, and tells of it.
static TELLS: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_fault(_: c_int) {
    let end = TELLS.load(Ordering::Relaxed);
    // SAFETY: both calls are allowed in a handler, and the byte outlives the first.
    unsafe {
        libc::write(end, [0_u8].as_ptr().cast(), 1);
        // It would fault again: it stays here until the program ends.
        loop {
            libc::pause();
        }
    }
}

/// Has such a fault end the program with a line that names the file.
pub(super) fn handle_faults() -> io::Result<()> {
    let (mut reader, writer) = io::pipe()?;
    TELLS.store(writer.into_raw_fd(), Ordering::Relaxed);
    std::thread::spawn(move || {
        if reader.read_exact(&mut [0]).is_ok() {
            children::give_up();
            temporary::give_up();
            show::error(&message());
            // What runs at an ordinary end may wait for the thread that faulted.
            exit(CODE);
        }
    });
    // SAFETY: an action of zeros is a valid one, and the handler calls only what a handler may.
    let set = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as extern "C" fn(c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn message() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let found = maps.lines().filter_map(Mapped::of).find(Mapped::is_cut);
    match found {
        Some(Mapped { path, .. }) => {
            let here = std::env::current_dir().unwrap_or_default();
            let path = path.strip_prefix(here).unwrap_or(&path);
            format!("{}: it was cut short while it was read {HINT}", path.display())
        }
        None => format!("a file was cut short while it was read, or its disk failed {HINT}"),
    }
}

/// A part of a file in memory.
struct Mapped {
    path: PathBuf,
    /// Where it ends in the file, up to a page.
    end: u64,
}

impl Mapped {
    /// A line of `/proc/self/maps`: `BEGIN-END MODE OFFSET DEVICE INODE PATH`.
    fn of(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let (begin, end) = words.next()?.split_once('-')?;
        let offset = hex(words.nth(1)?)?;
        let path = Path::new(words.nth(2)?.trim_start());
        let bytes = hex(end)?.checked_sub(hex(begin)?)?;
        path.is_absolute().then(|| Self { path: path.to_owned(), end: offset.saturating_add(bytes) })
    }

    fn is_cut(&self) -> bool {
        let page = rustix::param::page_size() as u64;
        let is_short =
            |file: std::fs::Metadata| file.is_file() && file.len().next_multiple_of(page) < self.end;
        std::fs::metadata(&self.path).is_ok_and(is_short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_shorter_than_its_map_is_named() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("a b");
        std::fs::write(&path, [0; 5000]).expect("it is written");
        let page = rustix::param::page_size();
        let line = |pages: usize| {
            let (begin, end) = (0x7000_0000, 0x7000_0000 + pages * page);
            format!("{begin:x}-{end:x} r--p 00000000 fe:00 17      {}", path.display())
        };
        let is_cut = |pages: usize| Mapped::of(&line(pages)).expect("a map").is_cut();
        let whole = 5000_usize.div_ceil(page);
        assert!(!is_cut(whole) && is_cut(whole + 1));
        for other in ["7000-8000 rw-p 00000000 00:00 0 ", "7000-8000 rw-p 00000000 00:00 0      [heap]", ""] {
            assert!(Mapped::of(other).is_none(), "{other}");
        }
    }
}
