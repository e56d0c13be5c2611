//! What steps measured of a job's bundle.

use super::names::BUNDLE;
use super::record::StepRecord;
use crate::batch::plan::StepCommand;
use crate::report::message::number;
use serde::Serialize;
use serde_json::Value;
use std::fmt;

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The command.
    pub step: String,
    /// `perplexity`, `accuracy` or another one of `eval`.
    pub metric: String,
    /// The text or the task.
    pub of: String,
    /// Absent where it is no number.
    pub value: Option<f64>,
}

impl Measured {
    /// What the object that a step printed tells, with names in place of paths.
    pub(super) fn of(command: &str, result: &Value) -> Vec<Self> {
        let of = |metric: &str, of: &str, value: &Value| Self {
            step: command.to_owned(),
            metric: metric.to_owned(),
            of: of.trim_matches(['{', '}']).to_owned(),
            value: value.as_f64(),
        };
        match StepCommand::named(command) {
            Some(StepCommand::Eval) => {
                let rows = result["results"].as_array().into_iter().flatten();
                let own = rows.filter(|row| row["bundle"] == BUNDLE);
                let own: Vec<&Value> = own.collect();
                let is_twin = |a: &Value, b: &Value| {
                    ["metric", "task"].iter().all(|key| a[*key] == b[*key]) && a["context"] != b["context"]
                };
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let figure = |row: &&Value| {
                    let mut found = of(&text(&row["metric"]), &text(&row["task"]), &row["value"]);
                    if own.iter().any(|other| is_twin(row, other)) {
                        found.of = format!("{} at {}", found.of, row["context"]);
                    }
                    found
                };
                own.iter().map(figure).collect()
            }
            Some(StepCommand::Calibrate | StepCommand::Finetune) => {
                let value = &result["valid_perplexity"];
                value.is_number().then(|| of("perplexity", VALIDATION, value)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn of_steps(steps: &[StepRecord]) -> Vec<Self> {
        steps.iter().flat_map(|step| Self::of(&step.command, &step.result)).collect()
    }

    /// What a report calls it.
    pub(super) fn name(&self) -> String {
        format!("{} of {}", self.metric, self.of)
    }
}

/// What training is measured on.
const VALIDATION: &str = "the validation text";

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, metric, of, value } = self;
        write!(f, "{step}: {metric} {} of {of}", number(value.unwrap_or(f64::NAN)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(command: &str, result: &Value) -> Vec<String> {
        Measured::of(command, result).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn figures_are_of_the_jobs_own_bundle() {
        let row = |bundle: &str, task: &str, metric: &str, value: Value| json!({"bundle": bundle, "task": task, "metric": metric, "value": value});
        let result = json!({"results": [
            row(BUNDLE, "{valid.txt}", "perplexity", json!(8.25)),
            row("{baseline}", "{valid.txt}", "perplexity", json!(7.5)),
            row(BUNDLE, "copa", "accuracy", json!(0.5)),
            row(BUNDLE, "{odd.txt}", "perplexity", Value::Null),
        ]});
        assert_eq!(
            told("eval", &result),
            [
                "eval: perplexity 8.2500 of valid.txt",
                "eval: accuracy 0.5000 of copa",
                "eval: perplexity NaN of odd.txt"
            ]
        );
        let at = |context: u64| json!({"bundle": BUNDLE, "task": "copy", "metric": "acc", "value": 0.5, "context": context});
        let found = told("eval", &json!({"results": [at(256), at(512)]}));
        assert_eq!(found, ["eval: acc 0.5000 of copy at 256", "eval: acc 0.5000 of copy at 512"]);
        let trained = json!({"valid_perplexity_before": 9.0, "valid_perplexity": 8.5});
        assert_eq!(told("finetune", &trained), ["finetune: perplexity 8.5000 of the validation text"]);
        assert!(told("convert", &json!({"checks": []})).is_empty());
    }
}
