//! Limits that fail a job, judged from what its steps printed and from the bundle's manifest.

use super::names::{BASELINE, BUNDLE};
use super::record::StepRecord;
use crate::batch::plan::{Job, Quantity, StepCommand, Threshold};
use crate::bundle::model_files;
use crate::bundle::states::constant_bytes;
use crate::eval::statistics::mean;
use crate::report::message::number;
use crate::report::outcome::{Case, CaseStatus};
use dijiang_format::manifest::{Manifest, State};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a job is judged by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence<'a> {
    pub(super) job: &'a Job,
    pub(super) steps: &'a [StepRecord],
    /// The steps of its baseline, where that ran.
    pub(super) baseline: Option<&'a [StepRecord]>,
}

/// A figure.
#[derive(Debug, Clone, PartialEq)]
struct Figure {
    value: f64,
    standard_error: Option<f64>,
    /// Over or of what it is.
    of: String,
}

impl Figure {
    fn new(value: f64, of: impl Into<String>) -> Self {
        Self { value, standard_error: None, of: of.into() }
    }
}

/// Judges a limit.
pub(super) fn judge(threshold: &Threshold, evidence: &Evidence<'_>) -> Case {
    let Threshold { quantity, limit, .. } = threshold;
    let mut numbers = BTreeMap::from([("limit".to_owned(), *limit)]);
    let (status, message) = match evidence.measure(*quantity) {
        Err(reason) => (CaseStatus::Error, reason),
        Ok(figure) => {
            numbers.insert("measured".to_owned(), figure.value);
            numbers.extend(figure.standard_error.map(|error| ("standard_error".to_owned(), error)));
            verdict(*quantity, &figure, *limit)
        }
    };
    Case {
        suite: evidence.job.name.clone(),
        name: quantity.name().to_owned(),
        status,
        seconds: 0.0,
        message: Some(message),
        place: Some(threshold.place.clone()),
        numbers,
    }
}

/// NaN is within no limit.
fn verdict(quantity: Quantity, figure: &Figure, limit: f64) -> (CaseStatus, String) {
    let least = is_least(quantity);
    let holds = if least { figure.value >= limit } else { figure.value <= limit };
    let error = figure.standard_error.map_or_else(String::new, |error| format!(" ± {}", number(error)));
    let bound = if least { "at least" } else { "at most" };
    let message =
        format!("{}{error} {}, expected {bound} {}", number(figure.value), figure.of, number(limit));
    (if holds { CaseStatus::Passed } else { CaseStatus::Failed }, message)
}

/// Whether more is better.
fn is_least(quantity: Quantity) -> bool {
    matches!(quantity, Quantity::AccuracyDifference | Quantity::SpeedRatio)
}

impl<'a> Evidence<'a> {
    fn measure(&self, quantity: Quantity) -> Result<Figure, String> {
        match quantity {
            Quantity::CheckError => self.check_error(),
            Quantity::PerplexityRatio => self.worst(quantity, &["perplexity"], ratio),
            Quantity::AccuracyDifference => self.worst(quantity, &["accuracy", "acc"], difference),
            Quantity::SpeedRatio => self.speed_ratio(),
            Quantity::StateBytes => Ok(state_bytes(&self.manifest()?.state)),
            Quantity::BundleBytes => {
                let bytes = model_files::bytes(&self.job.bundle);
                let bytes = bytes.map_err(|e| format!("{}: {e}", self.job.bundle.display()))?;
                Ok(Figure::new(bytes as f64, "bytes of files"))
            }
            Quantity::SoftmaxSites => {
                let Manifest { sites, misses, .. } = self.manifest()?;
                let kept = sites.iter().filter(|site| !site.lowered).count() + misses.len();
                let all = sites.len() + misses.len();
                Ok(Figure::new(kept as f64, format!("of {all} attentions stay softmax")))
            }
        }
    }

