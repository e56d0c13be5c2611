//! The binary `dijiang`, run as scripts run it: one JSON object on stdout and nothing else, exit codes 0, 1 and 2, and
//! for every bad input one line that names the place, with nothing left behind.

use crate::support::decoder;
use crate::support::schema;
use crate::support::sealed::sealed;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A directory to run in. Paths are relative to it, so that messages are the same everywhere.
struct Home(TempDir);

/// What a run gave.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    /// With a copy of a fixture, called `model`.
    fn with(fixture: &str) -> Self {
        let home = Self::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(fixture);
        std::fs::create_dir(home.path("model")).expect("a directory");
        for entry in std::fs::read_dir(source).expect("the fixture") {
            let entry = entry.expect("an entry");
            let to = home.path("model").join(entry.file_name());
            std::fs::copy(entry.path(), to).expect("a copy");
        }
        // What no fixture but one has, and every published model.
        let tokenizer = home.path("model").join("tokenizer.json");
        if !tokenizer.exists() {
            std::fs::write(tokenizer, "{}").expect("it is written");
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dijiang(&self, arguments: &str) -> Ran {
        self.dijiang_with(&arguments.split(' ').collect::<Vec<_>>())
    }

    fn dijiang_with(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
        command.current_dir(self.0.path()).args(arguments).stdin(Stdio::null()).env_remove("DIJIANG_LOG");
        let output = command.output().expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let stdout = text(output.stdout);
        schema::check(arguments, &stdout);
        Ran { code: output.status.code().expect("an exit code"), stdout, stderr: text(output.stderr) }
    }

    fn json(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.path(name)).expect("the file");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Changes one key of a manifest.
    fn set(&self, file: &str, key: &str, value: Value) {
        let mut whole = self.json(file);
        whole[key] = value;
        std::fs::write(self.path(file), sealed(whole)).expect("it is written");
    }

    /// Every path below, hidden ones too, in order.
    fn listing(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.0.path().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(&directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    open.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        found
    }
}

impl Ran {
    /// The one object on stdout.
    fn object(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{}{}", self.stdout, self.stderr);
        let value: Value = serde_json::from_str(&self.stdout).expect("JSON");
        assert!(value.is_object(), "{value}");
        value
    }

    fn fine(self) -> Self {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{}", self.stdout);
        self
    }
}

/// The keys of an object that are wanted and not there.
fn missing<'a>(object: &Value, wanted: &[&'a str]) -> Vec<&'a str> {
    wanted.iter().copied().filter(|key| object.get(key).is_none()).collect()
}

#[test]
fn every_command_prints_one_json_object() {
    let home = Home::with("shakespeare");
    let sites = home.dijiang("inspect model --json").fine().object();
    assert_eq!(missing(&sites, &["sites", "misses"]), [""; 0]);
    assert_eq!(sites["sites"].as_array().map(Vec::len), Some(5));
    let keys = ["name", "heads", "kv_heads", "head_dim", "scale", "mask", "rotary", "cache"];
    assert_eq!(missing(&sites["sites"][0], &keys), [""; 0]);

    let converted = home.dijiang("convert model -o out/bundle --json").fine().object();
    let keys = ["sites", "recipe", "target", "seconds", "bytes_written", "checks"];
    assert_eq!(missing(&converted, &keys), [""; 0]);
    assert_eq!((&converted["recipe"], &converted["target"]), (&json!("adaptive"), &json!("ort")));
    assert!(converted["checks"].as_array().is_some_and(|checks| checks.len() > 5), "{converted}");
    let bytes: u64 = std::fs::read_dir(home.path("out/bundle"))
        .expect("the bundle")
        .map(|e| e.expect("an entry").metadata().expect("a size").len())
        .sum();
    let written = converted["bytes_written"].as_u64().expect("a number");
    // The manifest grows by the checks once they are passed.
    assert!(written <= bytes && bytes < written + 5000, "{written} of {bytes}");
    assert!(converted["estimate"]["disk_bytes"].as_u64() >= Some(bytes), "{converted}");

    let verified = home.dijiang("verify out/bundle --runtime tract --json").fine().object();
    assert_eq!((&verified["ok"], missing(&verified, &["checks"]).len()), (&json!(true), 0));
    assert_eq!(missing(&verified["checks"][0], &["name", "measured", "limit", "ok"]), [""; 0]);

    let prompt = "generate out/bundle --prompt ROMEO: -n 12 --runtime tract";
    let generated = home.dijiang(&format!("{prompt} --json")).fine().object();
    let keys = ["text", "tokens", "prefill_seconds", "decode_seconds", "state_bytes"];
    assert_eq!(missing(&generated, &keys), [""; 0]);
    assert_eq!(generated["tokens"].as_array().map(Vec::len), Some(12));
    let told = home.dijiang(prompt);
    let text = format!("ROMEO:{}\n", generated["text"].as_str().expect("a text"));
    assert_eq!((told.code, told.stdout), (0, text));
}

