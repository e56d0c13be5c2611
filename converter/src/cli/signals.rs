//! Signals that end the program: what it was writing goes with it, and so do its children; lines say what stays.

use super::show;
use crate::batch::run::children;
use dijiang_runtime::temporary;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a shell reports of a program that a signal ended: this and the signal's number.
const SIGNALLED: i32 = 128;

/// Signals so near each other are one: `timeout` sends its own to the program and to its group.
const ONCE: Duration = Duration::from_millis(500);

/// Listens for the signals. A file that grows beyond what is allowed is an error of the write, as a full disk is.
pub(super) fn handle_signals() -> std::io::Result<()> {
    let ignored = ignored();
    let is_heard = |signal: &i32| ignored & (1 << (signal - 1)) == 0;
    if is_heard(&SIGXFSZ) {
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    }
    let ending: Vec<i32> = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(is_heard).collect();
    let again = Arc::new(AtomicBool::new(false));
    for signal in &ending {
        // A later one does not wait for what the first began.
        flag::register_conditional_shutdown(*signal, SIGNALLED + signal, again.clone())?;
    }
    let mut signals = Signals::new(&ending)?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            std::thread::spawn(move || {
                std::thread::sleep(ONCE);
                again.store(true, Ordering::Relaxed);
            });
            let mut lines = children::give_up();
            lines.extend(temporary::give_up());
            if lines.is_empty() {
                show::told("interrupted");
            }
            lines.iter().for_each(|line| show::told(&format!("interrupted: {line}")));
            exit(SIGNALLED + signal);
        }
    });
    Ok(())
}

/// The signals that whoever started the program wants ignored, as `nohup` does: a bit for each (Linux).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
