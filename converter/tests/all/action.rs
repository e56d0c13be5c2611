//! The GitHub Action of `action.yml` and the examples of `examples/ci`: their steps are run as they stand, in bash, with
//! the variables that a runner sets. Nothing is fetched but from this machine.

use serde_json::{Value as Json, json};
use serde_yaml::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const DIJIANG: &str = env!("CARGO_BIN_EXE_dijiang");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

fn yaml(file: &str) -> Value {
    let text = std::fs::read_to_string(repository().join(file)).expect("the file");
    serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

/// The entries of a map; none where the key is missing.
fn entries<'a>(value: &'a Value, key: &str) -> Vec<(&'a str, &'a Value)> {
    let map = value.get(key).and_then(Value::as_mapping);
    map.into_iter().flatten().map(|(key, value)| (key.as_str().expect("a name"), value)).collect()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_sequence).unwrap_or_else(|| panic!("a list of {key}"))
}

/// A program that does what `batch` is to do for one job, by `convert` and `verify`, and writes down how it was called.
const STAND_IN: &str = r#"#!/usr/bin/env bash
set -euo pipefail
printf '%s\n' "$*" >>"$HOME/calls"
if [[ $1 != batch ]]; then exec "$REAL" "$@"; fi
if [[ $* == *--dry-run* ]]; then
    printf '{"ok":true,"steps":2,"jobs":[{"name":"a","source":"model","bundle":"bundles/a","recipe":"recipe.yaml","reads":["text.txt"],"digests":[]}]}\n'
    exit
fi
reports=()
for argument in "$@"; do
    if [[ $argument == --report=* ]]; then reports+=("$argument"); fi
done
"$REAL" convert model -o bundles/a --force --no-verify
if [[ -n ${SPOILED:-} ]]; then rm bundles/a/softmax.onnx; fi
"$REAL" verify bundles/a --runtime tract "${reports[@]}"
"#;

/// A machine that runs actions: its directory is the workspace.
struct Runner {
    home: TempDir,
    variables: BTreeMap<String, String>,
}

/// What an action did.
struct Acted {
    /// The exit status of the first step that failed, or 0.
    status: i32,
    /// What its steps printed, both streams.
    log: String,
    /// What the action itself puts out.
    outputs: BTreeMap<String, String>,
}

impl Runner {
    /// With the stand-in for `batch` in PATH, a model, a text and a recipe.
    fn new() -> Self {
        let runner = Self::with("#!/usr/bin/env bash\nexec \"$REAL\" \"$@\"\n");
        runner.write_program("bin/dijiang", STAND_IN);
        runner.write("text.txt", "some text");
        runner.write("recipe.yaml", "a recipe");
        runner
    }