/// The object that a run prints, and the most anonymous memory that it was seen with, in bytes.
#[cfg(target_os = "linux")]
fn watched(home: &Home, arguments: &str) -> (Value, u64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
    command.current_dir(home.0.path()).args(arguments.split(' ')).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().expect("a child").is_none() {
        let told = std::fs::read_to_string(&status).unwrap_or_default();
        let line = told.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
        most = most.max(line.and_then(|kibibytes| kibibytes.parse().ok()).unwrap_or(0) * 1024);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let output = child.wait_with_output().expect("its output");
    (serde_json::from_slice(&output.stdout).expect("one object"), most)
}

#[cfg(target_os = "linux")]
#[test]
fn memory_stays_below_its_estimate() {
    let home = Home::with("shakespeare");
    home.dijiang("synth pythia-70m -o pythia --dtype f16 --layers 2");
    for how in ["pythia --no-verify", "pythia --no-verify --recipe softmax", "model"] {
        let (made, most) = watched(&home, &format!("convert {how} -o bundle --force --json"));
        let estimate = made["estimate"]["memory_bytes"].as_u64().expect("a number");
        assert!(most > 0 && most <= estimate, "{how}: {most} of {estimate}");
    }
}

/// A decoder whose first attention, or whose both, let every second key through.
fn striped(home: &Home, both: bool) {
    let model = decoder::text(|layer| layer.replace("(%h.0.scaled, %mask)", "(%h.0.scaled, %stripes)"));
    let stripes = "  const %two: i64[] = [2]
  %distance = Sub(%queries, %places)
  %odd = Mod(%distance, %two)
  %even = Equal(%odd, %zero)
  %both = And(%open, %even)
  %stripes = Where(%both, %clear, %shut)
  %h.0.x = Gather(";
    let mut model = model.replace("  %h.0.x = Gather(", stripes);
    if both {
        model = model.replace("(%h.1.scaled, %mask)", "(%h.1.scaled, %stripes)");
    }
    decoder::write(&model, home.0.path());
}

#[test]
fn attentions_that_are_missed_are_told_and_the_others_converted() {
    let home = Home::new();
    striped(&home, false);
    let found = home.dijiang("inspect m.onnx --json").fine().object();
    let (sites, misses) = (&found["sites"], &found["misses"]);
    assert_eq!((&sites[0]["name"], &sites[0]["layer"]), (&json!("h.1.attn"), &json!(1)));
    assert_eq!((&misses[0]["node"], &misses[0]["attention"]), (&json!("h.0/softmax"), &json!(true)));
    assert_eq!(found["notes"], json!([]));
    insta::assert_snapshot!(home.dijiang("inspect m.onnx").fine().stdout);

    let ran = home.dijiang("convert m.onnx -o bundle --json");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    insta::assert_snapshot!(ran.stderr);
    assert_eq!(ran.object()["misses"], found["misses"]);
    let manifest = home.json("bundle/dijiang.json");
    assert_eq!(manifest["misses"][0]["node"], json!("h.0/softmax"));
    let states = manifest["state"].as_array().expect("a list").iter();
    let names: Vec<&str> = states.map(|state| state["name"].as_str().expect("a name")).collect();
    let wanted = ["0.key", "0.value", "1.recurrent_state", "1.conv_state"];
    assert_eq!(names, wanted.map(|name| format!("past_key_values.{name}")));
}

#[test]
fn the_first_line_says_that_some_attentions_stay() {
    let home = Home::new();
    striped(&home, false);
    let ran = home.dijiang("convert m.onnx -o bundle --no-verify");
    let first = ran.stdout.lines().next().expect("a line");
    assert_eq!(
        first,
        "bundle: 1 of 2 attentions are linear, and 1 stays softmax (h.0/softmax) (recipe adaptive, target ort, f32)"
    );
}

/// Changes one key of a model's config.
fn configure(home: &Home, key: &str, value: Value) {
    let mut whole = home.json("model/config.json");
    whole[key] = value;
    std::fs::write(home.path("model/config.json"), whole.to_string()).expect("it is written");
}

/// The lines of a conversion without a proof but the last, which tells how long it took.
fn told(home: &Home, arguments: &str) -> String {
    let ran = home.dijiang(&format!("{arguments} --no-verify")).fine();
    let (lines, _) = ran.stdout.trim_end().rsplit_once('\n').expect("lines");
    lines.to_owned()
}

#[test]
fn windows_that_are_kept_are_told() {
    let home = Home::with("mistral");
    insta::assert_snapshot!("windows_alone", told(&home, "convert model -o bundle"));
    assert!(home.path("bundle/genai_config.json").exists());
    insta::assert_snapshot!("windows_inspected", home.dijiang("inspect model").fine().stdout);
    let info = home.dijiang("info bundle").fine().stdout;
    let line = info.lines().find(|line| line.starts_with("attentions")).expect("a line");
    assert_eq!(
        line,
        "attentions  0 linear, 2 by their windows: model.layers.0.self_attn, model.layers.1.self_attn"
    );
    let manifest = home.json("bundle/dijiang.json");
    assert_eq!(
        (&manifest["sites"][1]["window"], &manifest["sites"][1]["lowered"]),
        (&json!(8), &json!(true))
    );

    let home = Home::with("ministral");
    insta::assert_snapshot!("windows_beside_others", told(&home, "convert model -o bundle"));
    assert!(!home.path("bundle/genai_config.json").exists());
    insta::assert_snapshot!("windows_that_stay", told(&home, "convert model -o kept --layers 0,1"));
    let manifest = home.json("kept/dijiang.json");
    let sites: Vec<(&Value, &Value)> =
        (0..3).map(|at| (&manifest["sites"][at]["window"], &manifest["sites"][at]["lowered"])).collect();
    let (five, all) = (json!(5), Value::Null);
    assert_eq!(sites, [(&five, &json!(true)), (&all, &json!(true)), (&five, &json!(false))]);
    let softmax = home.dijiang("convert model -o softmax --recipe softmax --no-verify").fine().stdout;
    assert!(softmax.starts_with("softmax: 0 of 3 attentions are linear (recipe softmax"), "{softmax}");
    assert!(home.path("softmax/genai_config.json").exists());
}

#[test]
fn a_window_that_no_prompt_crosses_is_told() {
    let home = Home::with("mistral");
    std::fs::remove_file(home.path("model/reference.safetensors")).expect("it was there");
    configure(&home, "sliding_window", json!(300));
    let checks = home.dijiang("convert model -o bundle --json").fine().object()["checks"].clone();
    let row = checks.as_array().expect("a list").iter().find(|check| check["status"] == "skipped");
    let row = row.expect("what was skipped");
    assert_eq!(
        (&row["name"], &row["reason"]),
        (
            &json!("a window of 300 tokens, crossed"),
            &json!("the prompts of the proof have 70 tokens, and do not cross it")
        )
    );
}

#[test]
fn a_window_longer_than_a_ring_stays_softmax() {
    let home = Home::with("ministral");
    configure(&home, "sliding_window", json!(20_000));
    insta::assert_snapshot!(told(&home, "convert model -o bundle"));
    let home = Home::with("mistral");
    configure(&home, "sliding_window", json!(20_000));
    insta::assert_snapshot!(refused(&home, CONVERT), @"error: model: none of its 2 attentions would be linear; model.layers.0.self_attn stays softmax: it sees a window of 20000 tokens, and a ring holds at most 16384 (hint: --recipe softmax keeps them)");
}

/// The state that one graph of a bundle leaves is taken by another, rings of several sizes among it.
#[test]
fn a_state_with_rings_is_saved_and_loaded() {
    let home = Home::with("shakespeare");
    let layers =
        ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"];
    configure(&home, "model_type", json!("ministral"));
    configure(&home, "layer_types", json!(layers));
    configure(&home, "sliding_window", json!(68));
    std::fs::remove_file(home.path("model/reference.safetensors")).expect("it was there");
    home.dijiang("convert model -o bundle --recipe adaptive --no-verify").fine();
    let text =
        "First Citizen: Before we proceed any further, hear me speak. All: Speak, speak. First Citizen:";
    let tokens = |arguments: &[&str]| -> Vec<i64> {
        let object =
            home.dijiang_with(&[&["generate", "bundle", "--json"], arguments].concat()).fine().object();
        serde_json::from_value(object["tokens"].clone()).expect("numbers")
    };
    let whole = tokens(&["--prompt", text, "-n", "12"]);
    let first = tokens(&["--prompt", text, "-n", "5", "--save-state", "state"]);
    let rest = tokens(&["--load-state", "state", "-n", "7"]);
    assert_eq!([first, rest].concat(), whole);
}

/// The gates of the recipe read what the values are projected from.
#[test]
fn nothing_linear_is_refused() {
    let home = Home::new();
    let bent = |text: &str, layer: &str| {
        let line = format!("  %h.{layer}.v.split = Reshape(%h.{layer}.v.flat");
        assert!(text.contains(&line));
        let bend = format!("  %h.{layer}.v.bent = Tanh(%h.{layer}.v.flat)\n");
        text.replace(&line, &format!("{bend}{}", line.replace(".v.flat", ".v.bent")))
    };
    let model = bent(&bent(&decoder::text(|layer| layer), "0"), "1");
    decoder::write(&model, home.0.path());
    for verified in ["", " --no-verify"] {
        let refused = refused(&home, &format!("convert m.onnx -o bundle --force{verified}"));
        assert_eq!(refused, format!("error: {NOTHING_LINEAR}"));
    }
    let found = home.dijiang("inspect m.onnx").fine().stdout;
    assert_eq!(
        found.lines().last(),
        Some(
            format!("`dijiang convert` refuses it under its default recipe, adaptive: {NOTHING_LINEAR}")
                .as_str()
        )
    );
    assert_eq!(home.dijiang("inspect m.onnx --json").fine().object()["refused"], json!(NOTHING_LINEAR));
    home.dijiang("convert m.onnx -o bundle --no-verify --recipe softmax").fine();
    for recipe in ["paper", "performer", "pff", "wpff", "decayed", "elu"] {
        home.dijiang(&format!("convert m.onnx -o bundle --no-verify --recipe {recipe} --force")).fine();
    }
    assert_eq!(home.dijiang("convert m.onnx -o bundle --no-verify --recipe released --force").code, 2);
}

const NOTHING_LINEAR: &str = "m.onnx: none of its 2 attentions would be linear; attention.0 stays softmax: the recipe's gate reads what the values are projected from, and they are not the output of one linear layer (hint: --recipe windows converts 2 of 2 attentions, and so do paper, performer, pff, wpff, decayed and elu)";

const COUNTED: &str = "  weight %table: f32[64, 16] = random(3)
  %h.0.ids = Gather(%embed, %input_ids) {axis: 0}
  %h.0.places = Gather(%table, %places) {axis: 0}
  weight %place_scale: f32[16] = random(4)
  %place_rows = LayerNormalization(%h.0.places, %place_scale) {axis: -1, epsilon: 1e-5}
  %h.0.x = Add(%h.0.ids, %place_rows)
";

/// Learned positions that the graph numbers from 0 at every call, as a model without a cache does, and in one row for all.
#[test]
fn positions_counted_anew_are_told_by_convert_and_inspect() {
    let home = Home::new();
    let counted = without_caches().replace("  %h.0.x = Gather(%embed, %input_ids) {axis: 0}\n", COUNTED);
    decoder::write(&counted, home.0.path());
    let told = "m.onnx: the graph counts positions from the first token of each call, at \"place_rows\" (hint: export the model with the input `position_ids`, or keep its attention with --recipe softmax)";
    assert_eq!(refused(&home, "convert m.onnx -o bundle"), format!("error: {told}"));
    let found = home.dijiang("inspect m.onnx").fine().stdout;
    assert_eq!(
        found.lines().last(),
        Some(format!("`dijiang convert` refuses it under its default recipe, adaptive: {told}").as_str())
    );
}

/// A decoder of the same layers without their caches.
fn without_caches() -> String {
    let is_of_cache = |line: &&str| line.contains("input %past_key") || line.contains("output \"present");
    let model = decoder::text(|layer| layer).replace("past + sequence", "sequence");
    let lines = model.lines().filter(|line| !is_of_cache(line) && !line.contains(" = Concat(%past_key"));
    let model: String = lines.flat_map(|line| [line, "\n"]).collect();
    let model = model.replace("  %cached = Shape(%past_key_values.1.key) {end: 3, start: 2}\n", "");
    let model = model.replace("Slice(%places, %cached, %end)", "Identity(%places)");
    let uncached = |model: String, n: usize| {
        let model = model.replace(&format!("Transpose(%h.{n}.keys)"), &format!("Transpose(%h.{n}.k)"));
        model.replace(&format!("%h.{n}.values)"), &format!("%h.{n}.v)"))
    };
    uncached(uncached(model, 0), 1)
}

/// What no caller could feed or read is refused before anything is written, proof or not.
#[test]
fn a_decoder_that_nothing_serves_is_refused() {
    let home = Home::new();
    let cases = [
        (
            "output \"logits\"",
            "output \"last_hidden_state\"",
            "its output `logits`; its outputs are last_hidden_state (hint: export it with its language-model head, as `optimum-cli export onnx --task text-generation` does)",
        ),
        (
            "%input_ids",
            "%tokens",
            "its input `input_ids`; its inputs are tokens, attention_mask (hint: export it with that name)",
        ),
    ];
    for (own, other, told) in cases {
        decoder::write(&without_caches().replace(own, other), home.0.path());
        let told = format!("m.onnx: the model is served token by token, by {told}");
        for verified in ["", " --no-verify"] {
            let refused = refused(&home, &format!("convert m.onnx -o bundle --force{verified}"));
            assert_eq!(refused, format!("error: {told}"));
        }
        assert_eq!(home.dijiang("inspect m.onnx --json").fine().object()["refused"], json!(told));
        home.dijiang("convert m.onnx -o bundle --no-verify --recipe softmax --force").fine();
    }
}

#[test]
fn a_kept_layer_without_a_cache_is_refused_with_its_reason() {
    let home = Home::new();
    decoder::write(&without_caches(), home.0.path());
    let told = "attention \"h.0.attn\" stays softmax (the layer was not asked for), and a kept layer has no cache here: it does not see the tokens of earlier calls";
    assert_eq!(
        refused(&home, "convert m.onnx -o bundle --layers 1"),
        format!(
            "error: m.onnx: {told} (hint: export the model with its cache, `past_key_values`, or keep all of its attention with --recipe softmax; --no-verify writes a graph for whole sequences)"
        )
    );
    let ran = home.dijiang("convert m.onnx -o bundle --layers 1 --no-verify");
    assert_eq!((ran.code, ran.stderr), (0, format!("warning: {told}\n")));
    home.dijiang("convert m.onnx -o bundle --force").fine();
}

#[test]
fn a_model_without_an_attention_that_converts_is_refused() {
    let home = Home::new();
    striped(&home, true);
    let before = home.listing();
    let ran = home.dijiang("convert m.onnx -o bundle");
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    insta::assert_snapshot!(ran.stderr);
    assert_eq!(home.listing(), before);
    // What was asked for is done: all of it stays softmax.
    let kept = home.dijiang("convert m.onnx -o bundle --recipe softmax --json").fine().object();
    assert_eq!(kept["misses"].as_array().map(Vec::len), Some(2));
}

#[test]
fn weights_that_are_not_finite_are_told() {
    let warning =
        |of: &str, how: &str| format!("warning: weight `{of}` holds numbers that are not finite: {how}\n");
    let home = Home::with("llama");
    enlarge(&home.path("model/model.safetensors"), "model.norm.weight", f32::INFINITY);
    let ran = home.dijiang(&format!("{CONVERT} --json"));
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (0, warning("model.norm.weight", "64 infinite of 64").as_str())
    );
    assert_eq!(ran.object()["warnings"].as_array().map(Vec::len), Some(1));

    let home = Home::new();
    decoder::write(&decoder::text(|layer| layer), home.0.path());
    let weights = home.path("weights.safetensors");
    let mut bytes = std::fs::read(&weights).expect("the weights");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).expect("it is written");
    let ran = home.dijiang("convert m.onnx -o bundle --no-verify --json");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, warning("head", "1 NaN of 768").as_str()));
    assert_eq!(ran.object()["notes"], json!([]), "it is told once");
}

