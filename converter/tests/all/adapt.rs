//! `dijiang adapt`: every part after the other, and after a part that was broken off.

use crate::support::home::Home;
use crate::support::ort::has_ort;
use dijiang::adapt::{AdaptOptions, Adapted, Budget, adapt};
use dijiang::convert::{ConvertOptions, convert};
use dijiang::recipes;
use dijiang::report::progress::{Estimate, Progress, Say};
use dijiang::train::finetune::Sources;
use dijiang::train::trainer::TrainerOptions;
use dijiang_passes::training::specialize::Size;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/llama");

/// Keeps the stages, and panics where one of a name begins.
#[derive(Default)]
struct Stages {
    begun: Vec<String>,
    said: Vec<String>,
    stop_at: Option<&'static str>,
}

impl Progress for Stages {
    fn estimate(&mut self, _: &Estimate) {}

    fn stage(&mut self, what: &str) {
        self.begun.push(what.to_owned());
        if self.stop_at.is_some_and(|stop| what.starts_with(stop)) {
            std::panic::resume_unwind(Box::new("stopped"));
        }
    }

    fn bytes(&mut self, what: &str, _: u64) {
        self.stage(what);
    }

    fn advance(&mut self, _: u64) {}

    fn say(&mut self, _: Say, line: &str) {
        self.said.push(line.to_owned());
    }

    fn done(&mut self) {}
}

/// Tokens that go round in a pattern.
fn data(home: &Home) -> Sources {
    let tokens: Vec<u8> = (0..4000_u16).flat_map(|i| (i * 7 % 31).to_le_bytes()).collect();
    let path = home.path("text.u16");
    fs::write(&path, tokens).expect("it is written");
    Sources { data: vec![path], valid: Vec::new(), validation_windows: 4 }
}

fn options(home: &Home, budget: Budget) -> AdaptOptions<'static> {
    AdaptOptions {
        convert: ConvertOptions::of(recipes::load("gated").expect("a recipe")),
        sources: data(home),
        trainer: TrainerOptions { size: Size { batch: 2, sequence: 16 }, ..TrainerOptions::default() },
        budget,
        seed: 0,
        verify: None,
        tasks: &[],
    }
}

fn run(home: &Home, name: &str, options: &AdaptOptions<'_>, stages: &mut Stages) -> Adapted {
    adapt(Path::new(FIXTURE), &home.path(name), options, stages).expect("it is adapted")
}

#[test]
fn a_run_that_was_broken_off_goes_on_after_what_was_done() {
    if !has_ort() {
        return;
    }
    let home = Home::empty();
    let options = options(&home, Budget::Tokens(32 * 10));
    let whole = run(&home, "whole", &options, &mut Stages::default());
    assert!(whole.record.softmax_perplexity.is_some_and(f64::is_finite));
    let [calibrated, finetuned] =
        [whole.record.calibrated, whole.record.finetuned].map(|part| part.expect("it ran"));
    assert_eq!((calibrated.steps, finetuned.steps), (4, 6));
    assert_eq!(calibrated.perplexity.to_bits(), finetuned.perplexity_before.to_bits());

    let mut stages = Stages { stop_at: Some("fine-tuning"), ..Stages::default() };
    let broken = catch_unwind(AssertUnwindSafe(|| run(&home, "parts", &options, &mut stages)));
    assert!(broken.is_err() && stages.begun.iter().any(|stage| stage == "calibrating"));
    let mut stages = Stages::default();
    let resumed = run(&home, "parts", &options, &mut stages);
    for done in ["calibrating", "compiling", "measuring the model as it came"] {
        assert!(!stages.begun.iter().any(|stage| stage == done), "{:?}", stages.begun);
    }
    let perplexity = |adapted: &Adapted| adapted.record.finetuned.map(|part| part.perplexity.to_bits());
    assert_eq!(perplexity(&resumed), perplexity(&whole));
    let weights = ["whole", "parts"]
        .map(|name| fs::read(home.path(name).join("model.safetensors")).expect("it is there"));
    assert!(weights[0] == weights[1], "the weights differ");

    let again = run(&home, "parts", &options, &mut Stages::default());
    assert_eq!(again.record, resumed.record);
}

