//! Holds what a command prints with `--json` to its schema under `docs/schemas`.

use jsonschema::Validator;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas")
}

/// The schema of that name.
fn validator(name: &str) -> Validator {
    let path = directory().join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let schema: Value = serde_json::from_str(&text).expect("JSON");
    jsonschema::validator_for(&schema).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Fails where the value is not what the schema of that name says.
pub(crate) fn check_value(name: &str, value: &Value) {
    let errors: Vec<String> =
        validator(name).iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{name}: {}\n{value}", errors.join("\n"));
}

/// The same of what a call printed, where it asked for an object and got one.
pub(crate) fn check(arguments: &[&str], stdout: &str) {
    let Some(command) = arguments.first().filter(|_| arguments.contains(&"--json")) else { return };
    if let Ok(value) = serde_json::from_str(stdout) {
        check_value(&name(command, arguments), &value);
    }
}

/// Some commands print other objects with an option.
fn name(command: &str, arguments: &[&str]) -> String {
    let apart = [
        ("batch", "--check"),
        ("batch", "--dry-run"),
        ("convert", "--estimate"),
        ("convert", "--stop-after"),
        ("verify", "--digests"),
    ];
    let found = apart.iter().find(|(of, option)| *of == command && arguments.contains(option));
    found.map_or(command.to_owned(), |(of, option)| format!("{of}-{}", option.trim_start_matches('-')))
}