    fn with(program: &str) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| home.path().join(name).display().to_string();
        let path = format!("{}:{}", at("bin"), std::env::var("PATH").expect("PATH"));
        let action = repository().display().to_string();
        let variables = [
            ("PATH", path),
            ("HOME", at("")),
            ("REAL", DIJIANG.to_owned()),
            ("GITHUB_ACTIONS", "true".to_owned()),
            ("GITHUB_WORKSPACE", at("")),
            ("GITHUB_ACTION_PATH", action),
            ("GITHUB_STEP_SUMMARY", at("summary.md")),
            ("GITHUB_SERVER_URL", format!("file://{}", at("server"))),
            ("RUNNER_TEMP", at("temporary")),
        ];
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let runner = Self { home, variables };
        for directory in ["bin", "temporary", "model"] {
            std::fs::create_dir(runner.path(directory)).expect("a directory");
        }
        runner.write_program("bin/dijiang", program);
        for entry in std::fs::read_dir(repository().join("fixtures/llama")).expect("the fixture") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), runner.path("model").join(entry.file_name())).expect("a copy");
        }
        runner
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).expect("it is written");
    }

    fn write_program(&self, name: &str, content: &str) {
        self.write(name, content);
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("the file")
    }

    /// The words that the program was called with, call by call.
    fn calls(&self) -> Vec<String> {
        self.read("calls").lines().map(str::to_owned).collect()
    }

    /// A command of bash as a runner starts it.
    fn bash(&self, script: &str, variables: &BTreeMap<String, String>) -> Output {
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc", "-eo", "pipefail", "-c", script]).stdin(Stdio::null());
        command.current_dir(self.home.path()).env_clear().envs(&self.variables).envs(variables);
        for name in ["ORT_DYLIB_PATH", "LD_LIBRARY_PATH"] {
            if let Ok(value) = std::env::var(name) {
                command.env(name, value);
            }
        }
        command.output().expect("bash runs")
    }

    /// Runs every shell step of the action, up to the first that fails.
    fn act(&self, inputs: &[(&str, &str)]) -> Acted {
        let action = yaml("action.yml");
        let mut known = Context::default();
        for (name, input) in entries(&action, "inputs") {
            let given = inputs.iter().find(|(given, _)| *given == name).map(|(_, value)| *value);
            let value = given.or(text(input, "default")).unwrap_or_else(|| panic!("the input {name}"));
            known.set(format!("inputs.{name}"), value);
        }
        known.set("github.action_repository || github.repository", "house/dijiang");
        let (mut status, mut log) = (0, String::new());
        for step in list(&action["runs"], "steps") {
            let Some(run) = text(step, "run").filter(|_| status == 0) else { continue };
            let ran = self.step(step, run, &mut known);
            status = ran.status.code().expect("an exit status");
            log += &String::from_utf8_lossy(&ran.stdout);
            log += &String::from_utf8_lossy(&ran.stderr);
        }
        let outputs = entries(&action, "outputs").into_iter();
        let outputs = outputs
            .map(|(name, output)| (name.to_owned(), known.resolved(text(output, "value").expect("a value"))));
        Acted { status, log, outputs: outputs.collect() }
    }

    fn step(&self, step: &Value, run: &str, known: &mut Context) -> Output {
        assert_eq!(text(step, "shell"), Some("bash"));
        assert!(!run.contains("${{"), "what is put in a script is run: {run}");
        let output = self.path("output");
        std::fs::write(&output, "").expect("an empty file");
        let mut variables: BTreeMap<_, _> = entries(step, "env")
            .into_iter()
            .map(|(name, value)| (name.to_owned(), known.resolved(value.as_str().expect("text"))))
            .collect();
        variables.insert("GITHUB_OUTPUT".to_owned(), output.display().to_string());
        let ran = self.bash(run, &variables);
        let id = text(step, "id").expect("an id");
        for (name, value) in outputs(&self.read("output")) {
            known.set(format!("steps.{id}.outputs.{name}"), &value);
        }
        ran
    }
}

/// What is written to $GITHUB_OUTPUT: NAME=VALUE, or NAME<<END with lines up to END.
fn outputs(written: &str) -> Vec<(String, String)> {
    let (mut found, mut lines) = (Vec::new(), written.lines());
    while let Some(line) = lines.next() {
        if let Some((name, end)) = line.split_once("<<") {
            let value: Vec<&str> = lines.by_ref().take_while(|line| *line != end).collect();
            found.push((name.to_owned(), value.join("\n")));
        } else {
            let (name, value) = line.split_once('=').expect("NAME=VALUE");
            found.push((name.to_owned(), value.to_owned()));
        }
    }
    found
}

/// What expressions stand for.
#[derive(Default)]
struct Context(BTreeMap<String, String>);

impl Context {
    fn set(&mut self, expression: impl Into<String>, value: &str) {
        self.0.insert(expression.into(), value.to_owned());
    }

    /// The text with each expression's value in place of it. Outputs of steps that did not run are empty.
    fn resolved(&self, template: &str) -> String {
        let (mut done, mut rest) = (String::new(), template);
        while let Some((before, (expression, after))) =
            rest.split_once("${{").map(|(before, from)| (before, from.split_once("}}").expect("an end")))
        {
            let expression = expression.trim();
            done += before;
            match self.0.get(expression) {
                Some(value) => done += value,
                None => assert!(expression.starts_with("steps."), "{expression}"),
            }
            rest = after;
        }
        done + rest
    }
}