    fn manifest(&self) -> Result<Manifest, String> {
        Manifest::read(&self.job.bundle).map_err(|e| e.to_string())
    }

    /// The largest relative error of all checks that have a limit.
    fn check_error(&self) -> Result<Figure, String> {
        let checks = self.steps.iter().filter_map(|step| step.result["checks"].as_array()).flatten();
        let of_logits = checks.filter(|check| {
            let is_error =
                ["relative_error", "median_relative_error"].map(Some).contains(&check["measure"].as_str());
            is_error && check["limit"].is_number() && check["status"] != "skipped"
        });
        let error = |check: &Value| check["measured"].as_f64().unwrap_or(f64::NAN);
        let found = of_logits.map(|check| (error(check), check["name"].as_str().unwrap_or("a check")));
        let worst = found.max_by(|a, b| a.0.total_cmp(&b.0));
        let (value, name) = worst.ok_or("no step made a check (hint: add a step `verify`)")?;
        Ok(Figure::new(value, format!("of {name}")))
    }

    /// The figure of all texts or tasks that is the worst, each beside the baseline's.
    fn worst(
        &self,
        quantity: Quantity,
        metrics: &[&str],
        compare: fn(&Measurement<'_>, &Measurement<'_>) -> Figure,
    ) -> Result<Figure, String> {
        let ours = measurements(self.steps, metrics, BUNDLE);
        let metric = metrics[0];
        if ours.is_empty() {
            return Err(format!("no step measured {metric} (hint: add a step `eval`)"));
        }
        let theirs = self.of_baseline(metrics);
        let figures = ours.iter().map(|(of, ours)| {
            let other = theirs.get(of).ok_or_else(|| {
                let baseline = self.job.baseline.as_deref().unwrap_or("none");
                let task = ours.task;
                format!(
                    "the {metric} of baseline `{baseline}` was not measured on the same of {task} (hint: give both the same step `eval`)"
                )
            })?;
            Ok(compare(ours, other))
        });
        let figures: Vec<Figure> = figures.collect::<Result<_, String>>()?;
        let worst =
            figures.into_iter().reduce(|a, b| if is_worse(quantity, b.value, a.value) { b } else { a });
        worst.ok_or_else(|| format!("no step measured {metric}"))
    }

    /// Measured by the job's own steps, or else by those of the baseline.
    fn of_baseline(&self, metrics: &[&str]) -> Measurements<'a> {
        let mut found = measurements(self.baseline.unwrap_or_default(), metrics, BUNDLE);
        found.extend(measurements(self.steps, metrics, BASELINE));
        found
    }

    /// The smallest of the last step `bench` that decoded, which measures both in turn.
    fn speed_ratio(&self) -> Result<Figure, String> {
        let benches = self.steps.iter().filter(|step| step.command == StepCommand::Bench.name());
        let rows = benches.rev().map(decoded).find(|rows| !rows.is_empty()).unwrap_or_default();
        let ratio = |row: &Value| {
            row["ratio"].as_f64().ok_or_else(|| {
                let failed = row["failed"].as_str().unwrap_or("it was measured without the baseline");
                format!(
                    "there is no ratio at context {}: {failed} (hint: `bench --against` the baseline)",
                    row["context"]
                )
            })
        };
        let ratios = rows.iter().map(|row| Ok((ratio(row)?, *row))).collect::<Result<Vec<_>, String>>()?;
        let slowest = ratios.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        let (value, row) = slowest.ok_or("no step measured decoding (hint: add a step `bench`)")?;
        Ok(Figure::new(value, format!("times as fast at context {}, batch {}", row["context"], row["batch"])))
    }
}

/// The rows of a step `bench` that are of decoding the job's bundle.
fn decoded(step: &StepRecord) -> Vec<&Value> {
    let rows = step.result["rows"].as_array().into_iter().flatten();
    rows.filter(|row| row["phase"] == "decode" && row["bundle"] == BUNDLE).collect()
}

