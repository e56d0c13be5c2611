//! Batches of the fixtures: what runs beside what, what is not run again, and what a failure or a kill leaves.

use crate::support::batch::{Home, Program, case, heard, message, plan_job, ran, statuses, suites};
use dijiang::batch::plan::{Plan, Quantity, StepCommand};
use dijiang::batch::run::{RunOptions, children, run};
use dijiang::report::outcome::{CaseStatus, Report};
use dijiang::report::progress::Silent;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MODELS: [&str; 3] = ["llama", "neox", "opt"];

/// One job for each model.
fn three(home: &Home) -> Plan {
    home.plan(MODELS.map(|model| plan_job(home, model, "adaptive", &["--no-verify"])).into())
}

#[test]
fn what_is_up_to_date_runs_no_child_and_one_byte_rebuilds_its_jobs() {
    let home = Home::new(&MODELS);
    let mut jobs = three(&home).jobs;
    jobs.push(plan_job(&home, "neox", "paper", &["--no-verify"]));
    let plan = home.plan(jobs);
    let report = home.run(&plan);
    assert_eq!((report.exit_code(), ran(&report).len()), (0, 4), "{report:?}");
    assert_eq!(message(&report, "opt-adaptive", "convert"), "it is new");

    home.forget_calls();
    let start = Instant::now();
    let report = home.run(&plan);
    let took = start.elapsed();
    assert_eq!(report.exit_code(), 0);
    assert_eq!(message(&report, "opt-adaptive", "convert"), "up to date");
    assert_eq!(home.calls(), [] as [String; 0]);
    assert!(took < Duration::from_secs(2), "{took:?}");

    home.flip(Path::new("neox/model.safetensors"));
    let report = home.run(&plan);
    assert_eq!(report.exit_code(), 0, "{report:?}");
    assert_eq!(ran(&report), ["neox-adaptive", "neox-paper"]);
    assert_eq!(message(&report, "neox-paper", "convert"), "source model.safetensors changed");
    assert!(home.run_suites(&plan).is_empty());
}

#[test]
fn a_directory_that_was_moved_is_up_to_date_and_what_is_not_says_why() {
    let home = Home::new(&["llama"]);
    std::fs::write(home.path("mine.yaml"), "name: mine\nmap: {kind: dct-softmax}\n").expect("it is written");
    let make = |home: &Home| {
        let recipe = home.path("mine.yaml");
        home.plan(vec![plan_job(home, "llama", recipe.to_str().expect("text"), &["--no-verify"])])
    };
    let plan = make(&home);
    assert_eq!(home.run(&plan).exit_code(), 0);
    let moved = home.moved();
    let report = moved.run(&make(&moved));
    assert_eq!((ran(&report).len(), report.exit_code()), (0, 0), "{report:?}");

    let why = |plan: &Plan, options: &RunOptions| {
        let report = moved.run_with(plan, options);
        assert_eq!(report.exit_code(), 0, "{report:?}");
        message(&report, &plan.jobs[0].name, "convert").to_owned()
    };
    let options = RunOptions::default();
    std::fs::write(moved.path("mine.yaml"), "name: mine\nmap: {kind: dct-softmax}\nchunk: 32\n")
        .expect("it is written");
    assert_eq!(why(&make(&moved), &options), "recipe mine.yaml changed");
    let mut other = make(&moved);
    other.jobs[0].steps[0].arguments.push("--seed=7".to_owned());
    assert_eq!(why(&other, &options), "the options of step convert changed");
    std::fs::write(moved.path("llama/tokenizer_config.json"), "{}").expect("it is written");
    assert_eq!(why(&other, &options), "source tokenizer_config.json is new");
    moved.flip(Path::new("out/llama-mine/model.onnx"));
    assert_eq!(why(&other, &options), "its bundle is not as it was left: model.onnx changed");
    assert_eq!(why(&other, &options), "up to date");
    assert_eq!(why(&other, &RunOptions { force: true, ..options }), "all is done anew");
}