#[test]
fn a_time_is_shared_by_what_calibration_took() {
    if !has_ort() {
        return;
    }
    let home = Home::empty();
    let options = options(&home, Budget::Time(Duration::from_nanos(1)));
    let mut stages = Stages::default();
    let adapted = run(&home, "bundle", &options, &mut stages);
    // A step of each is the least there is.
    let steps = [adapted.record.calibrated, adapted.record.finetuned].map(|part| part.map(|part| part.steps));
    assert_eq!(steps, [Some(1), Some(1)]);
    let told = |line: &String| line.contains("1 step to calibrate and 1 to fine-tune");
    assert!(stages.said.iter().any(told), "{:?}", stages.said);
}

/// What a time is enough for depends on what else the machine does.
#[test]
fn what_was_foretold_is_what_a_later_call_does() {
    if !has_ort() {
        return;
    }
    let home = Home::empty();
    let options = options(&home, Budget::Time(Duration::from_nanos(1)));
    run(&home, "bundle", &options, &mut Stages::default());
    let path = home.path("bundle/train/adapt.json");
    let text = std::fs::read(&path).expect("a record");
    let mut record: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
    assert_eq!(record["calibrate_steps"], 1);
    record["calibrate_steps"] = 3.into();
    record["calibrated"] = serde_json::Value::Null;
    std::fs::write(&path, record.to_string()).expect("it is written");
    let mut stages = Stages::default();
    let resumed = run(&home, "bundle", &options, &mut stages);
    assert_eq!(resumed.record.calibrated.map(|part| part.steps), Some(3));
    let told =
        |line: &String| line.contains("going on with what") && line.ends_with("calibration begins anew");
    assert!(stages.said.iter().any(told), "{:?}", stages.said);
}

#[test]
fn a_recipe_without_new_parameters_is_not_calibrated() {
    if !has_ort() {
        return;
    }
    let home = Home::empty();
    let convert = ConvertOptions::of(recipes::load("windows").expect("a recipe"));
    let options = AdaptOptions { convert, ..options(&home, Budget::Tokens(32 * 2)) };
    let adapted = run(&home, "bundle", &options, &mut Stages::default());
    assert_eq!(adapted.record.calibrated, None);
    assert_eq!(adapted.record.finetuned.map(|part| part.steps), Some(2));
}

#[test]
fn the_call_prints_what_came_of_it_and_refuses_another() {
    if !has_ort() {
        return;
    }
    let home = Home::empty();
    data(&home);
    let call = |more: &str| {
        home.run(&format!(
            "adapt {FIXTURE} -o bundle --data text.u16 --batch 2 --context 16 --recipe gated --no-verify --tokens 64 {more}"
        ))
    };
    let object = call("--json");
    assert!(object.status.success(), "{}", String::from_utf8_lossy(&object.stderr));
    let object: serde_json::Value = serde_json::from_slice(&object.stdout).expect("an object");
    assert_eq!(object["finetuned"]["steps"], 1);

    let refused = |more: &str| {
        let output = call(more);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let mut told = refused("--seed 1");
    let other = home.run("adapt text.u16 -o bundle --data text.u16 --batch 2 --context 16 --recipe gated --no-verify --tokens 64");
    assert_eq!(other.status.code(), Some(2));
    told += &String::from_utf8_lossy(&other.stderr).replace(FIXTURE, "FIXTURE");
    let begun = home.run(&format!("convert {FIXTURE} -o bundle --recipe gated --no-verify --force"));
    assert!(begun.status.success());
    told += &refused("");
    told += &refused("--task piqa");
    told += &refused("--minutes 0");
    insta::assert_snapshot!(told);
}

#[test]
fn what_was_trained_is_not_replaced_without_a_word_and_a_full_disk_is_told_first() {
    if !has_ort() {
        return;
    }
    let home = Home::empty();
    let options = options(&home, Budget::Tokens(32 * 10));
    let (mut told, mut full) = (Stages::default(), options.clone());
    full.convert.free_space = |_| Ok(1000);
    let error =
        adapt(Path::new(FIXTURE), &home.path("full"), &full, &mut told).expect_err("no room").to_string();
    assert!(error.contains("the bundle and its training take up to"), "{error}");
    assert!(!home.path("full").exists());

    run(&home, "a", &options, &mut Stages::default());
    let mut again = Stages::default();
    let anew = ConvertOptions { force: true, ..options.convert };
    convert(Path::new(FIXTURE), &home.path("a"), &anew, &mut again).expect("it is converted");
    let warned = "what calibrate and finetune trained is in the bundle that is replaced";
    assert!(again.said.iter().any(|line| line.contains(warned)), "{:?}", again.said);
}
