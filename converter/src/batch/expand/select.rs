//! Some of the jobs of a plan: those of a name, and those of a shard.

use crate::batch::document::mistake::nearest;
use crate::batch::plan::{Job, Plan};
use crate::report::message::shown;
use glob::Pattern;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::str::FromStr;

/// One of some parts of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    pub index: usize,
    pub count: usize,
}

/// The parts that a plan is dealt to, at most.
const MAX_SHARDS: usize = 100_000;

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let parts = parts.and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        let shard = parts.map(|(index, count)| Self { index, count });
        let is_one = |shard: &Self| (1..=shard.count).contains(&shard.index) && shard.count <= MAX_SHARDS;
        shard.filter(is_one).ok_or_else(|| format!("expected I/N, I from 1 to N, and N {MAX_SHARDS} at most"))
    }
}

/// Jobs cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    #[error(
        "--only {}: {reason}, expected a name with `*`, `?` or `[…]` in it (hint: `dijiang batch FILE --dry-run` lists the names)",
        shown(text)
    )]
    Pattern { text: String, reason: String },
    #[error("--only {}: no job is called so, expected a name or a pattern (hint: {hint})", shown(text))]
    None { text: String, hint: String },
}

/// Leaves the jobs that any of the patterns names, and their baselines. Without a pattern all stay.
pub fn only(plan: &mut Plan, patterns: &[String]) -> Result<(), SelectError> {
    if patterns.is_empty() {
        return Ok(());
    }
    let mut wanted = vec![false; plan.jobs.len()];
    for text in patterns {
        let pattern = Pattern::new(text)
            .map_err(|error| SelectError::Pattern { text: text.clone(), reason: error.msg.to_owned() })?;
        let mut found = false;
        for (_, wanted) in plan.jobs.iter().zip(&mut wanted).filter(|(job, _)| pattern.matches(&job.name)) {
            (*wanted, found) = (true, true);
        }
        if !found {
            let near = nearest(text, plan.jobs.iter().map(|job| job.name.as_str()));
            let hint = near.map_or_else(
                || "`dijiang batch FILE --dry-run` lists the names".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            return Err(SelectError::None { text: text.clone(), hint });
        }
    }
    let baselines = baselines(&plan.jobs);
    for at in 0..wanted.len() {
        let mut next = Some(at).filter(|at| wanted[*at]).and_then(|at| baselines[at]);
        while let Some(baseline) = next.filter(|baseline| !wanted[*baseline]) {
            wanted[baseline] = true;
            next = baselines[baseline];
        }
    }
    keep(plan, &wanted);
    Ok(())
}

/// Leaves the jobs of a shard.
///
/// A job and its baseline are in one shard, so that no two shards write one bundle: jobs that hang together are dealt
/// together, in the order of the first of them, each time to the shard that has the fewest jobs so far.
pub fn shard(plan: &mut Plan, shard: Shard) {
    let groups = groups(&plan.jobs);
    let mut sizes: HashMap<usize, usize> = HashMap::new();
    groups.iter().for_each(|group| *sizes.entry(*group).or_default() += 1);
    let mut loads: BinaryHeap<Reverse<(usize, usize)>> =
        (0..shard.count).map(|at| Reverse((0, at))).collect();
    let mut dealt: HashMap<usize, usize> = HashMap::new();
    for group in &groups {
        dealt.entry(*group).or_insert_with(|| {
            let Some(Reverse((load, to))) = loads.pop() else { return 0 };
            loads.push(Reverse((load + sizes[group], to)));
            to
        });
    }
    let wanted: Vec<bool> = groups.iter().map(|group| dealt[group] + 1 == shard.index).collect();
    keep(plan, &wanted);
}

fn keep(plan: &mut Plan, wanted: &[bool]) {
    let mut wanted = wanted.iter();
    plan.jobs.retain(|_| wanted.next().is_some_and(|wanted| *wanted));
}

/// The position of each job's baseline.
fn baselines(jobs: &[Job]) -> Vec<Option<usize>> {
    let index: HashMap<&str, usize> =
        jobs.iter().enumerate().map(|(at, job)| (job.name.as_str(), at)).collect();
    jobs.iter().map(|job| index.get(job.baseline.as_deref()?).copied()).collect()
}

/// For each job the last baseline of the chain that it hangs on: those that share it hang together.
fn groups(jobs: &[Job]) -> Vec<usize> {
    let baselines = baselines(jobs);
    let mut groups: Vec<Option<usize>> = vec![None; jobs.len()];
    for start in 0..jobs.len() {
        let (mut chain, mut at) = (vec![start], start);
        while let (None, Some(next)) = (groups[at], baselines[at]) {
            chain.push(next);
            at = next;
        }
        let group = groups[at].unwrap_or(at);
        chain.into_iter().for_each(|job| groups[job] = Some(group));
    }
    groups.into_iter().enumerate().map(|(at, group)| group.unwrap_or(at)).collect()
}