#[test]
fn a_conversion_can_be_stopped_on_the_way() {
    let home = Home::new();
    decoder::write(&decoder::text(|layer| layer), home.0.path());
    insta::assert_snapshot!(home.dijiang("convert m.onnx -o bundle --stop-after 1").fine().stdout);
    insta::assert_snapshot!(refused(&home, "verify bundle"));
    insta::assert_snapshot!(refused(&home, "generate bundle --prompt x"));
    let whole = home.dijiang("convert m.onnx -o bundle --stop-after 1000 --force --json").fine().object();
    assert_eq!(missing(&whole, &["bundle", "patches", "stopped", "last"]), [""; 0]);
    assert_eq!(whole["stopped"], json!(false));
    assert_eq!(home.dijiang("convert m.onnx -o bundle --stop-after 1 --no-verify").code, 2);
}

#[test]
fn an_estimate_is_that_of_the_conversion_and_writes_nothing() {
    let home = Home::with("llama");
    let before = home.listing();
    for options in ["", " --no-verify", " --weights int4 --recipe softmax"] {
        let told = home.dijiang(&format!("convert model -o b --json --estimate{options}")).fine().object();
        assert_eq!(home.listing(), before);
        let made = home.dijiang(&format!("convert model -o c --force --json{options}")).fine().object();
        assert_eq!(told["estimate"], made["estimate"], "{options}");
        std::fs::remove_dir_all(home.path("c")).expect("it is there");
    }
}

#[test]
fn a_check_that_fails_is_exit_code_1() {
    let home = Home::with("llama");
    home.dijiang("convert model -o bundle --no-verify --dtype f32 --target portable --json").fine();
    home.dijiang("verify bundle --runtime tract --json").fine();
    std::fs::copy(home.path("bundle/softmax.onnx"), home.path("bundle/chunked.onnx")).expect("a copy");
    let ran = home.dijiang("verify bundle --runtime tract --json");
    let found = ran.object();
    assert_eq!((ran.code, ran.stderr.as_str(), &found["ok"]), (1, "", &json!(false)));
    let checks = found["checks"].as_array().expect("a list");
    let failing: Vec<&Value> = checks.iter().filter(|c| c["ok"] == false).map(|c| &c["name"]).collect();
    assert_eq!(failing, ["files that are not those dijiang.json names", "tract: chunked = parallel"]);
    assert_eq!(home.dijiang("verify bundle --runtime tract").code, 1);
}

/// Embeddings ten thousand times as large carry the activations beyond 65504, where f16 ends.
#[test]
fn a_conversion_whose_proof_fails_writes_nothing() {
    let home = Home::with("llama");
    enlarge(&home.path("model/model.safetensors"), "model.embed_tokens.weight", 1e4);
    let before = home.listing();
    let ran = home.dijiang("convert model -o out/bundle --dtype f16 --target portable --json");
    let found = ran.object();
    assert_eq!((ran.code, &found["written"]), (1, &json!(false)), "{}", ran.stderr);
    assert_eq!(home.listing(), before);
    home.dijiang("convert model -o out/bundle --dtype f16 --target portable --no-verify --json").fine();
}

