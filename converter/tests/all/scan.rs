//! Which layers look far, as `dijiang scan` and `dijiang convert` find it.
#![expect(clippy::print_stderr, reason = "it says why a test is left out")]

use crate::support::home::Home;
use crate::support::ort::has_ort;
use crate::support::without_runtime::without_runtime;
use serde_json::{Value, json};
use std::process::{Command, Output};

/// Five layers.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/shakespeare");

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The object on stdout; none where there is no ONNX Runtime to scan with.
fn scanned(home: &Home, arguments: &str) -> Option<Value> {
    if !has_ort() {
        return None;
    }
    let output = home.run(&format!("scan {MODEL} --json {arguments}"));
    assert!(output.status.success(), "{arguments}: {}", said(&output));
    Some(serde_json::from_slice(&output.stdout).expect("one object"))
}

fn recipe_of(home: &Home, bundle: &str) -> Value {
    let text = std::fs::read_to_string(home.path(bundle).join("dijiang.json")).expect("the manifest");
    serde_json::from_str::<Value>(&text).expect("JSON")["recipe"].clone()
}

fn convert(home: &Home, rest: &str) -> String {
    let output = home.run(&format!("convert {MODEL} --no-verify {rest}"));
    assert!(output.status.success(), "{rest}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned() + &said(&output)
}

#[test]
fn the_layers_that_cost_most_are_wide_and_a_conversion_finds_the_same() {
    let home = Home::empty();
    let Some(found) = scanned(&home, "--one-in 2 -o far.yaml --threads 1") else { return };
    let layers = found["layers"].as_array().expect("layers");
    let mut costs: Vec<(f64, u64)> = layers
        .iter()
        .map(|layer| {
            (layer["copying"].as_f64().expect("a number"), layer["layer"].as_u64().expect("a layer"))
        })
        .collect();
    costs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut dearest: Vec<u64> = costs[..2].iter().map(|(_, layer)| *layer).collect();
    dearest.sort_unstable();
    assert_eq!((layers.len(), &found["wide"], &found["text"]), (5, &json!(dearest), &Value::Null));
    assert!(costs[0].0 > 0.0, "{found}");

    let told = convert(&home, "-o B --recipe far.yaml");
    assert!(!told.contains("tokens back"), "what a recipe names is not measured: {told}");
    let recipe = recipe_of(&home, "B");
    assert_eq!((&recipe["wide"]["layers"], &recipe["wide"]["one_in"]), (&json!(dearest), &json!(2)));

    // No CPU computes in bf16: it is scanned in f32.
    let told = convert(&home, "-o D --dtype bf16 --recipe adaptive");
    assert!(told.contains("tokens back"), "{told}");

    let told = convert(&home, "-o C");
    let first = costs[0].1;
    assert!(told.contains(&format!("layer {first} sees 256 tokens back, and the others 32")), "{told}");
    assert_eq!(recipe_of(&home, "C")["wide"]["layers"], json!([first]));
}

#[test]
fn layers_are_kept_by_what_they_cost_and_the_frontier_says_what_others_would() {
    let home = Home::empty();
    let Some(found) = scanned(&home, "--keep 2 -o hybrid.yaml --svg frontier.svg --threads 1") else {
        return;
    };
    let costs = |list: &str| -> Vec<f64> {
        let all = found[list].as_array().expect("a list").iter();
        all.map(|each| each["copying"].as_f64().expect("a number")).collect()
    };
    let kept: Vec<usize> = found["kept"].as_array().expect("layers").iter().filter_map(index).collect();
    let least = kept.iter().map(|layer| costs("layers")[*layer]).fold(f64::MAX, f64::min);
    let more = costs("layers").into_iter().filter(|cost| *cost > least).count();
    assert_eq!((kept.len(), more, &found["wide"]), (2, 1, &json!([])));
    // Five layers: 0 to 4 of them kept.
    let frontier = costs("frontier");
    assert_eq!(frontier.len(), 5);
    assert!(frontier[0] > frontier[2] && frontier[2] > frontier[4], "{frontier:?}");
    let drawn = std::fs::read_to_string(home.path("frontier.svg")).expect("a picture");
    assert!(drawn.contains("texts that come twice") && drawn.contains("<polyline"), "{drawn}");

    convert(&home, "-o A --recipe hybrid.yaml");
    let told = convert(&home, "-o B --keep 2");
    let listed = kept.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    assert!(told.contains(&format!("layers {listed} stay softmax: a scan found")), "{told}");
    let [a, b] = ["A", "B"].map(|bundle| recipe_of(&home, bundle));
    assert_eq!((&a["softmax_layers"], &a), (&json!(kept), &b));
    assert!(a["wide"].is_null(), "{a}");

    convert(&home, "-o C --keep auto --recipe gated");
    let layers = recipe_of(&home, "C")["softmax_layers"].as_array().map(Vec::len);
    let left = |layers: usize| frontier[layers] / frontier[0];
    assert!(
        layers.is_some_and(|layers| left(layers) <= 0.1 && left(layers - 1) > 0.1),
        "{layers:?} {frontier:?}"
    );
}

fn index(value: &Value) -> Option<usize> {
    value.as_u64().map(|n| n as usize)
}

#[test]
fn given_texts_count_too() {
    let home = Home::empty();
    let text = format!("{MODEL}/valid.txt");
    let Some(found) = scanned(&home, &format!("--data {text} --rows 2")) else { return };
    let losses: Vec<f64> =
        [&found["copying"], &found["text"]].iter().filter_map(|loss| loss.as_f64()).collect();
    // The model was trained on such texts, and not on random tokens.
    assert!(losses.len() == 2 && losses[1] < losses[0], "{found}");
    assert!(found["layers"][0]["text"].is_number() && found["output"].is_null(), "{found}");
    let odd = scanned(&home, "--context 201").expect("it ran before");
    assert_eq!(odd["context"], json!(200), "the halves of a row are alike");
}

#[test]
fn recipes_without_wide_layers_have_none_to_find() {
    let home = Home::empty();
    let refused = |arguments: &str| {
        let output = home.run(&format!("scan {MODEL} {arguments}"));
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        said(&output)
    };
    assert_eq!(
        refused("--recipe paper"),
        "error: recipe `paper`: it has no `wide` layers to find (hint: write `wide: {window: 256, one_in: 5}` beside its `local`, or take --recipe adaptive)\n"
    );
    assert_eq!(
        refused("--window 16"),
        "error: adaptive: recipe `adaptive`: `wide.window` is 16, expected 33 to 16384\n"
    );
}

/// The conversion goes on, and says what it did without.
#[test]
fn without_a_runtime_no_layer_is_wide() {
    let home = Home::empty();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
    command.current_dir(home.0.path()).args(["convert", MODEL, "-o", "B", "--no-verify"]);
    let output = without_runtime(&mut command).output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    if dijiang_runtime::OrtRuntime::new().is_ok() && !said(&output).contains("was not found") {
        eprintln!("skipped: a library directory of the system has an ONNX Runtime");
        return;
    }
    assert!(said(&output).contains("no layer has a longer window"), "{}", said(&output));
    assert_eq!(recipe_of(&home, "B")["wide"]["layers"], json!([]));
}

/// Bytes of one sequence's states after so many tokens, by the manifest.
fn state_bytes(home: &Home, bundle: &str, tokens: u64) -> u64 {
    let text = std::fs::read_to_string(home.path(bundle).join("dijiang.json")).expect("the manifest");
    let manifest: Value = serde_json::from_str(&text).expect("JSON");
    let bytes = |state: &Value| {
        let extents = state["shape"].as_array().expect("a shape").iter().skip(1);
        let numbers: u64 = extents.map(|extent| extent.as_u64().unwrap_or(tokens)).product();
        numbers * if state["dtype"] == "f16" { 2 } else { 4 }
    };
    manifest["state"].as_array().expect("states").iter().map(bytes).sum()
}

#[test]
fn as_many_layers_are_kept_as_the_state_may_have_bytes() {
    let home = Home::empty();
    if scanned(&home, "--keep 1 -o one.yaml --threads 1").is_none() {
        return;
    }
    convert(&home, "-o one --recipe one.yaml");
    let budget = state_bytes(&home, "one", 300);
    let found =
        scanned(&home, &format!("--max-state {budget}@300 -o found.yaml --threads 1")).expect("ONNX Runtime");
    assert_eq!(found["kept"].as_array().map(Vec::len), Some(1), "{found}");
    convert(&home, "-o found --recipe found.yaml");
    assert_eq!(state_bytes(&home, "found", 300), budget);
    let less = scanned(&home, &format!("--max-state {}@300 --threads 1", budget - 1)).expect("ONNX Runtime");
    assert_eq!(less["kept"], json!([]));
    let all = scanned(&home, "--max-state 1GB@300 --threads 1").expect("ONNX Runtime");
    assert_eq!(all["kept"].as_array().map(Vec::len), Some(4), "a model without a linear layer is none");

    let output = home.run(&format!("scan {MODEL} --max-state 1KB@300 --threads 1"));
    let told = said(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("--max-state 1000 B after 300 tokens: the state of one sequence is"), "{told}");
}

/// Of a bundle is told what each layer would win as softmax, as the bundle is.
#[test]
fn a_bundle_is_scanned_for_the_layers_that_should_have_stayed_softmax() {
    let home = Home::empty();
    convert(&home, "-o B --recipe gated");
    let output = home.run("scan B");
    let told = said(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("--keep auto"), "{told}");
    if !has_ort() {
        return;
    }
    for option in ["--recipe windows", "--dtype f32"] {
        let output = home.run(&format!("scan B --keep 1 {option}"));
        assert_eq!(
            (output.status.code(), said(&output).contains("leave")),
            (Some(2), true),
            "{}",
            said(&output)
        );
    }
    let output = home.run("scan B --keep 1 --json --threads 1 -o hybrid.txt");
    assert!(output.status.success(), "{}", said(&output));
    let found: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!((&found["reverse"], found["layers"].as_array().map(Vec::len)), (&json!(true), Some(5)));
    let cost = |layers: usize| found["frontier"][layers]["copying"].as_f64().expect("a number");
    let best = found["layers"].as_array().expect("layers").iter().map(|layer| layer["copying"].as_f64());
    let best = best.flatten().fold(f64::NEG_INFINITY, f64::max);
    // What is left with the best layer softmax is what none leaves but its share.
    assert!((cost(0) - cost(1) - best).abs() < 1e-4, "{found}");
    convert(&home, "-o H --recipe hybrid.txt");
    assert_eq!(recipe_of(&home, "H")["softmax_layers"], found["kept"]);
}

/// Layers of a bundle that were left out, and wide ones, stay what they are, and states count as the bundle has them.
#[test]
fn a_recipe_of_a_bundle_is_what_was_measured() {
    let home = Home::empty();
    convert(&home, "-o B --dtype f16 --layers 0-3 --recipe adaptive");
    if !has_ort() {
        return;
    }
    let scan = |arguments: &str| -> Value {
        let output = home.run(&format!("scan B --json --threads 1 {arguments}"));
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).expect("one object")
    };
    let found = scan("--keep 1 -o hybrid.yaml");
    assert_eq!(found["layers"].as_array().map(Vec::len), Some(4), "{found}");
    convert(&home, "-o H --dtype f16 --recipe hybrid.yaml");
    let (before, after) = (recipe_of(&home, "B"), recipe_of(&home, "H"));
    let kept = found["kept"][0].as_u64().expect("a layer");
    assert_eq!(after["softmax_layers"], json!([kept, 4]));
    let wide = |recipe: &Value| -> Vec<u64> {
        let layers = recipe["wide"]["layers"].as_array().expect("layers").iter();
        layers.map(|layer| layer.as_u64().expect("a layer")).filter(|layer| *layer != kept).collect()
    };
    assert_eq!(wide(&before), wide(&after));
    let budget = state_bytes(&home, "H", 600);
    assert_eq!(scan(&format!("--max-state {budget}@600"))["kept"], json!([kept]));
}
