use dijiang_format::dtype::DType;
use dijiang_runtime::{Decoder, DecoderState, HostDecoder, HostTensor, LoadOptions, Runtime};
use tract_onnx::pb::tensor_proto::DataType;

use crate::models::{self, ALL, CACHED, LINEAR, Model, Parts, STATELESS};
use crate::{assert_close, runtimes};

const PROMPT: [i64; 7] = [1, 2, 6, 0, 3, 5, 4];

fn open(runtime: &dyn Runtime, parts: Parts) -> HostDecoder {
    let dir = tempfile::tempdir().unwrap();
    let path = models::decoder(parts).write(dir.path());
    HostDecoder::new(runtime.load(&path, &LoadOptions::default()).unwrap()).unwrap()
}

fn whole(decoder: &mut HostDecoder, ids: &[i64]) -> Vec<f32> {
    decoder.start(1).unwrap();
    decoder.feed(&[ids.to_vec()], None).unwrap().to_f32().unwrap()
}

fn in_parts(decoder: &mut HostDecoder, ids: &[i64], size: usize) -> Vec<f32> {
    decoder.start(1).unwrap();
    let mut logits = Vec::new();
    for part in ids.chunks(size) {
        logits.extend(decoder.feed(&[part.to_vec()], None).unwrap().to_f32().unwrap());
    }
    logits
}

#[test]
fn any_split_gives_the_logits_of_the_whole() {
    for runtime in runtimes() {
        for parts in [ALL, LINEAR, CACHED] {
            let mut decoder = open(runtime.as_ref(), parts);
            let expected = whole(&mut decoder, &PROMPT);
            for size in [1, 2, 3, 6] {
                assert_close(&in_parts(&mut decoder, &PROMPT, size), &expected, 1e-5);
            }
        }
    }
}

/// Longer than a segment, which a graph with a state would be fed in.
#[test]
fn what_has_no_state_is_fed_in_one_call() {
    for runtime in runtimes() {
        let dir = tempfile::tempdir().unwrap();
        let path = models::decoder(STATELESS).write(dir.path());
        let session = runtime.load(&path, &LoadOptions::default()).unwrap();
        let mut decoder = HostDecoder::with_segment(session, 2).unwrap();
        decoder.prefill(&[PROMPT.to_vec()]).unwrap();
        let found = decoder.logits().unwrap().to_f32().unwrap();
        let expected = whole(&mut decoder, &PROMPT);
        assert_close(&found, &expected[expected.len() - models::VOCABULARY..], 1e-5);
        decoder.start(1).unwrap();
        let scores = decoder.score(&[PROMPT.to_vec()]).unwrap();
        assert_eq!(scores[0].len(), PROMPT.len() - 1);
    }
}

#[test]
fn runtimes_agree() {
    let logits: Vec<Vec<f32>> =
        runtimes().iter().map(|runtime| whole(&mut open(runtime.as_ref(), ALL), &PROMPT)).collect();
    for other in &logits {
        assert_close(other, &logits[0], 1e-5);
    }
}

#[test]
fn optional_inputs_may_be_absent() {
    for runtime in runtimes() {
        for parts in [ALL, LINEAR, CACHED] {
            let bare = Parts { bare: true, ..parts };
            let mut decoder = open(runtime.as_ref(), bare);
            let expected = whole(&mut decoder, &PROMPT);
            assert_close(&in_parts(&mut decoder, &PROMPT, 2), &expected, 1e-5);
            let padded = decoder.feed(&[vec![1]], Some(&[vec![0]])).unwrap_err().to_string();
            assert_eq!(padded, "attention_mask: the graph has no such input, so rows cannot be padded");
        }
    }
}

#[test]
fn a_linear_state_keeps_its_size_and_a_cache_grows() {
    for runtime in runtimes() {
        let sizes = |parts: Parts| {
            let mut decoder = open(runtime.as_ref(), parts);
            let mut sizes = vec![decoder.state_bytes()];
            for token in [1, 2] {
                decoder.feed(&[vec![token]], None).unwrap();
                sizes.push(decoder.state_bytes());
            }
            (decoder.grows(), sizes)
        };
        assert_eq!(sizes(LINEAR), (false, vec![16, 16, 16]));
        assert_eq!(sizes(CACHED), (true, vec![0, 16, 32]));
        assert_eq!(sizes(ALL), (true, vec![16, 32, 48]));
    }
}