/// Multiplies a bf16 tensor of a safetensors file.
fn enlarge(path: &Path, name: &str, by: f32) {
    let bytes = std::fs::read(path).expect("the weights");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = file.tensor(name).expect("the tensor");
    assert_eq!(tensor.dtype(), Dtype::BF16);
    let (numbers, _) = tensor.data().as_chunks();
    let larger = numbers
        .iter()
        .flat_map(|b| half::bf16::from_f32(half::bf16::from_le_bytes(*b).to_f32() * by).to_le_bytes());
    let data: Vec<u8> = larger.collect();
    let view = TensorView::new(Dtype::BF16, tensor.shape().to_vec(), &data).expect("a tensor");
    let all = file.tensors().into_iter().map(|(n, t)| if n == name { (n, view.clone()) } else { (n, t) });
    let written = safetensors::serialize(all, None).expect("it is laid out");
    std::fs::write(path, written).expect("it is written");
}

/// A run that must fail: one line on stderr, nothing on stdout, and nothing new below the directory.
fn refused(home: &Home, arguments: &str) -> String {
    let before = home.listing();
    let ran = home.dijiang(arguments);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments}: {}", ran.stderr);
    assert_eq!(home.listing(), before, "{arguments}");
    let line = ran.stderr.strip_suffix('\n').expect("a complete line");
    assert!(line.starts_with("error: ") && !line.contains('\n'), "{arguments}: {line}");
    line.to_owned()
}

const CONVERT: &str = "convert model -o bundle --no-verify";

#[test]
fn damaged_weights_are_refused() {
    let home = Home::with("llama-rope3");
    std::fs::remove_file(home.path("model/model-00002-of-00002.safetensors")).expect("a shard");
    insta::assert_snapshot!(refused(&home, CONVERT), @"error: model/model.safetensors.index.json: shard `model-00002-of-00002.safetensors` is missing; the index names it for 18 tensors, fetch it again");

    let home = Home::with("llama-rope3");
    let index = "model/model.safetensors.index.json";
    let mut map = home.json(index)["weight_map"].clone();
    map["model.layers.9.mlp.up_proj.weight"] = json!("model-00001-of-00002.safetensors");
    home.set(index, "weight_map", map);
    insta::assert_snapshot!(refused(&home, CONVERT), @"error: model/model.safetensors.index.json: tensor `model.layers.9.mlp.up_proj.weight` should be in shard `model-00001-of-00002.safetensors`, but is not there; index and shards do not belong together");

    let home = Home::with("llama");
    let weights = home.path("model/model.safetensors");
    let bytes = std::fs::read(&weights).expect("the weights");
    std::fs::write(&weights, &bytes[..bytes.len() - 100]).expect("it is cut");
    insta::assert_snapshot!(refused(&home, CONVERT), @"error: model/model.safetensors: the file has 104988 bytes, but its header describes 105088; it was cut short or damaged, fetch it again");
    std::fs::write(&weights, &bytes[..100]).expect("it is cut");
    insta::assert_snapshot!(refused(&home, CONVERT), @"error: model/model.safetensors: the safetensors header is broken: its length is given as 2040 bytes in a file of 100 (hint: the file is damaged or is no safetensors file: fetch or write it again)");
}

#[test]
fn configs_that_do_not_fit_are_refused() {
    let with = |fixture: &str, key: &str, value: Value| {
        let home = Home::with(fixture);
        home.set("model/config.json", key, value);
        refused(&home, CONVERT)
    };
    insta::assert_snapshot!(with("llama", "intermediate_size", json!(100)), @"error: model/model.safetensors: tensor `model.layers.0.mlp.gate_proj.weight` has shape [48, 64]; expected [100, 64] from config.json");
    insta::assert_snapshot!(with("llama", "num_key_value_heads", json!(3)), @"error: model/config.json: key `num_key_value_heads` is 3; expected a divisor of num_attention_heads = 4");
    insta::assert_snapshot!(with("llama", "head_dim", json!(15)), @"error: model/config.json: key `head_dim` is such that 15 of 15 features are rotated; expected an even number of them, as they are rotated in pairs");
    insta::assert_snapshot!(with("llama", "model_type", json!("mamba")), @"error: model/config.json: model_type is `mamba`: linear attention, convolutions or state-space layers in place of softmax attention already: its state is constant as it is, and there is nothing to convert");
    insta::assert_snapshot!(with("llama", "num_hidden_layers", json!("two")), @r#"error: model/config.json: key `num_hidden_layers` is "two"; expected a positive integer below 2^31"#);

    let home = Home::with("llama");
    std::fs::write(home.path("model/config.json"), "{").expect("it is written");
    insta::assert_snapshot!(refused(&home, CONVERT), @"error: model/config.json: not the JSON that was expected: EOF while parsing an object at line 1 column 1");
}

#[test]
fn recipes_and_layers_that_do_not_exist_are_refused() {
    let home = Home::with("llama");
    insta::assert_snapshot!(refused(&home, &format!("{CONVERT} --recipe adaptve")), @"error: no recipe is called `adaptve`: expected one of adaptive, windows, gated, paper, released, performer, pff, wpff, decayed, elu, cosformer, retnet, linformer, softmax, or the path of a .yaml file");
    insta::assert_snapshot!(refused(&home, &format!("{CONVERT} --recipe mine.yaml")), @"error: mine.yaml: there is no such file or directory (hint: --recipe takes adaptive, windows, gated, paper, released, performer, pff, wpff, decayed, elu, cosformer, retnet, linformer, softmax, or the path of a .yaml file)");
    std::fs::write(home.path("mine.yaml"), "name: mine\nmap: {kind: [}\n").expect("it is written");
    insta::assert_snapshot!(refused(&home, &format!("{CONVERT} --recipe mine.yaml")), @"error: mine.yaml: not a recipe: map.kind: invalid type: sequence, expected a string at line 2 column 13");
    std::fs::write(home.path("mine.yaml"), "name: mine\nsoftmax_layers: [7]\n").expect("it is written");
    insta::assert_snapshot!(refused(&home, &format!("{CONVERT} --recipe mine.yaml")), @"error: layer 7 does not exist: the model has layers 0 to 1");
    insta::assert_snapshot!(refused(&home, &format!("{CONVERT} --layers 0,7")), @"error: layer 7 does not exist: the model has layers 0 to 1");
}

#[test]
fn places_that_cannot_be_written_are_refused() {
    let home = Home::with("llama");
    std::fs::write(home.path("file"), "").expect("it is written");
    insta::assert_snapshot!(refused(&home, "convert model -o file/bundle --no-verify"), @"error: file: it cannot be made: File exists (os error 17)");
    insta::assert_snapshot!(refused(&home, "convert model -o model --no-verify --force"), @"error: model: it is not a bundle (no dijiang.json in it), so it is not replaced");
    home.dijiang(CONVERT).fine();
    let manifest = std::fs::read(home.path("bundle/dijiang.json")).expect("the manifest");
    insta::assert_snapshot!(refused(&home, &format!("{CONVERT} --recipe paper")), @"error: bundle: it exists already (hint: --force replaces a bundle)");
    assert_eq!(std::fs::read(home.path("bundle/dijiang.json")).expect("the manifest"), manifest);
    home.dijiang(&format!("{CONVERT} --recipe paper --force")).fine();
    assert_ne!(std::fs::read(home.path("bundle/dijiang.json")).expect("the manifest"), manifest);
}

#[test]
fn a_linked_bundle_serves_and_leaves_its_source_alone() {
    let home = Home::with("shakespeare");
    let source = home.path("model/model.safetensors");
    let before = std::fs::read(&source).expect("the weights");
    let told = home.dijiang("convert model -o whole").fine().stdout;
    let proof = told.lines().find(|line| line.starts_with("proof: all ")).expect("a line");
    assert!(proof.contains(" checks held") && proof.ends_with("(-v lists them)"), "{told}");
    assert!(!told.contains("checks (numbers "), "{told}");
    // With its proof, which runs every graph.
    let told = home.dijiang("convert model -o linked --link -v").stdout;
    assert!(told.contains("checks (numbers "), "{told}");
    let link = home.path("linked/source-model.safetensors");
    assert_eq!(inode(&source), inode(&link));
    let size = |name: &str| std::fs::metadata(home.path(name)).expect("the weights").len();
    let (own, whole) = (size("linked/model.safetensors"), size("whole/model.safetensors"));
    assert!(own < whole && own + before.len() as u64 > whole, "{own} of {whole}");
    home.dijiang("verify linked").fine();
    let generate = |bundle: &str, runtime: &str| {
        let ran = home.dijiang(&format!("generate {bundle} --prompt ROMEO: -n 4 --runtime {runtime}"));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout
    };
    for runtime in ["tract", "ort"] {
        assert_eq!(generate("linked", runtime), generate("whole", runtime), "{runtime}");
    }
    for command in [
        "export-torch linked",
        "import-weights linked model",
        "finetune linked --data model/config.json",
        "calibrate linked --data model/config.json",
    ] {
        assert_eq!(
            refused(&home, command),
            "error: linked: its weights are in the source's own files, which are not touched \
             (hint: convert the model anew, without --link)"
        );
    }
    home.dijiang("convert model -o linked --link --force --no-verify").fine();
    assert_eq!(std::fs::read(&source).expect("the weights"), before);
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("it is there"))
}

