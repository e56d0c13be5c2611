//! What a program of the command line is expected to do: colours and bars on a terminal alone, quiet and verbose calls,
//! completions, manual pages, and objects of one shape.

use crate::support::home::Home;
use crate::support::schema;
use serde_json::Value;
use std::process::{Command, Output, Stdio};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/shakespeare");

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn fine(output: &Output) -> (String, String) {
    let told = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{told:?}");
    told
}

#[test]
fn colour_is_for_a_terminal_or_for_who_asks_for_it() {
    let home = Home::empty();
    let told = |variables: &[(&str, &str)], call: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
        command
            .current_dir(home.0.path())
            .args(call.split(' '))
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE");
        command.envs(variables.iter().copied());
        let output = command.output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        text(&output.stdout) + &text(&output.stderr)
    };
    for call in ["info nowhere", "info", "info --nothing"] {
        assert!(!told(&[], call).contains('\u{1b}'), "{call}: stderr is no terminal");
        assert!(told(&[("CLICOLOR_FORCE", "1")], call).contains("\u{1b}["), "{call}");
        assert!(!told(&[("NO_COLOR", "1")], call).contains('\u{1b}'), "{call}");
    }
    assert!(told(&[], "info nowhere").starts_with("error: nowhere: "));
}

#[test]
fn a_quiet_call_says_nothing_but_errors_and_a_verbose_one_what_it_does() {
    let home = Home::empty();
    let convert = format!("convert {MODEL} -o X --no-verify --force");
    let (plain, told) = fine(&home.run(&convert));
    assert_eq!(told, "");
    let (_, told) = fine(&home.run(&format!("--verbose {convert}")));
    assert!(told.contains("INFO") && told.contains("writing the weights"), "{told}");
    let (quiet, told) = fine(&home.run(&format!("{convert} -q")));
    assert_eq!((quiet.lines().next(), told.as_str()), (plain.lines().next(), ""));
    let generate = "generate X --prompt ROMEO: -n 2 --runtime tract";
    let (text_of_model, rates) = fine(&home.run(generate));
    assert!(rates.starts_with("prompt: "), "{rates}");
    assert_eq!(fine(&home.run(&format!("{generate} --quiet"))), (text_of_model, String::new()));
    let refused = home.run("-q info nowhere");
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).starts_with("error: nowhere: "));
    assert_eq!(home.run("info X -q -v").status.code(), Some(2), "it is one or the other");
}

/// The exit code tells how the work ended, whoever reads on.
#[test]
fn a_reader_that_went_away_hides_no_failure() {
    let home = Home::empty();
    fine(&home.run(&format!("convert {MODEL} -o X --no-verify")));
    let closed = |call: &str| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
        command.current_dir(home.0.path()).args(call.split(' ')).stdin(Stdio::null()).stdout(writer);
        let output = command.output().expect("it runs");
        (output.status.code(), text(&output.stderr))
    };
    assert_eq!(closed("verify X --digests"), (Some(0), String::new()));
    std::fs::write(home.path("X/notes"), "").expect("it is written");
    assert_eq!(closed("verify X --digests"), (Some(1), String::new()));
    assert_eq!(closed("completions bash"), (Some(0), String::new()));
    assert_eq!(closed("generate X --prompt ROMEO: --runtime tract -q"), (Some(0), String::new()));
}

