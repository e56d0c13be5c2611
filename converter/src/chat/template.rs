//! The template that a model was taught conversations in: Jinja, as `apply_chat_template` of transformers runs it.
//! <https://huggingface.co/docs/transformers/chat_templating_writing>

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use std::path::{Path, PathBuf};

/// A file of its own, or a key of the other.
const FILE: &str = "chat_template.jinja";
const CONFIG: &str = "tokenizer_config.json";
const KEY: &str = "chat_template";
/// Of several templates, that of plain conversations.
const DEFAULT: &str = "default";
/// Words that a template may ask for: what tokens at the ends of texts are called.
const TOKENS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// What somebody said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: &'static str,
    pub content: String,
}

/// A bundle has no template, or one that does not work.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error(
        "{}: it has no chat template, in {FILE} or under `{KEY}` of {CONFIG} (hint: a model that was trained on conversations brings one along; others continue texts, with --prompt)",
        bundle.display()
    )]
    None { bundle: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {reason}", path.display())]
    Config { path: PathBuf, reason: String },
    #[error("{}: the chat template fails: {reason} (hint: --prompt without --chat continues a text as it stands)", path.display())]
    Fails { path: PathBuf, reason: String },
}

/// A template and the words that it is given.
#[derive(Debug, Clone)]
pub struct Template {
    path: PathBuf,
    source: String,
    tokens: Vec<(&'static str, String)>,
}

impl Template {
    /// That of a bundle, or of a checkpoint directory.
    pub fn of(bundle: &Path) -> Result<Self, TemplateError> {
        let config_path = bundle.join(CONFIG);
        let config = read(&config_path)?;
        let config: serde_json::Value = match config {
            None => serde_json::Value::Null,
            Some(text) => serde_json::from_str(&text).map_err(|error| TemplateError::Config {
                path: config_path.clone(),
                reason: error.to_string(),
            })?,
        };
        let own = bundle.join(FILE);
        let (path, source) = match read(&own)? {
            Some(source) => (own, source),
            None => {
                let source = default_of(&config[KEY])
                    .ok_or_else(|| TemplateError::None { bundle: bundle.to_owned() })?;
                (config_path, source.to_owned())
            }
        };
        let word = |name: &'static str| Some((name, token(&config[name])?.to_owned()));
        Ok(Self { path, source, tokens: TOKENS.into_iter().filter_map(word).collect() })
    }

    /// What ends a text, as the tokenizer calls it.
    pub fn end(&self) -> Option<&str> {
        self.tokens.iter().find(|(name, _)| *name == "eos_token").map(|(_, token)| token.as_str())
    }

    /// A conversation as text, up to where the model answers.
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        self.rendered(messages)
            .map_err(|error| TemplateError::Fails { path: self.path.clone(), reason: one_line(&error) })
    }

    fn rendered(&self, messages: &[Message]) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        for (name, token) in &self.tokens {
            environment.add_global(*name, token.as_str());
        }
        let none = Value::from(());
        environment.render_str(
            &self.source,
            context! { messages => as_values(messages), add_generation_prompt => true, tools => none.clone(), documents => none },
        )
    }
}

fn as_values(messages: &[Message]) -> Value {
    let value = |message: &Message| context! { role => message.role, content => message.content.as_str() };
    messages.iter().map(value).collect()
}

fn raise(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The time here and now, in a format of strftime.
fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// As `json.dumps` of Python writes it, without escapes for HTML or beyond ASCII.
fn to_json(value: &Value) -> Result<String, Error> {
    let text = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        serde_json::Value::String(text).to_string()
    };
    Ok(match value.kind() {
        ValueKind::None | ValueKind::Undefined => "null".to_owned(),
        ValueKind::Bool | ValueKind::Number => value.to_string(),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| to_json(&item)).collect::<Result<Vec<_>, _>>()?;
            format!("[{}]", items.join(", "))
        }
        ValueKind::Map => {
            let item = |key: Value| Ok(format!("{}: {}", text(&key), to_json(&value.get_item(&key)?)?));
            let items = value.try_iter()?.map(item).collect::<Result<Vec<_>, Error>>()?;
            format!("{{{}}}", items.join(", "))
        }
        _ => text(value),
    })
}

/// What went wrong, and in which of its lines.
fn one_line(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    let what = what.lines().next().unwrap_or_default().to_owned();
    error.line().map_or(what.clone(), |line| format!("{what}, in line {line}"))
}

/// A file's text, or none where there is no file.
fn read(path: &Path) -> Result<Option<String>, TemplateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TemplateError::Io { path: path.to_owned(), source }),
    }
}

/// A template, or that of its name in a list of several.
fn default_of(value: &serde_json::Value) -> Option<&str> {
    if let Some(list) = value.as_array() {
        let named = list.iter().find(|one| one["name"] == DEFAULT)?;
        return named["template"].as_str();
    }
    value.as_str()
}

/// A token, by itself or with how it is found in texts.
fn token(value: &serde_json::Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
