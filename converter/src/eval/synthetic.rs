//! Tasks of random tokens, which likelihood of text does not show: copying, and recalling the value of a key.

use dijiang_passes::numeric::random::Random;
use dijiang_runtime::Branches;

/// A task without a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synthetic {
    /// The second half of a row is the first once more.
    Copy,
    /// Pairs of a key and a value, and then one of the keys.
    Recall,
}

pub const SYNTHETIC: [Synthetic; 2] = [Synthetic::Copy, Synthetic::Recall];

/// Tokens of a row where nothing is said.
pub(super) const LENGTHS: [u64; 6] = [256, 512, 1024, 2048, 4096, 8192];
/// Below it a row shows nothing.
pub(super) const LEAST: usize = 8;
/// Tokens of all rows of one length, about.
const TOKENS: usize = 1 << 14;
const MOST_ROWS: usize = 16;
/// Keys that are asked for, of all rows of one length.
const ASKED: usize = 64;

/// What rows are made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Making {
    pub(super) length: usize,
    /// Rows, at most.
    pub(super) limit: usize,
    pub(super) vocabulary: usize,
}

impl Synthetic {
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Recall => "recall",
        }
    }

    /// Of a row of so many tokens, different keys.
    pub(super) fn keys(self, length: usize) -> usize {
        match self {
            Self::Copy => 0,
            Self::Recall => (length - 1) / 2,
        }
    }

    /// Rows of one length: the same ones in every run, for every model with as many tokens.
    pub(super) fn rows(self, making: Making) -> Vec<Branches> {
        let rows = (TOKENS / making.length).clamp(2, MOST_ROWS);
        let row = |number: usize| {
            let mut random = Random::named(0, &format!("{}.{}.{number}", self.name(), making.length));
            match self {
                Self::Copy => copy(making, &mut random),
                Self::Recall => recall(making, ASKED / rows, &mut random),
            }
        };
        (0..rows.min(making.limit)).map(row).collect()
    }
}

/// Any token, whatever it stands for.
fn token(vocabulary: usize, random: &mut Random) -> i64 {
    (random.next_u64() % vocabulary as u64) as i64
}

/// Nothing says that the copy begins: its first token is given.
fn copy(making: Making, random: &mut Random) -> Branches {
    let half: Vec<i64> = (0..making.length / 2).map(|_| token(making.vocabulary, random)).collect();
    Branches { shared: [half.as_slice(), &half[..1]].concat(), rests: vec![half[1..].to_vec()] }
}

/// The pairs are fed once, and each key that is asked for after them.
fn recall(making: Making, asked: usize, random: &mut Random) -> Branches {
    let count = Synthetic::Recall.keys(making.length);
    let keys = random.permutation(making.vocabulary).into_iter().take(count).map(|key| key as i64);
    let pairs: Vec<[i64; 2]> = keys.map(|key| [key, token(making.vocabulary, random)]).collect();
    let chosen = random.permutation(count).into_iter().take(asked.max(1));
    Branches { rests: chosen.map(|at| pairs[at].to_vec()).collect(), shared: pairs.concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(what: Synthetic, length: usize) -> Vec<Branches> {
        what.rows(Making { length, limit: usize::MAX, vocabulary: 300 })
    }

    #[test]
    fn a_copy_is_what_came_before() {
        let all = rows(Synthetic::Copy, 512);
        assert_eq!((all.len(), rows(Synthetic::Copy, 16384).len()), (16, 2));
        let Branches { shared, rests } = &all[3];
        let whole = [shared.as_slice(), &rests[0]].concat();
        assert_eq!((whole.len(), shared.len(), &whole[..256]), (512, 257, &whole[256..]));
        assert!(all[0] != all[1] && all == rows(Synthetic::Copy, 512), "rows differ, and runs do not");
        assert_eq!(Synthetic::Copy.rows(Making { length: 512, limit: 3, vocabulary: 300 }), all[..3]);
    }

    #[test]
    fn a_key_that_is_asked_for_has_one_value() {
        for length in [256, 511] {
            let all = rows(Synthetic::Recall, length);
            assert_eq!(all.iter().map(|row| row.rests.len()).sum::<usize>(), 64);
            for Branches { shared, rests } in &all {
                assert_eq!(shared.len(), (length - 1) / 2 * 2);
                for rest in rests {
                    let found: Vec<&[i64]> = shared.chunks(2).filter(|pair| pair[0] == rest[0]).collect();
                    assert_eq!(found, [rest.as_slice()]);
                }
            }
        }
    }
}
