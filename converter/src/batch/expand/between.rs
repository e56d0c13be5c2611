//! What holds between a job and its baseline.

use super::job::Made;
use super::steps::{has, values};
use crate::batch::document::mistake::nearest;
use crate::batch::document::{Mistakes, Wrong};
use crate::batch::plan::{Quantity, Step, StepCommand, Threshold};
use crate::report::message::shown;
use std::collections::HashMap;

/// Notes baselines that are none, and limits that nothing measures. Where the jobs are not all that were meant, a baseline
/// may be one of the others.
pub(super) fn check(jobs: &[Made], is_complete: bool, mistakes: &mut Mistakes) {
    let index: HashMap<&str, usize> =
        jobs.iter().enumerate().map(|(at, made)| (made.job.name.as_str(), at)).collect();
    for made in jobs.iter().filter(|made| is_complete && made.job.baseline.is_some()) {
        // Each is a comparison with every name.
        if mistakes.is_full() {
            return;
        }
        check_baseline(made, jobs, &index, mistakes);
    }
    check_circles(jobs, &index, mistakes);
    for made in jobs.iter().filter(|made| made.is_whole) {
        let baseline = match made.job.baseline.as_deref().map(|name| index.get(name)) {
            None => None,
            Some(Some(at)) if jobs[*at].is_whole => Some(&jobs[*at]),
            // What is wrong with it was told.
            Some(_) => continue,
        };
        for threshold in &made.job.thresholds {
            if let Err(wrong) = is_measured(threshold, made, baseline) {
                mistakes.add(wrong.at(threshold.place.clone()));
            }
        }
    }
}

fn check_baseline(made: &Made, jobs: &[Made], index: &HashMap<&str, usize>, mistakes: &mut Mistakes) {
    let Some(name) = made.job.baseline.as_deref().filter(|name| !index.contains_key(name)) else { return };
    let near = nearest(name, jobs.iter().map(|made| made.job.name.as_str()));
    let hint = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`dijiang batch FILE --dry-run` without it lists the jobs".to_owned(),
    };
    let found = format!("the baseline `{}` is not known", shown(name));
    mistakes.add(Wrong::other(found, "the name of a job", hint).at(made.baseline_place.clone()));
}

/// Notes each circle of baselines once.
fn check_circles(jobs: &[Made], index: &HashMap<&str, usize>, mistakes: &mut Mistakes) {
    let next = |at: usize| jobs[at].job.baseline.as_deref().and_then(|name| index.get(name).copied());
    // The walk that came by, from 1.
    let mut walks = vec![0; jobs.len()];
    for start in 0..jobs.len() {
        let mut at = Some(start);
        while let Some(job) = at.filter(|at| walks[*at] == 0) {
            walks[job] = start + 1;
            at = next(job);
        }
        if let Some(job) = at.filter(|at| walks[*at] == start + 1) {
            let found = format!("job `{}` is its own baseline, or that of its baseline", jobs[job].job.name);
            let hint = "take one `baseline` out, then `dijiang batch FILE --check`";
            mistakes.add(
                Wrong::other(found, "a job that does not need it", hint).at(jobs[job].baseline_place.clone()),
            );
        }
    }
}

/// Whether the steps of a job and of its baseline give what a limit is of.
fn is_measured(threshold: &Threshold, made: &Made, baseline: Option<&Made>) -> Result<(), Wrong> {
    let (name, job) = (threshold.quantity.name(), &made.job.name);
    let lacks = |step: &str, hint: &str| {
        Err(Wrong::other(
            format!("`{name}` of job `{job}`, which has no {step}"),
            "a step that measures it",
            hint,
        ))
    };
    if threshold.quantity.compares() && baseline.is_none() {
        let hint = "`baseline: JOB`, or a matrix that has the recipe softmax too";
        return Err(Wrong::other(
            format!("`{name}` of job `{job}`, which has no baseline"),
            "one to compare with",
            hint,
        ));
    }
    let (option, rows) = match threshold.quantity {
        Quantity::CheckError => {
            let proves = |step: &Step| !has(&step.arguments, "no-verify");
            let mut proofs = made.calls(StepCommand::Convert).chain(made.calls(StepCommand::Quantize));
            let is_proved = proofs.any(proves) || made.calls(StepCommand::Verify).next().is_some();
            return if is_proved {
                Ok(())
            } else {
                lacks("check", "add `- verify`, or take out `no-verify`")
            };
        }
        Quantity::SpeedRatio => {
            let decodes = |step: &Step| !values(&step.arguments, "skip").any(|skip| skip.contains("decode"));
            let is_timed = made.calls(StepCommand::Bench).any(decodes);
            return if is_timed { Ok(()) } else { lacks("step `bench` that decodes", "add `- bench`") };
        }
        Quantity::StateBytes | Quantity::BundleBytes | Quantity::SoftmaxSites => return Ok(()),
        Quantity::PerplexityRatio => ("perplexity", ["perplexity", "context", "max-tokens"].as_slice()),
        Quantity::AccuracyDifference => ("task", ["task", "context", "limit"].as_slice()),
    };
    let ours: Vec<&Step> =
        made.calls(StepCommand::Eval).filter(|step| has(&step.arguments, option)).collect();
    if ours.is_empty() {
        return lacks(&format!("step `eval` with `{option}`"), &format!("add `- eval: {{{option}: …}}`"));
    }
    let Some(baseline) = baseline else { return Ok(()) };
    let is_same = |ours: &Step, theirs: &Step| {
        rows.iter().all(|row| values(&ours.arguments, row).eq(values(&theirs.arguments, row)))
    };
    if ours.iter().all(|ours| baseline.calls(StepCommand::Eval).any(|theirs| is_same(ours, theirs))) {
        return Ok(());
    }
    let found = format!("`{name}` of job `{job}`, whose baseline `{}` is not measured so", baseline.job.name);
    let hint = format!("give both the same `{}` in a step `eval`", rows.join("`, `"));
    Err(Wrong::other(found, "the same step `eval` in both", hint))
}
