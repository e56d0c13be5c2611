//! Which job runs when: those beside each other fit the memory and the threads of the run.

use super::children;
use super::job::{Context, End, Looked, Work};
use super::memory::LOOKING;
use super::record::StepRecord;
use crate::batch::plan::{Job, Plan};
use crate::report::progress::{Progress, Say};
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Scope;
use std::time::{Duration, Instant};

/// How often a job that another process works on is looked at again.
const AGAIN: Duration = Duration::from_millis(250);
/// How often the digests that are known are kept.
const SAVED: Duration = Duration::from_secs(10);
/// How many jobs wait for room, for each thread of the budget: each holds a file open, its lock.
const WAITING: usize = 4;

/// What jobs may take together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    pub(super) memory: u64,
    pub(super) threads: usize,
}

/// What a thing that runs takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    memory: u64,
    threads: usize,
}

impl Budget {
    /// Whether something may start beside what runs. Alone, anything may.
    fn fits(&self, running: &BTreeMap<usize, Share>, new: Share) -> bool {
        let memory = running.values().fold(new.memory, |sum, share| sum.saturating_add(share.memory));
        let threads = running.values().fold(new.threads, |sum, share| sum.saturating_add(share.threads));
        running.is_empty() || (memory <= self.memory && threads <= self.threads)
    }
}

#[derive(Debug)]
enum State {
    /// Until then, where another process works on it.
    Waiting(Option<Instant>),
    Looking,
    Ready(Box<Work>),
    Running,
    Over(End),
}

/// What happens to a job, by its place in the plan.
enum Event {
    Looked(usize, Looked),
    Over(usize, End),
    Panicked(Box<dyn Any + Send>),
}

pub(super) struct Schedule<'a> {
    context: &'a Context<'a>,
    budget: Budget,
    keep_going: bool,
    states: Vec<State>,
    /// The place of each job's baseline.
    baselines: Vec<Option<usize>>,
    running: BTreeMap<usize, Share>,
    /// The first job that failed, where no other is to start after it.
    stopped: Option<usize>,
    /// Jobs whose steps are all done.
    done: usize,
    saved: Instant,
    sender: Sender<Event>,
    receiver: Receiver<Event>,
}

impl<'a> Schedule<'a> {
    pub(super) fn new(context: &'a Context<'a>, budget: Budget) -> Self {
        let Plan { jobs, .. } = context.plan;
        let places: BTreeMap<&str, usize> =
            jobs.iter().enumerate().map(|(at, job)| (job.name.as_str(), at)).collect();
        let baseline = |job: &Job| job.baseline.as_deref().and_then(|name| places.get(name).copied());
        let (sender, receiver) = channel();
        Self {
            context,
            budget,
            keep_going: context.options.keep_going,
            states: jobs.iter().map(|_| State::Waiting(None)).collect(),
            baselines: jobs.iter().map(baseline).collect(),
            running: BTreeMap::new(),
            stopped: None,
            done: 0,
            saved: Instant::now(),
            sender,
            receiver,
        }
    }

    /// Runs all jobs, and returns how each ended.
    pub(super) fn run(mut self, progress: &mut dyn Progress) -> Vec<End> {
        children::count_done(Some(0));
        std::thread::scope(|scope| {
            loop {
                self.skip(progress);
                self.start_ready(scope, progress);
                self.start_looking(scope);
                if !self.wait(progress) {
                    break;
                }
            }
        });
        children::count_done(None);
        progress.done();
        let jobs = &self.context.plan.jobs;
        let ends = self.states.into_iter().zip(jobs).map(|(state, job)| match state {
            State::Over(end) => end,
            _ => End::refused(job, "its baseline waits for it in turn"),
        });
        ends.collect()
    }