#[test]
fn a_bundle_of_int4_weights_proves_itself_and_serves_but_is_not_trained() {
    let home = Home::with("shakespeare");
    for recipe in ["adaptive", "softmax"] {
        // With its proof, which runs every graph.
        let convert = format!("convert model -o {recipe} --recipe {recipe} --weights int4 --json");
        let converted = home.dijiang(&convert).fine().object();
        assert_eq!(converted["weights"], "int4");
        assert_eq!(converted["sites"][0]["name"], "model.layers.0.self_attn");
        let checks = converted["checks"].as_array().expect("checks");
        let drift = checks.iter().find(|c| c["name"] == "drift of quantised weights: norm of the difference");
        let drift = drift.and_then(|c| c["measured"].as_f64()).expect("the drift is measured");
        // Blocks of four bits move a weight by some 7 %, and five layers of it the logits no more.
        assert!(drift > 1e-3 && drift < 0.07, "{recipe}: {drift}");
        assert_eq!(home.json(&format!("{recipe}/dijiang.json"))["weights"], "int4");
    }
    let bytes = std::fs::read(home.path("adaptive/model.safetensors")).expect("the weights");
    let stored = SafeTensors::deserialize(&bytes).expect("safetensors");
    let layer = "model.layers.0.mlp.down_proj.weight";
    assert!(stored.tensor(layer).is_err());
    let (width, out) = (stored.tensor(&format!("{layer}_int4")).expect("the blocks"), "model.norm.weight");
    assert_eq!(width.dtype(), Dtype::U8);
    assert_eq!(width.shape()[0], stored.tensor(out).expect("a norm").shape()[0]);
    assert!(stored.tensor("model.embed_tokens.weight").is_ok());
    for runtime in ["tract", "ort"] {
        let ran = home.dijiang(&format!("generate adaptive --prompt ROMEO: -n 4 --runtime {runtime}"));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    for command in [
        "export-torch adaptive",
        "import-weights adaptive model",
        "finetune adaptive --data model/config.json",
        "calibrate adaptive --data model/config.json",
    ] {
        assert_eq!(
            refused(&home, command),
            "error: adaptive: its weights are int4, which are served but not changed or handed on \
             (hint: convert the model anew, without --weights)"
        );
    }
}

#[test]
fn what_cannot_be_int4_is_refused() {
    let home = Home::with("llama");
    insta::assert_snapshot!(refused(&home, "convert model -o bundle --weights int4 --target portable"));
    insta::assert_snapshot!(refused(&home, "convert model -o bundle --weights int4 --target onnx27"));
    assert_eq!(home.dijiang("convert model -o bundle --weights int4 --train").code, 2);
    assert_eq!(home.dijiang("convert model -o bundle --weights int3").code, 2);
    assert!(!home.path("bundle").exists());
}

#[test]
fn what_cannot_be_linked_is_refused() {
    let home = Home::with("llama");
    insta::assert_snapshot!(refused(&home, "convert model -o bundle --no-verify --link --dtype f32"));
}

#[test]
fn what_is_no_bundle_or_no_model_is_refused() {
    let home = Home::with("llama");
    insta::assert_snapshot!(refused(&home, "verify model"), @"error: model: this is a checkpoint, not a bundle (hint: `dijiang convert model -o BUNDLE` makes one of it)");
    insta::assert_snapshot!(refused(&home, "generate model --prompt x"), @"error: model: this is a checkpoint, not a bundle (hint: `dijiang convert model -o BUNDLE` makes one of it)");
    insta::assert_snapshot!(refused(&home, "verify nowhere"), @"error: nowhere: there is no such file or directory (hint: a bundle is what `dijiang convert MODEL -o nowhere` writes)");
    insta::assert_snapshot!(refused(&home, "inspect nowhere"), @"error: nowhere: there is no such file or directory (hint: name a checkpoint directory, a GGUF file, an ONNX file, or OWNER/MODEL of the Hugging Face hub)");
    insta::assert_snapshot!(refused(&home, "convert model/nothing -o out"), @"error: model/nothing: there is no such file or directory (hint: name a checkpoint directory, a GGUF file, an ONNX file, or OWNER/MODEL of the Hugging Face hub)");
    insta::assert_snapshot!(refused(&home, "inspect owner/model.onnx"), @"error: owner/model.onnx: there is no such file or directory (hint: name a checkpoint directory, a GGUF file, an ONNX file, or OWNER/MODEL of the Hugging Face hub)");
    std::fs::write(home.path("model.gguf"), "GGUF").expect("it is written");
    insta::assert_snapshot!(refused(&home, "convert model.gguf -o out"), @"error: model.gguf: the file ends at byte 4, within the version at byte 4, which takes 4 bytes (hint: it was cut short or damaged, fetch it again)");
    std::fs::write(home.path("broken.onnx"), "no model").expect("it is written");
    insta::assert_snapshot!(refused(&home, "inspect broken.onnx"), @"error: broken.onnx: it is not an ONNX model, or is cut short (invalid wire type value: 6)");
}

#[test]
fn a_path_that_does_not_exist_is_told_alike_by_every_command() {
    let home = Home::with("shakespeare");
    home.dijiang(CONVERT).fine();
    let none = "there is no such file or directory";
    for command in ["convert nowhere -o out", "convert nowhere.onnx -o out", "inspect nowhere"] {
        let source = command.split(' ').nth(1).expect("a path");
        let line = format!(
            "error: {source}: {none} (hint: name a checkpoint directory, a GGUF file, an ONNX file, or OWNER/MODEL of the Hugging Face hub)"
        );
        assert_eq!(refused(&home, command), line, "{command}");
    }
    for command in [
        "verify nowhere",
        "generate nowhere --prompt x",
        "calibrate nowhere --data bundle/config.json",
        "finetune nowhere --data bundle/config.json",
        "eval nowhere --perplexity bundle/config.json",
        "bench nowhere",
        "bench bundle --against nowhere",
        "quantize nowhere -o out",
        "export-torch nowhere",
        "import-weights nowhere model",
    ] {
        let line = format!(
            "error: nowhere: {none} (hint: a bundle is what `dijiang convert MODEL -o nowhere` writes)"
        );
        assert_eq!(refused(&home, command), line, "{command}");
    }
    for (command, argument) in [
        ("import-weights bundle nowhere", "FILE"),
        ("calibrate bundle --data nowhere", "--data"),
        ("finetune bundle --data nowhere", "--data"),
        ("finetune bundle --data bundle/config.json --valid nowhere", "--valid"),
        ("eval bundle --perplexity nowhere", "--perplexity"),
        ("verify bundle --reference nowhere", "--reference"),
        ("generate bundle --prompt-file nowhere", "--prompt-file"),
        ("generate bundle --load-state nowhere", "--load-state"),
        ("plot nowhere -o x.svg", "METRICS"),
    ] {
        let name = command.split(' ').next().expect("a command");
        let line =
            format!("error: nowhere: {none} (hint: `dijiang {name} --help` says what {argument} takes)");
        assert_eq!(refused(&home, command), line, "{command}");
    }
}

#[test]
fn a_checkpoint_is_not_taken_for_a_bundle() {
    let home = Home::with("shakespeare");
    home.dijiang(CONVERT).fine();
    for command in [
        "verify model",
        "generate model --prompt x",
        "calibrate model --data bundle/config.json",
        "finetune model --data bundle/config.json",
        "eval model --perplexity bundle/config.json",
        "bench model",
        "quantize model -o out",
        "export-torch model",
        "import-weights model model",
    ] {
        assert_eq!(
            refused(&home, command),
            "error: model: this is a checkpoint, not a bundle (hint: `dijiang convert model -o BUNDLE` makes one of it)",
            "{command}"
        );
    }
    let line = |command: &str| refused(&home, command);
    assert_eq!(
        line("verify bundle/model.onnx"),
        "error: bundle/model.onnx: this is a file of a bundle (hint: name the bundle itself, bundle)"
    );
    std::fs::create_dir(home.path("other")).expect("a directory");
    assert_eq!(
        line("verify other"),
        "error: other: this directory is not a bundle: it has no dijiang.json (hint: a bundle is what `dijiang convert MODEL -o BUNDLE` writes)"
    );
    assert_eq!(
        line("convert model/config.json -o out"),
        "error: model/config.json: this file is not an ONNX model (hint: a checkpoint is named by its directory)"
    );
}

/// What its conversion added, and what was trained since, would be lost without a word.
#[test]
fn a_bundle_is_not_converted_again() {
    let home = Home::with("llama");
    home.dijiang(CONVERT).fine();
    let rest = "already, and what its conversion added would be left out (hint: convert the model that the bundle was made of)";
    for (source, what) in [
        ("bundle", "a bundle"),
        ("bundle/model.onnx", "a graph of a bundle"),
        ("bundle/softmax.onnx", "a graph of a bundle"),
    ] {
        for how in ["", " --stop-after 1"] {
            assert_eq!(
                refused(&home, &format!("convert {source} -o out{how}")),
                format!("error: {source}: this is {what} {rest}")
            );
        }
        assert_eq!(home.dijiang(&format!("inspect {source}")).code, 0, "{source}");
    }
    // Its weights alone, as a checkpoint.
    std::fs::create_dir(home.path("again")).expect("a directory");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(home.path("bundle").join(name), home.path("again").join(name)).expect("a copy");
    }
    let ran = home.dijiang("convert again -o out --no-verify --json");
    let warning = "again: 18 tensors of an earlier conversion are left out (hint: their bundle serves them; `dijiang quantize` keeps them)";
    assert_eq!((ran.code, ran.stderr.as_str()), (0, format!("warning: {warning}\n").as_str()));
    assert_eq!(ran.object()["warnings"], json!([warning]));
}

