//! What commands write: whole or not at all, whatever the disk, the path, the reader or a signal does to them, and
//! nothing of others goes with it.
#![expect(clippy::print_stderr, reason = "it says why a test is left out")]

use crate::support::home::Home;
use crate::support::ort::has_ort;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/shakespeare");
const DIJIANG: &str = env!("CARGO_BIN_EXE_dijiang");

/// With a bundle called X, other weights for it, and what else commands read.
fn with_bundle() -> Home {
    let home = Home::empty();
    expect(0, &home.run(&format!("convert {MODEL} -o X --no-verify --dtype f32")));
    std::fs::copy(home.path("X/model.safetensors"), home.path("w.safetensors")).expect("a copy");
    std::fs::create_dir(home.path("in")).expect("it is made");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(MODEL).join(name), home.path("in").join(name)).expect("a copy");
    }
    let jobs = "version: 1\njobs: [{name: a, model: in, steps: [{convert: {no-verify: true}}]}]\n";
    std::fs::write(home.path("jobs.yaml"), jobs).expect("it is written");
    home
}

fn expect(code: i32, output: &Output) -> String {
    let told = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat();
    assert_eq!(output.status.code(), Some(code), "{told}");
    told
}

/// Calls that write to `X` or beside it.
fn writers() -> Vec<String> {
    let train = format!("--data {MODEL}/valid.txt --steps 2 --batch 2 --context 16 --validation-windows 1");
    let mut calls: Vec<String> = [
        "convert in -o X --no-verify --force --report json=r.json",
        "quantize X -o X --no-verify --force",
        "quantize X -o Q --no-verify",
        "import-weights X w.safetensors",
        "export-torch X",
        "batch jobs.yaml --report junit=r.xml",
        "generate X --prompt RO -n 2 --runtime tract --save-state s",
        "verify X --digests --report github=r.md",
    ]
    .map(str::to_owned)
    .into();
    if has_ort() {
        calls.push(format!("calibrate X {train} --threads 1"));
        calls.push(format!("finetune X {train} --threads 1 --checkpoint-every 1"));
    }
    calls
}

/// All files below, by their bytes, but for what training keeps for itself and the records of batches.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(at).expect("a directory").flatten() {
            let name = entry.file_name();
            let is_dir = entry.file_type().expect("a type").is_dir();
            match is_dir {
                true if name == ".dijiang-batch" => {}
                true => open.push(entry.path()),
                // Lines of a run that broke off.
                false if name == "metrics.jsonl" => {}
                false => _ = found.insert(entry.path(), std::fs::read(entry.path()).expect("it is read")),
            }
        }
    }
    found
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory").flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Refused for want of room, a line for each thing that could not be written; what there was is there.
fn nothing_changed(
    call: &str,
    output: &Output,
    before: &BTreeMap<PathBuf, Vec<u8>>,
    after: &BTreeMap<PathBuf, Vec<u8>>,
) {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{call}: {told}");
    let is_known = |line: &str| line.starts_with("error: ") || line == "a: it is new";
    assert!(told.lines().all(is_known) && !told.contains("panicked"), "{call}: {told}");
    let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    // Graphs of a run that came to nothing are whole, and written anew by the next.
    let is_whole = |path: &&&PathBuf| {
        path.parent().is_some_and(|p| p.ends_with("X/train")) && path.extension().is_some_and(|e| e == "onnx")
    };
    let reports = ["r.json", "r.xml"];
    let is_report = |path: &&&PathBuf| reports.iter().any(|name| path.ends_with(name));
    let left: Vec<_> = new.iter().filter(|path| !is_whole(path) && !is_report(path)).collect();
    assert!(left.is_empty(), "{call}: {left:?}");
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)), "{call}: something was lost");
}

/// A limit on the size of files stands for a disk that is full, at the first byte and later.
#[test]
fn files_that_may_not_grow_leave_all_as_it_was() {
    let home = with_bundle();
    let before = snapshot(home.0.path());
    let limited = |call: &str, limit: u32| {
        let script = format!("ulimit -f {limit}; exec \"$0\" {call}");
        let mut command = Command::new("bash");
        command.args(["-c", &script, DIJIANG]).current_dir(home.0.path()).output().expect("it runs")
    };
    for call in writers() {
        let mut refused = 0;
        for limit in [0, 200, 1000] {
            let output = limited(&call, limit);
            // What is smaller than the limit is written, and no later limit is below it.
            if output.status.code() == Some(0) {
                break;
            }
            refused += 1;
            nothing_changed(&call, &output, &before, &snapshot(home.0.path()));
            clear(&home, &before);
        }
        assert!(refused > 0, "{call}");
        restore(&home, &before);
    }
}

