//! The JSON schema, from the table of keys and from the commands' own options.

use super::check::{MAX_NAME, dtypes};
use super::{FILE, Kind, Table};
use crate::batch::document::{self, Node, Scalar};
use crate::batch::expand::options::{Commands, Shape};
use crate::batch::plan::StepCommand;
use dijiang_format::target::Target;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What `dijiang batch --schema` prints.
pub fn json_schema(commands: &Commands) -> Value {
    let example = document::parse(Path::new("example.yaml"), super::EXAMPLE, &mut 0);
    let example = example.ok().flatten().map(|root| as_json(&root));
    let mut schema = map(&FILE);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("A file of jobs for `dijiang batch`");
    schema["examples"] = json!([example]);
    schema["$defs"] = json!({"steps": steps(commands), "name": name()});
    schema
}

/// A document as JSON has it, its aliases and merges written out.
fn as_json(node: &Node) -> Value {
    match &node.value {
        document::Value::Scalar(Scalar::Null) => Value::Null,
        document::Value::Scalar(Scalar::Bool(value)) => json!(value),
        document::Value::Scalar(Scalar::Number(number, text)) => {
            text.parse::<i64>().map_or_else(|_| json!(number), |whole| json!(whole))
        }
        document::Value::Scalar(Scalar::Text(text)) => json!(text),
        document::Value::List(items) => items.iter().map(|item| as_json(item)).collect(),
        document::Value::Map(entries) => {
            entries.iter().map(|entry| (entry.key.to_string(), as_json(&entry.node))).collect()
        }
    }
}

fn map(table: &Table) -> Value {
    let properties: Map<String, Value> = table
        .keys
        .iter()
        .map(|key| {
            let mut schema = value(key.kind);
            schema["description"] = json!(key.doc);
            (key.name.to_owned(), schema)
        })
        .collect();
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    let required: Vec<&str> = table.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if let Some(prefix) = table.free_prefix {
        schema["patternProperties"] = json!({(format!("^{prefix}")): {}});
    }
    schema
}

fn value(kind: Kind) -> Value {
    match kind {
        Kind::Version => json!({"const": 1}),
        Kind::Path | Kind::Recipe => json!({"type": "string", "minLength": 1}),
        Kind::Name => json!({"$ref": "#/$defs/name"}),
        Kind::Target => json!({"enum": Target::names().collect::<Vec<_>>()}),
        Kind::DType => json!({"enum": dtypes()}),
        Kind::Number(least) if least.is_finite() => json!({"type": ["number", "null"], "minimum": least}),
        Kind::Number(_) => json!({"type": ["number", "null"]}),
        Kind::List(inner) => json!({"type": "array", "items": value(*inner)}),
        Kind::Axis(inner) => json!({"type": "array", "items": value(*inner), "minItems": 1}),
        Kind::Map(table) => map(table),
        Kind::PathOr(table) => json!({"anyOf": [value(Kind::Path), map(table)]}),
        Kind::Steps => json!({"$ref": "#/$defs/steps"}),
    }
}

fn name() -> Value {
    json!({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._+-]*$", "maxLength": MAX_NAME})
}

fn steps(commands: &Commands) -> Value {
    let names = StepCommand::ALL.map(StepCommand::name);
    let one = |command: StepCommand| {
        json!({
            "type": "object",
            "properties": {command.name(): options(commands, command)},
            "required": [command.name()],
            "additionalProperties": false,
        })
    };
    let mut any = vec![json!({"enum": names})];
    any.extend(StepCommand::ALL.map(one));
    json!({"type": "array", "items": {"anyOf": any}})
}

/// The options of a command. Their values are held to by the command itself: here are only their shapes.
fn options(commands: &Commands, command: StepCommand) -> Value {
    let scalar = json!({"type": ["string", "number"]});
    let properties: Map<String, Value> = commands
        .options(command)
        .map(|option| {
            let mut schema = match (option.shape, option.values.is_empty()) {
                (Shape::Switch, _) => json!({"type": "boolean"}),
                (Shape::One, true) => scalar.clone(),
                (Shape::One, false) => json!({"enum": option.values}),
                (Shape::Repeated | Shape::Joined, _) => {
                    json!({"anyOf": [scalar, {"type": "array", "items": scalar, "minItems": 1}]})
                }
            };
            schema["description"] = json!(option.help);
            (option.name, schema)
        })
        .collect();
    json!({"type": ["object", "null"], "properties": properties, "additionalProperties": false})
}