#[test]
fn the_action_runs_the_jobs_and_tells_what_came_of_it() {
    let runner = Runner::new();
    let acted = runner.act(&[
        ("file", "jobs.yaml"),
        ("only", "a\n  b*  \n\n"),
        ("shard", "1/2"),
        ("keep-going", "true"),
        ("publish", "published"),
    ]);
    assert_eq!(acted.status, 0, "{}", acted.log);
    let calls = runner.calls();
    let common = "--only=a --only=b* --shard=1/2";
    assert_eq!(calls[0], "--version");
    assert_eq!(calls[1], format!("batch jobs.yaml --dry-run --json --digests {common}"));
    assert!(
        calls[2].starts_with(&format!("batch jobs.yaml {common} --keep-going --report=json=")),
        "{calls:?}"
    );
    assert_eq!(calls.len(), 3);

    let output = |name: &str| acted.outputs[name].as_str();
    assert_eq!((output("exit-status"), output("bundles")), ("0", "bundles/a"));
    let report: Json = serde_json::from_str(&runner.read(output("report"))).expect("JSON");
    assert!(report["cases"].as_array().is_some_and(|cases| cases.len() > 3), "{report}");
    assert!(runner.read(output("junit")).starts_with("<?xml"));
    assert!(runner.read("summary.md").starts_with("## dijiang verify: "));
    assert!(runner.path("bundles/a/dijiang.json").is_file());
    assert!(runner.read("published/SHA256SUMS").ends_with("  a.tar.gz\n"));
    assert!(!acted.log.contains("::error"), "{}", acted.log);
}

#[test]
fn a_failed_check_fails_the_action_and_its_outputs_are_there() {
    let mut runner = Runner::new();
    runner.variables.insert("SPOILED".into(), "1".into());
    let acted = runner.act(&[("file", "jobs.yaml"), ("report", "out/reports")]);
    assert_eq!((acted.status, acted.outputs["exit-status"].as_str()), (1, "1"), "{}", acted.log);
    assert_eq!(acted.outputs["report"], "out/reports/report.json");
    assert!(
        runner.path("out/reports/report.json").is_file() && runner.path("out/reports/junit.xml").is_file()
    );
    assert!(acted.log.contains("\n::error::bundles/a: "), "{}", acted.log);
    assert!(runner.read("summary.md").contains("| **failed** |"));
}

/// Runs the step that digests, alone, for a part of the jobs.
fn digest_step(runner: &Runner, shard: &str) -> Output {
    let at = |name: &str| runner.path(name).display().to_string();
    let variables = [
        ("DIJIANG", at("bin/dijiang")),
        ("FILE", "jobs.yaml".to_owned()),
        ("ONLY", String::new()),
        ("SHARD", shard.to_owned()),
        ("GITHUB_OUTPUT", at("digested")),
    ];
    runner.write("digested", "");
    let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
    runner.bash("python3 \"$GITHUB_ACTION_PATH/ci/digest.py\"", &variables)
}

fn digested(runner: &Runner, wanted: &str) -> String {
    digested_of("", runner, wanted)
}

fn digested_of(shard: &str, runner: &Runner, wanted: &str) -> String {
    let ran = digest_step(runner, shard);
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    let found = outputs(&runner.read("digested")).into_iter().find(|(name, _)| name == wanted);
    found.expect("the output").1
}

#[test]
fn the_digest_is_of_contents() {
    let runner = Runner::with("#!/usr/bin/env bash\nexec \"$REAL\" \"$@\"\n");
    runner.write("text.txt", "some text");
    runner.write("recipe.yaml", "name: mine\nmap: {kind: dct-softmax}\n");
    let job = "{name: a, model: model, recipe: recipe.yaml, steps: [{eval: {perplexity: text.txt}}]}";
    runner.write("jobs.yaml", &format!("version: 1\njobs: [{job}]\n"));
    let digest = || digested(&runner, "digest");
    let first = digest();
    assert!(first.len() == 64 && first.bytes().all(|b| b.is_ascii_hexdigit()), "{first}");
    // Written anew, and beside a file that nothing reads.
    runner.write("text.txt", "some text");
    runner.write("other.txt", "more");
    runner.write("model/README.md", "more");
    assert_eq!(digest(), first);
    for changed in ["text.txt", "recipe.yaml", "model/config.json", "bin/dijiang"] {
        let before = runner.read(changed);
        runner.write(changed, &(before.clone() + "\n"));
        assert_ne!(digest(), first, "{changed}");
        runner.write(changed, &before);
        assert_eq!(digest(), first, "{changed}");
    }
    let [was, is] = ["model/generation_config.json", "model/other.json"].map(|name| runner.path(name));
    std::fs::rename(was, is).expect("a name");
    assert_ne!(digest(), first, "a file has another name");
}

