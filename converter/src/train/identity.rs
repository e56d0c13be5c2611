//! What the steps of a run depend on, so that it is resumed with the same only: contents by their digests, options by
//! their values.

use super::TrainError;
use super::finetune::{Data, FinetuneOptions};
use super::teacher::{Lesson, Source};
use clap::ValueEnum as _;
use dijiang_format::digest::Hasher;
use dijiang_passes::training::parameters::Precision;
use dijiang_runtime::ModelIdentity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A run, apart from its step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// Of the bundle before the run.
    pub weights: String,
    pub conversion: String,
    /// Tokens to train on, and windows to validate on.
    pub data: String,
    pub valid: String,
    /// `self`, or that of the bundle that teaches.
    pub teacher: Option<String>,
    /// Options of the command line that change the steps, with their values.
    pub options: BTreeMap<String, String>,
}

impl RunIdentity {
    /// Of a run over a bundle with its data.
    pub fn of(
        bundle: &Path,
        (options, lesson): (&FinetuneOptions, Option<&Lesson>),
        data: &Data,
    ) -> Result<Self, TrainError> {
        let ModelIdentity { weights, conversion } = ModelIdentity::of(bundle)?;
        let teacher = lesson.map(|lesson| match &lesson.source {
            Source::Itself => Ok("self".to_owned()),
            Source::Bundle(path) => ModelIdentity::of(path).map(|of| of.weights + " " + &of.conversion),
        });
        let mut valid = Hasher::default();
        data.held_out.iter().flatten().for_each(|id| valid.update(&id.to_le_bytes()));
        Ok(Self {
            weights,
            conversion,
            data: data.digest.clone(),
            valid: valid.finish(),
            teacher: teacher.transpose()?,
            options: told(options, lesson),
        })
    }

    /// What differs from the run that a checkpoint is of, each as the command line has it.
    pub fn differences(&self, found: &Self) -> Vec<String> {
        let contents = [
            (
                self.weights == found.weights,
                "the weights of the bundle are others (the run has ended, they were trained or imported since, or the bundle is another)",
            ),
            (
                self.conversion == found.conversion,
                "the bundle was converted in another way, or from another source",
            ),
            (self.data == found.data, "--data holds other tokens"),
            (
                self.valid == found.valid,
                "the windows to validate on are others (--valid, --validation-windows)",
            ),
            (self.teacher == found.teacher, "--teacher is another"),
        ];
        let contents = contents.into_iter().filter(|(same, _)| !same).map(|(_, what)| what.to_owned());
        let value = |options: &BTreeMap<String, String>, name| {
            options.get(name).map_or_else(|| "not given".to_owned(), String::clone)
        };
        let names: std::collections::BTreeSet<&String> =
            self.options.keys().chain(found.options.keys()).collect();
        let options = names.into_iter().filter_map(|name| {
            let (was, is) = (value(&found.options, name), value(&self.options, name));
            (was != is).then(|| format!("{name} was {was} and is {is}"))
        });
        contents.chain(options).collect()
    }
}

fn told(options: &FinetuneOptions, lesson: Option<&Lesson>) -> BTreeMap<String, String> {
    let (trainer, schedule) = (&options.trainer, &options.schedule);
    let shape = schedule.shape.to_possible_value();
    let precision = match trainer.precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    // Without it, less is trained on.
    let valid = if options.sources.valid.is_empty() { "not given" } else { "given" };
    let mut told = vec![
        ("--valid", valid.to_owned()),
        ("--train", options.scope.to_string()),
        ("--precision", precision.to_owned()),
        ("--batch", trainer.size.batch.to_string()),
        ("--accumulate", trainer.accumulate.to_string()),
        ("--context", trainer.size.sequence.to_string()),
        ("--steps", schedule.steps.to_string()),
        ("--warm-up", schedule.warm_up.to_string()),
        ("--schedule", shape.map_or_else(String::new, |shape| shape.get_name().to_owned())),
        ("--lr", schedule.rate.to_string()),
        ("--new-lr", trainer.optimizer.new_rate.to_string()),
        ("--weight-decay", trainer.optimizer.weight_decay.to_string()),
        ("--clip", trainer.clip_norm.to_string()),
        ("--seed", options.seed.to_string()),
    ];
    told.extend(options.redraw.map(|every| ("--redraw", every.to_string())));
    told.extend(lesson.map(|lesson| ("--teacher-weight", lesson.weight.to_string())));
    told.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_named_in_the_words_of_the_command_line() {
        let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let run = RunIdentity { options: [option("--lr", "0.1")].into(), ..RunIdentity::default() };
        assert!(run.differences(&run.clone()).is_empty());
        let other = || "0".to_owned();
        for (found, expected) in [
            (RunIdentity { weights: other(), ..run.clone() }, "the weights of the bundle are others"),
            (RunIdentity { conversion: other(), ..run.clone() }, "the bundle was converted in another way"),
            (RunIdentity { data: other(), ..run.clone() }, "--data holds other tokens"),
            (RunIdentity { valid: other(), ..run.clone() }, "the windows to validate on are others"),
            (RunIdentity { teacher: Some(other()), ..run.clone() }, "--teacher is another"),
            (
                RunIdentity { options: [option("--lr", "0.2")].into(), ..run.clone() },
                "--lr was 0.2 and is 0.1",
            ),
            (RunIdentity { options: BTreeMap::new(), ..run.clone() }, "--lr was not given and is 0.1"),
        ] {
            let [told] = run.differences(&found).try_into().expect("one difference");
            assert!(told.starts_with(expected), "{told}");
        }
    }
}
