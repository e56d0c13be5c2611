//! What people type at first, and what they are told: one line that names what was found and what to type next.

use crate::support::home::Home;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");

/// Calls in a directory that [`setting`] made.
const CALLS: &[&str] = &[
    // Models that are not what they should be.
    "convert org/model -o out --offline",
    "convert ./org/model -o out",
    "convert pickles -o out",
    "convert pickles/pytorch_model.bin -o out",
    "convert model/model.safetensors -o out",
    "convert model/config.json -o out",
    "convert empty -o out",
    "convert moe -o out",
    "convert unknown -o out",
    "convert gptq -o out",
    "convert cut -o out",
    "convert pointer -o out",
    "convert small.gguf -o out",
    "convert old.gguf -o out",
    "convert text.onnx -o out",
    "convert bundle -o bundle",
    // Calls that want something else.
    "convert model",
    "convert model -o bundle",
    "convert model -o out --recipe adaptiv",
    "convert model -o out --recipe nothing.yaml",
    "convert model -o out --dtype int8",
    "convert model -o out --dtype fp16",
    "convert model -o out --target cuda",
    "convert model -o out --layers 7",
    "convert model -o out --quantize int4",
    "inspect bundle/model.onnx/",
    "verify model",
    "generate model --prompt x",
    "generate org/model --prompt x",
    "generate bundle.onnx --prompt x",
    "generate bundle",
    "generate bundle --prompt x --temperature -1",
    "generate bundle --prompt x --device gpu",
    "generate bundle --prompt x --load-state nothing.safetensors",
    "generate bundle --prompt x --save-state bundle/model.safetensors",
    "generate bundle --prompt x --save-state nothing/x.st",
    "calibrate bundle",
    "calibrate bundle --data nothing.txt",
    "finetune bundle --data words.txt",
    "finetune bundle --data words.txt --steps -1",
    "finetune --data words.txt bundle",
    "adapt model -o empty --data words.txt",
    "scan model -o nothing/far.yaml",
    "eval bundle",
    "eval bundle --task piqa",
    "eval bundle --task piqa=words.txt",
    "quantize model -o out",
    "bench model",
    "batch",
    "batch words.txt",
    "report bundle -o words.txt/report.html",
    "report bundle -o nothing/report.html",
    "report bundle -o out.html --text empty",
    "plot empty -o out.svg",
    "plot bundle/model.onnx -o out.svg",
    "diff bundle cut-bundle",
    "diff bundle model",
    "report bundle -o bundle/dijiang.json",
    "train bundle",
];

/// A checkpoint, a bundle of it, and what is often taken for one.
fn setting() -> Home {
    let home = Home::empty();
    let copy = |from: &str, to: &str, change: &dyn Fn(&str, Vec<u8>) -> Vec<u8>| {
        fs::create_dir(home.path(to)).expect("a directory");
        for name in ["config.json", "model.safetensors"] {
            let bytes = fs::read(Path::new(FIXTURES).join(from).join(name)).expect("the fixture is there");
            fs::write(home.path(to).join(name), change(name, bytes)).expect("it is written");
        }
    };
    let config = |old: &'static str, new: &'static str| {
        move |name: &str, bytes: Vec<u8>| match name {
            "config.json" => String::from_utf8(bytes).expect("text").replacen(old, new, 1).into_bytes(),
            _ => bytes,
        }
    };
    copy("llama", "model", &|_, bytes| bytes);
    copy("llama", "moe", &config("\"llama\"", "\"mixtral\""));
    copy("llama", "unknown", &config("\"llama\"", "\"megabyte\""));
    copy("llama", "gptq", &config("{", "{\"quantization_config\": {\"quant_method\": \"gptq\"},"));
    copy("llama", "cut", &|name, mut bytes| {
        if name == "model.safetensors" {
            bytes.truncate(bytes.len() / 2);
        }
        bytes
    });
    copy("llama", "pointer", &|name, bytes| match name {
        "config.json" => bytes,
        _ => b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n".to_vec(),
    });
    copy("llama", "pickles", &|_, bytes| bytes);
    fs::rename(home.path("pickles/model.safetensors"), home.path("pickles/pytorch_model.bin"))
        .expect("it is renamed");
    fs::create_dir(home.path("empty")).expect("a directory");
    fs::write(home.path("small.gguf"), b"GGUF").expect("it is written");
    fs::write(home.path("old.gguf"), [b"GGUF".as_slice(), &1_u32.to_le_bytes(), &[0; 64]].concat())
        .expect("it is written");
    fs::write(home.path("text.onnx"), b"this is no graph").expect("it is written");
    fs::write(home.path("words.txt"), b"a few words\n").expect("it is written");
    let made = home.run("convert model -o bundle --recipe gated --no-verify");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::create_dir(home.path("cut-bundle")).expect("a directory");
    for file in fs::read_dir(home.path("bundle")).expect("it is there") {
        let path = file.expect("it is there").path();
        let mut bytes = fs::read(&path).expect("it is read");
        let name = path.file_name().expect("a name");
        bytes.truncate(if name == "model.safetensors" { 100 } else { bytes.len() });
        fs::write(home.path("cut-bundle").join(name), bytes).expect("it is written");
    }
    home
}

#[test]
fn each_is_told_what_was_found_and_what_to_type() {
    let home = setting();
    let mut table = String::new();
    for call in CALLS {
        let output = Command::new(env!("CARGO_BIN_EXE_dijiang"))
            .current_dir(home.path(""))
            .args(call.split_whitespace())
            .env_remove("DIJIANG_LOG")
            .env("HF_HOME", "hub")
            .env_remove("HF_HUB_CACHE")
            .output()
            .expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{call}");
        assert_eq!(output.stdout, b"", "{call}");
        let told = String::from_utf8_lossy(&output.stderr);
        let told = told.replace(&home.path("").display().to_string(), "HOME/");
        assert!(!told.contains("panicked") && told.starts_with("error: "), "{call}: {told}");
        writeln!(table, "$ dijiang {call}\n{}", told.trim_end()).expect("a string takes it");
    }
    insta::assert_snapshot!(table);
}