#[test]
fn what_is_cached_are_the_bundles_of_the_plan_and_the_records() {
    let runner = Runner::new();
    let cached = |bundles: &[&str]| {
        let jobs: Vec<Json> = bundles.iter().map(|bundle| json!({"bundle": bundle, "digests": []})).collect();
        runner.write_program("bin/dijiang", &format!("#!/bin/sh\necho '{}'\n", json!({"jobs": jobs})));
        digested(&runner, "cached")
    };
    assert_eq!(cached(&["out/b", "out/a", "more/c"]), "more/c\nout/a\nout/b\n.dijiang-batch");
    // Parts of the jobs have caches of their own.
    let selected = |shard: &str| digested_of(shard, &runner, "selection");
    assert_eq!(selected("1/2"), selected("1/2"));
    assert_ne!(selected("1/2"), selected("2/2"));
    let action = yaml("action.yml");
    let caches = list(&action["runs"], "steps").iter().filter(|step| text(step, "uses").is_some());
    let keys: Vec<&str> = caches
        .flat_map(|step| ["key", "restore-keys"].into_iter().filter_map(|key| text(&step["with"], key)))
        .collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| key.contains("-${{ steps.digest.outputs.selection }}-")), "{keys:?}");
}

#[test]
fn the_cache_has_what_the_plan_has() {
    let runner = Runner::new();
    let cache = |how: &str, cached: &str| {
        let variables = [("CACHED".to_owned(), cached.to_owned())].into();
        let ran = runner.bash(&format!("\"$GITHUB_ACTION_PATH/ci/cache.sh\" {how}"), &variables);
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    };
    cache("unpack", "");
    let make =
        "mkdir -p out .dijiang-batch && cp -r model out/a && cp -r model out/old && touch .dijiang-batch/x";
    assert!(runner.bash(make, &BTreeMap::new()).status.success());
    cache("pack", "out/a\nout/b\n.dijiang-batch");
    assert!(runner.bash("rm -r out .dijiang-batch", &BTreeMap::new()).status.success());
    cache("unpack", "");
    assert!(runner.path("out/a/config.json").exists() && runner.path(".dijiang-batch/x").exists());
    assert!(!runner.path("out/old").exists(), "what is no part of the plan is not kept");
}

#[test]
fn a_file_of_jobs_that_is_wrong_ends_the_action_by_its_own_words() {
    let runner = Runner::new();
    runner.write_program("bin/dijiang", "#!/bin/sh\necho 'error: jobs.yaml:1:1' >&2\nexit 2\n");
    let refused = digest_step(&runner, "");
    assert_eq!((refused.status.code(), refused.stderr.as_slice()), (Some(2), &b"error: jobs.yaml:1:1\n"[..]));
}

#[test]
fn a_program_that_is_not_there_is_told_in_an_annotation() {
    let runner = Runner::new();
    let refused = |inputs: &[(&str, &str)]| {
        let acted = runner.act(&[&[("file", "jobs.yaml")], inputs].concat());
        assert_eq!((acted.status, acted.outputs["exit-status"].as_str()), (2, ""), "{}", acted.log);
        acted.log.lines().rfind(|line| line.starts_with("::error::")).expect("an annotation").to_owned()
    };
    assert_eq!(refused(&[("binary", "missing")]), "::error::missing: it is no program that can be run");
    assert_eq!(refused(&[("binary", "text.txt")]), "::error::text.txt: it is no program that can be run");
    assert!(
        refused(&[("version", "v9")])
            .contains("releases/download/v9/SHA256SUMS: it cannot be fetched (hint: ")
    );
    std::fs::remove_file(runner.path("bin/dijiang")).expect("it is removed");
    assert!(refused(&[]).starts_with("::error::there is no dijiang in PATH (hint: "));
}