#[test]
fn a_graph_is_read_with_the_data_that_it_names_and_nothing_else() {
    let home = Home::new(&["llama"]);
    let first = plan_job(&home, "llama", "adaptive", &["--no-verify"]);
    assert_eq!(home.run(&home.plan(vec![first.clone()])).exit_code(), 0);
    std::fs::create_dir(home.path("graph")).expect("it is made");
    for (from, to) in
        [("softmax.onnx", "m.onnx"), ("model.safetensors", "model.safetensors"), ("model.onnx", "n.onnx")]
    {
        std::fs::copy(first.bundle.join(from), home.path("graph").join(to)).expect("it is copied");
    }
    let plan = home.plan(vec![plan_job(&home, "graph/m.onnx", "adaptive", &["--no-verify"])]);
    let report = home.run(&plan);
    assert_eq!((report.exit_code(), ran(&report).len()), (0, 1), "{report:?}");
    std::fs::write(home.path("graph/notes.txt"), "a note").expect("it is written");
    home.flip(Path::new("graph/n.onnx"));
    assert!(home.run_suites(&plan).is_empty());
    home.flip(Path::new("graph/model.safetensors"));
    let report = home.run(&plan);
    assert_eq!(
        message(&report, &plan.jobs[0].name, "convert"),
        "source model.safetensors changed",
        "{report:?}"
    );
}

#[test]
fn a_directory_with_a_graph_is_read_with_its_hidden_data() {
    let home = Home::new(&["llama"]);
    let first = plan_job(&home, "llama", "adaptive", &["--no-verify"]);
    assert_eq!(home.run(&home.plan(vec![first.clone()])).exit_code(), 0);
    std::fs::create_dir(home.path("graph")).expect("it is made");
    let (name, hidden) = (b"model.safetensors", b".model.safetensor");
    let mut graph = std::fs::read(first.bundle.join("softmax.onnx")).expect("it is there");
    for at in 0..graph.len() - name.len() {
        if graph[at..].starts_with(name) {
            graph[at..at + name.len()].copy_from_slice(hidden);
        }
    }
    std::fs::write(home.path("graph/m.onnx"), graph).expect("it is written");
    let data = Path::new("graph/.model.safetensor");
    std::fs::copy(first.bundle.join("model.safetensors"), home.root().join(data)).expect("it is copied");
    let plan = home.plan(vec![plan_job(&home, "graph", "adaptive", &["--no-verify"])]);
    assert_eq!((home.run(&plan).exit_code(), home.run_suites(&plan).len()), (0, 0));
    home.flip(data);
    let report = home.run(&plan);
    assert_eq!(
        message(&report, "graph-adaptive", "convert"),
        "source .model.safetensor changed",
        "{report:?}"
    );
}

#[test]
fn what_of_a_source_cannot_be_listed_is_never_up_to_date() {
    let home = Home::new(&["llama"]);
    let stand_in = home.stand_in("");
    let plan = home.plan(vec![plan_job(&home, "llama", "adaptive", &[])]);
    let why = || message(&heard(&plan, &stand_in).0, "llama-adaptive", "convert").to_owned();
    assert_eq!((why().as_str(), why().as_str()), ("it is new", "up to date"));
    home.flip(Path::new("llama/model.safetensors"));
    assert_eq!(why(), "source model.safetensors changed");
    let [single, index] = ["llama/model.safetensors", "llama/model.safetensors.index.json"];
    std::fs::rename(home.path(single), home.path(index)).expect("it is named so");
    for _ in 0..2 {
        let why = why();
        assert!(why.starts_with("source cannot be read: "), "{why}");
        assert!(why.contains("model.safetensors.index.json: not the JSON that was expected"), "{why}");
    }
}

#[test]
fn only_what_a_conversion_reads_of_a_source_rebuilds_its_job() {
    let home = Home::new(&["llama"]);
    let stand_in = home.stand_in("");
    let plan = home.plan(vec![plan_job(&home, "llama", "adaptive", &[])]);
    let why = || message(&heard(&plan, &stand_in).0, "llama-adaptive", "convert").to_owned();
    assert_eq!(why(), "it is new");
    std::fs::create_dir_all(home.path("llama/.git/refs")).expect("it is made");
    std::fs::create_dir_all(home.path("llama/runs")).expect("it is made");
    for name in [".git/refs/main", "README.md", "runs/log.txt", "pytorch_model.bin", "other.safetensors"] {
        std::fs::write(home.path("llama").join(name), "other").expect("it is written");
    }
    std::os::unix::fs::symlink(".", home.path("llama/loop")).expect("it is made");
    assert_eq!(why(), "up to date");
    for name in ["tokenizer.json", "generation_config.json", "chat_template.jinja", "reference.safetensors"] {
        std::fs::write(home.path("llama").join(name), "{}").expect("it is written");
        let expected = if name.contains("tokenizer") || name.contains("chat") { "is new" } else { "changed" };
        assert_eq!(why(), format!("source {name} {expected}"));
        assert_eq!(why(), "up to date");
    }
}

