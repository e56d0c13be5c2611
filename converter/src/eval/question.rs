//! A question: texts that go on from what is given, of which one is right.

/// What is given, and how it may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub context: String,
    /// What is scored, with the space before it.
    pub continuation: String,
    /// Characters of the choice itself, by which `acc_norm` divides.
    pub length: usize,
}

/// A question of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// One for each choice.
    pub asked: Vec<Asked>,
    /// The right one, from 0.
    pub answer: usize,
}

/// Between what is given and a choice.
const DELIMITER: &str = " ";

impl Question {
    /// One context and several choices after it.
    pub(super) fn choices<T: AsRef<str>>(context: &str, choices: &[T], answer: usize) -> Self {
        let asked = |choice: &T| Asked {
            context: context.to_owned(),
            continuation: format!("{DELIMITER}{}", choice.as_ref()),
            length: choice.as_ref().chars().count(),
        };
        Self { asked: choices.iter().map(asked).collect(), answer }
    }

    /// Several contexts and one end of all of them.
    pub(super) fn contexts(contexts: &[String], end: &str, answer: usize) -> Self {
        let asked = |context: &String| Asked {
            context: context.clone(),
            continuation: format!("{DELIMITER}{end}"),
            length: end.chars().count(),
        };
        Self { asked: contexts.iter().map(asked).collect(), answer }
    }

    /// One context and its end, with what is between them.
    pub(super) fn end(context: &str, end: &str) -> Self {
        let length = end.chars().count();
        let asked = Asked { context: context.to_owned(), continuation: end.to_owned(), length };
        Self { asked: vec![asked], answer: 0 }
    }
}

/// The question as goldens show it: texts as they are, a bar where the context ends, a star at the right choice.
#[cfg(test)]
pub(super) fn shown(questions: &[Question]) -> String {
    let one = |question: &Question| {
        let line = |(at, asked): (usize, &Asked)| {
            let star = if at == question.answer { '*' } else { ' ' };
            let text = format!("{:?}", format!("{}|{}", asked.context, asked.continuation));
            format!("{star} {}\n", text.trim_matches('"'))
        };
        question.asked.iter().enumerate().map(line).collect::<String>()
    };
    questions.iter().map(one).collect::<Vec<_>>().join("--\n")
}
