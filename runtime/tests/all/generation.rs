use std::path::Path;

use dijiang_runtime::{GenerateOptions, HostDecoder, LoadOptions, Serving, Tokenizer, generate};

use crate::models::{self, ALL, LINEAR};
use crate::runtimes;

/// Seven tokens: two letters, a space, and the two bytes of `é` as separate tokens; the last two ends of text.
const TOKENIZER: &str = r#"{
    "version": "1.0",
    "added_tokens": [{"id": 6, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": null,
    "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2, "Ã": 3, "©": 4, "ab": 5, "</s>": 6}, "merges": ["a b"]}
}"#;

fn tokenizer() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, TOKENIZER).unwrap();
    Tokenizer::load(&path).unwrap()
}

fn pieces(tokenizer: &Tokenizer, ids: &[i64]) -> (Vec<String>, String) {
    let mut stream = tokenizer.stream();
    let pushed = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    (pushed, stream.finish().unwrap())
}

#[test]
fn text_survives_the_way_to_ids_and_back() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("ab é").unwrap();
    assert_eq!(ids, [5, 2, 3, 4]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "ab é");
    assert_eq!((tokenizer.token_id("</s>"), tokenizer.vocabulary()), (Some(6), 7));
    assert!(tokenizer.decode(&[-1]).is_err());
}

#[test]
fn a_stream_holds_half_characters_back() {
    let tokenizer = tokenizer();
    assert_eq!(
        pieces(&tokenizer, &[0, 3, 4, 1]),
        (["a", "", "é", "b"].map(String::from).to_vec(), String::new())
    );
    assert_eq!(pieces(&tokenizer, &[0, 2, 3]), (["a", " ", ""].map(String::from).to_vec(), String::new()));
    assert_eq!(pieces(&tokenizer, &[3, 0]).0.concat(), "\u{fffd}a");
    assert_eq!(pieces(&tokenizer, &[6, 0]).0.concat(), "a");
}

#[test]
fn a_bad_tokenizer_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let missing = Tokenizer::load(&path).unwrap_err().to_string();
    std::fs::write(&path, "{").unwrap();
    let broken = Tokenizer::load(&path).unwrap_err().to_string();
    let path = path.display();
    assert!(missing.starts_with(&format!("{path}: there is no such file or directory (hint: ")), "{missing}");
    assert!(broken.starts_with(&format!("tokenizer {path}: ")), "{broken}");
    assert!(!missing.contains('\n') && !broken.contains('\n'), "{missing} {broken}");
}

fn open(dir: &Path, runtime: &dyn dijiang_runtime::Runtime, parts: models::Parts, segment: usize) -> Serving {
    let path = models::decoder(parts).write(dir);
    let session = runtime.load(&path, &LoadOptions::default()).unwrap();
    Serving::over(Box::new(HostDecoder::with_segment(session, segment).unwrap()))
}

#[test]
fn generation_is_the_argmax_of_the_whole_each_time() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    for runtime in runtimes() {
        let mut serving = open(dir.path(), runtime.as_ref(), ALL, 2);
        let options = GenerateOptions {
            prompts: vec![tokenizer.encode("ab b").unwrap()],
            max_new_tokens: 6,
            ..Default::default()
        };
        let mut shown = String::new();
        let mut on_text = |_: usize, piece: &str| shown.push_str(piece);
        let found = generate(&mut serving, &tokenizer, &options, &mut on_text).unwrap().swap_remove(0);
        let mut ids = tokenizer.encode("ab b").unwrap();
        assert_eq!((found.prompt_tokens, found.tokens.len()), (ids.len(), 6));
        assert_eq!(found.text, shown);
        assert_eq!(found.state_bytes, serving.state_bytes());
        for &token in &found.tokens {
            serving.start(1).unwrap();
            assert_eq!(serving.prefill(&[ids.clone()]).unwrap(), [token]);
            ids.push(token);
        }
    }
}

#[test]
fn generation_ends_at_a_stop_token_and_at_once_for_zero_tokens() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let mut serving = open(dir.path(), runtimes()[0].as_ref(), LINEAR, 512);
    let mut run = |options: &GenerateOptions| {
        generate(&mut serving, &tokenizer, options, &mut |_, _| ()).map(|mut found| found.swap_remove(0))
    };
    let prompts = vec![tokenizer.encode("ab").unwrap()];
    let free = GenerateOptions { prompts, max_new_tokens: 5, ..Default::default() };
    let tokens = run(&free).unwrap().tokens;
    let stopped = GenerateOptions { stop_ids: vec![tokens[0]], ..free.clone() };
    assert!(run(&stopped).unwrap().tokens.is_empty());
    let none = GenerateOptions { max_new_tokens: 0, ..free.clone() };
    assert!(run(&none).unwrap().tokens.is_empty());
    for prompts in [Vec::new(), vec![Vec::new()]] {
        assert!(run(&GenerateOptions { prompts, ..free.clone() }).is_err());
    }
    let path = models::decoder(LINEAR).write(dir.path());
    let session = runtimes()[0].load(&path, &LoadOptions::default()).unwrap();
    let refused = HostDecoder::with_segment(session, 0).unwrap_err().to_string();
    assert_eq!(refused, "segment: 0 tokens at a time were asked for, expected at least 1");
}

