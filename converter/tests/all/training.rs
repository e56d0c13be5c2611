//! Calibration and fine-tuning by the command line, on a small checkpoint and made-up text.

use crate::support::sealed::sealed;
use dijiang::checkpoint::digests::{Compared, Difference, compare};
use dijiang::train::metrics::Line;
use dijiang_format::manifest::Manifest;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn dijiang() -> Command {
    Command::new(env!("CARGO_BIN_EXE_dijiang"))
}

fn run(args: &[&str]) -> Output {
    dijiang().args(args).output().expect("it starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A bundle of the small LLaMA, and tokens that go round in a pattern.
struct Setting {
    dir: tempfile::TempDir,
}

impl Setting {
    fn new(recipe: &str) -> Self {
        Self::with(recipe, &[])
    }

    fn with(recipe: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let setting = Self { dir };
        let output = setting.convert(&[&["--recipe", recipe], more].concat());
        assert!(output.status.success(), "{}", said(&output));
        let tokens: Vec<u8> = (0..4000_u16).flat_map(|i| (i * 7 % 31).to_le_bytes()).collect();
        std::fs::write(setting.data(), tokens).expect("it is written");
        setting
    }

    fn convert(&self, more: &[&str]) -> Output {
        self.convert_of("llama", more)
    }

    fn convert_of(&self, fixture: &str, more: &[&str]) -> Output {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(fixture);
        let source = source.display().to_string();
        run(&[&["convert", &source, "-o", &self.bundle(), "--no-verify"], more].concat())
    }

    /// One line that a call is refused with, without the path of the directory.
    fn refused(&self, output: &Output) -> String {
        let text = said(output).replace(&self.dir.path().display().to_string(), "DIR");
        assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{text}");
        assert_eq!(output.stdout, b"", "{text}");
        text
    }

    /// The names beside the bundle, hidden ones too.
    fn beside(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("it is there");
        let name = |e: std::io::Result<std::fs::DirEntry>| e.expect("an entry").file_name();
        let mut names: Vec<String> = entries.map(|e| name(e).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn manifest(&self) -> String {
        std::fs::read_to_string(Path::new(&self.bundle()).join("dijiang.json")).expect("it is there")
    }

    fn compared(&self) -> Compared {
        let bundle = PathBuf::from(self.bundle());
        compare(&bundle, &Manifest::read(&bundle).expect("a manifest")).expect("it is read")
    }

    fn bundle(&self) -> String {
        self.dir.path().join("bundle").display().to_string()
    }

    fn data(&self) -> String {
        self.dir.path().join("text.u16").display().to_string()
    }

    fn train(&self, what: &str, more: &[&str]) -> Output {
        self.training(what, more).output().expect("it runs")
    }

    fn training(&self, what: &str, more: &[&str]) -> Command {
        let (bundle, data) = (self.bundle(), self.data());
        let fixed = [what, &bundle, "--data", &data, "--batch", "4", "--context", "32", "--json"];
        // A few steps on a small model want gentler rates than the defaults, and most tests no teacher.
        let gentle: &[[&str; 2]] = match what {
            "finetune" => &[
                ["--teacher", "none"],
                ["--lr", "6e-4"],
                ["--schedule", "cosine"],
                ["--weight-decay", "0.1"],
            ],
            _ => &[["--lr", "1e-2"]],
        };
        let rest: Vec<&str> =
            gentle.iter().filter(|option| !more.contains(&option[0])).flatten().copied().collect();
        let mut command = dijiang();
        command.args(fixed).args(rest).args(more);
        command
    }

    fn weights(&self) -> Vec<u8> {
        std::fs::read(PathBuf::from(self.bundle()).join("model.safetensors")).expect("it is there")
    }

    fn metrics(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(PathBuf::from(self.bundle()).join("train/metrics.jsonl"));
        text.expect("it is there").lines().map(|l| serde_json::from_str(l).expect("a line")).collect()
    }
}

fn number(output: &Output, key: &str) -> f64 {
    let object: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(output)));
    object[key].as_f64().unwrap_or_else(|| panic!("no {key} in {object}"))
}

/// Without ONNX Runtime there is nothing to train with; the whole suite says so once, elsewhere.
fn can_run() -> bool {
    dijiang_runtime::OrtRuntime::new().is_ok() || std::env::var_os("DIJIANG_REQUIRE_ORT").is_some()
}

#[test]
fn the_loss_falls_below_half_and_the_trained_bundle_serves() {
    if !can_run() {
        return;
    }
    for recipe in ["adaptive", "gated", "paper", "released"] {
        let setting = Setting::new(recipe);
        let output = setting.train("finetune", &["--steps", "200", "--lr", "3e-3", "--clip", "1"]);
        assert!(output.status.success(), "{recipe}: {}", said(&output));
        let lines = setting.metrics();
        let (first, last) = (lines[0].loss, lines[199].loss);
        assert!(last < first / 2.0, "{recipe}: {first} became {last}");
        let manifest = std::fs::read_to_string(PathBuf::from(setting.bundle()).join("dijiang.json"));
        let manifest: Value = serde_json::from_str(&manifest.expect("it is there")).expect("it is JSON");
        assert_eq!(manifest["checks"], serde_json::json!([]), "{recipe}");
        assert_eq!(manifest["trained"]["bytes"], setting.weights().len(), "{recipe}");
        // The graphs were not written anew, and still hold together on the new weights.
        let output = run(&["verify", &setting.bundle(), "--json"]);
        assert!(output.status.success(), "{recipe}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn low_rank_additions_become_part_of_their_weights() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("gated");
    let before = setting.weights();
    let output = setting.train("finetune", &["--train", "lora:4", "--steps", "100", "--lr", "1e-2"]);
    assert!(output.status.success(), "{}", said(&output));
    let lines = setting.metrics();
    assert!(lines[99].loss < 0.8 * lines[0].loss, "{} became {}", lines[0].loss, lines[99].loss);
    let after = setting.weights();
    let [before, after] = [&before, &after].map(|bytes| SafeTensors::deserialize(bytes).expect("weights"));
    assert_eq!(before.names().len(), after.names().len());
    let same = |name: &str| {
        let [before, after] = [&before, &after].map(|file| file.tensor(name).expect("it is there"));
        before.data() == after.data()
    };
    assert!(same("model.embed_tokens.weight") && same("model.layers.0.input_layernorm.weight"));
    assert!(!same("model.layers.0.mlp.up_proj.weight") && !same("model.layers.0.self_attn.q_proj.weight"));
    // What was trained is what is there: the sums are rounded once to the element type of the weights, f32.
    let trained = number(&output, "valid_perplexity");
    let output = setting.train("finetune", &["--steps", "1", "--lr", "0"]);
    let merged = number(&output, "valid_perplexity_before");
    assert!((merged / trained - 1.0).abs() < 1e-4, "{trained} became {merged}");
    let output = run(&["verify", &setting.bundle(), "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_scope_that_does_not_exist_is_refused() {
    for scope in ["lora", "lora:0", "lora:x", "norms"] {
        let output = run(&["finetune", "bundle", "--data", "text", "--train", scope]);
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains("lora:RANK"), "{}", said(&output));
    }
}

/// The softmax model of another bundle, which has learned the text, and the bundle's own.
#[test]
fn a_teacher_is_followed() {
    if !can_run() {
        return;
    }
    let learned = Setting::new("softmax");
    assert!(learned.train("finetune", &["--steps", "60", "--lr", "3e-3"]).status.success());
    for teacher in [learned.bundle(), "self".to_owned()] {
        let setting = Setting::new("gated");
        let more = ["--steps", "60", "--lr", "3e-3", "--teacher", &teacher, "--teacher-weight", "2"];
        let output = setting.train("finetune", &more);
        assert!(output.status.success(), "{}", said(&output));
        let kl: Vec<f64> = setting.metrics().iter().map(|l| l.kl.expect("there is a teacher")).collect();
        let (first, last) = (kl[0], kl[59]);
        // `self` knows nothing of the text, which pulls the other way.
        let share = if teacher == "self" { 1.0 } else { 0.5 };
        assert!(last < share * first, "{teacher}: {first} became {last}");
    }
}

/// What the model came with is gone after a run of all weights, and not after one of what the conversion added.
#[test]
fn a_model_that_was_trained_before_is_no_teacher_of_itself() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("gated");
    let own = |scope| ["--steps", "1", "--train", scope, "--teacher", "self"];
    assert!(setting.train("finetune", &own("dijiang")).status.success());
    assert!(setting.train("finetune", &own("all")).status.success());
    let before = setting.weights();
    let refused = setting.refused(&setting.train("finetune", &own("all")));
    assert!(refused.contains("--teacher self: an earlier run trained"), "{refused}");
    assert!(refused.contains("`dijiang convert SRC -o TEACHER --recipe softmax`"), "{refused}");
    assert_eq!(setting.weights(), before);
}

#[test]
fn a_weight_of_a_teacher_that_is_not_there_is_refused() {
    if !can_run() {
        return;
    }
    // Softmax everywhere: `auto` is nobody.
    for (recipe, teacher) in [("gated", "none"), ("softmax", "auto")] {
        let setting = Setting::new(recipe);
        let before = setting.weights();
        let more = ["--steps", "1", "--teacher", teacher, "--teacher-weight", "2"];
        let refused = setting.refused(&setting.train("finetune", &more));
        assert!(refused.contains("--teacher-weight 2: nobody teaches"), "{refused}");
        assert_eq!(setting.weights(), before);
    }
}

#[test]
fn a_teacher_of_other_tokens_is_refused() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let other = dir.path().join("other").display().to_string();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/shakespeare");
    let output = run(&["convert", &source.display().to_string(), "-o", &other, "--no-verify"]);
    assert!(output.status.success(), "{}", said(&output));
    let output = Setting::new("gated").train("finetune", &["--steps", "1", "--teacher", &other]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("of the bundle it is to teach (hint:"), "{}", said(&output));
}

/// Without a runtime, as nothing runs; `finetune` writes the same at its defaults.
#[test]
fn convert_writes_the_graphs_of_a_run() {
    let setting = Setting::new("adaptive");
    let converted = setting.dir.path().join("with").display().to_string();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama").display().to_string();
    let output = run(&["convert", &source, "-o", &converted, "--train", "--no-verify"]);
    assert!(output.status.success(), "{}", said(&output));
    let graph = |bundle: &str, name: &str| std::fs::read(PathBuf::from(bundle).join("train").join(name));
    let written = graph(&converted, "gradients.onnx").expect("it is there");
    if !can_run() {
        return;
    }
    let (bundle, data) = (setting.bundle(), setting.data());
    let output = run(&["finetune", &bundle, "--data", &data, "--valid", &data, "--steps", "0"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(written, graph(&bundle, "gradients.onnx").expect("it is there"));
    for name in ["evaluation.onnx", "adamw.matrices.onnx", "squares.matrices.onnx"] {
        let [written, run] = [&converted, &bundle].map(|bundle| graph(bundle, name).expect("it is there"));
        assert_eq!(written, run, "{name}");
    }
}

#[test]
fn calibration_brings_the_attentions_nearer() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("gated");
    let output = setting.train("calibrate", &["--steps", "60", "--no-fit"]);
    assert!(output.status.success(), "{}", said(&output));
    let (before, after) = (number(&output, "error_before"), number(&output, "error"));
    assert!(after < before / 2.0, "{before} became {after}");
}

/// On real text: the small checkpoint attends to next to nothing that a fit could find.
#[test]
fn fitted_features_lower_the_perplexity_without_a_step() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/shakespeare");
    let path = |name: &str| fixture.join(name).display().to_string();
    let bundle = dir.path().join("bundle").display().to_string();
    let calibrate = || {
        let data = ["--data", &path("train.txt"), "--valid", &path("valid.txt")];
        let size = ["--batch", "4", "--context", "128", "--steps", "0", "--json"];
        let output = run(&[&["calibrate", &bundle][..], &data, &size].concat());
        assert!(output.status.success(), "{}", said(&output));
        output
    };
    let convert = |recipe: &str| {
        let source = fixture.display().to_string();
        let output = run(&["convert", &source, "-o", &bundle, "--recipe", recipe, "--no-verify", "--force"]);
        assert!(output.status.success(), "{recipe}: {}", said(&output));
        std::fs::read(dir.path().join("bundle/model.safetensors")).expect("it is there")
    };
    for recipe in ["gated", "decayed"] {
        let weights = convert(recipe);
        let fitted = calibrate();
        let object: Value = serde_json::from_slice(&fitted.stdout).expect("it is JSON");
        let kept = object["fit"]["kept"].as_bool().expect("there was a fit");
        let (before, after) =
            (number(&fitted, "valid_perplexity_before"), number(&fitted, "valid_perplexity"));
        let now = std::fs::read(dir.path().join("bundle/model.safetensors")).expect("it is there");
        assert_eq!(kept, now != weights, "{recipe}");
        assert_eq!(kept, after < before, "{recipe}: {before} became {after}");
        assert!(recipe != "gated" || kept);
        // What was measured is what was written.
        let again = number(&calibrate(), "valid_perplexity_before");
        assert!((again - after).abs() < 1e-3 * after, "{recipe}: {after} became {again}");
    }
}

/// The run is killed at whatever step it happens to be at, after its first checkpoint.
/// A run that is killed after a checkpoint and resumed gives the weights of one that was not, to the bit.
fn check_resumed(recipe: &str, more: &[&str]) -> (Setting, Setting) {
    let (whole, killed) = (Setting::new(recipe), Setting::new(recipe));
    // One thread: sums over several come out in one order.
    let how = [&["--steps", "40", "--checkpoint-every", "5", "--threads", "1"], more].concat();
    let output = whole.train("finetune", &how);
    assert!(output.status.success(), "{}", said(&output));
    let started = killed.training("finetune", &how).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut child = started.expect("it starts");
    let checkpoint = PathBuf::from(killed.bundle()).join("train/checkpoint.safetensors");
    let patience = Instant::now() + Duration::from_mins(2);
    while !checkpoint.exists() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    assert_ne!(killed.weights(), whole.weights(), "it was over before it was killed");
    let output = killed.train("finetune", &[&how[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(killed.weights(), whole.weights());
    let losses = |setting: &Setting| setting.metrics().iter().map(|l| l.loss).collect::<Vec<_>>();
    assert_eq!(losses(&killed), losses(&whole));
    (whole, killed)
}

#[test]
fn a_killed_run_is_resumed_to_the_same_weights() {
    if can_run() {
        check_resumed("gated", &[]);
    }
}

/// The random features of every layer.
fn features(setting: &Setting) -> Vec<Vec<u8>> {
    let bytes = setting.weights();
    let weights = SafeTensors::deserialize(&bytes).expect("weights");
    let mut drawn: Vec<_> =
        weights.tensors().into_iter().filter(|(n, _)| n.rsplit('.').next() == Some("omega")).collect();
    drawn.sort_by(|(a, _), (b, _)| a.cmp(b));
    drawn.into_iter().map(|(_, view)| view.data().to_vec()).collect()
}

#[test]
fn random_features_are_drawn_anew() {
    if !can_run() {
        return;
    }
    // Killed within the three steps of a draw, as it is checked after every fifth.
    let (drawn, _) = check_resumed("performer", &["--redraw", "3"]);
    let (before, after) = (features(&Setting::new("performer")), features(&drawn));
    assert_eq!((before.len(), after.len()), (2, 2));
    assert!(before.iter().chain(&after).collect::<std::collections::BTreeSet<_>>().len() == 4);
    // A draw that does not come changes nothing.
    let [never, without] = [&["--redraw", "8"][..], &[]].map(|more| {
        let setting = Setting::new("performer");
        let output = setting.train("finetune", &[&["--steps", "8", "--threads", "1"], more].concat());
        assert!(output.status.success(), "{}", said(&output));
        setting
    });
    assert_eq!(features(&never), before);
    assert!(never.weights() == without.weights());
}

#[test]
fn features_that_are_not_drawn_cannot_be_drawn_anew() {
    let setting = Setting::new("gated");
    let refused = setting.refused(&setting.train("finetune", &["--redraw", "3"]));
    insta::assert_snapshot!(refused, @"error: --redraw: the feature map `dct-softmax` has no features that are drawn at random (hint: leave --redraw out; `prf`, the map of the recipe `performer`, has them)");
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_keeps_the_weights() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("paper");
    let before = setting.weights();
    let output = setting.train("finetune", &["--steps", "50", "--lr", "1e30", "--clip", "1e30"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("the weights are those before this step"), "{}", said(&output));
    assert_eq!(setting.weights(), before);
}

#[test]
fn bad_data_is_refused_in_one_line() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("gated");
    let refused = |bytes: &[u8]| {
        std::fs::write(setting.data(), bytes).expect("it is written");
        let output = setting.train("finetune", &["--steps", "1"]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        said(&output).replace(&setting.dir.path().display().to_string(), "DIR")
    };
    insta::assert_snapshot!([refused(b""), refused(&[5, 0]), refused(&[200, 0, 1, 0])].concat());
}

#[test]
fn evaluation_gives_the_perplexity_of_validation_and_answers_questions() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/shakespeare");
    let path = |name: &str| fixture.join(name).display().to_string();
    let bundle = dir.path().join("bundle").display().to_string();
    let source = fixture.display().to_string();
    let output = run(&["convert", &source, "-o", &bundle, "--recipe", "softmax", "--no-verify"]);
    assert!(output.status.success(), "{}", said(&output));
    let valid = path("valid.txt");
    let data = ["--data", &path("train.txt"), "--valid", &valid, "--validation-windows", "6"];
    let size = ["--batch", "4", "--context", "128", "--steps", "1", "--lr", "0", "--json"];
    let tuned = run(&[&["finetune", &bundle][..], &data, &size].concat());
    let expected = number(&tuned, "valid_perplexity_before");
    let eval = |more: &[&str]| run(&[&["eval", &bundle, "--context", "128", "--json"][..], more].concat());
    let value = |output: &Output| -> Value {
        let object: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(output)));
        object["results"][0].clone()
    };
    let found = value(&eval(&["--perplexity", &valid, "--max-tokens", "800"]));
    let perplexity = found["value"].as_f64().expect("a number");
    // Six whole windows of 127 predictions; sums in f32 differ with the batch.
    assert!((perplexity - expected).abs() < 1e-4 * expected, "{perplexity} {expected}");
    assert_eq!(found["n"], 6 * 127);
    // Each window beside the whole, and the error of their mean by hand.
    let each: Vec<f64> = found["each"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
    let mean = each.iter().sum::<f64>() / 6.0;
    assert!(each.len() == 6 && (mean.exp() - perplexity).abs() < 1e-9 * perplexity, "{found}");
    let variance = each.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 5.0;
    let error = found["standard_error"].as_f64().expect("a number");
    assert!((error - perplexity * (variance / 6.0).sqrt()).abs() < 1e-9, "{found}");
    // Choices that the model knows well from ones that are no English; the last is answered wrongly.
    let questions = dir.path().join("questions.jsonl");
    let lines = [
        r#"{"context": "KING RICHARD III:\nWhat is thy", "choices": [" name", " xqzv"], "answer": 0}"#,
        r#"{"context": "Good morrow, my", "choices": ["zzkq", " lord"], "answer": 1}"#,
        r#"{"context": "I pray", "choices": [" you", "&%$"], "answer": 1}"#,
    ];
    let task = format!("words={}", questions.display());
    std::fs::write(&questions, lines.join("\n")).expect("it is written");
    let found = value(&eval(&["--task", &task]));
    assert_eq!((found["task"].as_str(), found["metric"].as_str()), (Some("words"), Some("accuracy")));
    assert!((found["value"].as_f64().expect("a number") - 2.0 / 3.0).abs() < 1e-9, "{found}");
    assert_eq!(found["each"], serde_json::json!([1.0, 1.0, 0.0]));
    assert!((found["standard_error"].as_f64().expect("a number") - 1.0 / 3.0).abs() < 1e-9, "{found}");
    std::fs::write(&questions, r#"{"context": "I", "choices": ["a"], "answer": 1}"#).expect("it is written");
    let refused = eval(&["--task", &task]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        said(&refused).contains("line 1: `answer` is 1, expected 0 (hint: --task words takes lines of "),
        "{}",
        said(&refused)
    );
}

/// A limit on the size of files stands for a disk that is full.
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("gated");
    let short = ["--steps", "4", "--checkpoint-every", "2"];
    assert!(setting.train("finetune", &short).status.success());
    let checkpoint = Path::new(&setting.bundle()).join("train/checkpoint.safetensors");
    let before = std::fs::read(&checkpoint).expect("it is there");
    let weights = setting.weights();
    let script = "trap '' XFSZ; ulimit -f 600; exec \"$0\" \"$@\"";
    let (bundle, data) = (setting.bundle(), setting.data());
    let output = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_dijiang"), "finetune", &bundle, "--data", &data])
        .args(["--batch", "4", "--context", "32"])
        .args(short)
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("(hint: the checkpoint before it is still there)"), "{}", said(&output));
    assert_eq!(std::fs::read(&checkpoint).expect("it is there"), before);
    assert_eq!(setting.weights(), weights);
}

/// The graphs are below the limit, and the weights above it; nothing else is written after the last checkpoint.
#[test]
fn a_run_whose_weights_cannot_be_written_is_resumed() {
    if !can_run() {
        return;
    }
    let setting = Setting::with("gated", &["--dtype", "f32"]);
    let bundle = PathBuf::from(setting.bundle());
    let (weights, manifest) = (setting.weights(), setting.manifest());
    let run = |limit: &str, more: &[&str]| {
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
        let (bundle, data) = (setting.bundle(), setting.data());
        let mut command = Command::new("bash");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_dijiang"), "finetune", &bundle, "--data", &data]);
        command.args(["--batch", "4", "--context", "32", "--steps", "4", "--checkpoint-every", "2"]);
        command.args(["--threads", "1"]).args(more).output().expect("it starts")
    };
    let restore = |manifest: &str| {
        std::fs::write(bundle.join("model.safetensors"), &weights).expect("it is written");
        std::fs::write(bundle.join("dijiang.json"), manifest).expect("it is written");
    };
    assert!(run("unlimited", &[]).status.success());
    let whole = setting.weights();
    restore(&manifest);
    let refused = run("200", &["--resume"]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("bundle/model.safetensors: File too large"), "{}", said(&refused));
    assert!(
        (setting.weights(), setting.manifest()) == (weights.clone(), manifest.clone()),
        "it is as it was"
    );
    let mut forgetful = Manifest::read(&bundle).expect("a manifest");
    forgetful.digests = None;
    let forgetful = forgetful.to_json().expect("JSON");
    // As it was, and as a kill between the manifest and the weights leaves it.
    for left in [manifest, forgetful] {
        restore(&left);
        let resumed = run("unlimited", &["--resume"]);
        assert!(resumed.status.success(), "{}", said(&resumed));
        assert_eq!(setting.compared(), Compared::Matches);
        assert!(setting.weights() == whole && whole != weights);
    }
    assert_eq!(setting.beside(), ["bundle", "text.u16"]);
}

/// Its numbers are finite in f32, and the form that is trained may give some with them.
#[test]
fn a_last_step_that_diverged_is_not_written() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("gated");
    let (weights, manifest) = (setting.weights(), setting.manifest());
    for (what, more) in [("finetune", &[][..]), ("calibrate", &["--no-fit"]), ("calibrate", &[])] {
        let fixed = ["--steps", "1", "--lr", "1e30", "--validation-windows", "2"];
        let told = setting.refused(&setting.train(what, &[&fixed[..], more].concat()));
        assert!(told.starts_with("error: after step 1: "), "{told}");
        assert!(told.contains(" so nothing was written (hint: a lower --lr)"), "{told}");
        assert_eq!((setting.weights(), setting.manifest()), (weights.clone(), manifest.clone()));
    }
    // What f32 holds, f16 need not: a rate within what a weight may grow by.
    let setting = Setting::with("gated", &["--dtype", "f16"]);
    let weights = setting.weights();
    let told =
        setting.refused(&setting.train("finetune", &["--steps", "1", "--warm-up", "0", "--lr", "1e6"]));
    assert!(told.starts_with("error: after step 1: `"), "{told}");
    assert_eq!(setting.weights(), weights);
}

/// No bundle is there: the call is refused before one is looked for.
#[test]
fn numbers_out_of_their_range_are_refused_in_one_line() {
    let setting = Setting { dir: tempfile::tempdir().expect("a directory") };
    let refused = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        setting.refused(&run(&words))
    };
    assert_eq!(
        refused("calibrate b --data d --lr nan"),
        "error: invalid value 'nan' for '--lr <LR>': expected a finite number of 0 or more\n"
    );
    assert_eq!(
        refused("finetune b --data d --batch 0"),
        "error: invalid value '0' for '--batch <BATCH>': expected a whole number from 1 to 4294967295\n"
    );
    let training = "--batch 1000000000000,--accumulate 0,--accumulate 18446744073709551615,--context 1,\
                    --context 99999999999,--threads 0,--threads 18446744073709551615,--clip 0,--clip nan,\
                    --validation-windows 0,--lr -1,--lr inf,--steps -1,--steps 99999999999999999999";
    let tuning = "--tokens 0,--new-lr nan,--new-lr -1,--weight-decay -0.1,--weight-decay inf,--checkpoint-every 0,\
                  --validate-every 0,--warm-up -1,--teacher t --teacher-weight nan,--train lora:0";
    let serving = "--temperature -1,--temperature nan,--temperature 1e39,--top-p 0,--top-p 1.1,--top-p nan,\
                   --threads 0,--segment 0,--segment 18446744073709551615,-n -1";
    let measuring = "--context 1,--context 99999999999,--max-tokens 0,--limit 0,--threads 0";
    let timing = "--context 0,--batch 0,--runs 0,--steps 0,--segment 0,--threads 0,--threads 99999,--batch 99999999999";
    for (call, options) in [
        ("finetune b --data d", training),
        ("calibrate b --data d", training),
        ("finetune b --data d", tuning),
        ("generate b --prompt p", serving),
        ("eval b --perplexity f", measuring),
        ("bench b", timing),
        ("synth pythia-70m -o o", "--layers 0,--layers 99999999999"),
    ] {
        for option in options.split(',') {
            let told = refused(&format!("{call} {option}"));
            assert!(told.starts_with("error: ") && told.contains(": expected "), "{call} {option}: {told}");
        }
    }
}

#[test]
fn sizes_beyond_memory_and_model_are_refused_before_memory_is_asked_for() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("paper");
    let bundle = setting.bundle();
    for batch in ["4000000000", "1000000000"] {
        let told = setting.refused(&run(&[
            "finetune",
            &bundle,
            "--data",
            &setting.data(),
            "--context",
            "32",
            "--batch",
            batch,
        ]));
        assert!(
            told.starts_with(&format!("error: a batch of {batch} × 32 tokens takes at least ")),
            "{told}"
        );
        assert!(told.contains(" GB are free (hint: a smaller --batch or --context; "), "{told}");
    }
    let told =
        setting.refused(&run(&["eval", &bundle, "--perplexity", &setting.data(), "--context", "4000000000"]));
    assert!(told.starts_with("error: the data holds 4000 tokens, expected at least 4000000000: "), "{told}");
    let told = setting.refused(&run(&["bench", &bundle, "--context", "4000000000"]));
    assert!(
        told.starts_with("error: --context 4000000000 --batch 1: the tokens alone take 64.0 GB"),
        "{told}"
    );
    let told = setting.refused(&setting.train("finetune", &["--train", "lora:99999999"]));
    assert!(
        told.starts_with("error: --train lora:99999999: the linear layers of this model have a rank of "),
        "{told}"
    );
    let whole = setting.manifest();
    for (chunk, expected) in [
        ("4000000000", "`recipe.chunk` is 4000000000, expected 1 to 65536 (hint: "),
        ("18446744073709551615", "dijiang.json: invalid value: integer `18446744073709551615`, expected u32"),
    ] {
        let text = whole.replace("\"chunk\": 64", &format!("\"chunk\": {chunk}"));
        let text = sealed(serde_json::from_str(&text).expect("JSON"));
        std::fs::write(Path::new(&bundle).join("dijiang.json"), text).expect("it is written");
        for what in ["finetune", "calibrate"] {
            let told = setting.refused(&setting.train(what, &["--steps", "1"]));
            assert!(told.contains(expected), "{told}");
        }
    }
}

#[test]
fn one_command_at_a_time_writes_a_bundle() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("gated");
    let (bundle, data) = (setting.bundle(), setting.data());
    let other = setting.dir.path().join("w.safetensors");
    std::fs::copy(Path::new(&bundle).join("model.safetensors"), &other).expect("a copy");
    let other = other.display().to_string();
    let before = (setting.weights(), setting.manifest());
    let fixed = ["finetune", &bundle, "--data", &data, "--batch", "4", "--context", "32", "--threads", "1"];
    let started = dijiang()
        .args(fixed)
        .args(["--steps", "1000000"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let mut child = started.expect("it starts");
    let lock = setting.dir.path().join(".bundle.dijiang-lock");
    let is_told = || std::fs::read_to_string(&lock).is_ok_and(|text| text.ends_with('\n'));
    let patience = Instant::now() + Duration::from_mins(2);
    while !is_told() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    let held = "error: DIR/bundle: `dijiang finetune DIR/bundle --data DIR/text.u16 --batch 4 ";
    for output in [
        setting.convert(&["--force"]),
        setting.train("finetune", &["--steps", "1"]),
        setting.train("calibrate", &["--steps", "1"]),
        run(&["import-weights", &bundle, &other]),
        run(&["export-torch", &bundle]),
        run(&["quantize", &bundle, "-o", &bundle, "--force", "--no-verify"]),
    ] {
        let told = setting.refused(&output);
        let process = format!("` (process {} ", child.id());
        assert!(told.starts_with(held) && told.contains(&process), "{told}");
        assert!(told.ends_with(" UTC) is writing it (hint: wait until that has ended)\n"), "{told}");
    }
    // What only reads goes on.
    assert!(run(&["verify", &bundle, "--runtime", "tract"]).status.success());
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    assert_eq!((setting.weights(), setting.manifest()), before);
    // The lock of one that is gone blocks nobody, and goes with the next.
    assert!(setting.convert(&["--force"]).status.success());
    assert_eq!(setting.beside(), ["bundle", "text.u16", "w.safetensors"]);
}

/// As a hand or another program does it, which takes no lock.
#[test]
fn weights_that_were_replaced_during_a_run_stay() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("gated");
    let (bundle, data) = (setting.bundle(), setting.data());
    let fixed = ["finetune", &bundle, "--data", &data, "--batch", "4", "--context", "32", "--threads", "1"];
    let started = dijiang()
        .args(fixed)
        .args(["--steps", "60", "--json"])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let child = started.expect("it starts");
    let metrics = Path::new(&bundle).join("train/metrics.jsonl");
    let patience = Instant::now() + Duration::from_mins(2);
    while !metrics.exists() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(2));
    }
    let path = Path::new(&bundle).join("model.safetensors");
    let (new, mut bytes) = (setting.dir.path().join("new"), setting.weights());
    *bytes.last_mut().expect("a byte") ^= 1;
    std::fs::write(&new, &bytes).expect("it is written");
    std::fs::rename(&new, &path).expect("it is replaced");
    let told = setting.refused(&child.wait_with_output().expect("it ends"));
    assert!(told.contains("model.safetensors: it is not what was read when the run began"), "{told}");
    assert_eq!(setting.weights(), bytes);
}