#[test]
fn every_shard_of_a_source_is_read() {
    let home = Home::new(&["llama"]);
    let [single, shard] = ["llama/model.safetensors", "llama/model-1.safetensors"];
    std::fs::rename(home.path(single), home.path(shard)).expect("it is named so");
    let index = r#"{"weight_map": {"a": "model-1.safetensors"}}"#;
    std::fs::write(home.path("llama/model.safetensors.index.json"), index).expect("it is written");
    let stand_in = home.stand_in("");
    let plan = home.plan(vec![plan_job(&home, "llama", "adaptive", &[])]);
    let why = || message(&heard(&plan, &stand_in).0, "llama-adaptive", "convert").to_owned();
    assert_eq!((why().as_str(), why().as_str()), ("it is new", "up to date"));
    home.flip(Path::new(shard));
    assert_eq!(why(), "source model-1.safetensors changed");
    std::fs::write(home.path("llama/model.safetensors.index.json"), index.to_owned() + "\n")
        .expect("it is written");
    assert_eq!(why(), "source model.safetensors.index.json changed");
}

#[test]
fn another_build_of_the_program_does_all_anew() {
    let home = Home::new(&["llama"]);
    let [one, other] = [home.stand_in(""), home.program("other", "echo '{}'; exit # another build")];
    let plan = home.plan(vec![plan_job(&home, "llama", "adaptive", &[])]);
    let why = |program: &Path| message(&heard(&plan, program).0, "llama-adaptive", "convert").to_owned();
    assert_eq!((why(&one).as_str(), why(&one).as_str()), ("it is new", "up to date"));
    assert_eq!(why(&other), format!("another build of version {} made it", env!("CARGO_PKG_VERSION")));
}

#[test]
fn what_steps_warn_of_is_said_and_stands_in_their_cases() {
    let home = Home::new(&["llama"]);
    let stand_in = home.stand_in("echo 'warning: it is odd' >&2");
    let plan = home.plan(vec![plan_job(&home, "llama", "adaptive", &[])]);
    let (report, said) = heard(&plan, &stand_in);
    assert_eq!(said, ["llama-adaptive: it is odd"]);
    let message = case(&report, "llama-adaptive", "convert").message.as_deref();
    assert_eq!(message, Some("it is new; warning: it is odd"));
}

#[test]
fn what_measures_time_runs_alone_and_is_measured_anew_elsewhere() {
    let home = Home::new(&["llama"]);
    let stand_in = home.stand_in("echo \"begin $*\" >>log; sleep 0.05; echo \"end $1\" >>log");
    let with_bench = |recipe: &str| {
        let mut job = plan_job(&home, "llama", recipe, &[]);
        job.steps.push(home.step(StepCommand::Bench, &job, &[]));
        job
    };
    let mut plan = home.plan(["a", "b", "c", "d"].map(with_bench).into());
    let options = RunOptions {
        program: Some(stand_in),
        memory: Some(1 << 40),
        threads: Some(4),
        ..RunOptions::default()
    };
    let again = |plan: &Plan| run(plan, &options, &mut Silent).expect("it runs").report;
    assert_eq!(again(&plan).exit_code(), 0);
    let log = std::fs::read_to_string(home.path("log")).expect("it is there");
    let lines: Vec<&str> = log.lines().collect();
    let benches: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].starts_with("begin bench")).collect();
    assert_eq!(benches.len(), 4, "{log}");
    assert!(benches.iter().all(|at| lines[at + 1] == "end bench"), "{log}");
    assert!(benches.iter().all(|at| lines[*at].ends_with(" --threads 4")), "{log}");
    assert_eq!(ran(&again(&plan)), [""; 0]);

    plan.jobs.truncate(1);
    let record = home.path(".dijiang-batch/job-llama-a.json");
    let mut noted: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&record).expect("it is there")).expect("JSON");
    noted["steps"][1]["reads"]["the machine"] = "another".into();
    std::fs::write(&record, noted.to_string()).expect("it is written");
    let report = again(&plan);
    assert_eq!(statuses(&report), [CaseStatus::Skipped, CaseStatus::Passed], "{report:?}");
    let why = message(&report, "llama-a", "bench");
    assert!(why.starts_with("the machine was another, and is ") && why.ends_with(", 4 threads"), "{why}");
}

#[test]
fn what_a_step_wrote_beside_the_bundle_comes_back() {
    let home = Home::new(&["llama"]);
    let stand_in = home.stand_in("if [ $1 = bench ]; then echo >speed-latency.svg; fi");
    let mut job = plan_job(&home, "llama", "adaptive", &[]);
    let mut bench = home.step(StepCommand::Bench, &job, &[]);
    bench.writes.push(home.path("speed-latency.svg"));
    job.steps.push(bench);
    let plan = home.plan(vec![job]);
    assert_eq!(ran(&heard(&plan, &stand_in).0), ["llama-adaptive"]);
    assert_eq!(ran(&heard(&plan, &stand_in).0), [""; 0]);
    std::fs::remove_file(home.path("speed-latency.svg")).expect("it was written");
    let (report, _) = heard(&plan, &stand_in);
    assert_eq!(message(&report, "llama-adaptive", "bench"), "speed-latency.svg is gone");
    assert!(home.path("speed-latency.svg").exists());
}

