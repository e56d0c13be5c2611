//! Files of jobs up to their plans: what they mean, what is wrong with them and where, and their schema.

use crate::support::home::Home;
use clap::CommandFactory as _;
use dijiang::batch::document::Mistakes;
use dijiang::batch::expand::options::Commands;
use dijiang::batch::expand::select::{Shard, only, shard};
use dijiang::batch::expand::{MAX_JOBS, OnHub, plan};
use dijiang::batch::plan::{Job, Plan};
use dijiang::batch::schema::{EXAMPLE, json_schema};
use dijiang::cli::Cli;
use dijiang::hub::{HubError, HubModel};
use dijiang_format::dtype::DType;
use insta::assert_snapshot;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

/// The weights of models are only looked for until they are converted, and data until it is read.
fn home() -> Home {
    let home = Home::empty();
    for name in ["llama", "neox"] {
        model(&home, &format!("models/{name}"), name);
    }
    for file in ["train.txt", "valid.txt"] {
        write(&home, file, "text");
    }
    home
}

fn write(home: &Home, name: &str, text: &str) {
    let path = home.path(name);
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    std::fs::write(path, text).expect("a file");
}

/// The description of a fixture, and no weights.
fn model(home: &Home, at: &str, fixture: &str) {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(fixture).join("config.json");
    write(home, &format!("{at}/config.json"), &std::fs::read_to_string(config).expect("the fixture"));
    write(home, &format!("{at}/model.safetensors"), "");
}

fn commands() -> Commands {
    Commands::of(&Cli::command())
}

fn read(home: &Home, text: &str) -> Result<Plan, Mistakes> {
    read_with(home, text, &mut |_| Ok(None))
}

fn read_with(home: &Home, text: &str, hub: OnHub<'_>) -> Result<Plan, Mistakes> {
    write(home, "jobs.yaml", text);
    plan(&home.path("jobs.yaml"), &commands(), hub)
}

fn planned(home: &Home, text: &str) -> Plan {
    read(home, text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// Messages with the directory of the test left out.
fn told(home: &Home, text: &str) -> String {
    let directory = home.0.path().display().to_string();
    let told = read(home, text).expect_err("it is refused").to_string();
    told.replace(&format!("{directory}/"), "").replace(&directory, ".")
}

/// What the program says of a file, run beside it.
fn ran(home: &Home, arguments: &str) -> (i32, String, String) {
    let Output { status, stdout, stderr } = home.run(arguments);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("an exit code"), text(stdout), text(stderr))
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.jobs.iter().map(|job| job.name.as_str()).collect()
}

fn of<'a>(plan: &'a Plan, name: &str) -> &'a Job {
    plan.jobs.iter().find(|job| job.name == name).unwrap_or_else(|| panic!("no job {name}"))
}

#[test]
fn the_plan_of_the_example() {
    let home = home();
    write(&home, "jobs.yaml", EXAMPLE);
    let (code, stdout, stderr) = ran(&home, "batch jobs.yaml --dry-run");
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_snapshot!(stdout, @"
    llama-softmax-ort-f32
      dijiang convert ./models/llama -o ./bundles/llama-softmax-ort-f32 --recipe softmax --target ort --dtype f32 --seed 1 --json
      dijiang eval ./bundles/llama-softmax-ort-f32 --perplexity ./valid.txt --context 64 --max-tokens 2048 --json
      dijiang bench ./bundles/llama-softmax-ort-f32 --context '32,64' --batch 1 --runs 3 --steps 8 --json
      require check-error 0.01
    llama-adaptive-ort-f32, after llama-softmax-ort-f32
      dijiang convert ./models/llama -o ./bundles/llama-adaptive-ort-f32 --recipe adaptive --target ort --dtype f32 --seed 1 --json
      dijiang eval ./bundles/llama-adaptive-ort-f32 --perplexity ./valid.txt --context 64 --max-tokens 2048 --json
      dijiang bench ./bundles/llama-adaptive-ort-f32 --against ./bundles/llama-softmax-ort-f32 --context '32,64' --batch 1 --runs 3 --steps 8 --json
      require check-error 0.01
      require perplexity-ratio 1.5
      require speed-ratio 0.25
      require state-bytes 1000000
      require softmax-sites 0
    llama-performer-ort-f32, after llama-softmax-ort-f32
      dijiang convert ./models/llama -o ./bundles/llama-performer-ort-f32 --recipe performer --target ort --dtype f32 --seed 1 --json
      dijiang eval ./bundles/llama-performer-ort-f32 --perplexity ./valid.txt --context 64 --max-tokens 2048 --json
      dijiang bench ./bundles/llama-performer-ort-f32 --against ./bundles/llama-softmax-ort-f32 --context '32,64' --batch 1 --runs 3 --steps 8 --json
      require check-error 0.01
      require perplexity-ratio 1.5
      require speed-ratio 0.25
      require softmax-sites 0
    pythia-softmax-ort-f32
      dijiang convert ./models/neox -o ./bundles/pythia-softmax-ort-f32 --recipe softmax --target ort --dtype f32 --seed 1 --json
      dijiang eval ./bundles/pythia-softmax-ort-f32 --perplexity ./valid.txt --context 64 --max-tokens 2048 --json
      dijiang bench ./bundles/pythia-softmax-ort-f32 --context '32,64' --batch 1 --runs 3 --steps 8 --json
      require check-error 0.01
    pythia-adaptive-ort-f32, after pythia-softmax-ort-f32
      dijiang convert ./models/neox -o ./bundles/pythia-adaptive-ort-f32 --recipe adaptive --target ort --dtype f32 --seed 1 --json
      dijiang eval ./bundles/pythia-adaptive-ort-f32 --perplexity ./valid.txt --context 64 --max-tokens 2048 --json
      dijiang bench ./bundles/pythia-adaptive-ort-f32 --against ./bundles/pythia-softmax-ort-f32 --context '32,64' --batch 1 --runs 3 --steps 8 --json
      require check-error 0.01
      require perplexity-ratio 1.5
      require speed-ratio 0.25
      require softmax-sites 0
    llama-trained, after llama-softmax-ort-f32
      dijiang convert ./models/llama -o ./bundles/llama-trained --recipe adaptive --target ort --dtype f32 --json
      dijiang calibrate ./bundles/llama-trained --data ./train.txt --steps 20 --batch 4 --context 64 --json
      dijiang finetune ./bundles/llama-trained --data ./train.txt --valid ./valid.txt --steps 50 --batch 4 --context 64 --lr 3e-4 --json
      dijiang quantize ./bundles/llama-trained -o ./bundles/llama-trained --force --weights int4 --json
      dijiang verify ./bundles/llama-trained --json
      dijiang eval ./bundles/llama-trained --threads 1 --perplexity ./valid.txt --context 64 --max-tokens 2048 --json
      require check-error 0.01
      require perplexity-ratio 1.2
      require softmax-sites 0
    6 jobs, 21 steps
    ");
    assert_eq!(ran(&home, "batch jobs.yaml --check"), (0, "6 jobs, 21 steps\n".to_owned(), String::new()));
}

#[test]
fn the_file_of_the_page_is_right() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/batch.md"));
    let page = page.expect("the page");
    let file = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a file");
    let home = Home::empty();
    symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures"), home.path("fixtures")).expect("a link");
    assert_eq!(names(&planned(&home, file)), ["shakespeare"]);
}

