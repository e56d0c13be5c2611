//! What a checkpoint says beside its weights, and holds beside them, run as scripts run it: what changes the model is
//! applied or refused by name, and what does not is told in a line.
#![expect(clippy::print_stderr, reason = "it says why a test is left out")]

use crate::support::home::Home;
use crate::support::without_runtime::without_runtime;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

impl Home {
    /// With a copy of a checkpoint, called `model`.
    fn with_copy(source: &Path) -> Self {
        let home = Self::empty();
        std::fs::create_dir(home.path("model")).expect("a directory");
        for entry in std::fs::read_dir(source).expect("the source") {
            let entry = entry.expect("an entry");
            let bytes = std::fs::read(entry.path()).expect("it reads");
            std::fs::write(home.path("model").join(entry.file_name()), bytes).expect("it is written");
        }
        home
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
        command.current_dir(self.0.path()).args(arguments.split(' ')).stdin(Stdio::null());
        command
    }

    /// The object on stdout.
    #[track_caller]
    fn object(&self, arguments: &str) -> Value {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {}", said(&output));
        serde_json::from_slice(&output.stdout).expect("one object")
    }

    /// The one line of a call that is refused.
    #[track_caller]
    fn refused_in_one_line(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let said = said(&output);
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{arguments}: {said}");
        said.trim_end().to_owned()
    }

    fn set(&self, file: &str, key: &str, value: Value) {
        let text = std::fs::read_to_string(self.path(file)).expect("the file");
        let mut whole: Value = serde_json::from_str(&text).expect("JSON");
        whole[key] = value;
        std::fs::write(self.path(file), whole.to_string()).expect("it is written");
    }

