//! The page of `dijiang report`: what it says of attention is what the bundle computes, and none of its pictures is empty.

use crate::support::home::Home;
use base64::Engine as _;
use dijiang::onnx::import::import;
use dijiang::page::maps::{LayerMap, Which, maps};
use dijiang_format::names::{IDS, MASK, POSITIONS};
use dijiang_passes::canon::canonicalize;
use dijiang_passes::ir::eval::{Array, eval};
use dijiang_passes::ir::graph::{Graph, ValueId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const SHAKESPEARE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/shakespeare");
const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/llama");

/// More tokens than a value has numbers, so that a map is of several parts.
const IDS_OF_TEXT: [i64; 20] = [5, 9, 2, 7, 7, 3, 11, 4, 8, 1, 6, 5, 9, 2, 12, 13, 3, 3, 10, 5];

fn fine(home: &Home, call: &str) -> String {
    let ran = home.run(call);
    assert_eq!(ran.status.code(), Some(0), "{call}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("UTF-8")
}

fn fill(graph: &Graph, input: ValueId) -> Array {
    let (value, tokens) = (graph.value(input), IDS_OF_TEXT.len());
    let row = |numbers: Vec<i64>| Array::from_i64(&[1, tokens], numbers).expect("a row");
    match value.name.as_str() {
        IDS => row(IDS_OF_TEXT.to_vec()),
        POSITIONS => row((0..tokens as i64).collect()),
        MASK => row(vec![1; tokens]),
        _ => {
            let dims = value.ty.shape.iter().flatten().enumerate();
            let dims: Vec<usize> =
                dims.map(|(axis, dim)| dim.known().unwrap_or(u64::from(axis == 0)) as usize).collect();
            Array::from_f64(&dims, vec![0.0; dims.iter().product()]).expect("zeros")
        }
    }
}

/// What a bundle's own graph gives of each layer after the output projection, and the projection, `[out, in]`.
fn projected(path: &Path, layers: usize) -> Vec<(Vec<f64>, Vec<f64>)> {
    let mut graph = import(path).expect("a graph");
    canonicalize(&mut graph).expect("it is put in order");
    let given: BTreeMap<ValueId, Array> =
        graph.inputs().iter().map(|input| (*input, fill(&graph, *input))).collect();
    let of_layer = |layer: usize| {
        let module = format!("model.layers.{layer}.self_attn.o_proj");
        let product = graph.find_value(&format!("{module}/MatMul:0")).expect("the projection");
        let (_, _, weight) =
            graph.consts().find(|(_, name, _)| *name == format!("{module}.weight")).expect("its weight");
        let found = eval(&graph, &given, &[product]).expect("it is computed");
        (found[0].to_f64(), weight.to_f64())
    };
    (0..layers).map(of_layer).collect()
}

/// The weights times the values of all heads, `[tokens, heads · width]`.
fn merged(map: &LayerMap) -> Vec<Vec<f64>> {
    let weighed = map.weighed();
    let width = weighed.len() / (map.heads * map.tokens);
    let head = |token: usize, head: usize| weighed[(head * map.tokens + token) * width..][..width].to_vec();
    (0..map.tokens).map(|token| (0..map.heads).flat_map(|h| head(token, h)).collect()).collect()
}

fn assert_is_what_the_layer_gives(map: &LayerMap, (given, weight): &(Vec<f64>, Vec<f64>)) {
    let width = given.len() / map.tokens;
    let largest = given.iter().fold(0.0, |most: f64, number| most.max(number.abs()));
    for (row, given) in merged(map).iter().zip(given.chunks(width)) {
        for (weights, given) in weight.chunks(row.len()).zip(given) {
            let ours: f64 = weights.iter().zip(row).map(|(a, b)| a * b).sum();
            assert!((ours - given).abs() < 1e-4 * largest, "layer {}: {ours} {given}", map.layer);
        }
    }
}

/// Changes every parameter that the conversion added, so that those that it begins with do not pass for them.
fn shake(bundle: &Path) {
    let path = bundle.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("the weights");
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("a length")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..data]).expect("JSON");
    let added = header.as_object().expect("tensors").iter().filter(|(name, _)| name.contains(".dijiang."));
    for (name, tensor) in added {
        assert_eq!(tensor["dtype"], "F32", "{name}");
        let offset = |end: usize| data + tensor["data_offsets"][end].as_u64().expect("an offset") as usize;
        for (i, number) in bytes[offset(0)..offset(1)].chunks_exact_mut(4).enumerate() {
            let old = f32::from_le_bytes(number.try_into().expect("four bytes"));
            number.copy_from_slice(&(old * 0.9 + 0.05 * (i % 7) as f32).to_le_bytes());
        }
    }
    std::fs::write(&path, bytes).expect("they are written");
}