/// What is declared proves nothing: this state claims one size, and grows by a column per token.
#[test]
fn the_size_of_a_state_is_measured() {
    for runtime in runtimes() {
        let dir = tempfile::tempdir().unwrap();
        let path = models::misdeclared().write(dir.path());
        let mut decoder = HostDecoder::new(runtime.load(&path, &LoadOptions::default()).unwrap()).unwrap();
        assert_eq!((decoder.grows(), decoder.state_bytes()), (false, 16));
        decoder.feed(&[vec![1, 2, 3]], None).unwrap();
        assert_eq!(decoder.state_bytes(), 64, "{}", runtime.name());
    }
}

#[test]
fn padding_on_either_side_changes_no_row() {
    for runtime in runtimes() {
        for parts in [ALL, LINEAR, CACHED] {
            let mut decoder = open(runtime.as_ref(), parts);
            let rows = [&PROMPT[..3], &PROMPT[..7], &PROMPT[2..4]];
            let alone: Vec<Vec<f32>> = rows.iter().map(|row| prefill_then_step(&mut decoder, row)).collect();
            for left in [true, false] {
                let (ids, mask): (Vec<_>, Vec<_>) = rows.iter().map(|row| padded(row, 7, left)).unzip();
                for segment in [2, 7, 100] {
                    decoder.start(3).unwrap();
                    decoder.feed_segments(&ids, Some(&mask), segment).unwrap();
                    let next = vec![vec![4]; 3];
                    let together = decoder.feed(&next, None).unwrap().to_f32().unwrap();
                    assert_close(&together, &alone.concat(), 1e-5);
                }
            }
        }
    }
}

/// The logits of token 4 after a prompt.
fn prefill_then_step(decoder: &mut HostDecoder, row: &[i64]) -> Vec<f32> {
    decoder.start(1).unwrap();
    decoder.feed_segments(&[row.to_vec()], None, 100).unwrap();
    decoder.feed(&[vec![4]], None).unwrap().to_f32().unwrap()
}

fn padded(row: &[i64], width: usize, left: bool) -> (Vec<i64>, Vec<i64>) {
    let (pads, ones) = (vec![0; width - row.len()], vec![1; row.len()]);
    if left {
        ([&pads, row].concat(), [pads, ones].concat())
    } else {
        ([row, &pads].concat(), [ones, pads].concat())
    }
}

#[test]
fn prefill_returns_the_last_real_token_of_each_row() {
    for runtime in runtimes() {
        let mut decoder = open(runtime.as_ref(), ALL);
        let (ids, mask): (Vec<_>, Vec<_>) =
            [&PROMPT[..3], &PROMPT[..5]].iter().map(|row| padded(row, 5, false)).unzip();
        let expected = [&PROMPT[..3], &PROMPT[..5]].map(|row| {
            let logits = whole(&mut decoder, row);
            logits[logits.len() - models::VOCABULARY..].to_vec()
        });
        decoder.start(2).unwrap();
        let last = decoder.feed_segments(&ids, Some(&mask), 2).unwrap();
        assert_eq!((last.dtype(), last.shape()), (DType::F32, &[2, models::VOCABULARY][..]));
        assert_close(&last.to_f32().unwrap(), &expected.concat(), 1e-5);
    }
}

#[test]
fn a_state_can_be_kept_and_put_back() {
    for runtime in runtimes() {
        let mut decoder = open(runtime.as_ref(), ALL);
        let expected = whole(&mut decoder, &PROMPT);
        decoder.start(1).unwrap();
        decoder.feed(&[PROMPT[..4].to_vec()], None).unwrap();
        let kept = decoder.state().unwrap();
        decoder.feed(&[vec![1, 1, 1]], None).unwrap();
        decoder.set_state(kept, None).unwrap();
        let rest = decoder.feed(&[PROMPT[4..].to_vec()], None).unwrap().to_f32().unwrap();
        assert_close(&rest, &expected[4 * models::VOCABULARY..], 1e-5);
    }
}

