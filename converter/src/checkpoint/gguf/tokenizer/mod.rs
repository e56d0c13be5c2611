//! The tokenizer of a GGUF file as a `tokenizer.json`, where one can be made that gives the same ids.

mod byte_level;
mod sentence_piece;

use super::header::Header;
use super::value::Value;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::texts::Texts;
use crate::report::message::shown;
use dijiang_format::files;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const TEMPLATE: &str = "tokenizer.chat_template";
const CONFIG: &str = "tokenizer_config.json";
const CHAT: &str = "chat_template.jinja";

/// What a token is, by the number that the file has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Why no tokenizer is written.
struct Not(String);

/// The tokens of a file.
struct Vocabulary<'a> {
    header: &'a Header,
    tokens: &'a [String],
    kinds: Vec<Kind>,
}

/// Adds what can be made of a tokenizer and does not lie beside the file, or says why none can be made.
pub(super) fn write(header: &Header, texts: &mut Texts) -> Result<(), CheckpointError> {
    if let Some(template) = header.text(TEMPLATE)?.filter(|_| texts.find(CHAT).is_none()) {
        texts.add(CHAT, template.as_bytes().to_vec());
    }
    if texts.find(files::TOKENIZER).is_some() {
        return Ok(());
    }
    let tokenizer = Vocabulary::of(header).and_then(|vocabulary| Ok((made(&vocabulary)?, vocabulary)));
    match tokenizer {
        Ok((tokenizer, vocabulary)) => {
            texts.add(files::TOKENIZER, tokenizer.to_string().into_bytes());
            if texts.find(CONFIG).is_none() {
                texts.add(CONFIG, format!("{:#}\n", vocabulary.config()).into_bytes());
            }
        }
        Err(Not(why)) => {
            let (place, name) = (header.path.display(), files::TOKENIZER);
            texts.set_lack(format!(
                "{place}: no {name} is made of it, which `generate` and training read texts with: {why} (hint: put the {name} of the model it was made from beside it, and convert it again)"
            ));
        }
    }
    Ok(())
}

fn made(vocabulary: &Vocabulary<'_>) -> Result<Json, Not> {
    let header = vocabulary.header;
    match header.values.get(MODEL) {
        Some(Value::Text(model)) if model == "gpt2" => byte_level::tokenizer(vocabulary),
        Some(Value::Text(model)) if model == "llama" => sentence_piece::tokenizer(vocabulary),
        Some(Value::Text(model)) => {
            Err(Not(format!("{MODEL} is `{}`; made are gpt2 and llama", shown(model))))
        }
        _ => Err(Not(format!("it has no {MODEL}"))),
    }
}

impl<'a> Vocabulary<'a> {
    fn of(header: &'a Header) -> Result<Self, Not> {
        let Some(Value::Texts(tokens)) = header.values.get(TOKENS) else {
            return Err(Not(format!("it has no {TOKENS}")));
        };
        let kinds = match header.values.get(TYPES) {
            Some(Value::Ints(kinds)) if kinds.len() == tokens.len() => {
                kinds.iter().map(|kind| Kind::of(*kind)).collect()
            }
            _ => Err(Not(format!("it has no {TYPES} of as many as there are tokens"))),
        };
        Ok(Self { header, tokens, kinds: kinds? })
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &'a str, Kind)> {
        self.tokens.iter().zip(&self.kinds).enumerate().map(|(id, (token, kind))| (id, token.as_str(), *kind))
    }

    /// The ids of all tokens, each of which must be there once.
    fn ids(&self) -> Result<Map<String, Json>, Not> {
        let mut seen = BTreeMap::new();
        for (id, token, _) in self.iter() {
            if let Some(first) = seen.insert(token, id) {
                return Err(Not(format!("tokens {first} and {id} are both `{}`", shown(token))));
            }
        }
        Ok(self.iter().map(|(id, token, _)| (token.to_owned(), json!(id))).collect())
    }

    /// Those that are found in a text before it is cut.
    fn added(&self) -> Vec<Json> {
        let is_special = |kind: Kind| kind == Kind::Control || kind == Kind::Unknown;
        let added = self.iter().filter(|(.., kind)| is_special(*kind) || *kind == Kind::UserDefined);
        let added = added.map(|(id, content, kind)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": is_special(kind),
            })
        });
        added.collect()
    }

    fn special(&self, name: &str) -> Option<(u64, &'a str)> {
        let id = self.header.count(&format!("tokenizer.ggml.{name}_token_id")).ok().flatten()?;
        let token = self.tokens.get(usize::try_from(id).ok()?)?;
        Some((id, token))
    }

    fn flag(&self, name: &str, usual: bool) -> bool {
        self.header.flag(&format!("tokenizer.ggml.{name}")).ok().flatten().unwrap_or(usual)
    }

    /// What is put before and after a text.
    fn template(&self, begins: bool) -> Json {
        let first = self.special("bos").filter(|_| self.flag("add_bos_token", begins));
        let last = self.special("eos").filter(|_| self.flag("add_eos_token", false));
        if first.is_none() && last.is_none() {
            return Json::Null;
        }
        let sides = |text: &str, kind: u64| -> Vec<Json> {
            let of = |token: Option<(u64, &str)>| {
                token.map(|(_, content)| json!({"SpecialToken": {"id": content, "type_id": kind}}))
            };
            let text = json!({"Sequence": {"id": text, "type_id": kind}});
            of(first).into_iter().chain([text]).chain(of(last)).collect()
        };
        let tokens: Map<String, Json> = [first, last]
            .into_iter()
            .flatten()
            .map(|(id, content)| {
                (content.to_owned(), json!({"id": content, "ids": [id], "tokens": [content]}))
            })
            .collect();
        let pair: Vec<Json> = sides("A", 0).into_iter().chain(sides("B", 1)).collect();
        json!({"type": "TemplateProcessing", "single": sides("A", 0), "pair": pair, "special_tokens": tokens})
    }

    /// `tokenizer_config.json`
    fn config(&self) -> Json {
        let mut config = Map::new();
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        for (name, key) in
            [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
        {
            if let Some((_, content)) = self.special(name) {
                config.insert(key.to_owned(), json!(content));
            }
        }
        Json::Object(config)
    }
}

impl Kind {
    fn of(number: i64) -> Result<Self, Not> {
        Ok(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            other => return Err(Not(format!("{TYPES} has {other}, and types are 1 to 6"))),
        })
    }
}