#[test]
fn a_map_times_the_values_is_what_the_layer_gives() {
    let home = Home::empty();
    for recipe in ["adaptive", "gated", "paper", "windows", "linformer", "performer", "cosformer"] {
        fine(&home, &format!("convert {LLAMA} -o {recipe} --recipe {recipe} --dtype f32 --no-verify -q"));
        let bundle = home.path(recipe);
        shake(&bundle);
        let served = maps(&bundle, Which::Served, &IDS_OF_TEXT).unwrap_or_else(|e| panic!("{recipe}: {e}"));
        let own = projected(&bundle.join("parallel.onnx"), served.len());
        served.iter().zip(&own).for_each(|(map, own)| assert_is_what_the_layer_gives(map, own));
        let softmax = maps(&bundle, Which::Softmax, &IDS_OF_TEXT).unwrap_or_else(|e| panic!("{recipe}: {e}"));
        let own = projected(&bundle.join("softmax.onnx"), softmax.len());
        softmax.iter().zip(&own).for_each(|(map, own)| assert_is_what_the_layer_gives(map, own));
        assert_ne!(served, softmax, "{recipe}");
        for (row, weights) in softmax[0].weights.chunks(IDS_OF_TEXT.len()).enumerate() {
            let later = &weights[row % IDS_OF_TEXT.len() + 1..];
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12 && later.iter().all(|w| *w == 0.0));
        }
    }
}

/// Where a norm follows, the map is of the sums that it reads.
#[test]
fn what_a_norm_reads_is_mapped() {
    let home = Home::empty();
    for recipe in ["released", "retnet"] {
        fine(&home, &format!("convert {LLAMA} -o {recipe} --recipe {recipe} --dtype f32 --no-verify -q"));
        let served = maps(&home.path(recipe), Which::Served, &IDS_OF_TEXT);
        let served = served.unwrap_or_else(|e| panic!("{recipe}: {e}"));
        assert!(served.iter().all(|map| map.missed() < 1e-9 && map.mean().iter().any(|w| *w > 0.0)));
    }
}

/// Lines of a training run.
fn metrics() -> String {
    let line = |step: usize| {
        let perplexity = if step.is_multiple_of(2) { json!(20.0 / step as f64) } else { Value::Null };
        let line = json!({
            "step": step, "tokens": step * 512, "loss": 4.0 - 0.2 * step as f64, "grad_norm": 1.0, "lr": 0.1,
            "tokens_per_second": 9.0, "valid_perplexity": perplexity,
        });
        format!("{line}\n")
    };
    (1..=6).map(line).collect()
}

fn bench() -> Value {
    let row = |bundle: &str, context: usize, ms: f64| {
        json!({
            "bundle": bundle, "phase": "decode", "batch": 1, "context": context, "tokens_per_second": 1e3 / ms,
            "ms_per_token": ms, "first_token_ms": null, "memory_bytes": context * 100_000, "state_bytes": 4096,
            "bandwidth": 0.5, "failed": null, "ratio": null,
        })
    };
    let rows = [
        row("softmax", 512, 2.0),
        row("softmax", 2048, 5.0),
        row("adaptive", 512, 2.0),
        row("adaptive", 2048, 2.0),
    ];
    json!({"copy_bandwidth": 1e9, "rows": rows})
}