/// Whether a figure is worse than another. None is worse than NaN.
fn is_worse(quantity: Quantity, a: f64, b: f64) -> bool {
    match (a.is_nan(), b.is_nan()) {
        (_, true) => false,
        (true, false) => true,
        (false, false) if is_least(quantity) => a < b,
        (false, false) => a > b,
    }
}

/// By the digest of the file that was measured on, or its name where that is not known, over how many tokens or
/// questions, and in rows of how many tokens: names of files are not the same in all jobs.
type Measurements<'a> = BTreeMap<(&'a str, u64, Option<u64>), Measurement<'a>>;

/// What a step `eval` measured.
#[derive(Debug)]
struct Measurement<'a> {
    task: &'a str,
    value: f64,
    n: u64,
    each: Vec<f64>,
}

/// The last one of each task.
fn measurements<'a>(steps: &'a [StepRecord], metrics: &[&str], bundle: &str) -> Measurements<'a> {
    let evals = steps.iter().filter(|step| step.command == StepCommand::Eval.name());
    let results = evals.flat_map(|step| {
        let rows = step.result["results"].as_array().into_iter().flatten();
        rows.map(move |row| (step, row))
    });
    let is_meant = |row: &Value| metrics.iter().any(|metric| row["metric"] == **metric);
    let meant = results.filter(|(_, row)| is_meant(row) && row["bundle"] == *bundle);
    let read = |(step, row): (&'a StepRecord, &'a Value)| {
        let each = row["each"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        // A number that JSON has none for is written as nothing.
        let value = row["value"].as_f64().unwrap_or(f64::NAN);
        let task = row["task"].as_str()?;
        let n = row["n"].as_u64()?;
        let key = (digest_of(step, task).unwrap_or(task), n, row["context"].as_u64());
        Some((key, Measurement { task, value, n, each }))
    };
    meant.filter_map(read).collect()
}

/// The digest of the file that a task is of: it stands for the file itself, or for what the option `task` names.
fn digest_of<'a>(step: &'a StepRecord, task: &str) -> Option<&'a str> {
    let of_option = |argument: &'a String| argument.strip_prefix(task)?.strip_prefix("={")?.strip_suffix('}');
    let of_itself = task.strip_prefix('{').and_then(|label| label.strip_suffix('}'));
    let label = of_itself.or_else(|| step.arguments.iter().find_map(of_option))?;
    step.reads.get(label).map(String::as_str)
}

/// Of perplexities. The error is that of the differences between the same windows.
fn ratio(ours: &Measurement<'_>, theirs: &Measurement<'_>) -> Figure {
    let value = ours.value / theirs.value;
    // That of a logarithm is relative.
    let standard_error = paired_error(ours, theirs).map(|error| error * value);
    let of = format!("over {} windows of {}", ours.each.len(), ours.task.trim_matches(['{', '}']));
    Figure { value, standard_error, of }
}

/// Of accuracies, with the error of the differences between the same questions.
fn difference(ours: &Measurement<'_>, theirs: &Measurement<'_>) -> Figure {
    let standard_error = paired_error(ours, theirs);
    let of = format!("over {} questions of {}", ours.n, ours.task);
    Figure { value: ours.value - theirs.value, standard_error, of }
}

fn paired_error(ours: &Measurement<'_>, theirs: &Measurement<'_>) -> Option<f64> {
    let differences: Vec<f64> = ours.each.iter().zip(&theirs.each).map(|(a, b)| a - b).collect();
    if ours.each.len() != theirs.each.len() || differences.iter().any(|x| !x.is_finite()) {
        return None;
    }
    mean(&differences).1
}

