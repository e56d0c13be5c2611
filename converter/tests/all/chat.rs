//! `dijiang generate --chat`: a conversation whose state stays from one message to the next.

use crate::support::home::Home;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/shakespeare");
const TEMPLATE: &str = "{% for m in messages %}{{ m.role.upper() }}:
{{ m.content }}

{% endfor %}{{ 'ASSISTANT:\\n' }}";
const CALL: &str = "generate bundle --chat --runtime tract -n 8";

/// A bundle of the trained fixture, with a template where one is given.
fn bundle(template: Option<&str>) -> Home {
    let home = Home::empty();
    fs::create_dir(home.path("model")).expect("a directory");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(FIXTURE).join(name), home.path("model").join(name)).expect("it is copied");
    }
    if let Some(template) = template {
        fs::write(home.path("model/chat_template.jinja"), template).expect("it is written");
    }
    let converted = home.run("convert model -o bundle --recipe gated --no-verify");
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    home
}

fn run(home: &Home, arguments: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
    command.current_dir(home.path("")).args(CALL.split_whitespace()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    // A call that ends early reads nothing.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_was_said_before_is_not_forgotten() {
    let home = bundle(Some(TEMPLATE));
    let answers =
        text(&run(&home, &["--system", "Be kind.", "--prompt", "Who is there?", "--prompt", "Nay."], ""));
    let generate = |prompt: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_dijiang"))
            .current_dir(home.path(""))
            .args(["generate", "bundle", "--runtime", "tract", "-n", "8", "--json", "--prompt", prompt])
            .output()
            .expect("it starts");
        let object: serde_json::Value = serde_json::from_str(&text(&output)).expect("an object");
        object["text"].as_str().expect("a text").to_owned()
    };
    let first = "SYSTEM:\nBe kind.\n\nUSER:\nWho is there?\n\nASSISTANT:\n";
    let first_answer = generate(first);
    let second = format!("{first}{first_answer}\n\nUSER:\nNay.\n\nASSISTANT:\n");
    assert_eq!(answers, format!("{first_answer}\n{}\n", generate(&second)));
}

#[test]
fn lines_of_stdin_are_messages() {
    let home = bundle(Some(TEMPLATE));
    let lines = run(&home, &[], "Who is there?\n\nNay.\n");
    let given = run(&home, &["--prompt", "Who is there?", "--prompt", "Nay."], "");
    assert_eq!(text(&lines), text(&given));
    let told = String::from_utf8_lossy(&lines.stderr).into_owned();
    assert!(told.contains("2 answers, ") && told.contains("was never trained"), "{told}");
}

#[test]
fn a_model_without_a_template_is_told_so() {
    let home = bundle(None);
    let output = run(&home, &["--prompt", "Hello"], "");
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_prompt_may_come_from_stdin() {
    let home = bundle(None);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dijiang"));
    command.current_dir(home.path("")).args([
        "generate",
        "bundle",
        "--runtime",
        "tract",
        "-n",
        "4",
        "--prompt-file",
        "-",
    ]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(b"ROMEO:").expect("it is read");
    let output = child.wait_with_output().expect("it ends");
    let given = home.run("generate bundle --runtime tract -n 4 --prompt ROMEO:");
    assert_eq!(text(&output), text(&given));
}