fn figures() -> Value {
    let result = |bundle: &str, metric: &str, value: f64| {
        json!({
            "bundle": bundle, "task": "piqa", "version": 1, "metric": metric, "context": null, "value": value, "n": 100,
            "standard_error": 0.01, "each": [],
        })
    };
    json!({"results": [result("softmax", "acc", 0.75), result("adaptive", "acc", 0.5)]})
}

/// Everything between `open` and `close`, one after the other.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    text.split(open).skip(1).map(|rest| rest.split(close).next().unwrap_or_default()).collect()
}

/// The pixels of a picture in the page.
fn pixels(address: &str) -> Vec<u8> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(address).expect("base64");
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("a picture");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    reader.next_frame(&mut pixels).expect("pixels");
    pixels
}

#[test]
fn no_picture_of_a_page_is_empty() {
    let home = Home::empty();
    for recipe in ["softmax", "adaptive", "paper"] {
        fine(&home, &format!("convert {SHAKESPEARE} -o {recipe} --recipe {recipe} --no-verify -q"));
    }
    std::fs::create_dir_all(home.path("paper/train")).expect("a directory");
    std::fs::write(home.path("paper/train/metrics.jsonl"), metrics()).expect("it is written");
    std::fs::write(home.path("bench.json"), bench().to_string()).expect("it is written");
    std::fs::write(home.path("eval.json"), figures().to_string()).expect("it is written");
    let call =
        "report softmax adaptive paper -o page.html --tokens 40 --bench bench.json --eval eval.json --json";
    let told: Value = serde_json::from_str(&fine(&home, call)).expect("JSON");
    let shown = told["sections"].as_array().expect("sections").iter().all(|section| section["shown"] == true);
    assert!(shown, "{told}");

    let page = std::fs::read_to_string(home.path("page.html")).expect("the page");
    let pictures = between(&page, "src=\"data:image/png;base64,", "\"");
    // Five layers of softmax and of two others, and the scale.
    assert_eq!(pictures.len(), 5 * 3 + 1);
    for picture in pictures {
        let pixels = pixels(picture);
        assert!(pixels.iter().any(|pixel| *pixel != pixels[0]), "one colour");
    }
    assert_eq!(page.matches("<img").count(), page.matches("alt=\"").count());
    let charts = between(&page, "<svg", "</svg>");
    // Loss, perplexity, latency, memory and kernel.
    assert_eq!(charts.len(), 5);
    for chart in charts {
        // Each line is drawn in its colour once in the legend, and once as what it is.
        let lines = between(chart, "<polyline", "/>");
        let coloured = lines.iter().filter(|line| line.contains("stroke=\"#")).count();
        assert!(coloured >= 2 && chart.contains("aria-label=\""), "{chart}");
    }
    assert!(page.contains("<strong>0.7500 ± 0.0100"));
    // Nothing is fetched and nothing runs.
    let without = page.replace("http://www.w3.org/2000/svg", "");
    for word in ["http://", "https://", "<script", "@import", "url("] {
        assert!(!without.contains(word), "{word}");
    }
}

#[test]
fn what_is_not_there_is_said_in_its_place() {
    let home = Home::empty();
    fine(&home, &format!("convert {LLAMA} -o X --no-verify -q"));
    let told = fine(&home, "report X -o page.html");
    for command in ["dijiang finetune", "dijiang bench", "dijiang eval"] {
        assert!(told.contains(command), "{told}");
    }
    let page = std::fs::read_to_string(home.path("page.html")).expect("the page");
    assert!(page.contains("it has no tokenizer.json"), "a text has no tokens");
    std::fs::write(home.path("bench.json"), "{}").expect("it is written");
    for (call, reason) in [
        ("--bench bench.json", "bench.json: missing field `rows`"),
        ("--eval bench.json", "expected what `dijiang eval --json` prints"),
        ("--eval nowhere.json", "nowhere.json: "),
        ("--tokens 1", "expected a whole number from 2 to 256"),
    ] {
        let ran = home.run(&format!("report X -o other.html {call}"));
        let told = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.code() == Some(2) && told.contains(reason), "{call}: {told}");
        assert!(!home.path("other.html").exists());
    }
}