/// Removes what is new.
fn clear(home: &Home, before: &BTreeMap<PathBuf, Vec<u8>>) {
    let new = snapshot(home.0.path()).into_keys().filter(|path| !before.contains_key(path));
    new.for_each(|path| std::fs::remove_file(path).expect("it was there"));
    for directory in [".dijiang-batch", "bundles", "Q", "X/train"] {
        let _ = std::fs::remove_dir_all(home.path(directory));
    }
}

fn restore(home: &Home, before: &BTreeMap<PathBuf, Vec<u8>>) {
    clear(home, before);
    before.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).expect("it is written"));
}

/// In a file system of its own, for those who may make one: nearly full, or one that nothing is written to.
#[test]
fn a_file_system_that_is_full_or_read_only_is_left_as_it_was() {
    let home = with_bundle();
    std::fs::create_dir(home.path("m")).expect("it is made");
    let mounted = |call: &str, options: &str| {
        let script = format!(
            "mount -t tmpfs -o size=64m none m && cp -r X in w.safetensors jobs.yaml m && cd m || exit 99
            find . -type f -exec sha256sum {{}} + | sort > ../before
            used=$(df -k --output=used . | tail -1)
            mount -o remount,{options} . || exit 99
            \"$0\" {call} > ../out 2> ../err; code=$?
            find . -type f ! -path '*/train/*' ! -name 'r.*' ! -path '*/.dijiang-batch/*' -exec sha256sum {{}} + | sort > ../after
            exit $code"
        );
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", &script, DIJIANG]).current_dir(home.0.path()).output()
    };
    let is_able = mounted("--version", "ro").is_ok_and(|output| output.status.code() == Some(0));
    if !is_able {
        eprintln!("skipped: no file system can be made here");
        return;
    }
    for (options, cause) in
        [("size=$((used + 0))k", "No space left on device"), ("ro", "Read-only file system")]
    {
        for call in writers() {
            let output = mounted(&call, options).expect("it runs");
            let [told, before, after] = ["err", "before", "after"]
                .map(|name| std::fs::read_to_string(home.path(name)).expect("a file"));
            assert_eq!(output.status.code(), Some(2), "{call}: {told}");
            // A conversion and a training ask before they begin.
            let foretold = options != "ro" && told.contains(" are free (hint: ");
            assert!((told.contains(cause) || foretold) && !told.contains("panicked"), "{call}: {told}");
            assert!(!before.is_empty() && before == after, "{call}, {options}: {before}\n{after}");
        }
    }
}

#[test]
fn a_summary_is_appended_whole_or_not_at_all() {
    let home = with_bundle();
    let call = "verify X --digests --report github=r.md";
    let limited = || {
        let script = format!("ulimit -f 1; exec \"$0\" {call}");
        let output = Command::new("bash").args(["-c", &script, DIJIANG]).current_dir(home.0.path()).output();
        expect(2, &output.expect("it runs"))
    };
    let before = "x".repeat(1000);
    std::fs::write(home.path("r.md"), &before).expect("it is written");
    assert!(
        limited()
            .ends_with("error: r.md: File too large (os error 27) (hint: make room, or name another disk)\n")
    );
    assert_eq!(std::fs::read_to_string(home.path("r.md")).expect("it is there"), before);
}

