//! Conversations: messages in the model's own template, of which only what is new is fed.

mod template;

pub use template::{Message, Template, TemplateError};

/// The roles that templates know.
const SYSTEM: &str = "system";
const USER: &str = "user";
const ASSISTANT: &str = "assistant";

/// What was said, and what of it the model has seen.
#[derive(Debug)]
pub struct Conversation {
    template: Template,
    messages: Vec<Message>,
    /// The text that the state stands for.
    seen: String,
}

impl Conversation {
    /// One that begins, with what the model is to be if that is said.
    pub fn new(template: Template, system: Option<&str>) -> Self {
        let message = |content: &str| Message { role: SYSTEM, content: content.to_owned() };
        Self { template, messages: system.map(message).into_iter().collect(), seen: String::new() }
    }

    /// Says something: what is to be fed of it, and whether that goes on behind what the model has seen. A template may
    /// write what was said before in another way as the conversation goes on; all of it is fed again then.
    pub fn say(&mut self, text: &str) -> Result<(String, bool), TemplateError> {
        self.messages.push(Message { role: USER, content: text.to_owned() });
        let whole = match self.template.render(&self.messages) {
            Ok(whole) => whole,
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        };
        let rest = whole.strip_prefix(&self.seen).filter(|rest| !self.seen.is_empty() && !rest.is_empty());
        let told = match rest {
            Some(rest) => (rest.to_owned(), true),
            None => (whole.clone(), false),
        };
        self.seen = whole;
        Ok(told)
    }

    /// The token that ends an answer, as the tokenizer calls it.
    pub fn end(&self) -> Option<&str> {
        self.template.end()
    }

    /// Takes what the model answered.
    pub fn answered(&mut self, text: &str) {
        self.seen.push_str(text);
        self.messages.push(Message { role: ASSISTANT, content: text.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is fed of three turns of a conversation in a template.
    fn fed(source: &str) -> Vec<(String, bool)> {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::write(home.path().join("chat_template.jinja"), source).expect("it is written");
        let mut conversation =
            Conversation::new(Template::of(home.path()).expect("a template"), Some("Be brief."));
        let mut fed = Vec::new();
        for (said, answer) in [("a", " A "), ("b", "B"), ("c", "C")] {
            fed.push(conversation.say(said).expect("it is rendered"));
            conversation.answered(answer);
        }
        fed
    }

    #[test]
    fn only_what_is_new_is_fed() {
        let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}<assistant>";
        let texts: Vec<(String, bool)> = [
            ("<system>Be brief.|<user>a|<assistant>", false),
            ("|<user>b|<assistant>", true),
            ("|<user>c|<assistant>", true),
        ]
        .map(|(text, resumes)| (text.to_owned(), resumes))
        .to_vec();
        assert_eq!(fed(plain), texts);
    }

    #[test]
    fn a_template_that_writes_answers_otherwise_is_fed_whole() {
        let trims = "{% for m in messages %}<{{ m.role }}>{{ m.content.strip() }}|{% endfor %}<assistant>";
        let texts = fed(trims);
        assert_eq!(
            texts[1],
            ("<system>Be brief.|<user>a|<assistant>A|<user>b|<assistant>".to_owned(), false)
        );
        assert_eq!(texts[2], ("|<user>c|<assistant>".to_owned(), true));
    }
}
