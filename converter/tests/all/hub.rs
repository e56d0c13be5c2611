//! `dijiang convert owner/model`: from a server on this machine that speaks the hub's protocol, and from the cache.

use crate::support::home::Home;
use crate::support::hub_server::{COMMIT, HubServer, Served};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::Ordering;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/shakespeare/tokenizer.json");
const CONVERT: &str = "convert org/tiny -o bundle --recipe gated --no-verify";
const SNAPSHOT: &str = "hub/hub/models--org--tiny/snapshots/0123456789abcdef0123456789abcdef01234567";

/// The files of a fixture, by name.
fn files(fixture: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(Path::new(FIXTURES).join(fixture)).expect("the fixture is there");
    let paths = entries.map(|entry| entry.expect("it can be read").path()).filter(|path| path.is_file());
    let file = |path: PathBuf| {
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        (name, fs::read(&path).expect("it can be read"))
    };
    paths.map(file).collect()
}

fn tiny() -> Served {
    let mut files = files("llama");
    files.insert("tokenizer.json".to_owned(), fs::read(TOKENIZER).expect("the fixture is there"));
    files.insert("LICENSE".to_owned(), b"Everyone may.\n".to_vec());
    files.insert("pytorch_model.bin".to_owned(), vec![0; 64]);
    Served { files, ..Served::default() }
}