/// A bundle is replaced with its directory, and what else lies there would go with it: the source itself, say.
#[test]
fn what_is_no_file_of_a_bundle_is_not_replaced_with_it() {
    let home = with_bundle();
    expect(0, &home.run("convert in -o Q --no-verify --dtype f32"));
    std::fs::rename(home.path("in"), home.path("X/in")).expect("it is moved");
    std::fs::rename(home.path("Q"), home.path("X/Q")).expect("it is moved");
    std::fs::write(home.path("X/mine.yaml"), "name: mine\n").expect("it is written");
    let before = snapshot(home.0.path());
    let refused = |name: &str, call: &str| {
        let told = expect(2, &home.run(call));
        let expected = "it is no file of the bundle, which is replaced with all that is in it (hint: move it out of the bundle)";
        assert!(told.starts_with("error: X/") && told.ends_with(&format!(": {expected}\n")), "{told}");
        assert!(name.is_empty() || told.starts_with(&format!("error: X/{name}: ")), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(snapshot(home.0.path()) == before, "{call}");
    };
    refused("", "convert X/in -o X --no-verify --force");
    refused("", "convert X/in -o X --no-verify --force --recipe X/mine.yaml");
    refused("", "quantize X/Q -o X --no-verify --force");
    for name in ["in", "Q", "mine.yaml"] {
        std::fs::rename(home.path("X").join(name), home.path(name)).expect("it is moved");
    }
    // What commands wrote there is no foreign file.
    expect(0, &home.run("import-weights X w.safetensors"));
    expect(0, &home.run("export-torch X"));
    expect(0, &home.run("convert in -o X --no-verify --force --checksums"));
    expect(0, &home.run("convert in -o X --no-verify --force"));
    // A bundle inside its source takes nothing with it.
    expect(0, &home.run("convert in -o in/X --no-verify"));
    expect(0, &home.run("convert in -o in/X --no-verify --force"));
    assert!(home.path("in/model.safetensors").exists());
}

#[test]
fn paths_are_taken_however_they_are_spelled() {
    let home = with_bundle();
    let long = "n".repeat(255);
    std::fs::create_dir(home.path("real")).expect("it is made");
    std::os::unix::fs::symlink("real", home.path("link")).expect("a link");
    let convert = |output: &str| {
        let mut command = Command::new(DIJIANG);
        command.args(["convert", "in", "--no-verify", "--dtype", "f32", "--force", "-o", output]);
        command.current_dir(home.0.path()).output().expect("it runs")
    };
    for (output, made) in [
        ("a b", "a b"),
        ("new\nline", "new\nline"),
        ("dot/.", "dot"),
        ("slash/", "slash"),
        ("link/", "real"),
        (long.as_str(), long.as_str()),
    ] {
        // Made, and then replaced.
        for _ in 0..2 {
            expect(0, &convert(output));
            assert!(home.path(made).join("dijiang.json").is_file(), "{output}");
        }
    }
    assert!(home.path("link").is_symlink());
    // Whatever writes to it works with the longest name, and leaves nothing beside it.
    let own = names(home.0.path());
    let state = "s".repeat(255);
    for call in [
        format!("import-weights {long} w.safetensors"),
        format!("quantize {long} -o {long} --no-verify --force"),
        format!("generate X --prompt RO -n 1 --runtime tract --save-state {state}"),
    ] {
        expect(0, &home.run(&call));
    }
    std::fs::remove_file(home.path(&state)).expect("it was written");
    assert_eq!(names(home.0.path()), own);
    // Names that a terminal would obey are told as they are spelled.
    std::fs::create_dir(home.path("r\u{1b}[31m\r\u{2028}")).expect("it is made");
    let told = expect(2, &convert("r\u{1b}[31m\r\u{2028}/../in"));
    assert_eq!(
        told,
        "error: r\\u{1b}[31m\\r\\u{2028}/../in: it is not a bundle (no dijiang.json in it), so it is not replaced\n"
    );
    let told = expect(2, &convert("new\nline/dijiang.json"));
    assert_eq!(told.lines().count(), 1, "{told}");
}

/// Whatever starts the tests may ignore signals, which a child would then too.
fn begin(home: &Home, call: &str) -> Child {
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,TERM,HUP", DIJIANG]).args(call.split_whitespace());
    command
        .current_dir(home.0.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

#[test]
fn a_signal_leaves_what_was_there() {
    if !has_ort() {
        return;
    }
    let home = with_bundle();
    let before = snapshot(home.0.path());
    let train = format!("--data {MODEL}/valid.txt --batch 4 --context 64 --threads 1 --steps 100000");
    for (call, sign) in [
        (format!("calibrate X {train} --no-fit"), "X/train/metrics.jsonl"),
        (format!("finetune X {train} --checkpoint-every 1"), "X/train/checkpoint.safetensors"),
        ("quantize X -o X --force".to_owned(), ".X.tmp-"),
        ("batch jobs.yaml".to_owned(), "bundles"),
    ] {
        for (signal, code) in [("INT", 130), ("TERM", 143)] {
            let child = begin(&home, &call);
            let until = Instant::now() + Duration::from_mins(1);
            let is_there =
                || home.path(sign).exists() || names(home.0.path()).iter().any(|n| n.starts_with(sign));
            while !is_there() {
                assert!(Instant::now() < until, "{call}: it never began");
                std::thread::sleep(Duration::from_millis(1));
            }
            let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", child.id())).status();
            assert!(sent.expect("it runs").success());
            let output = child.wait_with_output().expect("it ends");
            let told = expect(code, &output);
            let last = told.lines().last().unwrap_or_default();
            assert!(last.starts_with("interrupted") && !told.contains("panicked"), "{call}: {told}");
            let trains = call.starts_with("calibrate") || call.starts_with("finetune");
            let kept = told.contains("interrupted: X has its weights of before\n");
            assert_eq!(trains, kept, "{call}: {told}");
            let after = snapshot(home.0.path());
            assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)), "{call}");
            clear(&home, &before);
            assert_eq!(names(home.0.path()), ["X", "in", "jobs.yaml", "w.safetensors"], "{call}");
        }
    }
}