#[test]
fn the_plan_as_json() {
    let home = home();
    let text = "version: 1\njobs: [{name: a, model: models/llama, require: {softmax-sites: 2}}]";
    write(&home, "jobs.yaml", text);
    let (code, stdout, _) = ran(&home, "batch jobs.yaml --check --json");
    assert_eq!((code, stdout.as_str()), (0, "{\"ok\":true,\"steps\":1,\"jobs\":[{\"name\":\"a\"}]}\n"));
    let (_, stdout, _) = ran(&home, "batch jobs.yaml --dry-run --json");
    assert_snapshot!(stdout, @r#"{"ok":true,"steps":1,"jobs":[{"name":"a","source":"./models/llama","bundle":"./bundles/a","recipe":"adaptive","target":"ort","dtype":null,"baseline":null,"steps":["dijiang convert ./models/llama -o ./bundles/a --recipe adaptive --target ort --json"],"reads":["./models/llama"],"require":{"softmax-sites":2.0},"place":{"file":"jobs.yaml","line":2,"column":15}}]}"#);
}

#[test]
fn mistakes_are_told_all_at_once_and_nothing_else_is() {
    let home = home();
    write(
        &home,
        "jobs.yaml",
        "version: 1\nx-a: &a {data: valid.txt, lr: -1}\njobs:\n- {name: a, modl: m}\n- {name: b, model: m, target: otr}",
    );
    for mode in ["--check", "--dry-run --json", ""] {
        let (code, stdout, stderr) = ran(&home, &format!("batch jobs.yaml {mode}"));
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert_snapshot!("mistakes", stderr);
    }
}

#[test]
fn mistakes_are_an_object_too() {
    let home = home();
    write(&home, "jobs.yaml", "version: 1\njobs:\n- {name: a, model: models/llama, target: otr}");
    let (code, stdout, stderr) = ran(&home, "batch jobs.yaml --check --json");
    assert_eq!(code, 2);
    assert_snapshot!(stdout, @r#"{"ok":false,"mistakes":[{"file":"jobs.yaml","line":3,"column":42,"message":"target `otr` is not known, expected one of ort, portable, onnx27 (hint: did you mean `ort`?)"}]}"#);
    let told: Value = serde_json::from_str(&stdout).expect("JSON");
    let message = told["mistakes"][0]["message"].as_str().expect("a message");
    assert_eq!(stderr, format!("error: jobs.yaml:3:42: {message}\n"));
    let (code, stdout, stderr) = ran(&home, "batch nothing.yaml --check --json");
    assert_eq!(code, 2);
    assert_snapshot!(stdout, @r#"{"ok":false,"mistakes":[{"file":"nothing.yaml","line":null,"column":null,"message":"there is no such file or directory, expected a file of jobs (hint: `ls` beside it, then name one that is there)"}]}"#);
    assert_snapshot!(stderr, @"error: nothing.yaml: there is no such file or directory, expected a file of jobs (hint: `ls` beside it, then name one that is there)");
}

/// A person corrects a file once, not once for each kind of mistake.
#[test]
fn mistakes_of_every_kind_are_told_together() {
    let home = home();
    std::fs::create_dir(home.path("models/empty")).expect("a directory");
    let text = "version: 1
colour: red
defaults: {steps: [{convert: {no-verify: true}}]}
jobs:
- {name: a, model: models/lama}
- {name: b, model: models/llama, recipe: adaptiv}
- {name: c, model: models/llama, dtype: f64, steps: [verfy, {calibrate: {data: tain.txt}}]}
- {name: d, model: models/empty}
- {name: e, model: models/llama, target: portable, steps: [quantize]}
- {name: f, model: models/llama, steps: [{bench: {svg: nowhere/a}}]}
- {name: g, model: models/llama, steps: [{finetune: {data: train.txt, stpes: 3}}], baseline: nobody}
- {name: h, model: models/llama, out: ../up, require: {check-error: 1}}
- {model: models/neox, out: h, steps: [eval]}
- {name: a, model: models/llama}
matrix:
  model: [models/neox]
  exclude: [{recipe: paper}]
";
    assert_snapshot!(told(&home, text));
    // The baseline may be the job that has no name yet.
    let text = text.replace("- {model:", "- {name: z, model:");
    assert!(told(&home, &text).contains("the baseline `nobody` is not known"), "{}", told(&home, &text));
}

#[test]
fn what_a_mistake_leads_to_is_no_other_mistake() {
    let home = home();
    let job = "name: a, model: models/llama";
    let files = [
        // A limit of what a step that is wrong would measure.
        format!(
            "jobs: [{{{job}, steps: [{{convert: {{no-verify: true}}}}, verfy], require: {{check-error: 1}}}}]"
        ),
        format!(
            "jobs: [{{{job}, stpes: [bench], baseline: b, require: {{speed-ratio: 1}}}}, {{name: b, model: models/neox}}]"
        ),
        format!(
            "jobs: [{{{job}, basline: b, steps: [bench], require: {{speed-ratio: 1}}}}, {{name: b, model: models/neox}}]"
        ),
        format!(
            "jobs: [{{{job}, require: {{check-error: 1}}, steps: [{{convert: {{no-verify: true}}}}, {{verify: {{sed: 1}}}}]}}]"
        ),
        // A job that is there once its name is.
        format!("jobs: [{{{job}, baseline: b}}, {{name: [b], model: models/neox}}]"),
        format!("jobs: [{{{job}, baseline: neox-adaptive-ort}}]\nmatrx: {{model: [models/neox]}}"),
        format!(
            "jobs: [{{{job}, baseline: neox-adaptive-ort}}]\nmatrix: {{model: [models/neox], target: [otr]}}"
        ),
        format!("include: [none.yaml]\njobs: [{{{job}, baseline: b}}]"),
        "matrix: {model: [models/llama], target: [ort, portabel], exclude: [{target: portable}]}".to_owned(),
        "matrix: {model: [models/llama], exclude: [{taget: ort}]}".to_owned(),
        // The same output, as the name is the same.
        format!("jobs: [{{{job}}}, {{{job}}}]"),
        format!("jobs: [{{{job}, out: /tmp/a}}]"),
        "jobs: [{name: a, model: 3}]".to_owned(),
    ];
    for text in files {
        let told = told(&home, &format!("version: 1\n{text}"));
        assert_eq!(told.lines().count(), 1, "{text}\n{told}");
    }
}

#[test]
fn what_a_conversion_would_refuse_is_told_before_it() {
    let home = home();
    write(&home, "models/text.txt", "text");
    write(&home, "models/bundle/dijiang.json", "{}");
    model(&home, "models/other", "llama");
    let config = std::fs::read_to_string(home.path("models/other/config.json")).expect("it is there");
    write(&home, "models/other/config.json", &config.replace("\"llama\"", "\"lama\""));
    for name in ["weightless", "sharded"] {
        model(&home, &format!("models/{name}"), "llama");
        std::fs::remove_file(home.path(&format!("models/{name}/model.safetensors"))).expect("it goes");
    }
    write(
        &home,
        "models/sharded/model.safetensors.index.json",
        r#"{"weight_map": {"a": "model-1.safetensors"}}"#,
    );
    write(&home, "models/two/a.onnx", "");
    write(&home, "models/two/b.onnx", "");
    std::fs::create_dir(home.path("models/empty")).expect("a directory");
    let names = ["empty", "text.txt", "bundle", "other", "weightless", "sharded", "two"];
    let job = |name: &&str| format!("- {{name: {name}, model: models/{name}}}\n");
    let jobs = names.iter().map(job).collect::<Vec<_>>().concat();
    assert_snapshot!(told(&home, &format!("version: 1\njobs:\n{jobs}")));
}

#[test]
fn a_model_of_the_hub_is_where_its_cache_has_it() {
    let home = home();
    let text = "version: 1\njobs:\n- {model: org/tiny@v1, name: a}\n- {model: org/tiny@v1, name: b}\n- {model: models/llama, name: c}\n";
    let mut asked = Vec::new();
    let found = read_with(&home, text, &mut |model| {
        asked.push(model.to_string());
        Ok(Some(home.path("models/neox")))
    });
    let found = found.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!(asked, ["org/tiny@v1"], "each is asked for once");
    let sources: Vec<_> = found.jobs.iter().map(|job| job.source.clone()).collect();
    assert_eq!(sources, ["models/neox", "models/neox", "models/llama"].map(|name| home.path(name)));

    let unknown = planned(&home, text);
    assert_eq!(of(&unknown, "a").source, Path::new("org/tiny@v1"));
    assert_eq!(of(&unknown, "a").steps[0].arguments[0], "org/tiny@v1");

    let refuse = |text: &str| {
        let mut offline = |model: &HubModel| {
            Err(HubError::Offline { model: model.clone(), cache: "hub".into() }.to_string())
        };
        let told = read_with(&home, text, &mut offline).expect_err("it is not there").to_string();
        told.replace(&home.path("").display().to_string(), "")
    };
    assert_snapshot!(refuse("version: 1\njobs:\n- {model: org/tiny, name: a}\n"));
    // What lies beside the file is no model of the hub.
    assert_snapshot!(refuse("version: 1\njobs:\n- {model: models/tiny, name: a}\n"));
}

#[test]
fn a_step_of_the_defaults_stands_where_its_job_does() {
    let home = home();
    let plan = planned(
        &home,
        "version: 1
defaults: {steps: [{convert: {seed: 1}}], require: {check-error: 1}}
jobs:
- {name: a, model: models/llama}
- {name: b, model: models/llama, steps: [verify], require: {check-error: 2}}
matrix:
  model:
  - models/llama
  - models/neox
",
    );
    let lines = |name: &str| {
        let job = of(&plan, name);
        let steps = job.steps.iter().map(|step| step.place.line);
        (job.place.line, steps.collect::<Vec<_>>(), job.thresholds[0].place.clone())
    };
    let (line, steps, limit) = lines("a");
    assert_eq!((line, steps, limit.line), (4, vec![4], 4));
    let (_, steps, limit) = lines("b");
    assert_eq!((steps, limit.line, limit.column), (vec![5, 5], 5, 74));
    assert_eq!(lines("llama-adaptive-ort").0, 8);
    assert_eq!(lines("neox-adaptive-ort").1, [9]);
}

/// Every mistake that a person makes, one in each file.
#[test]
fn each_mistake_has_its_place() {
    let home = home();
    let job = "version: 1\njobs:\n- name: a\n  model: models/llama\n";
    let step = |step: &str| format!("{job}  steps:\n  - {step}\n");
    let files = [
        ("empty", String::new()),
        ("no jobs", "version: 1\n".to_owned()),
        ("another version", "version: 2\njobs: []".to_owned()),
        ("no version", "jobs: []".to_owned()),
        ("a list", "- a".to_owned()),
        ("no YAML", "version: 1\njobs: [a".to_owned()),
        ("two documents", "version: 1\n---\nversion: 1".to_owned()),
        ("a tag", "version: 1\njobs: !!python/object []".to_owned()),
        ("a duplicate key", format!("{job}  model: models/neox\n")),
        ("an unknown key", format!("{job}  recpie: paper\n")),
        ("an unknown key far from any", format!("{job}  colour: red\n")),
        ("an unknown key of the file", "version: 1\nmatrx: {}".to_owned()),
        ("no model", "version: 1\njobs:\n- name: a".to_owned()),
        ("a model that is not there", "version: 1\njobs:\n- name: a\n  model: models/lama".to_owned()),
        ("a number for text", format!("{job}  recipe: 3\n")),
        ("a list for text", format!("{job}  baseline: [a]\n")),
        ("an unknown recipe", format!("{job}  recipe: adaptiv\n")),
        ("a recipe that is not there", format!("{job}  recipe: my.yaml\n")),
        ("an unknown target", format!("{job}  target: portabel\n")),
        ("a dtype that is none of a bundle", format!("{job}  dtype: f64\n")),
        ("a name that is no file's", "version: 1\njobs: [{name: ../a, model: models/llama}]".to_owned()),
        ("a name twice", format!("{job}- name: a\n  model: models/neox\n")),
        ("a model's name twice", "version: 1\nmatrix: {model: [models/llama, models/llama]}".to_owned()),
        ("an empty axis", "version: 1\nmatrix: {model: [models/llama], dtype: []}".to_owned()),
        ("a scalar for an axis", "version: 1\nmatrix: {model: models/llama}".to_owned()),
        (
            "an exclude of nothing",
            "version: 1\nmatrix: {model: [models/llama], exclude: [{recipe: paper}]}".to_owned(),
        ),
        (
            "an include of nothing",
            "version: 1\nmatrix: {model: [models/llama], recipe: [paper], include: [{recipe: pff}]}"
                .to_owned(),
        ),
        ("an unknown step", step("finetun")),
        ("a step of two commands", step("{verify: , eval: }")),
        ("a step's options as a list", step("verify: [runtime]")),
        ("an unknown option", step("finetune: {data: train.txt, stpes: 3}")),
        ("an option of the job", step("convert: {recipe: paper}")),
        ("an option of the batch", step("verify: {json: true}")),
        ("a value out of range", step("calibrate: {data: train.txt, lr: -1}")),
        ("a value that is no number", step("convert: {seed: many}")),
        ("a word for a switch", step("convert: {train: 1}")),
        ("a switch for a value", step("convert: {seed: true}")),
        ("a list for one value", step("convert: {seed: [1, 2]}")),
        ("no value", step("convert: {seed: }")),
        ("a required option", step("calibrate")),
        ("options that exclude each other", step("finetune: {data: train.txt, steps: 1, tokens: 5}")),
        ("data that is not there", step("calibrate: {data: [train.txt, tain.txt]}")),
        ("a task without a name", step("eval: {task: valid.txt}")),
        ("a conversion in the middle", format!("{job}  steps: [verify, convert]\n")),
        ("training of few bits", format!("{job}  steps: [quantize, {{calibrate: {{data: train.txt}}}}]\n")),
        ("few bits twice", format!("{job}  steps: [{{convert: {{weights: int4}}}}, quantize]\n")),
        (
            "training of links",
            format!("{job}  steps: [{{convert: {{link: true}}}}, {{calibrate: {{data: train.txt}}}}]\n"),
        ),
        ("an unknown limit", format!("{job}  require: {{check-eror: 1}}\n")),
        ("a limit that is no number", format!("{job}  require: {{check-error: small}}\n")),
        ("a negative limit", format!("{job}  require: {{state-bytes: -1}}\n")),
        (
            "a limit that nothing measures",
            format!("{job}  steps: [{{convert: {{no-verify: true}}}}]\n  require: {{check-error: 0.1}}\n"),
        ),
        ("a comparison with nothing", format!("{job}  require: {{speed-ratio: 1}}\n")),
        (
            "a comparison without a bench",
            format!(
                "{job}  baseline: b\n  require: {{speed-ratio: 1}}\n- {{name: b, model: models/llama}}\n"
            ),
        ),
        (
            "a comparison of nothing measured",
            format!(
                "{job}  baseline: b\n  require: {{perplexity-ratio: 1}}\n- {{name: b, model: models/llama}}\n"
            ),
        ),
        (
            "a comparison of different texts",
            format!(
                "{job}  baseline: b\n  steps: [{{eval: {{perplexity: valid.txt}}}}]\n  require: {{perplexity-ratio: 1}}\n- {{name: b, model: models/llama, steps: [{{eval: {{perplexity: train.txt}}}}]}}\n"
            ),
        ),
        (
            "an unknown baseline",
            format!("{job}  baseline: llama-softmx\n- {{name: llama-softmax, model: models/llama}}\n"),
        ),
        ("a baseline of itself", format!("{job}  baseline: a\n")),
        (
            "a circle of baselines",
            format!("{job}  baseline: b\n- {{name: b, model: models/llama, baseline: a}}\n"),
        ),
        ("an output above", format!("{job}  out: ../a\n")),
        ("an output above, by way of a directory", format!("{job}  out: b/../../a\n")),
        ("an absolute output", format!("{job}  out: /tmp/a\n")),
        (
            "an absolute directory of outputs",
            "version: 1\ndefaults: {out: /}\njobs: [{name: a, model: models/llama}]".to_owned(),
        ),
        ("the root as an output", format!("{job}  out: .\n")),
        ("an output among the records", format!("{job}  out: .dijiang-batch/a\n")),
        ("one output twice", format!("{job}  out: b\n- {{name: b, model: models/neox, out: ./b/}}\n")),
        ("an output inside another", format!("{job}  out: b\n- {{name: b, model: models/neox, out: b/c}}\n")),
        (
            "an output inside a source",
            format!("{job}  out: models/neox/a\n- {{name: b, model: models/neox}}\n"),
        ),
        ("the source as an output", format!("{job}  out: models/llama\n")),
        ("a profile inside an output", step("bench: {profile: bundles/a/p}")),
        ("pictures in no directory", step("bench: {svg: nowhere/a}")),
        ("profiles in no directory", step("finetune: {data: train.txt, profile: nowhere}")),
        ("few bits for a target without them", format!("{job}  target: portable\n  steps: [quantize]\n")),
        (
            "a conversion to few bits for a target without them",
            format!("{job}  target: onnx27\n  steps: [{{convert: {{weights: int4}}}}]\n"),
        ),
        (
            "a teacher that another job makes",
            format!(
                "{job}  steps: [{{finetune: {{data: train.txt, teacher: bundles/b}}}}]\n- {{name: b, model: models/neox}}\n"
            ),
        ),
        ("an include that is not there", format!("include: [other.yaml]\n{job}")),
    ];
    let mut all = String::new();
    for (what, text) in &files {
        writeln!(all, "# {what}\n{}", told(&home, text)).expect("a line");
    }
    assert_snapshot!("each_mistake", all);
}

#[test]
fn what_steps_write_has_a_place_of_its_own() {
    let home = home();
    let file = |first: &str, second: &str| {
        let job = |name: &str, bench: &str| {
            format!("- {{name: {name}, model: models/llama, steps: [{{bench: {{{bench}}}}}]}}\n")
        };
        format!("version: 1\njobs:\n{}{}", job("a", first), job("b", second))
    };
    let source = "it is inside the source of job `b`, or the same, expected a place of its own";
    let wrong = [
        (
            file("svg: speed", "svg: speed"),
            "what a step writes, `speed-latency.svg` stands already at jobs.yaml:3:".to_owned(),
        ),
        (
            file("svg: p", "profile: p-memory.svg"),
            "what a step writes, `p-memory.svg` stands already".to_owned(),
        ),
        (
            file("svg: models/llama/config.json", ""),
            format!("./models/llama/config.json-latency.svg: {source}"),
        ),
        (file("profile: models/llama", ""), format!("./models/llama: {source}")),
        (
            file("profile: jobs.yaml", ""),
            "./jobs.yaml: it is inside the file of jobs, or the same".to_owned(),
        ),
        (file("svg: ../up", ""), "up-latency.svg: it is outside the directory of the file".to_owned()),
    ];
    for (text, expected) in wrong {
        let text = text.replace("{bench: {}}", "bench");
        let told = read(&home, &text).expect_err("it is refused").to_string();
        let told = told.replace(&format!("{}/", home.0.path().display()), "");
        assert!(told.contains(expected.trim_start_matches("./")), "{text}\n{told}\n{expected}");
    }
    let plan = planned(&home, &file("svg: a", "svg: b"));
    let written = |job: &Job| -> Vec<String> {
        let paths = job.steps.iter().flat_map(|step| &step.writes);
        paths.map(|path| path.file_name().expect("a name").to_string_lossy().into_owned()).collect()
    };
    assert_eq!(written(of(&plan, "a")), ["a-latency.svg", "a-memory.svg"]);
}

#[test]
fn every_step_that_measures_is_one_of_the_baseline() {
    let home = home();
    let eval = |text: &str| format!("{{eval: {{perplexity: {text}}}}}");
    let file = |steps: &str| {
        format!(
            "version: 1\njobs:\n- {{name: b, model: models/llama, steps: [{}]}}\n- {{name: a, model: models/llama, baseline: b, steps: [{steps}], require: {{perplexity-ratio: 1}}}}\n",
            eval("valid.txt")
        )
    };
    planned(&home, &file(&[eval("valid.txt"), eval("valid.txt")].join(", ")));
    let told = told(&home, &file(&[eval("valid.txt"), eval("train.txt")].join(", ")));
    assert!(told.contains("`perplexity-ratio` of job `a`, whose baseline `b` is not measured so"), "{told}");
}

#[test]
fn bytes_that_are_no_text_have_their_place() {
    let home = home();
    std::fs::write(home.path("jobs.yaml"), b"version: 1\nx-\xc3\xa4: \xff").expect("a file");
    let (code, _, stderr) = ran(&home, "batch jobs.yaml --check");
    assert_eq!(code, 2);
    assert_snapshot!(stderr, @"error: jobs.yaml:2:6: byte 0xff is not UTF-8, expected text (hint: save the file as UTF-8)");
    std::fs::create_dir(home.path("d.yaml")).expect("a directory");
    assert_snapshot!(ran(&home, "batch d.yaml --check").2, @"error: d.yaml: it is no regular file, expected a file of jobs (hint: `ls` beside it, then name one that is there)");
}

#[test]
fn outputs_are_followed_through_links() {
    let home = home();
    let outside = tempfile::tempdir().expect("a directory");
    symlink(outside.path(), home.path("away")).expect("a link");
    symlink("nowhere", home.path("lost")).expect("a link");
    symlink("bundles", home.path("same")).expect("a link");
    std::fs::create_dir(home.path("bundles")).expect("a directory");
    let job = |name: &str, out: &str| format!("- {{name: {name}, model: models/llama, out: {out}}}\n");
    let file = |jobs: &[String]| format!("version: 1\njobs:\n{}", jobs.concat());
    assert_snapshot!(told(&home, &file(&[job("a", "away/a")])), @"jobs.yaml:3:39: away/a: it is outside the directory of the file, expected an output below it (hint: move the file of jobs up, or the output below it; links are followed)");
    assert_snapshot!(told(&home, &file(&[job("a", "lost")])), @"jobs.yaml:3:39: lost: it is a link that leads nowhere, expected an output below it (hint: move the file of jobs up, or the output below it; links are followed)");
    assert_snapshot!(told(&home, &file(&[job("a", "bundles/x"), job("b", "same/x")])), @"jobs.yaml:4:39: the output `same/x` stands already at jobs.yaml:3:39, expected one of each (hint: give one of them an `out` of its own)");
    planned(&home, &file(&[job("a", "bundles/x"), job("b", "same/y")]));
}

#[test]
fn matrices_are_those_of_ci() {
    let home = home();
    let plan = planned(
        &home,
        "version: 1
matrix:
  model: [models/llama, {name: pythia, path: models/neox}]
  recipe: [softmax, adaptive]
  dtype: [f32, f16]
  exclude:
  - {model: pythia, dtype: f16}
  - {recipe: softmax, dtype: f16}
  include:
  - {model: llama, steps: [verify]}
  - {recipe: adaptive, dtype: f32, require: {softmax-sites: 1}}
  - {model: pythia, recipe: adaptive, steps: [verify, verify]}
  - {model: pythia, recipe: paper, dtype: bf16, out: elsewhere}
  - {model: models/llama, target: portable, dtype: f16}
",
    );
    let line = |job: &Job| {
        let steps = job.steps.len();
        format!(
            "{} {} steps, {} limits, {}\n",
            job.name,
            steps,
            job.thresholds.len(),
            job.bundle.file_name().expect("a name").display()
        )
    };
    assert_snapshot!(plan.jobs.iter().map(line).collect::<String>(), @"
    llama-softmax-ort-f32 2 steps, 0 limits, llama-softmax-ort-f32
    llama-adaptive-ort-f32 2 steps, 1 limits, llama-adaptive-ort-f32
    llama-adaptive-portable-f16 2 steps, 0 limits, llama-adaptive-portable-f16
    pythia-softmax-ort-f32 1 steps, 0 limits, pythia-softmax-ort-f32
    pythia-adaptive-ort-f32 3 steps, 1 limits, pythia-adaptive-ort-f32
    pythia-paper-ort-bf16 1 steps, 0 limits, elsewhere
    ");
}

#[test]
fn a_softmax_of_the_matrix_is_the_baseline_of_what_compares() {
    let home = home();
    let plan = planned(
        &home,
        "version: 1
defaults:
  steps: [bench]
  require: {check-error: 0.1, softmax-sites: 0}
matrix:
  model: [models/llama]
  recipe: [softmax, adaptive, paper]
  include:
  - {recipe: adaptive, require: {speed-ratio: 1}}
",
    );
    let softmax = of(&plan, "llama-softmax-ort");
    // What is measured against softmax says nothing of softmax itself.
    assert_eq!(softmax.thresholds.len(), 1);
    let adaptive = of(&plan, "llama-adaptive-ort");
    assert_eq!(adaptive.baseline.as_deref(), Some("llama-softmax-ort"));
    let bench = &adaptive.steps[1].arguments;
    let at = bench.iter().position(|argument| argument == "--against").expect("a baseline");
    assert_eq!(Path::new(&bench[at + 1]), softmax.bundle);
    let paper = of(&plan, "llama-paper-ort");
    assert_eq!((paper.baseline.as_deref(), paper.thresholds.len()), (None, 2));
    assert!(!paper.steps[1].arguments.contains(&"--against".to_owned()));
}

#[test]
fn values_become_what_their_options_take() {
    let home = home();
    std::fs::create_dir(home.path("pictures")).expect("a directory");
    write(&home, "a b/it's.txt", "text");
    write(
        &home,
        "jobs.yaml",
        "version: 1
jobs:
- name: a
  model: models/llama
  recipe: softmax
  steps:
  - convert: {layers: 0-3, link: false, train: true, seed: 7}
  - finetune: {data: [train.txt, a b/it's.txt], valid: valid.txt, lr: 6e-4, teacher: self}
  - eval: {perplexity: valid.txt, task: [one=valid.txt, two=train.txt]}
  - bench: {context: [32, 64], batch: 2, skip: [prefill], svg: pictures/a}
",
    );
    let (code, stdout, stderr) = ran(&home, "batch jobs.yaml --dry-run");
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_snapshot!(stdout, @r#"
    a
      dijiang convert ./models/llama -o ./bundles/a --recipe softmax --target ort --layers 0-3 --train --seed 7 --json
      dijiang finetune ./bundles/a --data ./train.txt --data "./a b/it's.txt" --valid ./valid.txt --lr 6e-4 --teacher self --json
      dijiang eval ./bundles/a --perplexity ./valid.txt --task 'one=./valid.txt' --task 'two=./train.txt' --json
      dijiang bench ./bundles/a --context '32,64' --batch 2 --skip prefill --svg ./pictures/a --json
    1 job, 4 steps
    "#);
}

#[test]
fn included_files_stand_where_they_are() {
    let home = home();
    write(&home, "sub/train.txt", "text");
    model(&home, "sub/model", "neox");
    write(
        &home,
        "common.yaml",
        "version: 1\ndefaults: {out: made, dtype: f16, recipe: paper, require: {check-error: 0.5}}",
    );
    write(
        &home,
        "sub/other.yaml",
        "version: 1
include: [../common.yaml]
defaults: {recipe: pff}
jobs:
- {name: other, model: model, steps: [{calibrate: {data: train.txt}}]}
",
    );
    let plan = planned(
        &home,
        "version: 1
include: [common.yaml, sub/other.yaml]
defaults: {dtype: f32, require: {softmax-sites: 1}}
jobs:
- {name: mine, model: models/llama, require: {check-error: 0.25}}
",
    );
    assert_eq!(names(&plan), ["other", "mine"]);
    let root = home.0.path();
    let other = of(&plan, "other");
    assert_eq!((other.recipe.as_str(), other.bundle.clone()), ("pff", root.join("made/other")));
    assert_eq!(other.source, root.join("sub/model"));
    assert_eq!(other.steps[1].reads, [root.join("sub/train.txt")]);
    assert_eq!((other.place.file.clone(), other.place.line), (root.join("sub/other.yaml"), 5));
    let mine = of(&plan, "mine");
    // The later of two included files stands above the earlier one, and the file itself above both.
    assert_eq!((mine.recipe.as_str(), mine.dtype.map(DType::name)), ("pff", Some("f32")));
    let limits: Vec<(&str, f64)> =
        mine.thresholds.iter().map(|limit| (limit.quantity.name(), limit.limit)).collect();
    assert_eq!(limits, [("check-error", 0.25), ("softmax-sites", 1.0)]);
}

#[test]
fn files_that_include_each_other_are_refused() {
    let home = home();
    write(&home, "b.yaml", "version: 1\ninclude: [jobs.yaml]");
    assert_snapshot!(told(&home, "version: 1\ninclude:\n- b.yaml"), @"b.yaml:2:11: `jobs.yaml` includes itself through others, expected files that do not (hint: move what both need to a file that includes neither)");
    assert_snapshot!(told(&home, "version: 1\ninclude: [jobs.yaml]"), @"jobs.yaml:2:11: `jobs.yaml` includes itself, expected files that do not (hint: move what both need to a file that includes neither)");
    for n in 0..40 {
        write(&home, &format!("c{n}.yaml"), &format!("version: 1\ninclude: [c{}.yaml]", n + 1));
    }
    assert_snapshot!(told(&home, "version: 1\ninclude: [c0.yaml]"), @"c30.yaml:2:11: `c31.yaml` is included through 32 files, expected fewer (hint: name the files in one list)");
}

/// Files made to take time or memory.
fn hostile() -> Vec<(&'static str, String)> {
    let mut laughs = "version: 1\nx-0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    let mut merges = "version: 1\nx-0: &a0 {k: x}\n".to_owned();
    for level in 1..30 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        writeln!(laughs, "x-{level}: &a{level} [{aliases}]").expect("a line");
        let maps: Vec<String> = (0..9).map(|key| format!("k{key}: *a{}", level - 1)).collect();
        writeln!(merges, "x-{level}: &a{level} {{<<: *a{}, {}}}", level - 1, maps.join(", "))
            .expect("a line");
    }
    let list = |item: &str, count: usize| vec![item; count].join(", ");
    let axis = |count: usize| {
        (0..count).map(|n| format!("{{name: m{n}, path: models/llama}}")).collect::<Vec<_>>().join(", ")
    };
    let keys = (0..100_000).map(|n| format!("k{n}: 1")).collect::<Vec<_>>().join("\n");
    vec![
        ("billion laughs", laughs),
        ("billion laughs by merges", merges),
        ("an alias inside what it names", "version: 1\njobs: &a [*a]".to_owned()),
        ("deep lists", format!("version: 1\njobs: {}", "[".repeat(100_000))),
        ("deep maps", format!("version: 1\njobs: {}", "{a: ".repeat(100_000))),
        ("deep blocks", (0..2_000).map(|n| format!("{}a:", " ".repeat(n))).collect::<Vec<_>>().join("\n")),
        ("many keys", keys),
        ("many wrong steps", format!("version: 1\ndefaults: {{steps: [{}]}}", list("vrify", 50_000))),
        (
            "a large matrix",
            format!(
                "version: 1\nmatrix: {{model: [{}], recipe: [{}], target: [{}]}}",
                axis(1_000),
                list("paper", 100),
                list("ort", 100)
            ),
        ),
        (
            "many excludes",
            format!(
                "version: 1\nmatrix: {{model: [{}], exclude: [{}]}}",
                axis(10_000),
                list("{recipe: pff}", 10_000)
            ),
        ),
        (
            "a long name",
            format!("version: 1\njobs: [{{name: {}, model: models/llama}}]", "n".repeat(1 << 20)),
        ),
        ("a long key", format!("version: 1\n{}: 1", "k".repeat(1 << 20))),
        ("many bytes", format!("version: 1\n# {}", "x".repeat(17 << 20))),
        ("control characters", "version: 1\n\"jo\\u001bbs\\n\": 1".to_owned()),
    ]
}

fn ten_thousand(last: &str) -> String {
    let mut text = "version: 1
x-job: &job {model: models/llama, steps: [{convert: {seed: 1}}, verify, {eval: {perplexity: valid.txt}}]}
jobs:
"
    .to_owned();
    for n in 0..9_999 {
        writeln!(text, "- {{<<: *job, name: job-{n}}}").expect("a line");
    }
    text + last
}

/// Seconds of a processor, which do not depend on what else runs. Generous for a build that is not optimized.
const MOST_TIME: u32 = 5;
/// Address space beside the program itself, which is larger than what is used of it.
const MOST_MEMORY: u64 = 200 << 20;

/// Runs `--check` with bound time and memory.
fn checked(home: &Home, text: &str) -> (i32, String, String) {
    write(home, "jobs.yaml", text);
    let program = env!("CARGO_BIN_EXE_dijiang");
    let most = (MOST_MEMORY + std::fs::metadata(program).expect("the program").len()) / 1024;
    let mut command = Command::new("sh");
    command.args([
        "-c",
        &format!("ulimit -t {MOST_TIME}; ulimit -v {most}; exec \"$0\" batch jobs.yaml --check"),
        program,
    ]);
    let output = command.current_dir(home.0.path()).env_remove("DIJIANG_LOG").output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

#[test]
fn hostile_files_are_refused_at_once() {
    let home = home();
    let mut all = String::new();
    for (what, text) in hostile() {
        let (code, stdout, stderr) = checked(&home, &text);
        assert_eq!((code, stdout.as_str()), (2, ""), "{what}: {stderr}");
        let lines = stderr.lines().count();
        let first = stderr.lines().next().expect("a line");
        writeln!(all, "# {what}\n{first}").expect("a line");
        assert!(
            lines <= 50 && first.len() < 1500,
            "{what}: {lines} lines, the first of {} bytes",
            first.len()
        );
    }
    assert_snapshot!("hostile", all);
}

#[test]
fn ten_thousand_jobs_are_planned_at_once() {
    let home = home();
    let (code, stdout, stderr) = checked(&home, &ten_thousand("- {<<: *job, name: last}\n"));
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "10000 jobs, 30000 steps\n", ""));
    let (code, _, stderr) = checked(&home, &ten_thousand("- {<<: *job, name: job-9}\n"));
    assert_eq!(code, 2);
    assert_snapshot!(stderr, @"error: jobs.yaml:10003:20: a job `job-9` stands already at jobs.yaml:13:20, expected one of each (hint: rename one; a model of a matrix is named by `{name: NAME, path: PATH}`)");
    // One mistake in what all of them share is one line.
    let shared = ten_thousand("").replace("seed: 1", "seed: one");
    assert_snapshot!(checked(&home, &shared).2, @"error: jobs.yaml:2:60: step convert: invalid value 'one' for '--seed <SEED>': invalid digit found in string, expected what the command takes (hint: `dijiang convert --help` lists it)");
    // Ten thousand mistakes are as quick.
    let apart = ten_thousand("").replace(", name: job-", ", baseline: x, name: job-");
    assert_eq!(checked(&home, &apart).2.lines().count(), 50);
    let more = (0..=MAX_JOBS)
        .map(|n| format!("- {{name: n{n}, model: models/llama}}"))
        .collect::<Vec<_>>()
        .join("\n");
    assert_snapshot!(checked(&home, &format!("version: 1\njobs:\n{more}")).2, @"error: jobs.yaml:1:1: 20001 jobs, expected 20000 at most (hint: split the file, and run its parts one after the other)");
}

/// The example with random pieces left out, doubled or moved.
#[test]
fn edited_files_are_plans_or_mistakes_with_places() {
    let home = home();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut plans, mut refused) = (0, 0);
    let directory = home.0.path().display().to_string();
    for _ in 0..1_000 {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        for _ in 0..=random(3) {
            let start = random(bytes.len());
            let piece = bytes[start..(start + 1 + random(20)).min(bytes.len())].to_vec();
            if random(2) == 0 {
                bytes.drain(start..start + piece.len());
            }
            if random(2) == 0 {
                let to = random(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
        match read(&home, &String::from_utf8(bytes).expect("the example is ASCII")) {
            Ok(_) => plans += 1,
            Err(mistakes) => {
                refused += 1;
                assert!(!mistakes.is_empty());
                for line in mistakes.iter().map(ToString::to_string) {
                    let place = line.strip_prefix(&directory).and_then(|rest| rest.split_once(": "));
                    let numbers = place.expect("a place").0.rsplit(':').take(2);
                    assert!(numbers.map(str::parse::<u32>).all(|n| n.is_ok_and(|n| n > 0)), "{line}");
                    assert!(
                        line.contains("expected") && line.contains("(hint: ") && !line.contains('\n'),
                        "{line}"
                    );
                }
            }
        }
    }
    assert!(plans > 50 && refused > 500, "{plans} plans, {refused} refused");
}

/// Three models with baselines, some chains, and jobs by themselves.
fn many(home: &Home) -> Plan {
    let mut text = "version: 1
defaults: {steps: [bench]}
matrix:
  model: [{name: a, path: models/llama}, {name: b, path: models/neox}, {name: c, path: models/llama}]
  recipe: [paper, softmax, adaptive]
  include: [{recipe: adaptive, require: {speed-ratio: 0.1}}]
jobs:
- {name: second, model: models/llama, baseline: first}
- {name: first, model: models/llama, baseline: a-paper-ort}
"
    .to_owned();
    for n in 0..12 {
        writeln!(text, "- {{name: alone-{n}, model: models/neox}}").expect("a line");
    }
    planned(home, &text)
}

#[test]
fn shards_are_a_partition_with_baselines_in_them() {
    let home = home();
    let all = many(&home);
    for count in [1, 2, 3, 5, 8, 40] {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut sizes = Vec::new();
        for index in 1..=count {
            let mut part = all.clone();
            shard(&mut part, Shard { index, count });
            let here: BTreeSet<&str> = names(&part).into_iter().collect();
            for job in &part.jobs {
                assert!(
                    job.baseline.as_deref().is_none_or(|name| here.contains(name)),
                    "{} of {index}/{count}",
                    job.name
                );
                assert!(seen.insert(job.name.clone(), index).is_none(), "{} is in two shards", job.name);
            }
            let positions: Vec<usize> = part
                .jobs
                .iter()
                .map(|job| all.jobs.iter().position(|other| other.name == job.name).expect("a job"))
                .collect();
            assert!(positions.is_sorted());
            sizes.push(part.jobs.len());
        }
        assert_eq!(seen.len(), all.jobs.len());
        let spread = sizes.iter().max().expect("a shard") - sizes.iter().min().expect("a shard");
        // The largest group is of three jobs.
        assert!(spread <= 3, "{sizes:?}");
    }
}

#[test]
fn jobs_are_chosen_by_name_with_their_baselines() {
    let home = home();
    let chosen = |patterns: &[&str]| {
        let mut plan = many(&home);
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        only(&mut plan, &patterns).map(|()| names(&plan).join(" ")).map_err(|error| error.to_string())
    };
    assert_eq!(chosen(&["second"]).as_deref(), Ok("a-paper-ort second first"));
    assert_eq!(
        chosen(&["[bc]-adaptive-*"]).as_deref(),
        Ok("b-softmax-ort b-adaptive-ort c-softmax-ort c-adaptive-ort")
    );
    assert_eq!(chosen(&["alone-?", "first"]).map(|names| names.split(' ').count()), Ok(12));
    assert_snapshot!(chosen(&["alone-1", "secnd"]).expect_err("no job"), @"--only secnd: no job is called so, expected a name or a pattern (hint: did you mean `second`?)");
    assert_snapshot!(chosen(&["[a"]).expect_err("no pattern"), @"--only [a: invalid range pattern, expected a name with `*`, `?` or `[…]` in it (hint: `dijiang batch FILE --dry-run` lists the names)");
    write(&home, "jobs.yaml", "version: 1\njobs: [{name: a, model: models/llama}]");
    for wrong in ["0/2", "3/2", "1", "a/b", "1/100001", "-1/2"] {
        let (code, _, stderr) = ran(&home, &format!("batch jobs.yaml --check --shard={wrong}"));
        assert_eq!(code, 2);
        assert!(stderr.contains("expected I/N, I from 1 to N"), "{stderr}");
    }
    assert_eq!(ran(&home, "batch jobs.yaml --check --shard 2/2").1, "0 jobs, 0 steps\n");
}

#[test]
fn the_schema_is_the_one_in_the_docs() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/batch.schema.json");
    let kept = std::fs::read_to_string(kept).expect("the schema");
    let (code, printed, _) = ran(&Home::empty(), "batch --schema");
    assert_eq!(code, 0);
    assert!(
        printed == kept,
        "docs/batch.schema.json is not what `dijiang batch --schema` prints: write it anew"
    );
}

/// What the schema holds to be right and wrong, the reader does too.
#[test]
fn the_schema_and_the_reader_agree() {
    let home = home();
    let schema = json_schema(&commands());
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let agree = |value: &Value, is_right: bool| {
        let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert_eq!(errors.is_empty(), is_right, "the schema: {value}\n{errors:?}");
        let read = read(&home, &value.to_string());
        assert_eq!(read.is_ok(), is_right, "the reader: {value}\n{:?}", read.map(|plan| plan.jobs.len()));
    };
    let examples = schema["examples"].as_array().expect("examples");
    assert!(!examples.is_empty());
    for example in examples {
        agree(example, true);
        for (what, change) in near_misses() {
            let mut miss = example.clone();
            change(&mut miss);
            assert!(miss != *example, "{what} changes nothing");
            agree(&miss, false);
        }
        for change in variants() {
            let mut other = example.clone();
            change(&mut other);
            assert!(other != *example);
            agree(&other, true);
        }
    }
}

type Change = fn(&mut Value);

fn near_misses() -> Vec<(&'static str, Change)> {
    vec![
        ("version 2", |file| file["version"] = 2.into()),
        ("version as text", |file| file["version"] = "1".into()),
        ("an unknown key", |file| file["job"] = Value::Null),
        ("an unknown key of defaults", |file| file["defaults"]["output"] = "x".into()),
        ("an unknown dtype", |file| file["defaults"]["dtype"] = "f64".into()),
        ("an empty path", |file| file["defaults"]["out"] = "".into()),
        ("no model", |file| drop(file["matrix"].as_object_mut().expect("a map").remove("model"))),
        ("an empty axis", |file| file["matrix"]["recipe"] = Value::Array(Vec::new())),
        ("an unknown target", |file| file["matrix"]["target"][0] = "orto".into()),
        ("a model without a path", |file| {
            drop(file["matrix"]["model"][1].as_object_mut().expect("a map").remove("path"));
        }),
        ("steps in an exclude", |file| file["matrix"]["exclude"][0]["steps"] = Value::Array(Vec::new())),
        ("a job without a name", |file| drop(file["jobs"][0].as_object_mut().expect("a map").remove("name"))),
        ("a name that is a path", |file| file["jobs"][0]["name"] = "a/b".into()),
        ("an unknown step", |file| file["jobs"][0]["steps"][3] = "verfy".into()),
        ("a step of two commands", |file| file["jobs"][0]["steps"][2]["verify"] = Value::Null),
        ("an unknown option", |file| file["jobs"][0]["steps"][0]["calibrate"]["stpes"] = 3.into()),
        ("an option of the batch", |file| file["jobs"][0]["steps"][2]["quantize"]["force"] = true.into()),
        ("a switch that is a number", |file| file["jobs"][0]["steps"][0]["calibrate"]["no-fit"] = 1.into()),
        ("a value that is a switch", |file| file["jobs"][0]["steps"][0]["calibrate"]["steps"] = true.into()),
        ("no values", |file| file["jobs"][0]["steps"][0]["calibrate"]["data"] = Value::Array(Vec::new())),
        ("a word of another option", |file| {
            file["jobs"][0]["steps"][1]["finetune"]["schedule"] = "bf16".into();
        }),
        ("an unknown limit", |file| file["defaults"]["require"]["speed"] = 1.into()),
        ("a limit as text", |file| file["defaults"]["require"]["speed-ratio"] = "1".into()),
        ("a negative limit", |file| file["defaults"]["require"]["softmax-sites"] = (-1).into()),
        ("a list of included files that is none", |file| file["include"] = "other.yaml".into()),
    ]
}

fn variants() -> Vec<Change> {
    vec![
        |file| file["x-anything"] = serde_json::json!([{"a": null}]),
        |file| file["jobs"][0]["steps"][3] = serde_json::json!({"verify": null}),
        |file| file["jobs"][0]["steps"][3] = serde_json::json!({"verify": {"runtime": "all"}}),
        |file| file["jobs"][0]["steps"][1]["finetune"]["schedule"] = "constant".into(),
        |file| file["jobs"][0]["model"] = serde_json::json!({"name": "x", "path": "models/neox"}),
    ]
}