#[test]
fn what_training_keeps_in_a_bundle_is_no_part_of_it() {
    let home = Home::new(&["llama"]);
    let stand_in = home.stand_in("");
    let mut plan = home.plan(vec![plan_job(&home, "llama", "adaptive", &[])]);
    plan.jobs[0].thresholds.push(home.threshold(Quantity::BundleBytes, 10.0));
    let kept = plan.jobs[0].bundle.join("train");
    assert_eq!(ran(&heard(&plan, &stand_in).0), ["llama-adaptive"]);
    std::fs::create_dir(&kept).expect("it is made");
    std::fs::write(kept.join("state"), "of a training").expect("it is written");
    let (report, _) = heard(&plan, &stand_in);
    assert_eq!((report.exit_code(), ran(&report).len()), (0, 0), "{report:?}");
    std::fs::remove_dir_all(&kept).expect("it is removed");
    assert_eq!(ran(&heard(&plan, &stand_in).0), [""; 0]);
}

#[test]
fn jobs_that_wait_hold_few_locks() {
    let home = Home::new(&["llama"]);
    let count = "[ -e first ] || { touch first; sleep 1; }
ls -l /proc/$PPID/fd | grep -c \"$PWD/.dijiang-batch/.job-\" >>locks";
    let stand_in = home.stand_in(count);
    let jobs = (0..20).map(|at| plan_job(&home, "llama", &format!("r{at}"), &[]));
    let (report, _) = heard(&home.plan(jobs.collect()), &stand_in);
    assert_eq!((report.exit_code(), ran(&report).len()), (0, 20), "{report:?}");
    let locks = std::fs::read_to_string(home.path("locks")).expect("it is there");
    let most = locks.lines().filter_map(|line| line.parse::<usize>().ok()).max();
    // Four for each of two threads, the one that is looked at, and the one that runs.
    assert_eq!(most, Some(10), "{locks}");
}

#[test]
fn a_step_that_is_new_is_run_alone() {
    let home = Home::new(&["llama"]);
    let mut plan = home.plan(vec![plan_job(&home, "llama", "adaptive", &["--no-verify"])]);
    assert_eq!(home.run(&plan).exit_code(), 0);
    let verify = home.step(StepCommand::Verify, &plan.jobs[0], &["--runtime", "tract"]);
    plan.jobs[0].steps.push(verify);
    home.forget_calls();
    let report = home.run(&plan);
    assert_eq!(statuses(&report), [CaseStatus::Skipped, CaseStatus::Passed], "{report:?}");
    assert_eq!(home.calls(), ["verify"]);
    assert_eq!(message(&report, "llama-adaptive", "verify"), "step verify is not done");
}

#[test]
fn jobs_overlap_within_the_budget() {
    let home = Home::new(&MODELS);
    let plan = three(&home);
    let report = home.run_with(&plan, &RunOptions { threads: Some(2), ..RunOptions::default() });
    let [most, pairs] = overlap(&report);
    assert!(most == 2 && pairs > 0, "{report:?}");
    // Room for one of them.
    let estimate = case(&report, "opt-adaptive", "convert").numbers["estimate_bytes"];
    assert!((1e8..1e9).contains(&estimate), "{estimate}");
    let narrow = RunOptions {
        threads: Some(2),
        memory: Some((estimate * 1.5) as u64),
        force: true,
        ..RunOptions::default()
    };
    let report = home.run_with(&plan, &narrow);
    assert_eq!((report.exit_code(), overlap(&report)), (0, [1, 0]), "{report:?}");
    // None of them fits, and each runs alone all the same.
    let report = home.run_with(&plan, &RunOptions { memory: Some(1), ..narrow });
    assert_eq!((report.exit_code(), overlap(&report)), (0, [1, 0]), "{report:?}");
    for case in &report.cases {
        assert!(case.numbers["peak_bytes"] > 1e7, "{case:?}");
    }
}

