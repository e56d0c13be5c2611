//! Names for dims that a file leaves without one. Two dims are known to be equal by their names alone, so that a size that
//! has none could not be followed through a graph.

use super::unique::Unique;
use dijiang_format::names::{IDS, POSITIONS, SEGMENTS};
use dijiang_passes::ir::shape::{Dim, Shape};

/// Inputs that hold something of each token, `[batch, sequence]`. A mask may be longer, by what is cached.
const OF_TOKENS: [&str; 3] = [IDS, POSITIONS, SEGMENTS];

/// The names that are taken, and those that were given.
#[derive(Debug, Default)]
pub(super) struct DimNames {
    taken: Unique,
    /// What the batch and the length of the tokens are called, once they are.
    of_tokens: [Option<Dim>; 2],
}

impl DimNames {
    /// `declared` are the names that the inputs of a file have for their dims.
    pub(super) fn new<'n>(declared: impl Iterator<Item = &'n String>) -> Self {
        Self { taken: declared.collect(), of_tokens: [None, None] }
    }

    /// The shape of an input, with a name for each dim that has none.
    pub(super) fn named(&mut self, input: &str, shape: Shape) -> Shape {
        let is_of_tokens = shape.len() == 2 && OF_TOKENS.contains(&input);
        let mut name = |axis: usize, dim: Dim| match dim {
            Dim::Unknown if is_of_tokens => self.of_tokens(axis),
            Dim::Unknown => Dim::sym(&self.taken.fresh(&format!("{input}_{axis}"))),
            other => other,
        };
        shape.into_iter().enumerate().map(|(axis, dim)| name(axis, dim)).collect()
    }

    fn of_tokens(&mut self, axis: usize) -> Dim {
        let wanted = ["batch", "sequence"][axis];
        self.of_tokens[axis].get_or_insert_with(|| Dim::sym(&self.taken.fresh(wanted))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(names: &mut DimNames, input: &str, shape: &[Dim]) -> String {
        format!("{:?}", names.named(input, shape.to_vec()))
    }

    #[test]
    fn dims_of_the_same_tokens_get_one_name() {
        let mut names = DimNames::default();
        let open = [Dim::Unknown, Dim::Unknown];
        assert_eq!(shown(&mut names, "input_ids", &open), "[batch, sequence]");
        assert_eq!(shown(&mut names, "token_type_ids", &open), "[batch, sequence]");
        // It is as long as the past and the tokens together where there is a cache.
        assert_eq!(shown(&mut names, "attention_mask", &open), "[attention_mask_0, attention_mask_1]");
        let cache = [Dim::Unknown, 2.into(), Dim::Unknown, 4.into()];
        assert_eq!(shown(&mut names, "past", &cache), "[past_0, 2, past_2, 4]");
        // Three rows of positions are not one for each sequence.
        let positions = [3.into(), Dim::Unknown, Dim::Unknown];
        assert_eq!(shown(&mut names, "position_ids", &positions), "[3, position_ids_1, position_ids_2]");
    }

    #[test]
    fn names_that_a_file_has_stay_its_own() {
        let declared = ["batch".to_owned(), "x_0".to_owned()];
        let mut names = DimNames::new(declared.iter());
        assert_eq!(shown(&mut names, "input_ids", &[Dim::Unknown, Dim::sym("n")]), "[batch_1, n]");
        assert_eq!(shown(&mut names, "x", &[Dim::Unknown]), "[x_0_1]");
    }
}