#[test]
fn a_model_without_a_tokenizer_is_told_when_it_is_converted_and_when_it_is_missed() {
    let home = Home::with("llama");
    std::fs::remove_file(home.path("model/tokenizer.json")).expect("it goes");
    let warning = "model: it has no tokenizer.json, which `generate` and training read texts with (hint: `AutoTokenizer.from_pretrained('model').save_pretrained('model')` of transformers writes one; then convert it again)";
    let ran = home.dijiang(&format!("{CONVERT} --json"));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, format!("warning: {warning}\n").as_str()));
    assert_eq!(ran.object()["warnings"], json!([warning]));
    for command in [
        "generate bundle --prompt x --runtime tract",
        "finetune bundle --data bundle/config.json",
        "calibrate bundle --data bundle/config.json",
        "eval bundle --perplexity bundle/config.json",
    ] {
        assert_eq!(
            refused(&home, command),
            "error: bundle/tokenizer.json: there is no such file or directory (hint: `AutoTokenizer.from_pretrained('MODEL').save_pretrained('MODEL')` of transformers writes one into MODEL, the directory that was converted; then convert it again)",
            "{command}"
        );
    }
}

#[test]
fn a_directory_that_is_not_there_is_missed_before_the_work() {
    let home = Home::with("llama");
    for (option, directory) in [("--svg missing/a", "missing"), ("--profile lost", "lost")] {
        let argument = option.split(' ').next().expect("an option");
        assert_eq!(
            refused(&home, &format!("bench nowhere {option}")),
            format!(
                "error: {directory}: there is no such directory, which {argument} writes into (hint: mkdir -p {directory})"
            )
        );
    }
}

