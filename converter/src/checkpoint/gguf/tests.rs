//! Blocks against what llama.cpp's package reads of them, and what is undone against what is not.

use super::architectures::{self, How};
use super::config;
use super::elements::{self, Change};
use super::header::Header;
use super::kinds;
use super::tensors::{self, Place};
use crate::bundle::stored_file::StoredFile;
use dijiang_passes::ir::tensor::{SharedBytes, Tensor};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/gguf").join(name)
}

#[test]
fn blocks_are_read_as_llama_cpp_reads_them() {
    let bytes = std::fs::read(fixture("blocks.safetensors")).expect("the fixture");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut seen = Vec::new();
    for (name, raw) in file.tensors() {
        let Some(name) = name.strip_suffix(".raw") else { continue };
        let kind = (0..64).filter_map(kinds::find).find(|kind| kind.name == name).expect("a type");
        assert_eq!(raw.shape(), [3, kind.bytes], "{name}");
        let kinds::How::Blocks(decode) = kind.how else { panic!("{name} is no blocks") };
        let expected =
            file.tensor(&format!("{name}.numbers")).expect("numbers").data().as_chunks().0.to_vec();
        let expected: Vec<f32> = expected.into_iter().map(f32::from_le_bytes).collect();
        let mut found = vec![0.0; expected.len()];
        for (block, out) in raw.data().chunks(kind.bytes).zip(found.chunks_mut(kind.block)) {
            decode(block, out);
        }
        assert_eq!(found, expected, "{name}");
        seen.push(kind.id);
    }
    seen.sort_unstable();
    let all: Vec<u32> = (0..64).filter_map(kinds::find).filter(|k| k.is_quantised()).map(|k| k.id).collect();
    assert_eq!(seen, all);
}

/// As a file has it, and as a family asks for it.
fn both(header: &Header, place: &Place<'_>, name: &str, heads: tensors::Heads) -> Option<[Tensor; 2]> {
    let raw = &header.tensors[name];
    let stored = elements::tensor(&header.bytes, raw, raw.dims.clone(), Change::NONE)?;
    let (_, read) = place.tensors(header, (name, raw), heads).ok()?.pop()?;
    Some([stored, read])
}

/// The tests of whole models say that what is read is what the checkpoint has: without what is undone it would not be.
#[test]
fn what_is_undone_was_done() {
    let cases = [
        ("llama", How::Queries),
        ("llama", How::Keys),
        ("granite", How::Queries),
        ("smollm3", How::Keys),
        ("granite-q8_0", How::Queries),
        ("neox", How::Groups),
        ("falcon", How::Groups),
        ("gemma", How::OneMore),
        ("gemma3", How::OneMore),
        ("gpt2", How::Transposed),
    ];
    for (file, how) in cases {
        let path = fixture(&format!("{file}.gguf"));
        let bytes: SharedBytes = Arc::new(StoredFile::open(&path).expect("the fixture"));
        let header = Header::read(&bytes, &path).unwrap_or_else(|e| panic!("{e}"));
        let architecture = architectures::find(&header).unwrap_or_else(|e| panic!("{e}"));
        let heads = config::describe(&header, architecture).unwrap_or_else(|e| panic!("{e}")).heads;
        let mut count = 0;
        for name in header.tensors.keys() {
            let place = Place::of(architecture, name).expect("a place");
            let is_undone = how != How::Transposed || name.ends_with(".weight");
            if place.module.how == how && is_undone {
                let [stored, read] = both(&header, &place, name, heads).expect("both");
                assert_ne!(stored.to_f32(), read.to_f32(), "{file}: {name}");
                count += 1;
            }
        }
        assert!(count > 0, "{file}: {how:?}");
    }
}

/// Rows are taken one by one, and strips of them too.
#[test]
fn parts_of_a_changed_tensor_are_parts_of_the_whole() {
    let path = fixture("granite-q8_0.gguf");
    let bytes: SharedBytes = Arc::new(StoredFile::open(&path).expect("the fixture"));
    let header = Header::read(&bytes, &path).unwrap_or_else(|e| panic!("{e}"));
    let architecture = architectures::find(&header).unwrap_or_else(|e| panic!("{e}"));
    let heads = config::describe(&header, architecture).unwrap_or_else(|e| panic!("{e}")).heads;
    let all = tensors::all(&header, architecture, heads).unwrap_or_else(|e| panic!("{e}"));
    let q = &all["model.layers.0.self_attn.q_proj.weight"];
    let whole = q.to_f32();
    assert_eq!(q.rows(3..9).to_f32(), whole[3 * 32..9 * 32]);
    assert_eq!((q.bytes().len(), q.place().is_some(), q.problem().is_none()), (q.byte_len(), false, true));
}
