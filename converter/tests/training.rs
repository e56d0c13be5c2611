//! Calibration and fine-tuning by the command line, on a small checkpoint and made-up text.

use dijiang::train::metrics::Line;
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
        let dir = tempfile::tempdir().expect("a directory");
        let setting = Self { dir };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama");
        let source = source.display().to_string();
        let args = ["convert", &source, "-o", &setting.bundle(), "--recipe", recipe, "--no-verify"];
        let output = run(&args);
        assert!(output.status.success(), "{}", said(&output));
        let tokens: Vec<u8> = (0..4000_u16).flat_map(|i| (i * 7 % 31).to_le_bytes()).collect();
        std::fs::write(setting.data(), tokens).expect("it is written");
        setting
    }

    fn bundle(&self) -> String {
        self.dir.path().join("bundle").display().to_string()
    }

    fn data(&self) -> String {
        self.dir.path().join("text.u16").display().to_string()
    }

    fn train(&self, what: &str, more: &[&str]) -> Output {
        let (bundle, data) = (self.bundle(), self.data());
        let fixed = [what, &bundle, "--data", &data, "--batch", "4", "--context", "32", "--json"];
        run(&[&fixed, more].concat())
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
    for recipe in ["adaptive", "paper", "released"] {
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
    let setting = Setting::new("adaptive");
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
        let setting = Setting::new("adaptive");
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
    let output = Setting::new("adaptive").train("finetune", &["--steps", "1", "--teacher", &other]);
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
    let setting = Setting::new("adaptive");
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
    for recipe in ["adaptive", "retnet"] {
        let weights = convert(recipe);
        let fitted = calibrate();
        let object: Value = serde_json::from_slice(&fitted.stdout).expect("it is JSON");
        let kept = object["fit"]["kept"].as_bool().expect("there was a fit");
        let (before, after) =
            (number(&fitted, "valid_perplexity_before"), number(&fitted, "valid_perplexity"));
        let now = std::fs::read(dir.path().join("bundle/model.safetensors")).expect("it is there");
        assert_eq!(kept, now != weights, "{recipe}");
        assert_eq!(kept, after < before, "{recipe}: {before} became {after}");
        assert!(recipe != "adaptive" || kept);
        // What was measured is what was written.
        let again = number(&calibrate(), "valid_perplexity_before");
        assert!((again - after).abs() < 1e-3 * after, "{recipe}: {after} became {again}");
    }
}

/// The run is killed at whatever step it happens to be at, behind its first checkpoint.
#[test]
fn a_killed_run_is_resumed_to_the_same_weights() {
    if !can_run() {
        return;
    }
    let (whole, killed) = (Setting::new("adaptive"), Setting::new("adaptive"));
    // One thread: sums over several come out in one order.
    let how = ["--steps", "40", "--checkpoint-every", "5", "--threads", "1"];
    assert!(whole.train("finetune", &how).status.success());
    let (bundle, data) = (killed.bundle(), killed.data());
    let fixed = ["finetune", &bundle, "--data", &data, "--batch", "4", "--context", "32"];
    let started = dijiang().args(fixed).args(how).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut child = started.expect("it starts");
    let checkpoint = Path::new(&bundle).join("train/checkpoint.safetensors");
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
    let setting = Setting::new("adaptive");
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
    std::fs::write(&questions, r#"{"context": "I", "choices": ["a"], "answer": 1}"#).expect("it is written");
    let refused = eval(&["--task", &task]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("line 1: answer 1 of 1 choices"), "{}", said(&refused));
}

/// A limit on the size of files stands for a disk that is full.
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    if !can_run() {
        return;
    }
    let setting = Setting::new("adaptive");
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