/// How many jobs ran at once at most, and how many pairs of them did.
fn overlap(report: &Report) -> [usize; 2] {
    let times: Vec<[f64; 2]> =
        report.cases.iter().map(|case| ["started", "ended"].map(|name| case.numbers[name])).collect();
    let at = |time: f64| times.iter().filter(|[from, to]| *from <= time && time < *to).count();
    let most = times.iter().map(|[from, _]| at(*from)).max().unwrap_or(0);
    let pairs = times.iter().enumerate().flat_map(|(at, a)| times[at + 1..].iter().map(move |b| (a, b)));
    [most, pairs.filter(|(a, b)| a[0] < b[1] && b[0] < a[1]).count()]
}

#[test]
fn a_failure_leaves_other_jobs_alone() {
    let home = Home::new(&MODELS);
    home.cut(Path::new("llama/model.safetensors"));
    let plan = three(&home);
    let going = RunOptions { keep_going: true, threads: Some(1), ..RunOptions::default() };
    let report = home.run_with(&plan, &going);
    assert_eq!(statuses(&report), [CaseStatus::Error, CaseStatus::Passed, CaseStatus::Passed], "{report:?}");
    assert_eq!(report.exit_code(), 2);
    let reason = message(&report, "llama-adaptive", "convert");
    assert!(reason.contains("llama/model.safetensors"), "{reason}");
    // What failed is run again, and nothing else; without --keep-going nothing starts after it.
    home.flip(Path::new("opt/model.safetensors"));
    let report = home.run_with(&plan, &RunOptions { keep_going: false, ..going });
    assert_eq!(statuses(&report), [CaseStatus::Error, CaseStatus::Skipped, CaseStatus::Skipped]);
    let reason = message(&report, "opt-adaptive", "convert");
    assert_eq!(reason, "`llama-adaptive` failed before it was started (hint: --keep-going goes on)");
}

#[test]
fn what_depends_on_a_baseline_that_failed_is_skipped_with_its_name() {
    let home = Home::new(&["llama", "opt"]);
    home.cut(Path::new("llama/model.safetensors"));
    let mut first = plan_job(&home, "opt", "adaptive", &["--no-verify"]);
    first.baseline = Some("llama-softmax".to_owned());
    first.thresholds.push(home.threshold(Quantity::SoftmaxSites, 0.0));
    let mut second = plan_job(&home, "opt", "paper", &["--no-verify"]);
    second.baseline = Some("opt-adaptive".to_owned());
    let third = plan_job(&home, "opt", "softmax", &["--no-verify"]);
    let plan = home.plan(vec![second, first, plan_job(&home, "llama", "softmax", &["--no-verify"]), third]);
    let report = home.run_with(&plan, &RunOptions { keep_going: true, ..RunOptions::default() });
    assert_eq!(ran(&report), ["llama-softmax", "opt-softmax"], "{report:?}");
    assert_eq!(message(&report, "opt-adaptive", "softmax-sites"), "its baseline `llama-softmax` failed");
    assert_eq!(message(&report, "opt-paper", "convert"), "its baseline `opt-adaptive` was not run");
}

#[test]
fn a_bundle_that_was_changed_since_is_told_as_that() {
    let home = Home::new(&["llama"]);
    let plan = home.plan(vec![plan_job(&home, "llama", "adaptive", &["--no-verify", "--force"])]);
    assert_eq!(home.run(&plan).exit_code(), 0);
    std::fs::write(plan.jobs[0].bundle.join("dijiang.json"), "changed").expect("it is written");
    let report = home.run(&plan);
    let reason = message(&report, "llama-adaptive", "convert");
    assert!(reason.contains("its dijiang.json was changed since this batch made it (hint: `mv "), "{reason}");
    std::fs::remove_dir_all(&plan.jobs[0].bundle).expect("it is removed");
    let report = home.run(&plan);
    let why = message(&report, "llama-adaptive", "convert");
    assert_eq!((report.exit_code(), why), (0, "its bundle is gone"));
}