/// The same in two files of weights, which an index names.
fn sharded() -> Served {
    let mut served = tiny();
    let whole = served.files.remove("model.safetensors").expect("it has weights");
    let read = safetensors::SafeTensors::deserialize(&whole).expect("they can be read");
    let mut tensors = read.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut map = serde_json::Map::new();
    for (number, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let name = format!("model-{:05}-of-00002.safetensors", number + 1);
        part.iter().for_each(|(tensor, _)| drop(map.insert(tensor.clone(), name.clone().into())));
        let bytes =
            safetensors::serialize(part.iter().map(|(n, t)| (n.clone(), t)), None).expect("it is written");
        served.files.insert(name, bytes);
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    served.files.insert("model.safetensors.index.json".to_owned(), index.to_string().into_bytes());
    served
}

fn run_with(home: &Home, endpoint: &str, token: Option<&str>, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
    command.current_dir(home.path("")).args(arguments.split_whitespace());
    for name in ["DIJIANG_LOG", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"] {
        command.env_remove(name);
    }
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", home.path("hub")).env("HF_ENDPOINT", endpoint);
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    command.output().expect("it starts")
}

fn run(home: &Home, server: &HubServer, arguments: &str) -> Output {
    run_with(home, &server.endpoint(), None, arguments)
}

/// What went to stderr, with what differs from run to run named.
fn said(output: &Output, home: &Home, endpoint: &str) -> String {
    let text = String::from_utf8_lossy(&output.stderr).replace(endpoint, "ENDPOINT");
    text.replace(&home.path("").display().to_string(), "HOME/")
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn manifest(bundle: &Path) -> serde_json::Value {
    let text = fs::read(bundle.join("dijiang.json")).expect("a bundle was written");
    serde_json::from_slice(&text).expect("it is JSON")
}

#[test]
fn a_model_is_downloaded_once_and_its_bundle_says_where_it_is_from() {
    let (home, server) = (Home::empty(), HubServer::start(tiny()));
    let first = run(&home, &server, CONVERT);
    succeeds(&first);
    let asked = server.asked();
    assert!(asked.iter().any(|path| path.ends_with("/model.safetensors from 0")), "{asked:?}");
    for unwanted in ["pytorch_model.bin", "reference.safetensors"] {
        assert!(!asked.iter().any(|path| path.contains(unwanted)), "{asked:?}");
    }
    assert_eq!(manifest(&home.path("bundle"))["source"]["hub"], format!("org/tiny@{COMMIT}"));
    let licence = fs::read_to_string(home.path("bundle/LICENSE")).expect("its licence comes along");
    assert_eq!(licence, "Everyone may.\n");

    // The same as of the files themselves.
    let local = home.run(&format!("convert {FIXTURES}/llama -o local --recipe gated --no-verify"));
    succeeds(&local);
    for file in ["model.onnx", "model.safetensors"] {
        let [a, b] = ["bundle", "local"].map(|dir| fs::read(home.path(dir).join(file)).expect("it is there"));
        assert!(a == b, "{file} differs");
    }

    let again = run(&home, &server, &format!("{CONVERT} --force"));
    succeeds(&again);
    assert_eq!(server.asked(), Vec::<String>::new());
    insta::assert_snapshot!(said(&again, &home, &server.endpoint()));
}

#[test]
fn a_batch_takes_models_of_the_hub() {
    let (home, server) = (Home::empty(), HubServer::start(tiny()));
    let job = "version: 1\njobs:\n- {name: a, model: org/tiny, recipe: gated, steps: [{convert: {no-verify: true}}]}\n";
    fs::write(home.path("jobs.yaml"), job).expect("it is written");
    for looks in ["--check", "--dry-run"] {
        succeeds(&run(&home, &server, &format!("batch jobs.yaml {looks}")));
        assert_eq!(server.asked(), Vec::<String>::new(), "it downloads nothing");
    }
    let offline = run(&home, &server, "batch jobs.yaml --offline");
    assert_eq!(offline.status.code(), Some(2));
    insta::assert_snapshot!(said(&offline, &home, &server.endpoint()));
    succeeds(&run(&home, &server, "batch jobs.yaml"));
    assert_eq!(manifest(&home.path("bundles/a"))["source"]["hub"], format!("org/tiny@{COMMIT}"));
    server.asked();
    let again = run(&home, &server, "batch jobs.yaml --offline");
    succeeds(&again);
    assert!(String::from_utf8_lossy(&again.stdout).contains("fresh    a: "), "{again:?}");
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[test]
fn a_download_that_ended_while_it_was_checked_is_checked_again() {
    let (home, server) = (Home::empty(), HubServer::start(tiny()));
    succeeds(&run(&home, &server, "inspect org/tiny"));
    let weights = home.path(SNAPSHOT).join("model.safetensors");
    let blob = fs::canonicalize(&weights).expect("it is a link");
    fs::remove_file(&weights).expect("the link is removed");
    server.asked();
    succeeds(&run(&home, &server, "inspect org/tiny"));
    assert_eq!(fs::canonicalize(&weights).expect("it is a link"), blob);
    let asked = server.asked();
    assert!(!asked.iter().any(|path| path.contains("/elsewhere/model.safetensors from")), "{asked:?}");

    let mut damaged = fs::read(&blob).expect("it is there");
    *damaged.last_mut().expect("it has bytes") ^= 1;
    fs::write(&blob, damaged).expect("it is written");
    fs::remove_file(&weights).expect("the link is removed");
    let refused = run(&home, &server, "inspect org/tiny");
    assert_eq!(refused.status.code(), Some(2));
    let told = said(&refused, &home, &server.endpoint());
    assert!(told.contains("its SHA-256 is ") && told.contains("it was removed"), "{told}");
    succeeds(&run(&home, &server, "inspect org/tiny"));
}

#[test]
fn a_file_without_bytes_comes_along() {
    let mut served = tiny();
    served.files.insert("LICENSE".to_owned(), Vec::new());
    let (home, server) = (Home::empty(), HubServer::start(served));
    succeeds(&run(&home, &server, CONVERT));
    assert_eq!(fs::read(home.path("bundle/LICENSE")).expect("it comes along"), b"");
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let (home, server) = (Home::empty(), HubServer::start(tiny()));
    for revision in ["v1", COMMIT] {
        succeeds(&run(&home, &server, &format!("inspect org/tiny@{revision}")));
        let offline = run(&home, &server, &format!("inspect org/tiny@{revision} --offline"));
        succeeds(&offline);
    }
    let none = run(&home, &server, "inspect org/tiny@v2");
    assert_eq!(none.status.code(), Some(2));
    insta::assert_snapshot!(said(&none, &home, &server.endpoint()));
}

#[test]
fn files_that_an_index_names_are_downloaded() {
    let (home, server) = (Home::empty(), HubServer::start(sharded()));
    succeeds(&run(&home, &server, CONVERT));
    let parts = (1..=2).map(|n| home.path(SNAPSHOT).join(format!("model-{n:05}-of-00002.safetensors")));
    assert!(parts.into_iter().all(|part| part.exists()));
    // One that is missing is downloaded by itself.
    let second = home.path(SNAPSHOT).join("model-00002-of-00002.safetensors");
    fs::remove_file(fs::canonicalize(&second).expect("it is a link")).expect("it is removed");
    fs::remove_file(&second).expect("the link is removed");
    server.asked();
    succeeds(&run(&home, &server, &format!("{CONVERT} --force")));
    let asked = server.asked();
    assert!(!asked.iter().any(|path| path.contains("/elsewhere/model-00001")), "{asked:?}");
    assert!(second.exists());
}

#[test]
fn a_gguf_file_is_named_with_its_model() {
    let mut served = Served::default();
    let gguf = fs::read(Path::new(FIXTURES).join("gguf/llama.gguf")).expect("the fixture is there");
    served.files.insert("llama.gguf".to_owned(), gguf);
    let (home, server) = (Home::empty(), HubServer::start(served));
    succeeds(&run(&home, &server, "inspect org/tiny/llama.gguf"));
    let unnamed = run(&home, &server, "inspect org/tiny");
    assert_eq!(unnamed.status.code(), Some(2));
    insta::assert_snapshot!(said(&unnamed, &home, &server.endpoint()));
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let served = tiny();
    served.breaks.store(1, Ordering::Relaxed);
    let (home, server) = (Home::empty(), HubServer::start(Served { break_after: 1000, ..served }));
    succeeds(&run(&home, &server, CONVERT));
    let asked = server.asked();
    assert!(asked.contains(&"/elsewhere/model.safetensors from 1000".to_owned()), "{asked:?}");
}

#[test]
fn what_came_of_a_download_is_kept_for_the_next_call() {
    let served = tiny();
    served.breaks.store(usize::MAX, Ordering::Relaxed);
    let (home, server) = (Home::empty(), HubServer::start(Served { break_after: 100, ..served }));
    let broken = run(&home, &server, CONVERT);
    assert_eq!(broken.status.code(), Some(2));
    insta::assert_snapshot!(said(&broken, &home, &server.endpoint()));
    assert!(!home.path("bundle").exists());
    server.served().breaks.store(0, Ordering::Relaxed);
    server.asked();
    succeeds(&run(&home, &server, CONVERT));
    let asked = server.asked();
    // Each try came a hundred bytes further.
    let resumed = |path: &&String| path.starts_with("/elsewhere/model.safetensors from ");
    let resumed: Vec<&String> = asked.iter().filter(resumed).collect();
    assert!(matches!(resumed[..], [only] if only.ends_with("00") && !only.ends_with(" 0")), "{asked:?}");
}

#[test]
fn a_part_that_is_the_whole_is_no_dead_end() {
    let (home, server) = (Home::empty(), HubServer::start(tiny()));
    succeeds(&run(&home, &server, "inspect org/tiny"));
    let weights = home.path(SNAPSHOT).join("model.safetensors");
    let blob = fs::canonicalize(&weights).expect("it is a link");
    fs::rename(&blob, blob.with_extension("part")).expect("it is renamed");
    fs::remove_file(&weights).expect("the link is removed");
    succeeds(&run(&home, &server, "inspect org/tiny"));
}

#[test]
fn a_file_that_came_damaged_is_not_kept() {
    let (home, server) = (Home::empty(), HubServer::start(tiny()));
    server.served().damages.store(true, Ordering::Relaxed);
    let damaged = run(&home, &server, CONVERT);
    assert_eq!(damaged.status.code(), Some(2));
    let told = said(&damaged, &home, &server.endpoint());
    assert!(told.contains("its SHA-256 is ") && told.contains("it was removed"), "{told}");
    server.served().damages.store(false, Ordering::Relaxed);
    succeeds(&run(&home, &server, CONVERT));
}

#[test]
fn a_text_whose_download_was_broken_off_at_its_end_is_no_dead_end() {
    let (home, server) = (Home::empty(), HubServer::start(tiny()));
    succeeds(&run(&home, &server, "inspect org/tiny"));
    let text = home.path(SNAPSHOT).join("tokenizer.json");
    let blob = fs::canonicalize(&text).expect("it is a link");
    fs::rename(&blob, blob.with_extension("part")).expect("it is renamed");
    fs::remove_file(&text).expect("the link is removed");
    succeeds(&run(&home, &server, "inspect org/tiny"));
    assert!(text.exists(), "what another tool left out is downloaded");
}

#[test]
fn names_that_a_server_says_are_no_paths() {
    let served = Served { commit: "../../elsewhere", ..tiny() };
    let (home, server) = (Home::empty(), HubServer::start(served));
    let refused = run(&home, &server, CONVERT);
    assert_eq!(refused.status.code(), Some(2));
    insta::assert_snapshot!(said(&refused, &home, &server.endpoint()));
    assert!(!home.path("elsewhere").exists() && !home.path("hub/elsewhere").exists());
}

#[test]
fn a_token_is_sent_where_there_is_one() {
    let (home, server) = (Home::empty(), HubServer::start(Served { token: Some("hf_secret"), ..tiny() }));
    let refused = run(&home, &server, CONVERT);
    assert_eq!(refused.status.code(), Some(2));
    insta::assert_snapshot!(said(&refused, &home, &server.endpoint()));
    succeeds(&run_with(&home, &server.endpoint(), Some("hf_secret"), "inspect org/tiny"));
    fs::remove_dir_all(home.path("hub/hub")).expect("the cache is removed");
    fs::write(home.path("hub/token"), "hf_secret\n").expect("a token is kept");
    succeeds(&run(&home, &server, "inspect org/tiny"));
}

#[test]
fn without_a_network_the_cache_or_a_word() {
    // Nothing listens there any more.
    let endpoint = HubServer::start(tiny()).endpoint();
    let home = Home::empty();
    let told = |arguments: &str| {
        let output = run_with(&home, &endpoint, None, arguments);
        assert_eq!(output.status.code(), Some(2));
        said(&output, &home, &endpoint)
    };
    insta::assert_snapshot!(told(CONVERT));
    insta::assert_snapshot!(told(&format!("{CONVERT} --offline")));
}

#[test]
fn a_model_without_safetensors_is_refused_by_what_it_has() {
    let mut told = String::new();
    for names in
        [&["config.json", "pytorch_model.bin"][..], &["config.json", "onnx/model.onnx"], &["README.md"]]
    {
        let files = names.iter().map(|name| ((*name).to_owned(), b"{}".to_vec())).collect();
        let (home, server) = (Home::empty(), HubServer::start(Served { files, ..Served::default() }));
        let output = run(&home, &server, CONVERT);
        assert_eq!(output.status.code(), Some(2));
        told.push_str(&said(&output, &home, &server.endpoint()));
    }
    insta::assert_snapshot!(told);
}