    fn job(&self, at: usize) -> &'a Job {
        &self.context.plan.jobs[at]
    }

    /// Ends jobs that are not to start. The end of one may be a reason for those before it.
    fn skip(&mut self, progress: &mut dyn Progress) {
        let mut is_new = true;
        while is_new {
            is_new = false;
            for at in 0..self.states.len() {
                if let Some(reason) = self.reason_to_skip(at) {
                    self.over(at, End::skipped(self.job(at), &reason), progress);
                    is_new = true;
                }
            }
        }
    }

    fn reason_to_skip(&self, at: usize) -> Option<String> {
        if !matches!(self.states[at], State::Waiting(_) | State::Ready(_)) {
            return None;
        }
        if let Some(stopped) = self.stopped {
            let name = &self.job(stopped).name;
            return Some(format!("`{name}` failed before it was started (hint: --keep-going goes on)"));
        }
        let baseline = self.baselines[at]?;
        let State::Over(end) = &self.states[baseline] else { return None };
        let Job { name, steps, .. } = self.job(baseline);
        match end.is_good() {
            false => Some(format!("its baseline `{name}` failed")),
            true => (end.steps.len() < steps.len()).then(|| format!("its baseline `{name}` was not run")),
        }
    }

    /// The steps of a job's baseline, once that is over.
    fn baseline(&self, at: usize) -> Option<Arc<[StepRecord]>> {
        match &self.states[self.baselines[at]?] {
            State::Over(end) => Some(end.steps.clone()),
            _ => None,
        }
    }

    fn is_free(&self, at: usize) -> bool {
        self.baselines[at].is_none_or(|baseline| matches!(self.states[baseline], State::Over(_)))
    }

    /// The threads of a job that is to start: its part of those that no other job has.
    fn threads(&self, work: &Work) -> usize {
        if let Some(given) = work.threads {
            return given.min(self.budget.threads);
        }
        let jobs = self.running.iter().filter(|(at, _)| matches!(self.states[**at], State::Running));
        let left = self.budget.threads.saturating_sub(jobs.map(|(_, share)| share.threads).sum());
        let is_to_come = |at: &usize| match self.states[*at] {
            State::Ready(_) | State::Looking => true,
            State::Waiting(_) => self.is_free(*at),
            State::Running | State::Over(_) => false,
        };
        let to_come = (0..self.states.len()).filter(is_to_come).count();
        let all: usize = self.running.values().map(|share| share.threads).sum();
        let free = self.budget.threads.saturating_sub(all);
        (left / to_come.max(1)).min(free).max(1)
    }

    fn start_ready<'s>(&mut self, scope: &'s Scope<'s, 'a>, progress: &mut dyn Progress) {
        for at in 0..self.states.len() {
            let State::Ready(work) = &self.states[at] else { continue };
            let share = Share { memory: work.memory, threads: self.threads(work) };
            if !self.budget.fits(&self.running, share) {
                continue;
            }
            let State::Ready(work) = std::mem::replace(&mut self.states[at], State::Running) else {
                continue;
            };
            let job = self.job(at);
            progress.say(Say::Note, &format!("{}: {}", job.name, work.reason()));
            let (context, baseline) = (self.context, self.baseline(at));
            self.running.insert(at, share);
            self.spawn(scope, move || {
                Event::Over(at, context.work(job, *work, share.threads, baseline.as_deref()))
            });
        }
    }

    fn start_looking<'s>(&mut self, scope: &'s Scope<'s, 'a>) {
        let share = Share { memory: LOOKING, threads: 1 };
        let now = Instant::now();
        let has_lock = |state: &&State| matches!(state, State::Ready(_) | State::Looking);
        let mut held = self.states.iter().filter(has_lock).count();
        for at in 0..self.states.len() {
            if held > self.budget.threads.saturating_mul(WAITING) {
                return;
            }
            let is_due =
                matches!(self.states[at], State::Waiting(until) if until.is_none_or(|until| until <= now));
            if !is_due || !self.is_free(at) {
                continue;
            }
            if !self.budget.fits(&self.running, share) {
                return;
            }
            self.states[at] = State::Looking;
            held += 1;
            self.running.insert(at, share);
            let (context, job, baseline) = (self.context, self.job(at), self.baseline(at));
            self.spawn(scope, move || Event::Looked(at, context.look(job, baseline.as_deref())));
        }
    }

    fn spawn<'s>(&self, scope: &'s Scope<'s, 'a>, work: impl FnOnce() -> Event + Send + 'a) {
        let sender = self.sender.clone();
        scope.spawn(move || {
            let event = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(Event::Panicked);
            // Nobody hears it where the run has ended with another panic.
            let _ = sender.send(event);
        });
    }

    /// Waits until something happens; false where nothing will.
    fn wait(&mut self, progress: &mut dyn Progress) -> bool {
        let is_held = self.states.iter().any(|state| matches!(state, State::Waiting(Some(_))));
        if self.running.is_empty() && !is_held {
            return false;
        }
        self.tell(progress);
        match self.receiver.recv_timeout(if is_held { AGAIN } else { SAVED }) {
            Ok(event) => self.happened(event, progress),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if self.saved.elapsed() > SAVED {
            self.save();
        }
        true
    }

    /// What is known of files only saves time.
    fn save(&mut self) {
        self.saved = Instant::now();
        if let Err(e) = self.context.surroundings.digester.save() {
            tracing::debug!("the digests of files cannot be kept: {e}");
        }
    }

    fn happened(&mut self, event: Event, progress: &mut dyn Progress) {
        match event {
            Event::Panicked(payload) => resume_unwind(payload),
            Event::Over(at, end) => {
                self.running.remove(&at);
                self.over(at, end, progress);
            }
            Event::Looked(at, looked) => {
                self.running.remove(&at);
                self.looked(at, looked, progress);
            }
        }
    }

    fn looked(&mut self, at: usize, looked: Looked, progress: &mut dyn Progress) {
        let name = &self.job(at).name;
        match looked {
            Looked::Over(end) => self.over(at, end, progress),
            Looked::Held(holder) => {
                progress.stage(&format!("{name}: {holder} is working on it"));
                self.states[at] = State::Waiting(Some(Instant::now() + AGAIN));
            }
            Looked::Ready(work) => {
                if let Some(warning) = &work.warning {
                    progress.say(Say::Warning, &format!("{name}: {warning}"));
                }
                if work.memory > self.budget.memory {
                    let [needed, budget] = [work.memory, self.budget.memory].map(|bytes| bytes as f64 / 1e6);
                    progress.say(
                        Say::Warning,
                        &format!(
                            "{name}: about {needed:.0} MB of memory are needed, and the batch has {budget:.0} MB: it runs alone (hint: --memory gives it more)"
                        ),
                    );
                }
                self.states[at] = State::Ready(work);
            }
        }
    }

    fn over(&mut self, at: usize, end: End, progress: &mut dyn Progress) {
        let name = &self.job(at).name;
        for warning in &end.warnings {
            progress.say(Say::Warning, &format!("{name}: {warning}"));
        }
        let bad = end.cases.iter().find(|case| !super::is_good(case.status));
        if let Some(case) = bad {
            let message = case.message.as_deref().unwrap_or("it failed");
            progress.say(Say::Error, &format!("{name}: {}: {message}", case.name));
            if !self.keep_going {
                self.stopped.get_or_insert(at);
            }
        }
        self.done += usize::from(end.steps.len() == self.job(at).steps.len());
        children::count_done(Some(self.done));
        self.states[at] = State::Over(end);
    }

    fn tell(&self, progress: &mut dyn Progress) {
        let over = self.states.iter().filter(|state| matches!(state, State::Over(_))).count();
        let names: Vec<&str> = self.running.keys().map(|at| self.job(*at).name.as_str()).collect();
        progress.stage(&format!("{over} of {} jobs: {}", self.states.len(), names.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_waits_unless_it_is_alone() {
        let budget = Budget { memory: 100, threads: 4 };
        let share = |memory, threads| Share { memory, threads };
        let none = BTreeMap::new();
        assert!(budget.fits(&none, share(1000, 9)));
        let one = BTreeMap::from([(0, share(60, 1))]);
        assert!(budget.fits(&one, share(40, 3)));
        assert!(!budget.fits(&one, share(41, 1)) && !budget.fits(&one, share(1, 4)));
        let whole = BTreeMap::from([(0, share(u64::MAX, 1))]);
        assert!(!budget.fits(&whole, share(1, 1)));
    }
}