#[test]
fn nothing_is_put_in_place_of_what_no_record_names() {
    let home = Home::new(&["llama"]);
    let plan = home.plan(vec![plan_job(&home, "llama", "adaptive", &["--no-verify", "--force"])]);
    let bundle = &plan.jobs[0].bundle;
    std::fs::create_dir_all(bundle).expect("it is made");
    std::fs::write(bundle.join("dijiang.json"), "somebody's").expect("it is written");
    let report = home.run(&plan);
    assert_eq!(report.exit_code(), 2);
    let reason = message(&report, "llama-adaptive", "convert");
    assert!(reason.contains("no record of this batch names it (hint: `mv "), "{reason}");
    assert_eq!(std::fs::read_to_string(bundle.join("dijiang.json")).expect("it is there"), "somebody's");
    std::fs::remove_dir_all(bundle).expect("it is removed");
    // A job that failed made nothing, whatever stands there later.
    let weights = std::fs::read(home.path("llama/model.safetensors")).expect("it is there");
    home.cut(Path::new("llama/model.safetensors"));
    assert_eq!(home.run(&plan).exit_code(), 2);
    std::fs::create_dir_all(bundle).expect("it is made");
    std::fs::write(bundle.join("dijiang.json"), "somebody's").expect("it is written");
    std::fs::write(home.path("llama/model.safetensors"), &weights).expect("it is written");
    assert_eq!(home.run(&plan).exit_code(), 2);
    assert_eq!(std::fs::read_to_string(bundle.join("dijiang.json")).expect("it is there"), "somebody's");
    std::fs::remove_dir_all(bundle).expect("it is removed");
    assert_eq!(home.run(&plan).exit_code(), 0);
    // What it made before it failed is its own.
    home.cut(Path::new("llama/model.safetensors"));
    assert_eq!(home.run(&plan).exit_code(), 2);
    std::fs::write(home.path("llama/model.safetensors"), &weights).expect("it is written");
    std::fs::write(home.path("llama/extra.json"), "{}").expect("it is written");
    assert_eq!(home.run(&plan).exit_code(), 0);
    // What somebody made of it since is not.
    let manifest = bundle.join("dijiang.json");
    std::fs::write(&manifest, "somebody's").expect("it is written");
    let report = home.run(&plan);
    assert_eq!(report.exit_code(), 2, "{report:?}");
    assert_eq!(std::fs::read_to_string(&manifest).expect("it is there"), "somebody's");
}

#[test]
fn two_files_of_jobs_that_replace_each_others_bundles_are_told() {
    let home = Home::new(&["llama"]);
    let stand_in = home.stand_in("if [ $1 = convert ]; then echo \"$*\" >\"$4/dijiang.json\"; fi");
    let of_file = |file: &str, name: &str| {
        let mut job = plan_job(&home, "llama", "adaptive", &["--seed", file]);
        job.place.file = home.path(file);
        job.name = name.to_owned();
        home.plan(vec![job])
    };
    for file in ["a.yaml", "b.yaml"] {
        std::fs::write(home.path(file), "").expect("it is written");
    }
    let warned = |plan: &Plan| heard(plan, &stand_in).1;
    assert_eq!(warned(&of_file("a.yaml", "one")), [""; 0]);
    assert_eq!(warned(&of_file("a.yaml", "one")), [""; 0]);
    for name in ["one", "two"] {
        let said = warned(&of_file("b.yaml", name));
        assert!(
            said[0].starts_with(&format!("{name}: a.yaml has a job of this name or output too")),
            "{said:?}"
        );
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(warned(&of_file("a.yaml", "one")).len(), 1);
    }
    // A file that was renamed is there no more.
    std::fs::remove_file(home.path("a.yaml")).expect("it is removed");
    assert_eq!(
        warned(&of_file("c.yaml", "three")),
        [
            "three: b.yaml has a job of this name or output too, and each replaces what the other made (hint: rename one of them, or give it an `out` of its own)"
        ]
    );
    std::fs::remove_file(home.path("b.yaml")).expect("it is removed");
    assert_eq!(warned(&of_file("d.yaml", "four")), [""; 0]);
}

#[test]
fn a_child_that_is_killed_is_an_error_with_its_signal_and_runs_again() {
    let home = Home::new(&["llama", "opt"]);
    let flag = home.path("kill");
    std::fs::write(&flag, "").expect("it is written");
    let kill = format!(
        "if [ -e '{}' ]; then case \"$*\" in *--estimate*) ;; *llama*) kill -9 $$;; esac; fi",
        flag.display()
    );
    let kill = home.program("killed", &kill);
    let plan =
        home.plan(["llama", "opt"].map(|model| plan_job(&home, model, "adaptive", &["--no-verify"])).into());
    let options = RunOptions { keep_going: true, program: Some(kill), ..RunOptions::default() };
    let report = run(&plan, &options, &mut Silent).expect("it runs").report;
    assert_eq!(report.exit_code(), 2);
    assert!(message(&report, "llama-adaptive", "convert").starts_with("SIGKILL ended it"), "{report:?}");
    std::fs::remove_file(&flag).expect("it was there");
    let report = run(&plan, &options, &mut Silent).expect("it runs").report;
    assert_eq!((report.exit_code(), ran(&report)), (0, vec!["llama-adaptive".to_owned()]));
}

