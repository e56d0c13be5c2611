//! The softmax model in a bundle, to be rewritten once more with the parameters that the bundle has.

use crate::onnx::import::{ImportError, import};
use crate::train::finetune::training_form;
use dijiang_format::files;
use dijiang_format::manifest::{Manifest, ManifestError};
use dijiang_passes::attention::lower::Form;
use dijiang_passes::attention::rewrite::{AddedWeights, Options, added_weights};
use dijiang_passes::canon::{CanonError, canonicalize};
use dijiang_passes::ir::graph::Graph;
use std::path::Path;

/// There is no softmax model to rewrite.
#[derive(Debug, thiserror::Error)]
pub enum SoftmaxError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Canon(#[from] CanonError),
    #[error(
        "its attention was linear in the source already, and no softmax model is in the bundle to be taken apart"
    )]
    OwnAttention,
    #[error("the parameter `{name}` is not in the bundle as the recipe has it")]
    Parameter { name: String },
}

/// The model, in its settled form.
#[derive(Debug)]
pub struct SoftmaxModel {
    pub graph: Graph,
    manifest: Manifest,
    lowered: Vec<usize>,
    added: AddedWeights,
}

impl SoftmaxModel {
    /// With the layers that the bundle serves rewritten, or with none.
    pub fn open(bundle: &Path, is_served: bool) -> Result<Self, SoftmaxError> {
        let manifest = Manifest::read(bundle)?;
        if manifest.source.own_attention {
            return Err(SoftmaxError::OwnAttention);
        }
        let mut graph = import(&bundle.join(files::SOFTMAX))?;
        canonicalize(&mut graph)?;
        let (lowered, added) = match is_served {
            false => (Vec::new(), AddedWeights::new()),
            true => (lowered(&manifest), added_weights(&import(&bundle.join(linear_graph(bundle)))?)),
        };
        Ok(Self { graph, manifest, lowered, added })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How its layers are rewritten, for rows of so many tokens.
    pub fn options(&self, tokens: u64) -> Options<'_> {
        Options {
            recipe: &self.manifest.recipe,
            form: training_form(tokens, self.manifest.recipe.chunk),
            seed: self.manifest.seed,
            layers: Some(&self.lowered),
            added: Some(&self.added),
        }
    }

    /// The same all at once, however many tokens there are.
    pub fn parallel(&self) -> Options<'_> {
        Options { form: Form::Parallel, ..self.options(0) }
    }

    /// Refuses parameters that are not the bundle's: they would be those that a conversion begins with.
    pub fn check_parameters(&self, rewritten: &Graph) -> Result<(), SoftmaxError> {
        for (name, tensor) in added_weights(rewritten) {
            let own = self.added.get(&name).map(|own| (own.dtype(), own.dims()));
            if own != Some((tensor.dtype(), tensor.dims())) {
                return Err(SoftmaxError::Parameter { name });
            }
        }
        Ok(())
    }
}

fn lowered(manifest: &Manifest) -> Vec<usize> {
    manifest.sites.iter().filter(|site| site.lowered).map(|site| site.layer).collect()
}

/// A graph that has every parameter that the conversion added by its name.
fn linear_graph(bundle: &Path) -> &'static str {
    let plain = [files::PARALLEL, files::CHUNKED];
    plain.into_iter().find(|name| bundle.join(name).exists()).unwrap_or(files::MODEL)
}