/// Of one sequence. A state with a dim that is open grows with the text, and is within no limit.
fn state_bytes(states: &[State]) -> Figure {
    match constant_bytes(states) {
        Ok(bytes) => Figure::new(bytes as f64, "bytes of state"),
        Err(State { name, .. }) => {
            Figure::new(f64::INFINITY, format!("bytes, as {name} grows with the text"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::outcome::Place;
    use dijiang_format::dtype::DType;
    use dijiang_format::manifest::Extent;
    use dijiang_format::target::Target;
    use serde_json::json;
    use std::path::PathBuf;

    fn place() -> Place {
        Place { file: PathBuf::from("jobs.yaml"), line: 3, column: 5 }
    }

    fn job() -> Job {
        Job {
            name: "llama".to_owned(),
            source: "model".into(),
            bundle: "nowhere/llama".into(),
            recipe: "adaptive".to_owned(),
            target: Target::Ort,
            dtype: None,
            steps: Vec::new(),
            thresholds: Vec::new(),
            baseline: Some("softmax".to_owned()),
            place: place(),
        }
    }

    fn done(command: StepCommand, result: Value) -> StepRecord {
        StepRecord {
            command: command.name().to_owned(),
            arguments: Vec::new(),
            reads: BTreeMap::new(),
            bundle: None,
            seconds: 0.0,
            peak: 0,
            result,
        }
    }

    fn judged(quantity: Quantity, limit: f64, steps: &[StepRecord], baseline: &[StepRecord]) -> String {
        let threshold = Threshold { quantity, limit, place: place() };
        let job = job();
        let case = judge(&threshold, &Evidence { job: &job, steps, baseline: Some(baseline) });
        format!("{:?}: {}", case.status, case.message.unwrap_or_default())
    }

    fn perplexity(bundle: &str, each: &[f64], n: u64) -> StepRecord {
        let value = (each.iter().sum::<f64>() / each.len() as f64).exp();
        done(
            StepCommand::Eval,
            json!({"results": [
                {"bundle": bundle, "task": "{valid.txt}", "metric": "perplexity", "value": value, "n": n, "each": each},
            ]}),
        )
    }

    #[test]
    fn perplexity_is_compared_window_by_window() {
        let ours = [perplexity(BUNDLE, &[1.1, 2.2, 3.0], 9)];
        let theirs = [perplexity(BUNDLE, &[1.0, 2.0, 3.0], 9)];
        // The mean difference is 0.1, with an error of 0.1 / √3.
        let told = judged(Quantity::PerplexityRatio, 1.2, &ours, &theirs);
        assert_eq!(told, "Passed: 1.1052 ± 0.0638 over 3 windows of valid.txt, expected at most 1.2000");
        let told = judged(Quantity::PerplexityRatio, 1.1, &ours, &theirs);
        assert!(told.starts_with("Failed: 1.1052 ± 0.0638 over 3 windows"), "{told}");
        let other = [perplexity(BUNDLE, &[1.0, 2.0], 6)];
        let told = judged(Quantity::PerplexityRatio, 1.1, &ours, &other);
        assert!(told.starts_with("Error: the perplexity of baseline `softmax` was not measured"), "{told}");
        let told = judged(Quantity::PerplexityRatio, 1.1, &[], &theirs);
        assert_eq!(told, "Error: no step measured perplexity (hint: add a step `eval`)");
        // A later measurement counts, and one of the baseline by the job's own step.
        let both = [
            ours[0].clone(),
            perplexity(BUNDLE, &[1.0, 2.0, 3.0], 9),
            perplexity(BASELINE, &[1.0, 2.0, 3.0], 9),
        ];
        let told = judged(Quantity::PerplexityRatio, 1.0, &both, &[]);
        assert_eq!(told, "Passed: 1 ± 0 over 3 windows of valid.txt, expected at most 1");
    }

    #[test]
    fn texts_are_told_apart_by_their_bytes() {
        let of = |digest: &str, each: &[f64]| {
            let mut step = perplexity(BUNDLE, each, 9);
            step.reads.insert("valid.txt".to_owned(), digest.to_owned());
            step
        };
        let ours = [of("1", &[9.0, 9.5]), of("2", &[1.0, 1.5])];
        let theirs = [of("1", &[1.0, 1.5]), of("2", &[1.0, 1.5])];
        let told = judged(Quantity::PerplexityRatio, 1.2, &ours, &theirs);
        assert!(told.starts_with("Failed: 2980.9580 "), "{told}");
        let told = judged(Quantity::PerplexityRatio, 1.2, &ours[1..], &theirs[..1]);
        assert!(told.starts_with("Error: the perplexity of baseline `softmax` was not measured"), "{told}");
    }

    #[test]
    fn no_figure_is_worse_than_none() {
        let task = |name: &str, value: Value| json!({"bundle": BUNDLE, "task": name, "metric": "accuracy", "value": value, "n": 4, "each": []});
        let steps = |values: [Value; 2]| {
            let [a, b] = values;
            [done(StepCommand::Eval, json!({"results": [task("a", a), task("b", b)]}))]
        };
        let theirs = steps([json!(0.5), json!(0.5)]);
        for ours in [[Value::Null, json!(0.5)], [json!(0.5), Value::Null]] {
            let told = judged(Quantity::AccuracyDifference, -1.0, &steps(ours), &theirs);
            assert!(told.starts_with("Failed: NaN over 4 questions of "), "{told}");
        }
        let text = |name: &str, value: Value| json!({"bundle": BUNDLE, "task": name, "metric": "perplexity", "value": value, "n": 4, "each": []});
        let ours = [done(
            StepCommand::Eval,
            json!({"results": [text("{a}", json!(2.0)), text("{b}", Value::Null), text("{c}", json!(9.0))]}),
        )];
        let theirs = [done(
            StepCommand::Eval,
            json!({"results": [text("{a}", json!(2.0)), text("{b}", json!(2.0)), text("{c}", json!(2.0))]}),
        )];
        let told = judged(Quantity::PerplexityRatio, 100.0, &ours, &theirs);
        assert!(told.starts_with("Failed: NaN over 0 windows of b"), "{told}");
    }

    #[test]
    fn a_bundle_that_is_not_there_has_no_size() {
        let told = judged(Quantity::BundleBytes, 1e9, &[], &[]);
        assert!(told.starts_with("Error: nowhere/llama: "), "{told}");
    }

    #[test]
    fn accuracy_is_compared_question_by_question() {
        let task = |each: &[f64]| {
            let value = each.iter().sum::<f64>() / each.len() as f64;
            let row = json!({"bundle": BUNDLE, "task": "copa", "metric": "accuracy", "value": value, "n": each.len(), "each": each});
            [done(StepCommand::Eval, json!({"results": [row]}))]
        };
        let (ours, theirs) = (task(&[1.0, 0.0, 0.0, 1.0]), task(&[1.0, 1.0, 0.0, 1.0]));
        let told = judged(Quantity::AccuracyDifference, -0.3, &ours, &theirs);
        assert_eq!(told, "Passed: -0.2500 ± 0.2500 over 4 questions of copa, expected at least -0.3000");
        let told = judged(Quantity::AccuracyDifference, -0.2, &ours, &theirs);
        assert!(told.starts_with("Failed: -0.2500"), "{told}");
    }

    #[test]
    fn tasks_with_names_and_rows_of_every_length_are_compared() {
        let row = |context: u64, value: f64| json!({"bundle": BUNDLE, "task": "recall", "metric": "acc", "value": value, "n": 64, "each": [], "context": context});
        let step = |values: [f64; 2]| {
            let [short, long] = values;
            [done(StepCommand::Eval, json!({"results": [row(256, short), row(512, long)]}))]
        };
        let told = judged(Quantity::AccuracyDifference, -0.1, &step([0.5, 0.9]), &step([0.8, 0.9]));
        assert!(told.starts_with("Failed: -0.3000 over 64 questions of recall"), "{told}");
    }

    #[test]
    fn the_largest_error_counts_and_no_number_is_too_large() {
        let check = |name: &str, measure: &str, measured: Value, limit: Value| json!({"name": name, "measure": measure, "measured": measured, "limit": limit, "status": "held"});
        let steps = |last: Value| {
            [done(
                StepCommand::Convert,
                json!({"checks": [
                    check("a", "relative_error", json!(1e-6), json!(1e-4)),
                    check("b", "median_relative_error", json!(2e-5), json!(1e-4)),
                    check("drift", "relative_error", json!(0.7), Value::Null),
                    check("files", "count", json!(3.0), json!(5.0)),
                    last,
                ]}),
            )]
        };
        let fine = check("c", "relative_error", json!(0.0), json!(1e-4));
        let told = judged(Quantity::CheckError, 1e-4, &steps(fine.clone()), &[]);
        assert_eq!(told, "Passed: 2.00e-5 of b, expected at most 1.00e-4");
        assert!(judged(Quantity::CheckError, 1e-5, &steps(fine), &[]).starts_with("Failed: 2.00e-5 of b"));
        let none = check("c", "relative_error", Value::Null, json!(1e-4));
        assert!(judged(Quantity::CheckError, 1.0, &steps(none), &[]).starts_with("Failed: NaN of c"));
        assert!(judged(Quantity::CheckError, 1.0, &[], &[]).starts_with("Error: no step made a check"));
    }

    #[test]
    fn the_slowest_row_counts() {
        let row = |phase: &str, bundle: &str, context: u64, ratio: Value| json!({"bundle": bundle, "phase": phase, "batch": 1, "context": context, "ratio": ratio, "failed": null});
        let rows = |last: Value| {
            let rows = [
                row("prefill", BUNDLE, 8, json!(0.1)),
                row("decode", BUNDLE, 8, json!(2.5)),
                row("decode", BASELINE, 8, Value::Null),
                last,
            ];
            [done(StepCommand::Bench, json!({"rows": rows}))]
        };
        let slow = rows(row("decode", BUNDLE, 16, json!(1.5)));
        let told = judged(Quantity::SpeedRatio, 1.5, &slow, &[]);
        assert_eq!(told, "Passed: 1.5000 times as fast at context 16, batch 1, expected at least 1.5000");
        assert!(judged(Quantity::SpeedRatio, 1.6, &slow, &[]).starts_with("Failed: "));
        // One that did not decode says nothing of it.
        let [first] = slow;
        let prefill = done(StepCommand::Bench, json!({"rows": [row("prefill", BUNDLE, 8, json!(0.1))]}));
        assert!(judged(Quantity::SpeedRatio, 1.5, &[first, prefill], &[]).starts_with("Passed: 1.5000 "));
        let none = rows(row("decode", BUNDLE, 16, Value::Null));
        assert!(
            judged(Quantity::SpeedRatio, 1.0, &none, &[])
                .starts_with("Error: there is no ratio at context 16")
        );
    }

    #[test]
    fn a_state_that_grows_is_within_no_limit() {
        let state = |shape: Vec<Extent>| State { name: "past.0".to_owned(), shape, dtype: DType::F32 };
        let batch = || Extent::Open("batch".to_owned());
        let fixed = [
            state(vec![batch(), Extent::Known(2), Extent::Known(8)]),
            state(vec![batch(), Extent::Known(4)]),
        ];
        assert_eq!(state_bytes(&fixed), Figure::new(80.0, "bytes of state"));
        let grows = [state(vec![batch(), Extent::Open("past".to_owned()), Extent::Known(8)])];
        assert_eq!(state_bytes(&grows).value, f64::INFINITY);
        let told = judged(Quantity::SoftmaxSites, 0.0, &[], &[]);
        assert!(told.starts_with("Error: nowhere/llama: "), "{told}");
    }
}