#[test]
fn a_run_is_resumed_with_nothing_but_itself() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("gated");
    let how = ["--steps", "4", "--checkpoint-every", "2", "--threads", "1"];
    let fresh = setting.dir.path().join("fresh");
    let copy = |from: &str, to: &Path| {
        let done = Command::new("cp").args(["-r", from]).arg(to).status().expect("it starts");
        assert!(done.success());
    };
    let bundle = PathBuf::from(setting.bundle());
    copy(&setting.bundle(), &fresh);
    assert!(setting.train("finetune", &how).status.success());
    let trained = setting.weights();
    let resume = |more: &[&str]| setting.train("finetune", &[&how[..], &["--resume"], more].concat());
    let refused = |output: &Output| {
        let told = setting.refused(output);
        let head = "error: DIR/bundle/train/checkpoint.safetensors: it is of another run: ";
        let tail = " (hint: repeat that run's options, or leave --resume out to begin anew)\n";
        assert!(told.starts_with(head) && told.ends_with(tail), "{told}");
        told[head.len()..told.len() - tail.len()].to_owned()
    };
    let weights = "the weights of the bundle are others (the run has ended, they were trained or imported since, or the bundle is another)";
    assert_eq!(refused(&resume(&[])), weights);
    // The bundle as it was before the run.
    for name in ["model.safetensors", "dijiang.json"] {
        std::fs::copy(fresh.join(name), bundle.join(name)).expect("a copy");
    }
    let before = setting.weights();
    let data = setting.data();
    let valid = "the windows to validate on are others (--valid, --validation-windows)";
    assert_eq!(refused(&resume(&["--valid", &data])), format!("{valid}; --valid was not given and is given"));
    assert_eq!(refused(&resume(&["--lr", "1e-3"])), "--lr was 0.0006 and is 0.001");
    assert_eq!(
        refused(&resume(&["--train", "lora:2", "--seed", "3"])),
        "--seed was 0 and is 3; --train was all and is lora:2"
    );
    let text = std::fs::read(&data).expect("it is there");
    let other: Vec<u8> = (0..4000_u16).flat_map(|i| (i * 5 % 31).to_le_bytes()).collect();
    std::fs::write(&data, other).expect("it is written");
    assert_eq!(refused(&resume(&[])), format!("--data holds other tokens; {valid}"));
    // The same contents under another name are the same.
    let moved = setting.dir.path().join("moved.u16");
    std::fs::write(&moved, text).expect("it is written");
    std::fs::remove_file(&data).expect("it is removed");
    std::fs::rename(&moved, &data).expect("it is moved");
    // Another bundle's checkpoint.
    let checkpoint = std::fs::read(bundle.join("train/checkpoint.safetensors")).expect("it is there");
    let output = setting.convert(&["--recipe", "gated", "--seed", "1", "--force"]);
    assert!(output.status.success(), "{}", said(&output));
    std::fs::create_dir(bundle.join("train")).expect("it is made");
    std::fs::write(bundle.join("train/checkpoint.safetensors"), checkpoint).expect("it is written");
    assert!(refused(&resume(&[])).starts_with(weights));
    // The run itself goes on.
    for name in ["model.safetensors", "dijiang.json"] {
        std::fs::copy(fresh.join(name), bundle.join(name)).expect("a copy");
    }
    assert_eq!(setting.weights(), before);
    std::fs::write(bundle.join("train/metrics.jsonl"), "").expect("it is written");
    let output = resume(&[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(setting.weights(), trained);
}

/// What is trained has windows as masks, what is served as rings: both validate alike, and as softmax where nothing else
/// changed.
#[test]
fn windows_are_trained_as_they_are_served() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("adaptive");
    let (bundle, data) = (setting.bundle(), setting.data());
    let measured = |options: &[&str]| {
        let output = setting.convert_of("ministral", &[options, &["--force"]].concat());
        assert!(output.status.success(), "{}", said(&output));
        let how = ["--valid", &data, "--validation-windows", "20", "--steps", "1", "--lr", "0"];
        let trained = number(&setting.train("finetune", &how), "valid_perplexity_before");
        let call =
            ["eval", &bundle, "--perplexity", &data, "--context", "32", "--max-tokens", "640", "--json"];
        let output = run(&call);
        let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}"));
        let served = object["results"][0]["value"].as_f64().expect("a perplexity");
        assert!((trained / served - 1.0).abs() < 1e-6, "{options:?}: {trained} {served}");
        served
    };
    let softmax = measured(&["--recipe", "softmax"]);
    let kept = measured(&["--recipe", "adaptive", "--layers", "0,2"]);
    assert!((kept / softmax - 1.0).abs() < 1e-6, "{kept} {softmax}");
    for recipe in ["adaptive", "gated"] {
        assert!((measured(&["--recipe", recipe]) / softmax - 1.0).abs() > 1e-4, "{recipe}");
        // Only the layer between the windows has something to calibrate.
        let calibrated = setting.train("calibrate", &["--steps", "2"]);
        assert!(calibrated.status.success(), "{}", said(&calibrated));
    }
    let output = setting.convert_of("mistral", &["--force"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        setting.refused(&setting.train("calibrate", &[])),
        "error: nothing is left to train: no parameter of the graph is one that the conversion added (hint: `dijiang finetune --train all` trains the model's own)\n"
    );
}

#[test]
fn a_byte_that_changed_after_training_is_found() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("gated");
    let path = Path::new(&setting.bundle()).join("model.safetensors");
    let flip = |at: usize| {
        let mut bytes = setting.weights();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).expect("it is written");
    };
    let last = setting.weights().len() - 1;
    assert_eq!(setting.compared(), Compared::Matches);
    flip(last);
    let Compared::Differs(Difference::Tensors(names)) = setting.compared() else { panic!("it is found") };
    assert_eq!(names.len(), 1);
    flip(last);
    // What is trained has new digests, and the rest those it was written with.
    assert!(setting.train("finetune", &["--steps", "2", "--train", "dijiang"]).status.success());
    assert_eq!(setting.compared(), Compared::Matches);
    for at in [last, last / 2] {
        flip(at);
        assert!(matches!(setting.compared(), Compared::Differs(Difference::Tensors(_))));
        flip(at);
    }
    let bytes = setting.weights();
    let weights = setting.dir.path().join("w.safetensors");
    std::fs::write(&weights, bytes).expect("it is written");
    let output = run(&["import-weights", &setting.bundle(), &weights.display().to_string()]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(setting.compared(), Compared::Matches);
}
