//! How likely the choices of questions are: as tokens, in groups that are fed at once, what choices share fed once.

use super::answers::Likelihood;
use super::question::{Asked, Question};
use crate::report::progress::Progress;
use dijiang_runtime::{Branches, Branching, RuntimeError, Scored, Serving, Tokenizer};
use std::ops::Range;

/// Tokens of a group, padding included: the logits of so many are on the host at once.
const TOKENS_AT_ONCE: usize = 512;

/// What is given of a choice and what is scored, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tokens {
    ids: Vec<i64>,
    /// Where what is scored begins; nothing predicts the first token.
    begin: usize,
}

/// Ways of a question that begin alike.
#[derive(Debug)]
struct Job {
    question: usize,
    /// Of its choices.
    choices: Range<usize>,
    branches: Branches,
    /// Tokens at the beginning of each rest that are not scored.
    skipped: Vec<usize>,
}

/// Asks questions of what is served.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    pub(super) serving: &'a mut Serving,
    pub(super) tokenizer: &'a Tokenizer,
    /// Tokens that the model takes, at most.
    pub(super) most: usize,
    /// Whether what the choices share is fed once.
    pub(super) branches: bool,
}

impl Asking<'_> {
    /// The likelihoods of each question's choices.
    pub(super) fn likelihoods(
        &mut self,
        questions: &[Question],
        progress: &mut dyn Progress,
    ) -> Result<Vec<Vec<Likelihood>>, RuntimeError> {
        let nothing = Likelihood { log: 0.0, is_greedy: true };
        let mut found: Vec<_> =
            questions.iter().map(|question| vec![nothing; question.asked.len()]).collect();
        let mut jobs = Vec::new();
        for (at, question) in questions.iter().enumerate() {
            let tokens = question.asked.iter().map(|asked| self.tokens(asked));
            jobs.extend(jobs_of(at, &tokens.collect::<Result<Vec<_>, _>>()?));
        }
        if self.branches {
            // Rows of a group are then about as long as each other.
            jobs.sort_by_key(|job| std::cmp::Reverse(job.branches.shared.len()));
        }
        let together = self.branches && self.serving.branching() == Branching::Together;
        for group in groups(&jobs, if together { TOKENS_AT_ONCE } else { 0 }) {
            let scores = self.scores(group)?;
            for (job, scores) in group.iter().zip(scores) {
                let own = &mut found[job.question][job.choices.clone()];
                for ((own, skipped), scores) in own.iter_mut().zip(&job.skipped).zip(scores) {
                    *own = likelihood(&scores[*skipped..]);
                }
            }
            let ended = group.iter().filter(|job| job.choices.start == 0).count();
            progress.advance(ended as u64);
        }
        Ok(found)
    }

    fn scores(&mut self, jobs: &[Job]) -> Result<Vec<Vec<Vec<Scored>>>, RuntimeError> {
        let branches: Vec<Branches> = jobs.iter().map(|job| job.branches.clone()).collect();
        match self.branches {
            true => self.serving.score_branches(&branches),
            false => self.serving.score_apart(&branches),
        }
    }

    /// Spaces at the end of the context belong to what follows it, and the whole is tokenised before it is split.
    /// What is too long loses its beginning.
    fn tokens(&self, Asked { context, continuation, .. }: &Asked) -> Result<Tokens, RuntimeError> {
        let begin = self.tokenizer.encode(context.trim_end())?.len();
        let mut ids = self.tokenizer.encode(&format!("{context}{continuation}"))?;
        // The last token is predicted and not fed.
        let cut = ids.len().saturating_sub(self.most + 1);
        ids.drain(..cut);
        // Where the last token reaches into the context, it is scored all the same.
        let begin = begin.saturating_sub(cut).min(ids.len().saturating_sub(1));
        Ok(Tokens { ids, begin })
    }
}

fn likelihood(scores: &[Scored]) -> Likelihood {
    Likelihood {
        log: scores.iter().map(|score| score.log_probability).sum(),
        is_greedy: scores.iter().all(|score| score.is_likeliest),
    }
}

/// One where its choices begin alike, or else one for each choice. A choice of a single token is predicted by nothing.
fn jobs_of(question: usize, tokens: &[Tokens]) -> Vec<Job> {
    let job = |choices: Range<usize>, shared: usize| {
        let own = &tokens[choices.clone()];
        let rests = own.iter().map(|tokens| tokens.ids[shared..].to_vec()).collect();
        let skipped = own.iter().map(|tokens| tokens.begin.saturating_sub(shared)).collect();
        let shared = own[0].ids[..shared].to_vec();
        Job { question, choices, branches: Branches { shared, rests }, skipped }
    };
    let shared = shared(tokens);
    if shared > 0 {
        return vec![job(0..tokens.len(), shared)];
    }
    let long = tokens.iter().enumerate().filter(|(_, tokens)| tokens.ids.len() > 1);
    long.map(|(at, tokens)| job(at..at + 1, tokens.begin.max(1))).collect()
}