#[test]
fn foreign_states_are_refused() {
    let runtime = &runtimes()[0];
    let mut decoder = open(runtime.as_ref(), ALL);
    let good = decoder.state().unwrap();
    let spoil = |change: fn(&mut DecoderState)| {
        let mut state = good.clone();
        change(&mut state);
        state
    };
    let cases = [
        spoil(|state| state.tensors[0].0.push('x')),
        spoil(|state| drop(state.tensors.pop())),
        spoil(|state| state.tensors[0].1 = HostTensor::zeros(DType::F16, &[1, 1, 4, 1]).unwrap()),
        spoil(|state| state.tensors[0].1 = HostTensor::zeros(DType::F32, &[1, 1, 5, 1]).unwrap()),
        spoil(|state| state.history.columns = 3),
        spoil(|state| state.history.seen.clear()),
    ];
    for state in cases {
        let message = decoder.set_state(state, None).unwrap_err().to_string();
        assert!(message.starts_with("state: it"), "{message}");
    }
    decoder.set_state(good, None).unwrap();
}

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    for runtime in runtimes() {
        let mut decoder = open(runtime.as_ref(), ALL);
        decoder.feed(&[vec![1, 2]], None).unwrap();
        let before = decoder.state().unwrap();
        assert!(decoder.start(0).is_err());
        assert!(decoder.feed(&[vec![1], vec![1]], None).is_err());
        assert!(decoder.feed(&[vec![]], None).is_err());
        assert!(decoder.feed_segments(&[vec![1]], None, 0).is_err());
        assert!(decoder.feed_segments(&[vec![]], None, 4).is_err());
        // An id outside the vocabulary fails inside the runtime.
        let message = decoder.feed(&[vec![1_000_000]], None).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{} failed to run", runtime.name())), "{message}");
        assert_eq!(decoder.state().unwrap(), before);
    }
}

#[test]
fn a_row_of_nothing_but_padding_is_an_error_of_prefill() {
    let runtime = &runtimes()[0];
    let mut decoder = open(runtime.as_ref(), LINEAR);
    let message = decoder.feed_segments(&[vec![1, 1]], Some(&[vec![0, 0]]), 1).unwrap_err().to_string();
    assert_eq!(message, "input_ids: a row holds no token, expected at least one per row");
}

#[test]
fn a_graph_without_state_takes_each_sequence_whole() {
    for runtime in runtimes() {
        let mut decoder = open(runtime.as_ref(), STATELESS);
        assert_close(
            &whole(&mut decoder, &PROMPT),
            &whole(&mut open(runtime.as_ref(), LINEAR), &PROMPT),
            1e-5,
        );
        let message = decoder.feed(&[vec![1]], None).unwrap_err().to_string();
        assert!(message.starts_with("input_ids: the graph has no state"), "{message}");
    }
}

#[test]
fn graphs_of_other_kinds_are_refused_by_name() {
    let runtime = &runtimes()[0];
    let message = |model: Model| {
        let dir = tempfile::tempdir().unwrap();
        let session = runtime.load(&model.write(dir.path()), &LoadOptions::default()).unwrap();
        HostDecoder::new(session).unwrap_err().to_string()
    };
    let echo = message(models::echo(&[("x", DataType::Float)]));
    assert_eq!(echo, "`input_ids` does not fit a causal decoder: the graph has no such input");
    let mut extra = models::decoder(LINEAR);
    extra.input("use_cache_branch", DataType::Bool, "1");
    let extra = message(extra);
    assert!(
        extra.starts_with("`use_cache_branch` does not fit a causal decoder: expected input_ids"),
        "{extra}"
    );
    let mut unpaired = models::decoder(LINEAR);
    unpaired.input("past_key_values.7.key", DataType::Float, "batch 1 past 4");
    let unpaired = message(unpaired);
    assert!(unpaired.contains("the graph has no output `present.7.key` to replace it"), "{unpaired}");
}