#[test]
fn the_program_of_a_release_is_held_to_its_checksum() {
    let runner = Runner::new();
    let name = runner.bash("printf %s \"dijiang-$(uname -s)-$(uname -m)\"", &BTreeMap::new());
    let name = String::from_utf8(name.stdout).expect("UTF-8");
    let release = "server/house/dijiang/releases/download/v1";
    std::fs::create_dir_all(runner.path(release)).expect("a directory");
    std::fs::rename(runner.path("bin/dijiang"), runner.path(&format!("{release}/{name}"))).expect("a name");
    let published = "cd server/house/dijiang/releases/download/v1 && sha256sum dijiang-* >SHA256SUMS";
    assert!(runner.bash(published, &BTreeMap::new()).status.success());
    let acted = runner.act(&[("file", "jobs.yaml"), ("version", "v1")]);
    assert_eq!(acted.status, 0, "{}", acted.log);
    assert_eq!(runner.calls()[0], "--version");

    let changed = runner.read(&format!("{release}/{name}")) + "#";
    runner.write(&format!("{release}/{name}"), &changed);
    let acted = runner.act(&[("file", "jobs.yaml"), ("version", "v1")]);
    assert_eq!(acted.status, 2, "{}", acted.log);
    assert!(
        acted.log.contains(&format!("::error::v1: {name} is not what SHA256SUMS says\n")),
        "{}",
        acted.log
    );
    assert_eq!(runner.calls().len(), 3, "what is not what it should be is not run");

    runner.write(&format!("{release}/SHA256SUMS"), "00  other\n");
    let acted = runner.act(&[("file", "jobs.yaml"), ("version", "v1")]);
    assert!(
        acted.log.contains(&format!("::error::v1: its SHA256SUMS does not list {name}\n")),
        "{}",
        acted.log
    );
}

#[test]
fn what_is_published_has_checksums_and_is_the_same_every_time() {
    let runner = Runner::new();
    let publish = |arguments: &str| {
        runner.bash(&format!("\"$GITHUB_ACTION_PATH/ci/publish.sh\" {arguments}"), &BTreeMap::new())
    };
    let checked = |script: &str| runner.bash(script, &BTreeMap::new()).status.code();
    assert!(publish("out model text.txt").status.success());
    assert_eq!(
        checked("cd out && sha256sum --check --strict SHA256SUMS && grep -c . SHA256SUMS | grep -x 2"),
        Some(0)
    );
    assert_eq!(
        checked("mkdir unpacked && tar -xf out/model.tar.gz -C unpacked && diff -r model unpacked/model"),
        Some(0)
    );
    assert_eq!(
        checked("umask 077; touch model/*; cp -r model copy && rm -r model && mv copy model"),
        Some(0)
    );
    assert!(publish("again model text.txt").status.success());
    assert_eq!(runner.read("again/SHA256SUMS"), runner.read("out/SHA256SUMS"));
    assert_eq!(checked("echo more >>out/text.txt; cd out && sha256sum --check SHA256SUMS"), Some(1));

    std::fs::create_dir_all(runner.path("other/model")).expect("a directory");
    let twice = publish("third model other/model");
    assert_eq!(twice.status.code(), Some(2));
    assert_eq!(
        String::from_utf8_lossy(&twice.stderr),
        "error: third/model.tar.gz is there already (hint: publish into an empty directory, under one name each)\n"
    );
    assert_eq!(publish("fourth").status.code(), Some(2));
    // Nothing of a call that failed is there, and what was there before is no result of it.
    assert!(!runner.path("third/model.tar.gz").exists());
    assert_eq!(checked("test -z \"$(ls -A third)\""), Some(0));
    runner.write("third/notes.txt", "mine");
    std::fs::create_dir(runner.path("model/train")).expect("a directory");
    assert!(publish("third model").status.success());
    assert_eq!(runner.read("third/SHA256SUMS").lines().count(), 1);
    assert_eq!(
        runner.read("third/SHA256SUMS").split(' ').next(),
        runner.read("out/SHA256SUMS").split(' ').next(),
        "what training keeps is left out"
    );
    assert_eq!(publish("third text.txt").status.code(), Some(2), "one call, one list");
}