/// Tokens that all choices begin with, none of which is scored.
fn shared(tokens: &[Tokens]) -> usize {
    let Some((first, others)) = tokens.split_first() else { return 0 };
    let alike = |a: &Tokens, b: &Tokens| a.ids.iter().zip(&b.ids).take_while(|(a, b)| a == b).count();
    let same = others.iter().map(|other| alike(first, other)).min().unwrap_or(first.begin);
    let begin = tokens.iter().map(|tokens| tokens.begin).min().unwrap_or(0);
    let shortest = tokens.iter().map(|tokens| tokens.ids.len()).min().unwrap_or(0);
    // The first token is not scored, wherever what is scored begins.
    same.min(begin.max(1)).min(shortest.saturating_sub(1))
}

/// Neighbours of which no more than so many tokens are fed at once, one job at least.
fn groups(jobs: &[Job], most: usize) -> Vec<&[Job]> {
    let mut groups = Vec::new();
    let (mut begin, mut shared, mut rows, mut longest) = (0, 0, 0, 0);
    for (at, job) in jobs.iter().enumerate() {
        let Branches { shared: own, rests } = &job.branches;
        let next =
            (shared.max(own.len()), rows + rests.len(), rests.iter().map(Vec::len).fold(longest, usize::max));
        if at > begin && (next.0 * (at - begin + 1) > most || next.1 * next.2 > most) {
            groups.push(&jobs[begin..at]);
            begin = at;
            (shared, rows, longest) = (own.len(), rests.len(), rests.iter().map(Vec::len).max().unwrap_or(0));
        } else {
            (shared, rows, longest) = next;
        }
    }
    groups.extend((begin < jobs.len()).then(|| &jobs[begin..]));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[i64], begin: usize) -> Tokens {
        Tokens { ids: ids.to_vec(), begin }
    }

    /// What is shared, the rests, and what of them is not scored.
    type Split = (Vec<i64>, Vec<Vec<i64>>, Vec<usize>);

    fn split(tokens: &[Tokens]) -> Vec<Split> {
        let jobs = jobs_of(0, tokens);
        jobs.into_iter().map(|job| (job.branches.shared, job.branches.rests, job.skipped)).collect()
    }

    #[test]
    fn choices_share_what_is_not_scored() {
        // One context, of which the choices go on alike for a token.
        let same = [tokens(&[1, 2, 3, 4], 2), tokens(&[1, 2, 3, 5, 6], 2)];
        assert_eq!(split(&same), [(vec![1, 2], vec![vec![3, 4], vec![3, 5, 6]], vec![0, 0])]);
        // Contexts that differ, and one end.
        let ends = [tokens(&[1, 2, 3, 9], 3), tokens(&[1, 4, 9], 2)];
        assert_eq!(split(&ends), [(vec![1], vec![vec![2, 3, 9], vec![4, 9]], vec![2, 1])]);
        // Nothing alike, as where one lost its beginning.
        let none = [tokens(&[2, 3, 9], 2), tokens(&[4, 9], 1)];
        assert_eq!(split(&none), [(vec![2, 3], vec![vec![9]], vec![0]), (vec![4], vec![vec![9]], vec![0])]);
        // All of it is scored but the first token.
        assert_eq!(split(&[tokens(&[7, 8], 0)]), [(vec![7], vec![vec![8]], vec![0])]);
        assert!(split(&[tokens(&[7], 0)]).is_empty());
    }

    #[test]
    fn groups_hold_no_more_than_they_may() {
        let job = |shared: usize, rests: &[usize]| Job {
            question: 0,
            choices: 0..rests.len(),
            branches: Branches {
                shared: vec![0; shared],
                rests: rests.iter().map(|length| vec![0; *length]).collect(),
            },
            skipped: Vec::new(),
        };
        let jobs = [job(5, &[1, 1]), job(4, &[2, 1]), job(4, &[1]), job(40, &[1]), job(1, &[9, 9])];
        let sizes = |most| groups(&jobs, most).iter().map(|group| group.len()).collect::<Vec<_>>();
        assert_eq!(sizes(0), [1, 1, 1, 1, 1]);
        assert_eq!(sizes(10), [2, 1, 1, 1]);
        assert_eq!(sizes(15), [3, 1, 1]);
        assert_eq!(sizes(1000), [5]);
        assert!(groups(&[], 10).is_empty());
    }
}
