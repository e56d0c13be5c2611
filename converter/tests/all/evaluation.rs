//! `dijiang eval` over tasks, by the command line, on a small model of Shakespeare.
#![allow(clippy::print_stderr)]

use crate::support::home::Home;
use crate::support::ort::has_ort;
use insta::assert_snapshot;
use serde_json::Value;
use std::fs;
use std::process::Output;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/shakespeare");

/// With bundles of constant state, of a cache in an operator, and of a cache in plain ones.
fn home() -> Option<Home> {
    if !has_ort() {
        return None;
    }
    let home = Home::empty();
    for (name, options) in [
        ("linear", "--recipe adaptive"),
        ("soft", "--recipe softmax"),
        ("plain", "--recipe softmax --target portable"),
    ] {
        let output = home.run(&format!("convert {MODEL} -o {name} {options} --dtype f32 --no-verify"));
        assert!(output.status.success(), "{}", said(&output));
    }
    let piqa = [
        r#"{"goal": "What is thy name?", "sol1": "My name is Gremio.", "sol2": "xqzv&&", "label": 0}"#,
        r#"{"goal": "Who comes?", "sol1": "A messenger", "sol2": "A messenger, my lord, from the king", "label": 1}"#,
        r#"{"goal": "Speak", "sol1": "I pray you, hear me", "sol2": "%%", "label": 1}"#,
    ];
    fs::write(home.path("piqa.jsonl"), piqa.join("\n")).expect("it is written");
    let winogrande = [
        r#"{"sentence": "The king banished the duke since _ was wroth.", "option1": "the king", "option2": "the duke", "answer": "1"}"#,
        r#"{"sentence": "_ is my lord.", "option1": "York", "option2": "The noble Duke of York", "answer": "2"}"#,
    ];
    fs::write(home.path("winogrande.jsonl"), winogrande.join("\n")).expect("it is written");
    let words = "My gracious lord\nWhat say you to my lord\nGood morrow, my xyzzy\n";
    fs::write(home.path("words.txt"), words).expect("it is written");
    Some(home)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn results(home: &Home, arguments: &str) -> Vec<Value> {
    let output = home.run(&format!("eval {arguments} --threads 1 --json"));
    assert!(output.status.success(), "{}", said(&output));
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    object["results"].as_array().expect("a list").clone()
}

const TASKS: &str = "--task piqa=piqa.jsonl --task winogrande=winogrande.jsonl --task lambada=words.txt";

#[test]
fn branching_gives_what_whole_texts_give() {
    let Some(home) = home() else { return };
    let likelihoods = |bundle: &str, more: &str| {
        let found = results(&home, &format!("{bundle} {TASKS} --samples samples.jsonl {more}"));
        let text = fs::read_to_string(home.path("samples.jsonl")).expect("samples");
        let samples = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let likelihoods: Vec<f64> = samples
            .flat_map(|sample| sample["log_likelihoods"].as_array().expect("a list").clone())
            .map(|number| number.as_f64().expect("a number"))
            .collect();
        (found, likelihoods)
    };
    for bundle in ["linear", "soft", "plain"] {
        // The second context cuts the questions, so that choices have nothing alike.
        for context in ["", "--context 24"] {
            let (found, branched) = likelihoods(bundle, context);
            let (expected, whole) = likelihoods(bundle, &format!("{context} --no-branching"));
            assert_eq!((branched.len(), whole.len()), (13, 13));
            for (a, b) in branched.iter().zip(&whole) {
                assert!(*a < 0.0 && (a - b).abs() < 1e-4 * b.abs(), "{bundle} {context}: {a} and {b}");
            }
            for (a, b) in found.iter().zip(&expected).filter(|(a, _)| a["metric"] != "perplexity") {
                assert_eq!(a, b);
            }
        }
    }
}

#[test]
fn every_figure_says_what_it_is_of() {
    let Some(home) = home() else { return };
    let text = format!("{MODEL}/valid.txt");
    let found = results(
        &home,
        &format!(
            "soft {TASKS} --task copy --task recall --perplexity {text} --max-tokens 512 --context 32,64 --limit 2"
        ),
    );
    let row = |row: &Value| {
        let each = row["each"].as_array().expect("a list").len();
        let task = row["task"].as_str().expect("a name").trim_start_matches(MODEL);
        format!("{task} {} {} {} n {} each {each}\n", row["version"], row["metric"], row["context"], row["n"])
    };
    assert_snapshot!(found.iter().map(row).collect::<String>(), @r#"
    /valid.txt null "perplexity" 32 n 496 each 16
    /valid.txt null "perplexity" 64 n 504 each 8
    piqa 1 "acc" null n 2 each 2
    piqa 1 "acc_norm" null n 2 each 2
    winogrande 1 "acc" null n 2 each 2
    lambada 1 "acc" null n 2 each 2
    lambada 1 "perplexity" null n 2 each 2
    copy null "acc" 32 n 30 each 2
    copy null "negative_log_likelihood" 32 n 30 each 2
    copy null "acc" 64 n 62 each 2
    copy null "negative_log_likelihood" 64 n 62 each 2
    recall null "acc" 32 n 8 each 8
    recall null "negative_log_likelihood" 32 n 8 each 8
    recall null "acc" 64 n 8 each 8
    recall null "negative_log_likelihood" 64 n 8 each 8
    "#);
    // The model is one of Shakespeare: it prefers what he may have written.
    let piqa = found.iter().find(|row| row["task"] == "piqa").expect("its row");
    assert_eq!(piqa["each"][0], 1.0, "{piqa}");
}

/// The parts of attentions that a recipe has, each left out once. What carries most of what a model reads costs most.
#[test]
fn a_text_is_measured_without_each_branch() {
    let Some(home) = home() else { return };
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/shakespeare/valid.txt");
    let found =
        results(&home, &format!("linear soft --perplexity {text} --context 64 --max-tokens 256 --branches"));
    let of = |bundle: &str| -> Vec<(String, f64)> {
        let own = found.iter().filter(|result| result["bundle"] == bundle);
        let figure = |result: &Value| {
            let metric = result["metric"].as_str().expect("a text").to_owned();
            (metric, result["value"].as_f64().expect("a number"))
        };
        own.map(figure).collect()
    };
    let names = |figures: &[(String, f64)]| figures.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let (linear, soft) = (of("linear"), of("soft"));
    let without = |branch: &str| format!("perplexity without {branch}");
    assert_eq!(names(&linear), ["perplexity".to_owned(), without("linear"), without("window")]);
    assert_eq!(names(&soft), ["perplexity".to_owned(), without("softmax")]);
    assert!(linear[2].1 > 1.5 * linear[0].1, "{linear:?}");
    assert!((linear[1].1 - linear[0].1).abs() > 1e-3, "{linear:?}");
    assert!(soft[1].1 > 1.5 * soft[0].1, "{soft:?}");
}

#[test]
fn bundles_stand_side_by_side_and_samples_tell_what_was_asked() {
    let Some(home) = home() else { return };
    let output =
        home.run("eval linear soft --task piqa=piqa.jsonl --task copy --context 32 --samples s --threads 1");
    assert!(output.status.success(), "{}", said(&output));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let shape: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(shape[0], ["task", "metric", "context"]);
    assert_eq!((shape[1][..2].to_vec(), shape[3].clone()), (vec!["piqa", "acc"], vec!["copy", "acc", "32"]));
    assert!(table.lines().skip(1).all(|line| line.matches(" ± ").count() == 2), "{table}");
    let samples = fs::read_to_string(home.path("s")).expect("samples");
    assert_eq!(samples.lines().count(), 6);
    let first: Value = serde_json::from_str(samples.lines().next().expect("a line")).expect("JSON");
    assert_eq!(
        (&first["bundle"], &first["task"], &first["question"]),
        (&"linear".into(), &"piqa".into(), &0.into())
    );
    assert_eq!(
        first["asked"][0],
        serde_json::json!(["Question: What is thy name?\nAnswer:", " My name is Gremio."])
    );
}

/// Before a bundle is looked for: the one that is named holds nothing.
#[test]
fn a_wrong_file_or_call_ends_with_a_line_and_exit_2() {
    let home = Home::empty();
    fs::create_dir(home.path("bundle")).expect("a directory");
    fs::write(home.path("a.jsonl"), "{\"goal\": \"a\", \"sol1\": \"b\"}\n").expect("it is written");
    fs::write(home.path("bad.jsonl"), b"{\"goal\": \"\xff\"}\n").expect("it is written");
    let refused = |arguments: &str| {
        let output = home.run(&format!("eval bundle {arguments}"));
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
        let told = said(&output);
        assert_eq!(told.lines().count(), 1, "{told}");
        told
    };
    let told = [
        "--task piqa=a.jsonl",
        "--task piqa=bad.jsonl",
        "--task mine=a.jsonl",
        "--task piqa=nowhere.jsonl",
        "--task race=bundle",
        "--task piqa",
        "--task =a.jsonl",
    ];
    assert_snapshot!(told.map(refused).concat(), @r#"
    error: a.jsonl: line 1: `label` is missing, expected 0 or 1 (hint: --task piqa takes lines of {"goal": …, "sol1": …, "sol2": …}, and the labels 0 or 1 beside it in NAME-labels.lst or as "label")
    error: bad.jsonl: line 1: it is not UTF-8 text (hint: --task piqa takes lines of {"goal": …, "sol1": …, "sol2": …}, and the labels 0 or 1 beside it in NAME-labels.lst or as "label")
    error: a.jsonl: line 1: `context` is missing, expected text (hint: --task mine takes lines of {"context": …, "choices": […], "answer": 0})
    error: nowhere.jsonl: No such file or directory (os error 2) (hint: --task piqa takes lines of {"goal": …, "sol1": …, "sol2": …}, and the labels 0 or 1 beside it in NAME-labels.lst or as "label")
    error: bundle: the directory holds none of *.txt (hint: --task race takes a file or a directory of files *.txt, each {"article": …, "questions": […], "options": [[four texts], …], "answers": ["A", …]})
    error: invalid value 'piqa' for '--task <TASK>': expected NAME=PATH, copy or recall
    error: invalid value '=a.jsonl' for '--task <TASK>': expected NAME=PATH, copy or recall
    "#);
}
