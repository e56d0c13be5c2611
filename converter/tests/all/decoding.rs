//! What `generate`, `verify`, `eval` and `bench` decode by, against the bundle's own graph driven by host tensors.
#![allow(clippy::print_stderr)]

use crate::support::served::{SAME, assert_within, convert_to, logits, or_skip};
use dijiang::serving::open;
use dijiang_runtime::{Branches, Branching, Engine, Scored, Serving, ServingOptions};
use std::path::{Path, PathBuf};

const KINDS: [(&str, &str); 5] =
    [("llama", "softmax"), ("neox", "softmax"), ("opt", "softmax"), ("llama", "adaptive"), ("neox", "paper")];

fn convert(fixture: &str, recipe: &str, into: &Path, more: &[&str]) -> PathBuf {
    let bundle = into.join(format!("{fixture}-{recipe}{}", more.concat()));
    convert_to(&bundle, fixture, recipe, more);
    bundle
}

fn options(segment: usize) -> ServingOptions {
    ServingOptions { segment: Some(segment), threads: Some(1), ..ServingOptions::default() }
}

/// By the graph that is made for decoding.
fn made(bundle: &Path, segment: usize) -> Option<Serving> {
    or_skip(open(bundle, &options(segment)))
}

/// By the bundle's own graph.
fn own(bundle: &Path) -> Serving {
    Serving::open(bundle, &options(512)).expect("it opens")
}

#[track_caller]
fn assert_same(found: &Serving, expected: &Serving) {
    assert_within(SAME, &logits(found), &logits(expected));
}

fn prompt(length: i64) -> Vec<i64> {
    (0..length).map(|i| (i * 7 + length) % 31).collect()
}

#[test]
fn rows_of_all_lengths_come_to_the_numbers_of_each_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let lengths = [9, 1, 4];
    for (fixture, recipe) in KINDS {
        let bundle = convert(fixture, recipe, dir.path(), &[]);
        for segment in [16, 4, 1] {
            let Some(mut together) = made(&bundle, segment) else { return };
            let mut alone: Vec<Serving> = lengths.iter().map(|_| own(&bundle)).collect();
            together.start(3).expect("it starts");
            // The second prompts go on after the first, which a grouped operator takes one column at a time.
            for _ in 0..2 {
                let mut next = together.prefill(&lengths.map(prompt)).expect("it runs");
                let each = alone.iter_mut().zip(lengths);
                let expected = each.map(|(serving, n)| serving.prefill(&[prompt(n)]).expect("it runs"));
                assert_eq!(next, expected.collect::<Vec<_>>().concat(), "{fixture}, {recipe}, {segment}");
                for _ in 0..3 {
                    let expected: Vec<f32> = alone.iter().flat_map(logits).collect();
                    assert_within(SAME, &logits(&together), &expected);
                    let each = alone.iter_mut().zip(&next);
                    let expected = each.map(|(serving, token)| serving.decode(&[*token]).expect("it runs"));
                    let expected = expected.collect::<Vec<_>>().concat();
                    next = together.decode(&next).expect("it runs");
                    assert_eq!(next, expected, "{fixture}, {recipe}, {segment}");
                }
            }
        }
    }
}

/// A cache that is full moves to a larger buffer, whatever was said before, and tells its bytes as far as it is filled.
#[test]
fn a_cache_grows_past_the_room_it_was_made_with() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = convert("llama", "softmax", dir.path(), &[]);
    let Some(mut serving) = made(&bundle, 128) else { return };
    let mut expected = own(&bundle);
    for both in [&mut serving, &mut expected] {
        both.start(1).expect("it starts");
    }
    serving.reserve(7).expect("room");
    for length in [5, 700, 3, 600] {
        let (found, other) = (serving.prefill(&[prompt(length)]), expected.prefill(&[prompt(length)]));
        assert_eq!(found.expect("it runs"), other.expect("it runs"));
        assert_same(&serving, &expected);
        assert_eq!(serving.state_bytes(), expected.state_bytes());
    }
    assert_eq!(serving.seen(), 1308);
    serving.reserve(100).expect("less than is there changes nothing");
    serving.decode(&[1]).expect("it runs");
}

#[test]
fn saved_states_go_from_one_decoder_to_the_other() {
    let dir = tempfile::tempdir().expect("a directory");
    for (fixture, recipe) in KINDS {
        let bundle = convert(fixture, recipe, dir.path(), &[]);
        let Some(mut made) = made(&bundle, 4) else { return };
        let mut own = own(&bundle);
        for serving in [&mut made, &mut own] {
            serving.start(2).expect("it starts");
            serving.prefill(&[prompt(6), prompt(2)]).expect("it runs");
        }
        let files = [dir.path().join("made"), dir.path().join("own")];
        made.save_state(&files[0]).expect("it saves");
        own.save_state(&files[1]).expect("it saves");
        let mut again = [self::made(&bundle, 4).expect("it opens"), self::own(&bundle)];
        for (serving, file) in again.iter_mut().zip([&files[1], &files[0]]) {
            serving.load_state(file).expect("it loads");
            assert_same(serving, &made);
            serving.decode(&[3, 4]).expect("it runs");
        }
        made.decode(&[3, 4]).expect("it runs");
        for serving in &again {
            assert_same(serving, &made);
            assert_eq!((serving.seen(), serving.batch()), (7, 2));
        }
    }
}