#[test]
fn the_workflow_calls_what_there_is() {
    let workflow = yaml(".github/workflows/bundles.yml");
    let action = yaml("action.yml");
    let inputs: Vec<&str> = entries(&action, "inputs").into_iter().map(|(name, _)| name).collect();
    let outputs: Vec<&str> = entries(&action, "outputs").into_iter().map(|(name, _)| name).collect();
    let mut called = 0;
    for (name, job) in entries(&workflow, "jobs") {
        for step in list(job, "steps") {
            if text(step, "uses") == Some("./") {
                called += 1;
                let given = entries(step, "with");
                assert!(given.iter().all(|(input, _)| inputs.contains(input)), "{name}: {given:?}");
            }
            let run = text(step, "run").unwrap_or_default();
            assert!(!run.contains("${{"), "what is put in a script is run: {run}");
            for script in run.split_whitespace().filter(|word| word.starts_with("ci/")) {
                assert!(repository().join(script).is_file(), "{script}");
            }
        }
    }
    assert_eq!(called, 1);
    let written = std::fs::read_to_string(repository().join(".github/workflows/bundles.yml")).expect("it");
    for used in written.split("steps.batch.outputs.").skip(1) {
        let name: String = used.chars().take_while(|c| c.is_ascii_alphabetic() || *c == '-').collect();
        assert!(outputs.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn the_workflow_publishes_the_bundles_of_its_action() {
    let runner = Runner::new();
    runner.bash("mkdir -p bundles && cp -r model bundles/a && cp -r model bundles/b", &BTreeMap::new());
    std::os::unix::fs::symlink(repository().join("ci"), runner.path("ci")).expect("a link");
    let workflow = yaml(".github/workflows/bundles.yml");
    let step = |job: &str, name: &str| {
        let steps = list(&workflow["jobs"][job], "steps");
        let step = steps.iter().find(|step| text(step, "name") == Some(name)).expect("the step");
        text(step, "run").expect("a script").to_owned()
    };
    let action = yaml("action.yml");
    let archive = list(&action["runs"], "steps").iter().find(|step| text(step, "id") == Some("publish"));
    let archive = archive.and_then(|step| text(step, "run")).expect("a script");
    let variables = |directory: &str, bundles: &str| {
        let variables = [("PUBLISH", directory), ("BUNDLES", bundles)];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    };
    assert!(runner.bash(archive, &variables("published", "")).status.success());
    assert!(!runner.path("published").exists(), "a part without jobs has nothing to publish");
    assert!(runner.bash(archive, &variables("", "bundles/a")).status.success());
    assert!(runner.bash(archive, &variables("published", "bundles/a\nbundles/b")).status.success());

    let gather = step("publish", "Check, and put together");
    runner.bash("mkdir -p parts/program && cp bin/dijiang parts/program/dijiang-x && mv published parts/bundles-1-of-2", &BTreeMap::new());
    let ran = runner.bash(&gather, &BTreeMap::new());
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let sums = runner.read("release/SHA256SUMS");
    let names: Vec<&str> = sums.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(names, ["a.tar.gz", "b.tar.gz", "dijiang-x"]);

    runner.bash("rm -r release && echo more >>parts/bundles-1-of-2/a.tar.gz", &BTreeMap::new());
    assert!(!runner.bash(&gather, &BTreeMap::new()).status.success());
    assert!(!runner.path("release").exists(), "what was changed on the way is not put together");
}

/// The shards of the calls so far, in order.
fn shards(runner: &Runner) -> Vec<String> {
    let mut found: Vec<String> = runner
        .calls()
        .iter()
        .map(|call| {
            let words: Vec<&str> = call.split(' ').collect();
            let ["batch", _, "--shard", shard] = words[..] else { panic!("{call}") };
            shard.to_owned()
        })
        .collect();
    found.sort();
    std::fs::remove_file(runner.path("calls")).expect("it is removed");
    found
}

/// With a program that writes down how it was called, and no more.
fn recorder() -> Runner {
    Runner::with("#!/bin/sh\necho \"$*\" >>\"$HOME/calls\"\n")
}

const PARTS: [&str; 4] = ["1/4", "2/4", "3/4", "4/4"];

#[test]
fn a_job_array_deals_the_parts_to_its_tasks() {
    let runner = recorder();
    // What `--array` is given, and the numbers of its tasks.
    for (first, step) in [(1, 1), (0, 1), (10, 5)] {
        for task in (0..4).map(|at| first + at * step) {
            let variables = [
                ("SLURM_ARRAY_TASK_ID", task),
                ("SLURM_ARRAY_TASK_MIN", first),
                ("SLURM_ARRAY_TASK_MAX", first + 3 * step),
                ("SLURM_ARRAY_TASK_STEP", step),
                ("SLURM_ARRAY_TASK_COUNT", 4),
            ];
            let variables = variables.map(|(name, value)| (name.to_owned(), value.to_string())).into();
            let ran = runner.bash("\"$GITHUB_ACTION_PATH/examples/ci/array.sh\" some.yaml", &variables);
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        }
        assert_eq!(shards(&runner), PARTS);
    }
    let alone = |shards: &str| {
        let variables = [
            ("SLURM_ARRAY_TASK_ID", "3"),
            ("SLURM_ARRAY_TASK_MIN", "3"),
            ("SLURM_ARRAY_TASK_STEP", "1"),
            ("SLURM_ARRAY_TASK_COUNT", "1"),
            ("SHARDS", shards),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        runner.bash("\"$GITHUB_ACTION_PATH/examples/ci/array.sh\" some.yaml", &variables).status.code()
    };
    assert_eq!(alone("4"), Some(0));
    assert_eq!(shards(&runner), ["3/4"]);
    assert_eq!((alone(""), runner.path("calls").exists()), (Some(2), false), "one task is not all parts");
    let outside = runner.bash("\"$GITHUB_ACTION_PATH/examples/ci/array.sh\"", &BTreeMap::new());
    assert_eq!((outside.status.code(), runner.path("calls").exists()), (Some(2), false));
    let said = String::from_utf8_lossy(&outside.stderr);
    assert!(
        said.starts_with("error: no task of a job array runs this (hint: ") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn an_array_with_gaps_is_refused_unless_its_numbers_are_the_parts() {
    let runner = recorder();
    let task = |id: &str, shards: &str| {
        // `--array=3,5`
        let variables = [
            ("SLURM_ARRAY_TASK_ID", id),
            ("SLURM_ARRAY_TASK_MIN", "3"),
            ("SLURM_ARRAY_TASK_MAX", "5"),
            ("SLURM_ARRAY_TASK_STEP", "1"),
            ("SLURM_ARRAY_TASK_COUNT", "2"),
            ("SHARDS", shards),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        runner.bash("\"$GITHUB_ACTION_PATH/examples/ci/array.sh\" some.yaml", &variables)
    };
    let ran = task("5", "");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!((ran.status.code(), runner.path("calls").exists()), (Some(2), false), "{said}");
    assert!(
        said.contains("from 3 to 5 have gaps") && said.contains("(hint: ") && said.lines().count() == 1,
        "{said}"
    );
    assert!(["3", "5"].iter().all(|id| task(id, "8").status.success()));
    assert_eq!(shards(&runner), ["3/8", "5/8"]);
}

#[test]
fn a_matrix_deals_the_parts_to_its_machines() {
    let workflow = yaml("examples/ci/matrix.yml");
    let job = &workflow["jobs"]["batch"];
    let steps = list(job, "steps");
    let is_action = |step: &&Value| text(step, "uses").is_some_and(|uses| uses.starts_with("OWNER/dijiang@"));
    let action = steps.iter().find(is_action).expect("the step of the action");
    let mut dealt = Vec::new();
    for shard in list(&job["strategy"]["matrix"], "shard") {
        let runner = Runner::new();
        let mut known = Context::default();
        known.set("matrix.shard", shard.as_str().expect("text"));
        let given = entries(action, "with").into_iter();
        let given: Vec<(&str, String)> =
            given.map(|(name, value)| (name, known.resolved(value.as_str().expect("text")))).collect();
        // The release is not there: the program is that of PATH.
        let given = given.iter().filter(|(name, _)| *name != "version");
        let inputs: Vec<(&str, &str)> = given.map(|(name, value)| (*name, value.as_str())).collect();
        let acted = runner.act(&inputs);
        assert_eq!(acted.status, 0, "{}", acted.log);
        let call = runner.calls().into_iter().find(|call| call.contains("--report=")).expect("a run");
        let words: Vec<&str> = call.split(' ').filter_map(|word| word.strip_prefix("--shard=")).collect();
        dealt.push(words.concat());
    }
    assert_eq!(dealt, PARTS);
}

#[test]
fn a_matrix_has_the_program_and_the_runtime() {
    let workflow = yaml("examples/ci/matrix.yml");
    let steps = list(&workflow["jobs"]["batch"], "steps");
    let action = yaml("action.yml");
    let inputs: Vec<&str> = entries(&action, "inputs").into_iter().map(|(name, _)| name).collect();
    let given = steps.iter().flat_map(|step| entries(step, "with"));
    let of_action: Vec<(&str, &Value)> = given.filter(|(name, _)| inputs.contains(name)).collect();
    let tag =
        |name: &str| of_action.iter().find(|(input, _)| *input == name).and_then(|(_, value)| value.as_str());
    let release = format!("v{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(tag("version"), Some(release.as_str()));
    assert!(steps.iter().any(|step| text(step, "uses") == Some(format!("OWNER/dijiang@{release}").as_str())));
    // The script of the runtime, with a `python3` that makes no environment and notes what is to be installed.
    let mut runner = Runner::new();
    runner.variables.insert("GITHUB_ENV".into(), runner.path("env").display().to_string());
    runner.write_program(
        "bin/python3",
        "#!/bin/sh\nmkdir -p \"$3/bin\"\nprintf '#!/bin/sh\\necho \"$*\" >>\"$HOME/calls\"\\n' >\"$3/bin/pip\"\nchmod +x \"$3/bin/pip\"\n",
    );
    let install = steps.iter().find(|step| text(step, "name") == Some("ONNX Runtime")).expect("the step");
    let ran = runner.bash(text(install, "run").expect("a script"), &BTreeMap::new());
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let tested = std::fs::read_to_string(repository().join("run-tests")).expect("it");
    let installed = runner.calls()[0].strip_prefix("install ").expect("an installation").to_owned();
    assert!(tested.contains(&format!("packages=({installed} ")), "{installed}");
    let active = format!("VIRTUAL_ENV={}\n", runner.path("temporary/venv").display());
    assert_eq!(runner.read("env"), active);
}

#[test]
fn make_deals_the_parts_to_its_targets() {
    let runner = recorder();
    let make = |arguments: &str| {
        let script = format!("make --silent -f \"$GITHUB_ACTION_PATH/examples/ci/Makefile\" {arguments}");
        runner.bash(&script, &BTreeMap::new()).status.code()
    };
    assert_eq!(make("-j2"), Some(0));
    assert_eq!(shards(&runner), PARTS);
    assert_eq!(make("SHARDS=2 JOBS=some.yaml shard-2"), Some(0));
    assert_eq!(shards(&runner), ["2/2"]);
    assert_eq!(make("DIJIANG=false"), Some(2));
    for wrong in ["0", "abc", "-1", "1.5", "''", "'1 2'"] {
        assert_eq!(
            (make(&format!("SHARDS={wrong}")), runner.path("calls").exists()),
            (Some(2), false),
            "{wrong}"
        );
    }
}

/// Jobs for the action as it is used: two models, converted and verified.
const JOBS: &str = "
version: 1
defaults:
  out: bundles
  steps: [{convert: {no-verify: true}}, {verify: {runtime: tract}}]
matrix:
  model: [model, other]
  recipe: [adaptive]
  target: [portable]
  dtype: [f32]
";

#[test]
fn the_action_runs_a_batch() {
    let runner = Runner::with("#!/usr/bin/env bash\nexec \"$REAL\" \"$@\"\n");
    assert!(runner.bash("cp -r model other", &BTreeMap::new()).status.success());
    runner.write("jobs.yaml", JOBS);
    let parts: Vec<Acted> = ["1/2", "2/2"]
        .map(|shard| runner.act(&[("file", "jobs.yaml"), ("shard", shard)]))
        .into_iter()
        .inspect(|acted| {
            assert_eq!((acted.status, acted.outputs["exit-status"].as_str()), (0, "0"), "{}", acted.log);
        })
        .collect();
    let bundles: Vec<&str> = parts.iter().map(|acted| acted.outputs["bundles"].as_str()).collect();
    assert!(bundles.iter().all(|bundle| runner.path(bundle).join("dijiang.json").is_file()), "{bundles:?}");
    assert_ne!(bundles[0], bundles[1]);
    assert_ne!(parts[0].outputs["digest"], parts[1].outputs["digest"]);

    // The digest is of the bytes that the jobs read.
    let digest = || runner.act(&[("file", "jobs.yaml")]).outputs["digest"].clone();
    let first = digest();
    assert_eq!(digest(), first);
    let config = runner.read("other/config.json");
    runner.write("other/config.json", &(config + "\n"));
    assert_ne!(digest(), first);
}

#[test]
fn the_jobs_of_the_examples_are_jobs() {
    let jobs = repository().join("examples/ci/jobs.yaml");
    let ran = Command::new(DIJIANG)
        .arg("batch")
        .arg(jobs)
        .arg("--dry-run")
        .arg("--json")
        .output()
        .expect("it runs");
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    let plan: Json = serde_json::from_slice(&ran.stdout).expect("JSON");
    let names: Vec<&str> =
        plan["jobs"].as_array().into_iter().flatten().filter_map(|job| job["name"].as_str()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let reads = plan["jobs"][0]["reads"].as_array().expect("what the steps read");
    assert!(
        reads.iter().any(|path| path.as_str().is_some_and(|path| path.ends_with("valid.txt"))),
        "{reads:?}"
    );
}