#[test]
fn a_text_in_two_parts_is_the_text_in_one() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    for parts in [ALL, LINEAR] {
        let mut serving = open(dir.path(), runtimes()[0].as_ref(), parts, 512);
        let mut run = |options: &GenerateOptions| {
            generate(&mut serving, &tokenizer, options, &mut |_, _| ()).unwrap().swap_remove(0)
        };
        let prompts = vec![tokenizer.encode("ab b").unwrap()];
        let whole = GenerateOptions { prompts, max_new_tokens: 7, ..Default::default() };
        let expected = run(&whole).tokens;
        let mut found = run(&GenerateOptions { max_new_tokens: 3, feed_last: true, ..whole }).tokens;
        let rest = GenerateOptions {
            prompts: vec![Vec::new()],
            resume: true,
            max_new_tokens: 4,
            ..Default::default()
        };
        found.extend(run(&rest).tokens);
        assert_eq!(found, expected);
    }
}

#[test]
fn the_seed_decides_what_is_sampled() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let mut serving = open(dir.path(), runtimes()[0].as_ref(), LINEAR, 512);
    let mut run = |seed| {
        let options = GenerateOptions {
            prompts: vec![tokenizer.encode("a").unwrap()],
            seed,
            max_new_tokens: 12,
            temperature: 50.0,
            ..GenerateOptions::default()
        };
        generate(&mut serving, &tokenizer, &options, &mut |_, _| ()).unwrap().swap_remove(0).tokens
    };
    let first = run(1);
    assert_eq!(run(1), first);
    assert!((2..6).any(|seed| run(seed) != first));
}

/// Prompts of unequal length, and texts that end at different times.
#[test]
fn texts_side_by_side_are_those_of_each_alone() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let prompts = ["ab b", "b", "a b a ab"].map(|text| tokenizer.encode(text).unwrap());
    for (parts, temperature) in [(ALL, 0.0), (LINEAR, 0.0), (LINEAR, 50.0)] {
        let mut serving = open(dir.path(), runtimes()[0].as_ref(), parts, 2);
        let mut run = |prompts: &[Vec<i64>], stop_ids: &[i64]| {
            let (prompts, stop_ids) = (prompts.to_vec(), stop_ids.to_vec());
            let mut shown = vec![String::new(); prompts.len()];
            let options = GenerateOptions {
                prompts,
                stop_ids,
                temperature,
                seed: 3,
                max_new_tokens: 9,
                ..GenerateOptions::default()
            };
            let mut on_text = |row: usize, piece: &str| shown[row].push_str(piece);
            let found = generate(&mut serving, &tokenizer, &options, &mut on_text).unwrap();
            assert!(found.iter().map(|one| &one.text).eq(&shown));
            let texts = found.into_iter().map(|one| (one.prompt_tokens, one.tokens, one.text));
            texts.collect::<Vec<_>>()
        };
        let stop = run(&prompts[..1], &[])[0].1[4];
        for stop_ids in [&[][..], &[stop]] {
            let alone: Vec<_> =
                prompts.iter().flat_map(|prompt| run(std::slice::from_ref(prompt), stop_ids)).collect();
            let uneven = alone.iter().any(|text| text.1.len() != alone[0].1.len());
            assert_eq!(uneven, !stop_ids.is_empty());
            assert_eq!(run(&prompts, stop_ids), alone);
        }
    }
}

#[test]
fn prompts_go_on_from_as_many_sequences_as_there_are() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let mut serving = open(dir.path(), runtimes()[0].as_ref(), LINEAR, 512);
    serving.start(2).unwrap();
    serving.prefill(&[vec![1], vec![0, 5]]).unwrap();
    let mut run = |prompts: &[Vec<i64>]| {
        let prompts = prompts.to_vec();
        let options = GenerateOptions { prompts, resume: true, max_new_tokens: 2, ..Default::default() };
        generate(&mut serving, &tokenizer, &options, &mut |_, _| ())
    };
    let refused = run(&[vec![1]]).unwrap_err().to_string();
    assert_eq!(refused, "state: it holds 2 sequences, expected 1");
    assert_eq!(run(&[Vec::new(), Vec::new()]).unwrap().len(), 2);
}