/// A newcomer reads the table without a manual: counts are whole numbers, and what the others are is said.
#[test]
fn the_table_of_checks_says_what_its_numbers_are() {
    let home = Home::with("llama");
    home.dijiang(&format!("{CONVERT} --dtype f32")).fine();
    let told = home.dijiang("verify bundle --runtime tract").fine().stdout;
    let row = |start: &str| {
        let row = told.lines().find(|line| line.trim_start().starts_with(start));
        row.unwrap_or_else(|| panic!("no {start} in {told}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        told.lines().next(),
        Some("checks (numbers are relative differences of logits, unless the row says otherwise)")
    );
    assert_eq!(row("missing files"), "missing files 0 ok at most 0");
    let drift = row("drift from softmax: KL");
    assert!(drift.ends_with("reported: expected before `dijiang calibrate`"), "{drift}");
    let skipped: Vec<&str> = told.lines().filter(|line| line.contains(" skipped: ")).collect();
    assert_eq!(skipped.len(), 1, "{told}");
    assert!(skipped[0].contains("everything in ONNX Runtime (only tract was asked for)"), "{told}");

    std::fs::remove_file(home.path("bundle/decode.onnx")).expect("it goes");
    let ran = home.dijiang("verify bundle --runtime tract");
    let failed = ran.stdout.lines().find(|line| line.contains("FAILED")).expect("a row");
    let words: Vec<&str> = failed.split_whitespace().collect();
    assert_eq!(words.join(" "), "missing files: decode.onnx 1 FAILED not at most 0");
    let last = ran.stdout.lines().last().expect("a line");
    assert!(last.contains(" failed (missing files: decode.onnx), "), "{last}");
}

/// A failure inside a runtime is one line too: neither ONNX Runtime's log nor the panic of tract stands beside it.
#[test]
fn failing_runtimes_say_it_once() {
    let home = Home::with("shakespeare");
    home.dijiang(CONVERT).fine();
    let mut model = home.json("bundle/dijiang.json")["model"].clone();
    model["vocab"] = json!(1_000_000);
    home.set("bundle/dijiang.json", "model", model);
    // It is as if the bundle had been written so.
    home.set("bundle/dijiang.json", "files", json!([]));
    let tokenizer = std::fs::read_to_string(home.path("bundle/tokenizer.json")).expect("the tokenizer");
    assert!(tokenizer.contains("\"R\": 82,"));
    let broken = tokenizer.replace("\"R\": 82,", "\"R\": 999999,");
    std::fs::write(home.path("bundle/tokenizer.json"), broken).expect("it is written");
    for (runtime, name) in [("tract", "tract"), ("ort", "onnxruntime")] {
        let line = refused(&home, &format!("generate bundle --prompt R --runtime {runtime} --json"));
        if !line.contains("ONNX Runtime was not found") {
            assert!(line.starts_with(&format!("error: {name} failed to run bundle/")), "{line}");
        }
    }
}

#[test]
fn prompts_that_the_model_cannot_take_are_refused() {
    let home = Home::with("shakespeare");
    home.dijiang(CONVERT).fine();
    let whole = home.json("bundle/dijiang.json")["model"].clone();
    let with = |key: &str, value: Value, arguments: &str| {
        let mut model = whole.clone();
        model[key] = value;
        home.set("bundle/dijiang.json", "model", model);
        refused(&home, &format!("generate bundle --runtime tract {arguments}"))
    };
    insta::assert_snapshot!(with("vocab", json!(80), "--prompt ROMEO:"), @"error: prompt: the tokenizer gives token 82, but the model knows 80 (hint: is tokenizer.json the model's own?)");
    insta::assert_snapshot!(with("positions", json!(16), "--prompt ROMEO: -n 11"), @"error: prompt: 6 tokens and 11 new ones, but the model has 16 positions (hint: -n 10 at most)");
    insta::assert_snapshot!(with("positions", json!(4), "--prompt ROMEO: -n 0"), @"error: prompt: 6 tokens and 0 new ones, but the model has 4 positions (hint: shorten it)");
}

/// Prompts of unequal length, one of which ends its text before the others.
#[test]
fn several_prompts_are_continued_as_each_alone() {
    let home = Home::with("shakespeare");
    std::fs::write(home.path("prompts"), "ROMEO:\n\nTo be\nA\n").expect("it is written");
    for recipe in ["adaptive", "softmax"] {
        home.dijiang(&format!("convert model -o {recipe} --recipe {recipe} --no-verify")).fine();
        for runtime in ["ort", "tract"] {
            let call = format!("generate {recipe} -n 6 --runtime {runtime}");
            let run = |arguments: &[&str]| {
                let call: Vec<&str> = call.split(' ').chain(arguments.iter().copied()).collect();
                home.dijiang_with(&call)
            };
            let tokens =
                |one: &Value| (one["text"].clone(), one["tokens"].clone(), one["prompt_tokens"].clone());
            let alone = |stop: Option<&Value>| -> Vec<_> {
                let eos = stop.map_or(json!([]), |stop| json!([stop]));
                let mut model = home.json(&format!("{recipe}/dijiang.json"))["model"].clone();
                model["eos"] = eos;
                home.set(&format!("{recipe}/dijiang.json"), "model", model);
                ["ROMEO:", "To be", "A"]
                    .map(|prompt| tokens(&run(&["--prompt", prompt, "--json"]).fine().object()))
                    .to_vec()
            };
            let free = alone(None);
            let stopped = alone(Some(&free[1].1[2]));
            assert!(stopped[1].1.as_array().map(Vec::len) < Some(6), "{stopped:?}");
            let all =
                run(&["--prompt", "ROMEO:", "--prompt", "To be", "--prompt", "A", "--json"]).fine().object();
            let found: Vec<_> = all["results"].as_array().expect("a list").iter().map(tokens).collect();
            assert_eq!(found, stopped, "{recipe} in {runtime}");
            let told = run(&["--prompt-file", "prompts", "--lines"]);
            let text = |one: &(Value, Value, Value)| one.0.as_str().expect("a text").to_owned();
            let expected = format!(
                "[1]\nROMEO:{}\n[2]\nTo be{}\n[3]\nA{}\n",
                text(&stopped[0]),
                text(&stopped[1]),
                text(&stopped[2])
            );
            assert_eq!((told.code, told.stdout), (0, expected), "{}", told.stderr);
        }
    }
    std::fs::write(home.path("empty"), "\n\n").expect("it is written");
    let line = |arguments: &str| refused(&home, &format!("generate adaptive --runtime tract {arguments}"));
    assert_eq!(line("--prompt-file empty --lines"), "error: --lines: every line of the file is empty");
    assert_eq!(
        line("--prompt a --prompt b --save-state s"),
        "error: --save-state: a state is that of one text, and 2 were given"
    );
}

#[test]
fn a_saved_state_goes_on_with_the_text() {
    let home = Home::with("shakespeare");
    home.dijiang(CONVERT).fine();
    let tokens = |arguments: &str| {
        let found =
            home.dijiang(&format!("generate bundle --runtime tract --json {arguments}")).fine().object();
        found["tokens"].as_array().expect("tokens").clone()
    };
    let whole = tokens("--prompt ROMEO: -n 9");
    let mut parts = tokens("--prompt ROMEO: -n 4 --save-state s");
    parts.extend(tokens("--load-state s -n 5 --save-state s"));
    assert_eq!(parts, whole);
    assert_eq!(tokens("--load-state s --prompt x -n 2").len(), 2);
    // Of the same shape, and of other numbers.
    home.dijiang("convert model -o other --no-verify").fine();
    let mut weights = std::fs::read(home.path("other/model.safetensors")).expect("weights");
    let place = weights.len() - 4;
    weights[place] ^= 1;
    std::fs::write(home.path("w.safetensors"), weights).expect("it is written");
    assert_eq!(home.dijiang("import-weights other w.safetensors").code, 0);
    insta::assert_snapshot!(refused(&home, "generate other --load-state s --runtime tract"), @"error: state s: the model of bundle `bundle` wrote it, and `other` holds another (hint: `dijiang generate other --prompt TEXT --save-state s` writes one of this model)");
    insta::assert_snapshot!(refused(&home, "generate bundle --load-state none --runtime tract"), @"error: none: there is no such file or directory (hint: `dijiang generate --help` says what --load-state takes)");
    std::fs::write(home.0.path().join("text"), "This is no state.").expect("a file");
    insta::assert_snapshot!(refused(&home, "generate bundle --load-state text --runtime tract"), @"error: state text: this is no saved state, which `dijiang generate --save-state` writes: header too large (hint: a state fits the model that wrote it)");
}

/// As `dijiang inspect model --text | head -1` does it.
#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let home = Home::with("llama");
    for how in ["", "--text", "--json"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
        command.current_dir(home.0.path()).args(["inspect", "model"]).args(how.split_whitespace());
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command.stdout(writer).stdin(Stdio::null()).output().expect("it runs");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "inspect {how}");
    }
}

#[test]
fn a_manifest_with_another_vocabulary_is_refused() {
    let home = Home::with("llama");
    home.dijiang(&format!("{CONVERT} --dtype f32")).fine();
    let model = home.json("bundle/dijiang.json")["model"].clone();
    let with = |vocab: u64| {
        let mut model = model.clone();
        model["vocab"] = json!(vocab);
        home.set("bundle/dijiang.json", "model", model);
        refused(&home, "verify bundle --runtime tract")
    };
    insta::assert_snapshot!(with(0), @"error: bundle/parallel.onnx: its logits are 128 wide, but `vocab` in dijiang.json is 0 (hint: convert the model anew)");
    insta::assert_snapshot!(with(5), @"error: bundle/parallel.onnx: its logits are 128 wide, but `vocab` in dijiang.json is 5 (hint: convert the model anew)");
    insta::assert_snapshot!(with(1 << 40), @"error: bundle/parallel.onnx: its logits are 128 wide, but `vocab` in dijiang.json is 1099511627776 (hint: convert the model anew)");
}

#[test]
fn a_failed_conversion_leaves_no_parents() {
    let home = Home::with("llama");
    insta::assert_snapshot!(refused(&home, "convert model -o new/a/b --layers 7"), @"error: layer 7 does not exist: the model has layers 0 to 1");
}

#[test]
fn sizes_without_reason_are_refused() {
    let home = Home::with("llama");
    home.set("model/config.json", "head_dim", json!(1 << 30));
    insta::assert_snapshot!(refused(&home, CONVERT), @"error: model/config.json: key `head_dim` is such that a head has 1073741824 features; expected at most 65536 of them");

    let home = Home::with("neox");
    home.set("model/config.json", "hidden_size", json!(1 << 30));
    insta::assert_snapshot!(refused(&home, CONVERT), @"error: model/config.json: key `hidden_size` is such that a head has 268435456 features; expected at most 65536 of them");

    let home = Home::with("llama");
    std::fs::write(home.path("mine.yaml"), "name: mine\nmap: {features: 4611686018427387904}\n")
        .expect("it is written");
    insta::assert_snapshot!(refused(&home, &format!("{CONVERT} --recipe mine.yaml")), @"error: mine.yaml: recipe `mine`: `map.features` is 4611686018427387904, expected 1 to 64");
    std::fs::write(home.path("mine.yaml"), "name: mine\nmap: {kind: prf, signs: true, radial: chi}\n")
        .expect("it is written");
    insta::assert_snapshot!(refused(&home, &format!("{CONVERT} --recipe mine.yaml")), @"error: mine.yaml: recipe `mine`: `map.signs` means nothing to `prf` (it reads: features, rows)");
}