/// A conversion, one with a training of so many steps, and another conversion.
fn with_training(home: &Home, steps: &str) -> Plan {
    let mut plan = three(home);
    let ids = home.path("ids.u16");
    let tokens = (0..4000u16).flat_map(|n| (n * 7 % 60).to_le_bytes()).collect::<Vec<u8>>();
    std::fs::write(&ids, tokens).expect("it is written");
    let job = &mut plan.jobs[1];
    let options =
        ["--data", ids.to_str().expect("text"), "--steps", steps, "--context", "16", "--batch", "2"];
    let mut training = home.step(StepCommand::Finetune, job, &options);
    training.reads.push(ids);
    job.steps.push(training);
    plan
}

/// This test program as a batch, one job at a time, with a training that takes long.
fn entry(home: &Home) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "batch_run::batch_of_its_own", "--ignored", "--nocapture"]);
    command.env("BATCH_HOME", home.root()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
#[ignore = "a batch of its own, which other tests start and kill"]
#[expect(clippy::print_stderr, reason = "the tests that start it read what it says")]
fn batch_of_its_own() {
    let home = Home::at(std::env::var("BATCH_HOME").expect("a directory"));
    let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];
    let mut signals = signal_hook::iterator::Signals::new(signals).expect("they are heard");
    std::thread::spawn(move || {
        let signal = signals.forever().next().expect("a signal");
        children::give_up().iter().for_each(|line| eprintln!("{line}"));
        dijiang_runtime::temporary::give_up();
        std::process::exit(128 + signal);
    });
    home.run_with(
        &with_training(&home, "1000000"),
        &RunOptions { threads: Some(1), ..RunOptions::default() },
    );
}

#[test]
fn a_batch_that_is_killed_takes_its_children_along_and_goes_on_with_the_step() {
    let home = Home::new(&MODELS);
    let mut batch = entry(&home).spawn().expect("it starts");
    home.wait_for_call("finetune");
    batch.kill().expect("it is killed");
    assert_eq!(batch.wait().expect("it ends").signal(), Some(9));
    home.wait_until_nothing_writes();
    let plan = with_training(&home, "2");
    let report = home.run(&plan);
    assert_eq!(report.exit_code(), 0, "{report:?}");
    assert_eq!(ran(&report), ["neox-adaptive", "opt-adaptive"]);
    assert_eq!(message(&report, "neox-adaptive", "convert"), "up to date");
    assert!(home.run_suites(&plan).is_empty());
    assert_eq!(home.left(), [] as [String; 0]);
}

#[test]
fn a_batch_that_is_killed_at_any_moment_is_finished_by_the_next() {
    for wait in [50, 200, 400, 800, 1200] {
        let home = Home::new(&MODELS);
        let mut batch = entry(&home).spawn().expect("it starts");
        home.wait_for_any_call();
        std::thread::sleep(Duration::from_millis(wait));
        batch.kill().expect("it is killed");
        batch.wait().expect("it ends");
        home.wait_until_nothing_writes();
        let plan = with_training(&home, "1");
        let report = home.run(&plan);
        assert_eq!(report.exit_code(), 0, "{report:?}");
        assert!(home.run_suites(&plan).is_empty());
        assert_eq!(home.left(), [] as [String; 0]);
    }
}

#[test]
fn a_signal_ends_all_and_says_what_is_kept() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let home = Home::new(&MODELS);
        let mut batch = entry(&home).stderr(Stdio::piped()).spawn().expect("it starts");
        home.wait_for_call("finetune");
        let start = Instant::now();
        let kill = Command::new("kill").args([format!("-{signal}"), batch.id().to_string()]).status();
        assert!(kill.expect("it is sent").success());
        let ended = batch.wait().expect("it ends");
        let took = start.elapsed();
        assert_eq!(ended.code(), Some(code));
        assert!(took < Duration::from_secs(1), "{took:?}");
        let lines = BufReader::new(batch.stderr.take().expect("a pipe")).lines();
        let lines: Vec<String> = lines.map(|line| line.expect("text")).collect();
        let said = [
            "neox-adaptive: step finetune was broken off",
            "1 job is done and stays (hint: the same command goes on with the others)",
        ];
        assert!(said.iter().all(|line| lines.iter().any(|other| other == line)), "{lines:?}");
        home.wait_until_nothing_writes();
        assert_eq!(home.left(), [] as [String; 0]);
    }
}