#[test]
fn shells_are_told_of_every_command() {
    let home = Home::empty();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (script, _) = fine(&home.run(&format!("completions {shell}")));
        for word in ["import-weights", "--checksums", "--digests"] {
            let word = if shell == "fish" { word.trim_start_matches('-') } else { word };
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    // What a shell would say of the script itself.
    let (script, _) = fine(&home.run("completions bash"));
    std::fs::write(home.path("script"), script).expect("it is written");
    let check =
        Command::new("bash").args(["-n", "script"]).current_dir(home.0.path()).output().expect("bash");
    fine(&check);
    assert_eq!(home.run("completions tcsh").status.code(), Some(2));
}

#[test]
fn every_command_has_a_manual_page() {
    let home = Home::empty();
    let (page, _) = fine(&home.run("man"));
    assert!(page.contains(".TH dijiang 1") && page.contains("dijiang\\-convert(1)"), "{page}");
    let (told, _) = fine(&home.run("man pages"));
    let pages = std::fs::read_dir(home.path("pages")).expect("a directory").count();
    assert_eq!(told, format!("pages: {pages} pages\n"));
    let convert = std::fs::read_to_string(home.path("pages/dijiang-convert.1")).expect("it is there");
    assert!(convert.contains(".TH dijiang-convert 1") && convert.contains("Examples:"), "{convert}");
    assert!(convert.contains("checksums"), "{convert}");
}

/// The schemas hold what each command prints: [`Home::run`] looks.
#[test]
fn every_object_is_of_the_shape_that_its_schema_says() {
    let home = Home::empty();
    let object = |call: &str| -> Value {
        let (told, _) = fine(&home.run(call));
        serde_json::from_str(&told).unwrap_or_else(|e| panic!("{call}: {e}: {told}"))
    };
    object(&format!("inspect {MODEL} --json"));
    object(&format!("convert {MODEL} -o X --dtype f32 --json"));
    object(&format!("convert {MODEL} -o part --stop-after 3 --json"));
    object(&format!("convert {MODEL} -o all --stop-after 100000 --json"));
    object(&format!("convert {MODEL} -o Z --estimate --json"));
    object("verify X --runtime tract --json");
    object("verify X --digests --json");
    object("info X --json");
    object("generate X --prompt ROMEO: -n 2 --runtime tract --json");
    object("generate X --prompt ROMEO: --prompt To -n 2 --runtime tract --json");
    object("quantize X -o int4 --no-verify --json");
    object("import-weights X X --json");
    object("export-torch X --json");
    object("info X --json");
    fine(&home.run(&format!("convert {MODEL} -o X --no-verify --dtype f32 --force")));
    fine(&home.run(&format!("convert {MODEL} -o Y --no-verify --recipe paper")));
    let differs = home.run("diff X Y --json");
    assert_eq!(differs.status.code(), Some(1));
    let manifest =
        || serde_json::from_slice(&std::fs::read(home.path("X/dijiang.json")).expect("it is there"));
    schema::check_value("dijiang", &manifest().expect("JSON"));
    let jobs = format!(
        "version: 1\njobs: [{{name: a, model: {MODEL}, require: {{softmax-sites: 0, check-error: 1}}}}]\n"
    );
    std::fs::write(home.path("jobs.yaml"), jobs).expect("it is written");
    object("batch jobs.yaml --check --json");
    object("batch jobs.yaml --dry-run --json");
    if dijiang_runtime::OrtRuntime::new().is_err() && std::env::var_os("DIJIANG_REQUIRE_ORT").is_none() {
        return;
    }
    let run = format!("--data {MODEL}/valid.txt --batch 4 --context 32 --steps 2 --threads 1 --json");
    object(&format!("calibrate X {run}"));
    object(&format!("finetune X {run}"));
    schema::check_value("dijiang", &manifest().expect("JSON"));
    object("verify X --digests --json");
    let runs = object("info X --json")["training"]["runs"].clone();
    let commands: Vec<&str> =
        runs.as_array().expect("a list").iter().filter_map(|run| run["command"].as_str()).collect();
    assert_eq!(commands, ["calibrate", "finetune"]);
    object("batch jobs.yaml --json");
    object("plot X/train/metrics.jsonl -o loss.svg --json");
    object(&format!("eval X --perplexity {MODEL}/valid.txt --context 32 --max-tokens 64 --json"));
    object("bench X --against Y --context 8 --runs 1 --steps 1 --table1 --json");
    object("report X Y -o page.html --tokens 8 --json");
}

/// A schema that holds nothing would hold everything.
#[test]
fn what_is_of_another_shape_is_found() {
    let right = serde_json::json!({"output": "a.svg", "runs": [{"name": "a", "steps": 1}]});
    schema::check_value("plot", &right);
    for (place, wrong) in
        [("/output", Value::Null), ("/runs/0/steps", Value::from(-1)), ("/runs/0", serde_json::json!({}))]
    {
        let mut value = right.clone();
        *value.pointer_mut(place).expect("it is there") = wrong;
        let checked = std::panic::catch_unwind(|| schema::check_value("plot", &value));
        assert!(checked.is_err(), "{place}");
    }
}