#[test]
fn a_wrong_call_is_exit_code_2() {
    let home = Home::new();
    for call in
        ["", "convert", "convret model", "convert model -o bundle --target cuda", "verify bundle --runtime x"]
    {
        let ran = home.dijiang(call);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{call}: {}", ran.stderr);
    }
    assert_eq!(home.dijiang("--version").code, 0);
    assert!(home.listing().is_empty());
}

#[test]
fn runs_are_drawn_in_one_picture() {
    let home = Home::new();
    let line = |step: u32, loss: f64, more: &str| {
        format!(
            "{{\"step\":{step},\"tokens\":{},\"loss\":{loss},\"grad_norm\":1.0,\"lr\":0.1,\"tokens_per_second\":9.0{more}}}\n",
            step * 100
        )
    };
    std::fs::create_dir_all(home.path("a/train")).expect("a directory");
    let first = line(1, 4.0, "") + &line(2, 3.0, ",\"kl\":0.5,\"valid_perplexity\":20.0");
    std::fs::write(home.path("a/train/metrics.jsonl"), first).expect("it is written");
    let second =
        line(1, 5.0, ",\"valid_perplexity\":200.0") + &line(3, 2.0, ",\"valid_perplexity\":10.0") + "{\"st";
    std::fs::write(home.path("b.jsonl"), second).expect("it is written");
    let ran = home.dijiang("plot a/train/metrics.jsonl b.jsonl -o both.svg --json");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let expected = json!([{"name": "a", "steps": 2}, {"name": "b.jsonl", "steps": 2}]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).expect("JSON")["runs"], expected);
    insta::assert_snapshot!(std::fs::read_to_string(home.path("both.svg")).expect("the picture"));
}

#[test]
fn what_is_no_run_is_not_drawn() {
    let home = Home::new();
    for (text, reason) in [("", "it holds no steps"), ("{}\n", "line 1: missing field `step`")] {
        std::fs::write(home.path("m.jsonl"), text).expect("it is written");
        let ran = home.dijiang("plot m.jsonl -o m.svg");
        assert_eq!(ran.code, 2);
        assert!(ran.stderr.contains(&format!("m.jsonl: {reason}")), "{}", ran.stderr);
        assert!(!home.path("m.svg").exists());
    }
}

/// The checkpoint of the authors' code in `model`, without a tensor of its last layer.
fn without(home: &Home, name: &str) {
    let path = home.path("model/model.safetensors");
    let bytes = std::fs::read(&path).expect("the weights");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let name = format!("gpt_neox.layers.1.attention.{name}");
    let left = file.tensors().into_iter().filter(|(other, _)| *other != name);
    let written = safetensors::serialize(left, None).expect("it is laid out");
    std::fs::write(path, written).expect("it is written");
}

#[test]
fn a_checkpoint_of_the_authors_code_is_converted_to_what_that_code_computes() {
    for fixture in ["authors", "authors-edited"] {
        let home = Home::with(fixture);
        let ran = home.dijiang("convert model -o bundle --json");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let told: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        assert_eq!((&told["recipe"], &told["written"]), (&json!("released"), &json!(true)));
        let notes = told["notes"].to_string();
        assert!(notes.contains("past its 20 positions the last weights and the decay hold"), "{notes}");
        let checks = told["checks"].as_array().expect("checks");
        let is_there = |name: &str| checks.iter().any(|check| check["name"] == name && check["ok"] == true);
        assert!(is_there("onnxruntime: parallel = reference"), "{checks:?}");
        assert!(!told["checks"].to_string().contains("softmax = reference"));
        let skipped = told["skipped"].to_string();
        assert!(skipped.contains("the attention is the source's own"), "{skipped}");
        // Buffers that the code makes anew change nothing, and are told all the same.
        let warned = told["warnings"].to_string();
        assert_eq!(warned.contains("attention.masked_bias`): not read"), fixture == "authors", "{warned}");
        let manifest = home.json("bundle/dijiang.json");
        schema::check_value("dijiang", &manifest);
        assert_eq!(
            (&manifest["source"]["own_attention"], &manifest["recipe"]["by_position"]),
            (&json!(true), &json!(20))
        );
        let taught = refused(&home, "calibrate bundle --data model/config.json");
        assert_eq!(
            taught,
            "error: bundle: its attention came with its checkpoint, and there is no softmax model that it could be calibrated to (hint: `dijiang finetune bundle` trains it)"
        );
    }
}

#[test]
fn another_attention_than_that_of_the_authors_checkpoint_is_refused() {
    let home = Home::with("authors");
    for asked in ["--recipe paper", "--recipe softmax", "--recipe adaptive", "--layers 0", "--keep 1"] {
        let told = refused(&home, &format!("{CONVERT} {asked}"));
        let what =
            if asked.starts_with("--recipe") { asked } else { asked.split(' ').next().expect("a word") };
        assert_eq!(
            told,
            format!(
                "error: model: its attention is linear already, in the authors' released form, and {what} would leave that out (hint: take {what} out; --recipe released is what it is)"
            )
        );
    }
    assert_eq!(home.dijiang(&format!("{CONVERT} --recipe released --stop-after 3")).code, 2);
    assert_eq!(home.dijiang(&format!("{CONVERT} --recipe released --estimate")).code, 0);
    let scanned = refused(&home, "scan model --data model/config.json");
    assert!(
        scanned.contains("there is no softmax whose reach could be scanned (hint: `dijiang convert model"),
        "{scanned}"
    );
    without(&home, "W_G");
    assert_eq!(
        refused(&home, CONVERT),
        "error: model: tensor `gpt_neox.layers.1.attention.W_G` is missing; gpt_neox needs it with shape [16, 16]"
    );
}

#[test]
fn a_text_longer_than_the_positions_that_a_recipe_tells_apart_is_refused() {
    let home = Home::with("shakespeare");
    std::fs::write(home.path("near.yaml"), "name: near\nmap: {kind: cosformer, positions: 16}")
        .expect("it is written");
    let ran = home.dijiang("convert model -o bundle --recipe near.yaml");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(home.json("bundle/dijiang.json")["model"]["positions"], 16);
    assert_eq!(home.dijiang("generate bundle --prompt ROMEO: -n 10").code, 0);
    insta::assert_snapshot!(refused(&home, "generate bundle --prompt ROMEO: -n 11"), @"error: prompt: 6 tokens and 11 new ones, but the model has 16 positions (hint: -n 10 at most)");
    insta::assert_snapshot!(refused(&home, "eval bundle --perplexity model/tokenizer.json --context 32"), @"error: the model has 16 positions, and --context asks for 32");
    // The model's own, where the recipe does not say.
    let ran = home.dijiang("convert model -o far --recipe cosformer --no-verify");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let positions = &home.json("model/config.json")["max_position_embeddings"];
    let manifest = home.json("far/dijiang.json");
    assert_eq!(
        (&manifest["model"]["positions"], &manifest["recipe"]["map"]["positions"]),
        (positions, positions)
    );
    let ran = home.dijiang("convert model -o slots --recipe linformer");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let manifest = home.json("slots/dijiang.json");
    assert_eq!(
        (&manifest["model"]["positions"], &manifest["recipe"]["slots"]["positions"]),
        (positions, positions)
    );
    let mut config = home.json("model/config.json");
    config.as_object_mut().expect("an object").remove("max_position_embeddings");
    std::fs::write(home.path("model/config.json"), config.to_string()).expect("it is written");
    insta::assert_snapshot!(refused(&home, "convert model -o none --recipe cosformer --no-verify"), @"error: recipe `cosformer`: how many positions `cosformer` tells apart is not known, as the model does not say how many it has (hint: write `positions: 2048` there)");
}