/// ONNX Runtime maps the weights, and the system sends a signal to whoever reads what is gone.
#[test]
fn weights_that_are_cut_while_they_are_served_are_named() {
    if !has_ort() {
        return;
    }
    let home = with_bundle();
    let weights = home.path("X/model.safetensors");
    let expected = "error: X/model.safetensors: it was cut short while it was read (hint: is another program writing it? Begin again when it is complete)\n";
    // When they are read depends on what else the machine does; until then the cut is found otherwise, or too late.
    let is_named = (1..=12).any(|attempt| {
        std::fs::copy(home.path("w.safetensors"), &weights).expect("a copy");
        let child = begin(&home, &format!("eval X --perplexity {MODEL}/train.txt --context 256"));
        let maps = format!("/proc/{}/maps", child.id());
        let is_mapped =
            || std::fs::read_to_string(&maps).is_ok_and(|text| text.contains("/model.safetensors"));
        let until = Instant::now() + Duration::from_mins(1);
        while !is_mapped() {
            assert!(Instant::now() < until, "it never began");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(100 * attempt));
        let file = std::fs::File::options().write(true).open(&weights).expect("it opens");
        file.set_len(1 << 16).expect("it is cut");
        let output = child.wait_with_output().expect("it ends");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(0 | 2)), "{:?}: {told}", output.status);
        assert!(told.lines().count() <= 1, "{told}");
        told == expected
    });
    assert!(is_named, "it was never named");
}

/// What was written is there, and the exit code tells whether all was.
#[test]
fn a_reader_that_is_gone_or_full_loses_no_bundle() {
    let home = with_bundle();
    for call in [
        "convert in -o Q --no-verify --json",
        "quantize X -o Q --no-verify --json",
        "import-weights X w.safetensors --json",
        "batch jobs.yaml --json",
    ] {
        for is_full in [false, true] {
            let stdout: Stdio = match is_full {
                true => std::fs::File::options().write(true).open("/dev/full").expect("a device").into(),
                false => {
                    let (reader, writer) = std::io::pipe().expect("a pipe");
                    drop(reader);
                    writer.into()
                }
            };
            let mut command = Command::new(DIJIANG);
            command.current_dir(home.0.path()).args(call.split(' ')).arg("-q").stdout(stdout);
            let output = command.output().expect("it runs");
            let expected = match is_full {
                true => (Some(2), "error: stdout: No space left on device (os error 28)\n".to_owned()),
                false => (Some(0), String::new()),
            };
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!((output.status.code(), told), expected, "{call}");
            let bundle = ["Q", "bundles/a", "X"].into_iter().find(|name| home.path(name).exists());
            expect(0, &home.run(&format!("verify {} --digests", bundle.expect("a bundle"))));
            for made in ["Q", "bundles", ".dijiang-batch"] {
                let _ = std::fs::remove_dir_all(home.path(made));
            }
        }
    }
}