#[test]
fn limits_fail_with_their_reason_and_are_judged_anew_without_a_run() {
    let home = Home::new(&["llama"]);
    let mut plan = home.plan(vec![plan_job(&home, "llama", "adaptive", &[])]);
    plan.jobs[0].thresholds = [
        home.threshold(Quantity::CheckError, 1e-12),
        home.threshold(Quantity::SoftmaxSites, 0.0),
        home.threshold(Quantity::StateBytes, 1e6),
        home.threshold(Quantity::BundleBytes, 1e3),
    ]
    .into();
    let report = home.run(&plan);
    let [bad, good] = [CaseStatus::Failed, CaseStatus::Passed];
    assert_eq!(statuses(&report), [good, bad, good, good, bad], "{report:?}");
    assert_eq!(report.exit_code(), 1);
    let reason = message(&report, "llama-adaptive", "check-error");
    assert!(reason.ends_with(", expected at most 1.00e-12"), "{reason}");
    let bytes = case(&report, "llama-adaptive", "bundle-bytes");
    assert!(bytes.numbers["measured"] > 1e5 && bytes.numbers["limit"] == 1e3, "{bytes:?}");
    assert_eq!(bytes.place.as_ref().map(|place| place.line), Some(9));

    plan.jobs[0].thresholds[0].limit = 1e-3;
    plan.jobs[0].thresholds[3].limit = 1e7;
    home.forget_calls();
    let report = home.run(&plan);
    assert_eq!(statuses(&report), [CaseStatus::Skipped, good, good, good, good], "{report:?}");
    assert_eq!((report.exit_code(), home.calls()), (0, Vec::new()));
}

#[test]
fn a_bundle_is_compared_with_that_of_its_baseline() {
    let home = Home::new(&["shakespeare"]);
    let text = home.path("shakespeare/valid.txt");
    let text = text.to_str().expect("text");
    let with_eval = |recipe: &str| {
        let mut job = plan_job(&home, "shakespeare", recipe, &["--no-verify"]);
        let mut eval = home.step(StepCommand::Eval, &job, &["--perplexity", text]);
        eval.arguments.extend(["--context", "64", "--max-tokens", "512"].map(str::to_owned));
        eval.reads.push(text.into());
        job.steps.push(eval);
        job
    };
    let mut job = with_eval("adaptive");
    job.baseline = Some("shakespeare-softmax".to_owned());
    job.thresholds.push(home.threshold(Quantity::PerplexityRatio, 1.0001));
    let plan = home.plan(vec![job, with_eval("softmax")]);
    let report = home.run(&plan);
    assert_eq!(report.exit_code(), 1, "{report:?}");
    let ratio = case(&report, "shakespeare-adaptive", "perplexity-ratio");
    let reason = ratio.message.as_deref().unwrap_or_default();
    assert!(
        reason.ends_with(" over 8 windows of shakespeare/valid.txt, expected at most 1.0001"),
        "{reason}"
    );
    let [measured, error] = ["measured", "standard_error"].map(|name| ratio.numbers[name]);
    assert!(measured > 1.0001 && error > 0.0 && error < measured, "{ratio:?}");
    // The same figures by hand, from what the command says of each bundle.
    let value = |name: &str| home.perplexity(name, text);
    let by_hand = value("shakespeare-adaptive") / value("shakespeare-softmax");
    assert!((measured - by_hand).abs() < 1e-9, "{measured} {by_hand}");
    let names: BTreeSet<String> = suites(&report);
    assert_eq!(names.len(), 2);
}

/// The figure of a batch over single runs; `cargo test -- --ignored twelve --nocapture` tells it.
#[test]
#[ignore = "it measures time, which is worth something only on a machine that does nothing else"]
#[expect(clippy::print_stderr, reason = "the figure is what it is run for")]
fn twelve_jobs_beside_each_other_against_one_by_one() {
    let home = Home::new(&MODELS);
    let recipes = ["adaptive", "paper", "softmax", "decayed"];
    let jobs = MODELS.iter().flat_map(|model| recipes.map(|recipe| plan_job(&home, model, recipe, &[])));
    let plan = home.plan(jobs.collect());
    let mut single = 0.0;
    for job in &plan.jobs {
        let start = Instant::now();
        let output = Command::new(Program::binary()).arg("convert").args(&job.steps[0].arguments).output();
        assert!(output.expect("it runs").status.success());
        single += start.elapsed().as_secs_f64();
        std::fs::remove_dir_all(&job.bundle).expect("it is removed");
    }
    let options = RunOptions { threads: Some(2), ..RunOptions::default() };
    let report = home.run_with(&plan, &options);
    assert_eq!(report.exit_code(), 0, "{report:?}");
    let again = home.run_with(&plan, &options);
    let share = report.seconds / single;
    eprintln!(
        "12 jobs: {:.2} s, of {single:.2} s one by one: {share:.2}; up to date again in {:.3} s",
        report.seconds, again.seconds
    );
    assert!(share <= 0.75 && again.seconds < 2.0);
}