/// All logits at once, segment by segment, and one token after the other.
#[test]
fn scores_are_the_same_by_every_decoder() {
    let dir = tempfile::tempdir().expect("a directory");
    for (fixture, recipe) in [("llama", "softmax"), ("llama", "adaptive")] {
        let bundle = convert(fixture, recipe, dir.path(), &[]);
        let Some(by_token) = made(&bundle, 4) else { return };
        let with = |segment| {
            let options = ServingOptions { all_logits: true, ..options(segment) };
            open(&bundle, &options).expect("it opens")
        };
        let mut scores = Vec::new();
        for mut serving in [by_token, with(512), with(4)] {
            serving.start(2).expect("it starts");
            let first = serving.score(&[prompt(9), prompt(9)]).expect("it runs");
            serving.start(2).expect("it starts");
            serving.prefill(&[prompt(9), prompt(9)]).expect("it runs");
            let second = serving.score(&[prompt(5), prompt(3)]).expect("it runs");
            assert_eq!([&first[0], &second[0], &second[1]].map(Vec::len), [8, 5, 3]);
            scores.push([first, second].concat().concat());
        }
        assert!(scores[0].iter().all(|score| score.log_probability < 0.0));
        for other in &scores[1..] {
            assert_close(&scores[0], other);
        }
    }
}

fn assert_close(some: &[Scored], others: &[Scored]) {
    assert_eq!(some.len(), others.len());
    for (a, b) in some.iter().zip(others) {
        assert!((a.log_probability - b.log_probability).abs() < 1e-4, "{a:?} and {b:?}");
        assert_eq!(a.is_likeliest, b.is_likeliest, "{a:?} and {b:?}");
    }
}

/// Side by side behind one past, one after the other behind a cache that an operator writes, and each text anew.
#[test]
fn branches_have_the_scores_of_whole_texts() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = |shared: i64, rests: &[i64]| Branches {
        shared: prompt(shared),
        rests: rests.iter().map(|length| prompt(*length)).collect(),
    };
    let texts = [text(9, &[1, 4, 2]), text(3, &[5]), text(5, &[1, 1])];
    let wanted = [("adaptive", "ort", Branching::Together), ("softmax", "ort", Branching::Alone)];
    for (recipe, target, branching) in
        wanted.into_iter().chain([("softmax", "portable", Branching::Together)])
    {
        let bundle = convert("llama", recipe, dir.path(), &["--target", target]);
        if made(&bundle, 4).is_none() {
            return;
        }
        for segment in [512, 4] {
            let options = ServingOptions { all_logits: true, ..options(segment) };
            let mut serving = open(&bundle, &options).expect("it opens");
            assert_eq!(serving.branching(), branching, "{recipe} {target}");
            let found = serving.score_branches(&texts).expect("it runs");
            for (text, found) in texts.iter().zip(found) {
                assert_eq!(text.rests.len(), found.len());
                for (rest, found) in text.rests.iter().zip(found) {
                    serving.start(1).expect("it starts");
                    let whole = [text.shared.as_slice(), rest].concat();
                    let whole = serving.score(&[whole]).expect("it runs").concat();
                    assert_close(&found, &whole[text.shared.len() - 1..]);
                }
            }
        }
    }
}

/// Layers that stay softmax in plain operators keep a cache that no operator writes into.
#[test]
fn bundles_of_other_targets_decode_by_their_own_graphs() {
    let dir = tempfile::tempdir().expect("a directory");
    for more in [&["--target", "portable"][..], &["--weights", "int4"], &["--layers", "0"]] {
        for recipe in ["softmax", "adaptive"] {
            if recipe == "softmax" && more[0] == "--layers" {
                continue;
            }
            let bundle = convert("llama", recipe, dir.path(), more);
            let Some(mut serving) = made(&bundle, 4) else { return };
            let mut expected = own(&bundle);
            for both in [&mut serving, &mut expected] {
                both.start(1).expect("it starts");
                both.prefill(&[prompt(9)]).expect("it runs");
                both.decode(&[3]).expect("it runs");
            }
            assert_same(&serving, &expected);
        }
    }
}

#[test]
fn what_cannot_be_fed_is_refused_by_every_decoder() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = convert("llama", "softmax", dir.path(), &[]);
    let Some(made) = made(&bundle, 4) else { return };
    let tract = ServingOptions { engine: Engine::Tract, ..ServingOptions::default() };
    for mut serving in [made, own(&bundle), open(&bundle, &tract).expect("it opens")] {
        let refused = |found: Result<Vec<i64>, dijiang_runtime::RuntimeError>| {
            found.expect_err("it is refused").to_string()
        };
        assert_eq!(serving.logits().expect_err("none yet").to_string(), "logits: no token was fed yet");
        assert_eq!(
            serving.start(0).expect_err("no rows").to_string(),
            "batch: 0 sequences were asked for, expected at least 1"
        );
        assert_eq!(refused(serving.prefill(&[vec![]])), "prompt: it has no tokens, expected at least one");
        assert_eq!(refused(serving.decode(&[1, 2])), "input_ids: 2 rows were given, 1 were started");
        serving.decode(&[1]).expect("it still runs");
    }
}
