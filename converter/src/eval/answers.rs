//! What a model answered, and the metrics over it.

use super::question::Question;
use super::statistics::Measured;

/// How likely a choice is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// The natural logarithm of its probability.
    pub log: f64,
    /// Whether each of its tokens was the likeliest of all.
    pub is_greedy: bool,
}

/// A question and how likely its choices are.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    pub question: &'a Question,
    pub choices: &'a [Likelihood],
}

/// What is measured of the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Of lines of any task: the share of right choices that are the likeliest.
    Accuracy,
    /// The same of a task with a name, as the harness calls it.
    Acc,
    /// The same by the likelihood of a choice's characters, on average.
    AccNorm,
    /// The share of last words whose tokens are all the likeliest.
    LastWord,
    /// e to the mean negative log-likelihood of last words.
    LastWordPerplexity,
}

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Acc | Self::LastWord => "acc",
            Self::AccNorm => "acc_norm",
            Self::LastWordPerplexity => "perplexity",
        }
    }

    pub fn of(self, answers: &[Answered<'_>]) -> Measured {
        let share = |is_right: bool| f64::from(u8::from(is_right));
        let each = answers.iter().map(|answered| match self {
            Self::Accuracy | Self::Acc => share(answered.likeliest() == Some(answered.question.answer)),
            Self::AccNorm => share(answered.likeliest_by_length() == Some(answered.question.answer)),
            Self::LastWord => share(answered.choices.iter().all(|choice| choice.is_greedy)),
            Self::LastWordPerplexity => -answered.choices.iter().map(|choice| choice.log).sum::<f64>(),
        });
        let each: Vec<f64> = each.collect();
        let n = each.len();
        match self {
            Self::LastWordPerplexity => {
                let mean = each.iter().sum::<f64>() / n as f64;
                Measured::perplexity(mean, each, n)
            }
            _ => Measured::mean(each, n),
        }
    }
}

impl Answered<'_> {
    /// The choice that is the likeliest, the first of equal ones.
    pub fn likeliest(&self) -> Option<usize> {
        first_of_highest(self.choices.iter().map(|choice| choice.log))
    }

    fn likeliest_by_length(&self) -> Option<usize> {
        let lengths = self.question.asked.iter().map(|asked| asked.length.max(1) as f64);
        first_of_highest(self.choices.iter().zip(lengths).map(|(choice, length)| choice.log / length))
    }
}

fn first_of_highest(numbers: impl Iterator<Item = f64>) -> Option<usize> {
    let all = numbers.enumerate();
    all.reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_of_the_likeliest_choice() {
        let question = Question::choices("a", &["bc", "bcde", "f"], 1);
        let likely = |log: f64| Likelihood { log, is_greedy: log > -1.0 };
        let choices = [-2.0, -3.0, -2.0].map(likely);
        let answers = [Answered { question: &question, choices: &choices }];
        assert_eq!(answers[0].likeliest(), Some(0));
        // -1, -0.75 and -2 for each character.
        assert_eq!((Metric::Acc.of(&answers).value, Metric::AccNorm.of(&answers).value), (0.0, 1.0));
        let word = Question::end("a b", " c");
        let (right, wrong) = ([likely(-0.5)], [likely(-1.5)]);
        let answers = [&right, &wrong].map(|choices| Answered { question: &word, choices });
        let found = Metric::LastWord.of(&answers);
        assert_eq!((found.value, found.n, found.each), (0.5, 2, vec![1.0, 0.0]));
        let found = Metric::LastWordPerplexity.of(&answers);
        assert_eq!((found.value, found.each), (1.0_f64.exp(), vec![0.5, 1.5]));
    }
}
