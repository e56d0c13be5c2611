//! The child processes of a batch, known to whatever ends the program: they end with it, however it ends.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getppid, kill_process, waitid};
use std::collections::BTreeMap;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wait4::Wait4 as _;

/// How long children may take that were told to end with this process, as a terminal does. A second signal would keep
/// them from removing what they were writing.
const TOLD_TOO: Duration = Duration::from_millis(200);
/// And those that this process tells.
const GRACE: Duration = Duration::from_millis(500);

/// How long a child that a signal ended may have been told of it before this process was.
const TOLD_FIRST: Duration = Duration::from_millis(200);

/// In the environment of a child: the process that it ends with.
const PARENT: &str = "DIJIANG_BATCH_PROCESS";

/// What this process runs.
#[derive(Debug, Default)]
struct Running {
    /// From then on nothing is started, and nobody is told of an end.
    closed: bool,
    /// What each child does, by its process.
    children: BTreeMap<i32, String>,
    /// Jobs that are done, while there is a batch.
    done: Option<usize>,
}

static RUNNING: Mutex<Running> = Mutex::new(Running { closed: false, children: BTreeMap::new(), done: None });
static ENDED: Condvar = Condvar::new();

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of a child.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// Bytes of memory at its peak, with the parts of files that were mapped.
    pub(super) peak: u64,
}

/// A batch has so many jobs done, or has ended.
pub(super) fn count_done(jobs: Option<usize>) {
    running().done = jobs;
}

/// Starts a child. `what` tells a user what it does.
pub(super) fn start(command: &mut Command, what: &str) -> io::Result<Child> {
    // Held until the child is known, so that none is forgotten.
    let mut running = running();
    if running.closed {
        drop(running);
        wait_for_the_end();
    }
    let child = command.env(PARENT, std::process::id().to_string()).spawn()?;
    running.children.insert(child.id() as i32, what.to_owned());
    Ok(child)
}

/// Waits for a child.
pub(super) fn wait(child: &mut Child) -> io::Result<Ended> {
    let process = child.id() as i32;
    if let Some(pid) = Pid::from_raw(process) {
        // It stays known until it is reaped, so that its number is no other process's.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), options), Err(rustix::io::Errno::INTR)) {}
    }
    let (ended, closed) = {
        let mut running = running();
        running.children.remove(&process);
        ENDED.notify_all();
        (child.wait4()?, running.closed)
    };
    if closed {
        wait_for_the_end();
    }
    Ok(Ended { status: ended.status, peak: ended.rusage.maxrss })
}

/// A terminal tells children and parent of a key press in any order.
pub(super) fn wait_for_a_signal() {
    std::thread::sleep(TOLD_FIRST);
    if running().closed {
        wait_for_the_end();
    }
}

/// The program ends, and nothing that happens now is a result.
fn wait_for_the_end() -> ! {
    loop {
        std::thread::park();
    }
}

/// For a program that a signal ends: ends every child, and returns a line for each, and one that says what is kept.
pub fn give_up() -> Vec<String> {
    let mut running = running();
    running.closed = true;
    let broken: Vec<String> = running.children.values().cloned().collect();
    for (time, signal) in [(TOLD_TOO, Signal::TERM), (GRACE, Signal::KILL)] {
        let left = ENDED.wait_timeout_while(running, time, |running| !running.children.is_empty());
        running = left.unwrap_or_else(PoisonError::into_inner).0;
        signal_all(&running, signal);
    }
    let mut lines: Vec<String> = broken.iter().map(|what| format!("{what} was broken off")).collect();
    if let Some(done) = running.done {
        let jobs = if done == 1 {
            "1 job is done and stays".to_owned()
        } else {
            format!("{done} jobs are done and stay")
        };
        lines.push(format!("{jobs} (hint: the same command goes on with the others)"));
    }
    lines
}

fn signal_all(running: &Running, signal: Signal) {
    for pid in running.children.keys().filter_map(|process| Pid::from_raw(*process)) {
        // One that has just ended needs no signal.
        let _ = kill_process(pid, signal);
    }
}

/// Has a child of a batch end with the batch, even if that is killed.
pub fn end_with_parent() {
    let Ok(parent) = std::env::var(PARENT) else { return };
    #[cfg(target_os = "linux")]
    if let Err(e) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
        tracing::debug!("this process stays when its batch is killed: {e}");
    }
    let is_there = getppid().is_some_and(|pid| pid.as_raw_nonzero().to_string() == parent);
    // It may have ended before it could be asked to tell.
    if !is_there && parent.parse::<u32>().is_ok_and(is_gone) {
        std::process::exit(128 + Signal::TERM.as_raw());
    }
}

fn is_gone(process: u32) -> bool {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}
