//! Draws random features anew every so many steps.

use super::TrainError;
use super::trainer::Trainer;
use dijiang_format::recipe::MapSpec;
use dijiang_passes::feature_map::{FeatureMap, find};
use dijiang_passes::ir::graph::Graph;
use dijiang_passes::training::parameters::{Group, PARAMETERS};
use dijiang_passes::training::redraw::{draw, drawn};

/// What a run draws, and when.
#[derive(Debug, Clone)]
pub(super) struct Redraw {
    spec: MapSpec,
    seed: u64,
    every: usize,
    /// That of the features now; 0 are those of the bundle.
    number: usize,
}

impl Redraw {
    pub(super) fn new(spec: &MapSpec, seed: u64, every: usize) -> Self {
        Self { spec: spec.clone(), seed, every, number: 0 }
    }

    /// Puts the features of a step into place, if they are not there. Which they are depends on the number of the step
    /// alone, so that a resumed run has the same.
    pub(super) fn before(&mut self, step: usize, trainer: &mut Trainer) -> Result<(), TrainError> {
        let number = step.saturating_sub(1) / self.every;
        let Some(group) = trainer.layout.drawn.clone().filter(|_| number != self.number) else {
            return Ok(());
        };
        let features = draw(&group, (map(&self.spec)?, &self.spec), (self.seed, number));
        self.number = number;
        trainer.set_vector(&group.vector(PARAMETERS), &features)
    }
}

/// The weights of a model that can be drawn anew.
pub(super) fn drawn_weights(model: &Graph, spec: &MapSpec) -> Result<Group, TrainError> {
    drawn(model, map(spec)?).ok_or_else(|| nothing(spec))
}

fn map(spec: &MapSpec) -> Result<&'static dyn FeatureMap, TrainError> {
    find(&spec.kind).ok_or_else(|| nothing(spec))
}

fn nothing(spec: &MapSpec) -> TrainError {
    TrainError::NothingDrawn { map: spec.kind.clone() }
}