    fn read(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).expect("the file")).expect("JSON")
    }

    /// Puts tensors of one number into the weights.
    fn add(&self, names: impl Iterator<Item = String>) {
        let path = self.path("model/model.safetensors");
        let bytes = std::fs::read(&path).expect("the weights");
        let mut tensors: Vec<(String, TensorView<'_>)> =
            SafeTensors::deserialize(&bytes).expect("a file").tensors();
        let one = 1_f32.to_le_bytes();
        tensors.extend(
            names.map(|name| (name, TensorView::new(Dtype::F32, vec![1], &one).expect("one number"))),
        );
        let bytes = safetensors::serialize(tensors, None).expect("a file");
        std::fs::write(&path, bytes).expect("it is written");
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

/// A folder beside the repository, where it is.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(name);
    let found = path.is_dir().then_some(path);
    if found.is_none() {
        eprintln!("skipped: shared/{name} is not there");
    }
    found
}

#[test]
fn generation_ends_at_any_token_that_a_list_names() {
    let home = Home::with_copy(&fixture("shakespeare"));
    let convert = "convert model -o bundle --recipe softmax --target portable --no-verify --force --json";
    let generate = "generate bundle --prompt ROMEO -n 12 --runtime tract --json";
    let ids = |object: &Value| object["tokens"].as_array().expect("tokens").clone();
    home.object(convert);
    let free = ids(&home.object(generate));
    assert_eq!(free.len(), 12);
    let at = (1..12).find(|at| !free[..*at].contains(&free[*at])).expect("another token");
    home.set("model/generation_config.json", "eos_token_id", json!([255, free[at]]));
    home.object(convert);
    // The token that ends the text is none of it.
    assert_eq!(ids(&home.object(generate)), free[..at]);
    assert_eq!(home.read("bundle/dijiang.json")["model"]["eos"], json!([255, free[at]]));
    assert_eq!(home.read("bundle/genai_config.json")["model"]["eos_token_id"], json!([255, free[at]]));
    // The list of the config counts where the other file is silent.
    home.set("model/generation_config.json", "eos_token_id", Value::Null);
    home.set("model/config.json", "eos_token_id", json!([254, free[0]]));
    home.object(convert);
    assert!(ids(&home.object(generate)).is_empty());
}

#[test]
fn a_list_of_a_real_checkpoint_ends_generation() {
    let Some(source) = shared("wild/K10_ck2_eos_list_hit") else { return };
    let home = Home::with_copy(&source);
    let tokens = || {
        home.object("convert model -o bundle --recipe softmax --target portable --no-verify --force --json");
        let mut generate = home.command("generate bundle --runtime tract --json -n 8 --prompt");
        let output = generate.arg("Hello wild world").output().expect("it runs");
        let found: Value = serde_json::from_slice(&output.stdout).expect("one object");
        found["tokens"].as_array().expect("tokens").clone()
    };
    let ended = tokens();
    home.set("model/generation_config.json", "eos_token_id", json!([2]));
    let free = tokens();
    assert_eq!((ended.len(), &free[..2], &free[2]), (2, ended.as_slice(), &json!(178)));
}

#[test]
fn both_spellings_of_rotary_scaling_together_give_the_sources_logits() {
    let Some(source) = shared("wild/K09_ck_rope_both_scaling_and_parameters") else { return };
    let home = Home::with_copy(&source);
    let made = home.object("convert model -o bundle --recipe softmax --json");
    let checks = made["checks"].as_array().expect("checks");
    let reference =
        checks.iter().filter(|c| c["name"].as_str().is_some_and(|n| n.ends_with("softmax = reference")));
    assert!(reference.clone().count() > 0, "{made}");
    assert!(checks.iter().all(|c| c["ok"] == true || c["status"] == "skipped"), "{made}");
}

/// A tied model whose file holds the table under the name of the output projection alone.
#[test]
fn a_head_without_a_table_gives_the_sources_logits() {
    let Some(source) = shared("wild/K11_ck_opt_only_lm_head") else { return };
    let home = Home::with_copy(&source);
    let made = home.object("convert model -o bundle --recipe softmax --json");
    let checks = made["checks"].as_array().expect("checks");
    let of_reference =
        |c: &&Value| c["name"].as_str().is_some_and(|name| name.ends_with("softmax = reference"));
    assert!(checks.iter().filter(of_reference).count() > 0, "{made}");
    assert!(checks.iter().all(|c| c["ok"] == true || c["status"] == "skipped"), "{made}");
}

/// What a chat needs lies in the bundle as it lay in the checkpoint.
#[test]
fn a_chat_template_is_kept() {
    let home = Home::with_copy(&fixture("llama"));
    let texts = [
        ("chat_template.jinja", "{{ messages[0].content }}"),
        ("tokenizer_config.json", "{\"chat_template\": \"{{ bos_token }}\"}"),
    ];
    for (name, text) in texts {
        std::fs::write(home.path("model").join(name), text).expect("it is written");
    }
    home.object("convert model -o bundle --no-verify --json");
    for (name, text) in texts {
        assert_eq!(std::fs::read_to_string(home.path("bundle").join(name)).expect("a copy"), text);
    }
}

#[test]
fn tensors_of_another_model_are_refused_in_one_line() {
    let home = Home::with_copy(&fixture("llama"));
    let attention = "model.layers.0.self_attn";
    home.add(["W_G", "D1", "D2", "group_norm.weight"].map(|name| format!("{attention}.{name}")).into_iter());
    for command in ["convert model -o bundle --no-verify --json", "inspect model --json"] {
        assert_eq!(
            home.refused_in_one_line(command),
            format!(
                "error: model/model.safetensors: 4 tensors (`{attention}.D1`, `{attention}.D2`, `{attention}.W_G` and 1 more), for which llama has no place: without them it would be another model (hint: export the model to ONNX with its own code, and convert that)"
            )
        );
    }
    assert!(!home.path("bundle").exists());
    if let Some(source) = shared("faults/A7_extra_tensors") {
        let message =
            Home::with_copy(&source).refused_in_one_line("convert model -o bundle --no-verify --json");
        assert!(message.contains("3 tensors (`model.layers.0.self_attn.proj_matrix`, "), "{message}");
    }
}

#[test]
fn tensors_outside_the_model_are_told_in_one_line() {
    let home = Home::with_copy(&fixture("llama"));
    home.add((0..20_000).map(|i| format!("extra.{i}.proj_matrix")));
    let output = home.run("convert model -o bundle --no-verify --json");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one object");
    let expected = "model/model.safetensors: 20000 tensors (`extra.0.proj_matrix`, `extra.1.proj_matrix`, `extra.10.proj_matrix` and 19997 more): not read, as they lie outside the model";
    assert_eq!(object["warnings"][0], json!(expected));
    let lines = said(&output).lines().filter(|line| line.contains("extra.")).count();
    assert_eq!(lines, 1, "{}", said(&output));
    assert_eq!(home.object("inspect model --json")["warnings"], json!([expected]));
}

/// What the disk must hold is known before anything is written, and is not far from what is written.
#[test]
fn the_estimate_of_the_disk_is_near_what_is_written() {
    for (model, options) in [
        ("llama", ""),
        ("llama", " --recipe paper --target portable"),
        ("llama", " --recipe softmax"),
        ("opt", " --train"),
        ("shakespeare", " --recipe decayed --target onnx27"),
        ("shakespeare", " --weights int4"),
        ("shakespeare", " --link"),
    ] {
        let home = Home::with_copy(&fixture(model));
        let made = home.object(&format!("convert model -o bundle --no-verify --json{options}"));
        let number = |value: &Value| value.as_u64().expect("a number");
        let (told, written) = (number(&made["estimate"]["disk_bytes"]), number(&made["bytes_written"]));
        assert!(told >= written, "{model}{options}: {told} {written}");
        assert!(told <= written + written / 2 + 300_000, "{model}{options}: {told} {written}");
    }
}

/// The serving graph reads rounded cosines from tables, and the form it is compared with rounds them too.
#[test]
fn a_bf16_checkpoint_proves_itself_without_a_runtime() {
    let home = Home::with_copy(&fixture("llama"));
    let mut convert = home.command("convert model -o bundle --recipe softmax --json");
    let output = without_runtime(&mut convert).output().expect("it runs");
    let made: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(made["dtype"], "bf16");
    let checks = made["checks"].as_array().expect("checks");
    assert!(checks.iter().all(|c| c["ok"] == true || c["status"] == "skipped"), "{made}");
    let exact = |c: &&Value| c["name"] == "f64 interpreter: served = softmax" && c["limit"] == json!(1e-4);
    let skips = |reason: &str| {
        made["skipped"].as_array().expect("reasons").iter().any(|s| s.to_string().contains(reason))
    };
    assert!(skips("everything in ONNX Runtime") && skips("everything in tract"), "{made}");
    assert_eq!(checks.iter().filter(exact).count(), 1, "{made}");
}

/// A library that was named is wanted: without it nothing is proved in silence, and nothing is written.
#[test]
fn a_named_runtime_that_does_not_load_is_refused() {
    let home = Home::with_copy(&fixture("llama"));
    let output =
        home.command("convert model -o bundle").env("ORT_DYLIB_PATH", "no.so").output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("no.so is not a usable ONNX Runtime library: there is no such file"), "{stderr}");
    assert!(!home.path("bundle").exists());
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let home = Home::with_copy(&fixture("shakespeare"));
    home.object("convert model -o bundle --no-verify --json");
    assert_eq!(
        home.refused_in_one_line("eval bundle --perplexity model/valid.txt --max-tokens 1"),
        "error: --max-tokens 1: a row takes --context 512 tokens, and only whole rows are measured (hint: --max-tokens 512 or more, or a smaller --context)"
    );
    for command in ["finetune", "calibrate"] {
        let call =
            format!("{command} bundle --data model/valid.txt --context 32 --steps 1 --validation-windows 0");
        let output = home.run(&call);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("'--validation-windows <VALIDATION_WINDOWS>'"), "{}", said(&output));
    }
}
