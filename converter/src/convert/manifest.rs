//! What the manifest of a bundle says, and the texts that are copied beside it.

use super::ConvertOptions;
use crate::bundle::states::states;
use crate::checkpoint::ModelMeta;
use crate::convert::compile::Compiled;
use dijiang_format::dtype::DType;
use dijiang_format::files;
use dijiang_format::manifest::{self, Manifest, SourceFile, SourceKind};
use dijiang_format::recipe::Recipe;
use dijiang_passes::attention::patterns::NearMiss;
use dijiang_passes::attention::rewrite::SiteReport;

/// The texts of a model that are copied from beside its weights as they are, and what says who may do what with it.
const TEXTS: [&str; 6] = [
    files::CONFIG,
    files::TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
];
pub(crate) const LICENCES: [&str; 8] =
    ["LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING", "NOTICE", "NOTICE.txt", "USE_POLICY.md"];

/// Copied from the source as they are.
pub(crate) fn copied() -> impl Iterator<Item = &'static str> {
    TEXTS.into_iter().chain(LICENCES)
}

/// What a bundle is made of.
pub(crate) struct Origin<'a> {
    pub(crate) kind: SourceKind,
    /// The element type of the weights in the source.
    pub(crate) stored: DType,
    pub(crate) files: Vec<SourceFile>,
    pub(crate) meta: &'a ModelMeta,
    /// And in the bundle.
    pub(crate) dtype: DType,
    /// Whether its attention is its own.
    pub(crate) own_attention: bool,
    /// Its name on a hub, of a commit.
    pub(crate) hub: Option<String>,
}

/// How many positions there are, where the model has so many and no more, or the recipe tells so many apart.
pub(crate) fn positions(recipe: &Recipe, meta: &ModelMeta) -> Option<u64> {
    let told = std::iter::once(&recipe.map).chain(&recipe.both_ways).filter_map(|spec| spec.positions);
    let of_slots = recipe.slots.and_then(|slots| slots.positions);
    told.chain(of_slots).chain(meta.learned_positions).min()
}

/// What a manifest says before anything is compiled.
pub(crate) fn describe(options: &ConvertOptions, origin: &Origin<'_>) -> Manifest {
    let Origin { kind, stored, files, meta, dtype, own_attention, hub } = origin;
    let source = manifest::Source {
        kind: *kind,
        dtype: *stored,
        files: files.clone(),
        own_attention: *own_attention,
        hub: hub.clone(),
    };
    let model = manifest::Model {
        family: meta.family.to_owned(),
        vocab: meta.vocab,
        positions: positions(&options.recipe, meta),
        eos: meta.eos.clone(),
    };
    let asked = manifest::Options {
        dtype: options.dtype,
        layers: options.layers.clone(),
        train: options.train,
        link: options.link,
        verify: options.verify.is_some(),
    };
    let described = Manifest::new(source, model, options.recipe.clone(), options.target, *dtype);
    Manifest { weights: options.weights, seed: options.seed, options: Some(asked), ..described }
}

/// What it says of a model that was compiled.
pub(super) fn of_compiled(compiled: &Compiled, options: &ConvertOptions, origin: &Origin<'_>) -> Manifest {
    Manifest {
        sites: compiled.report.sites.iter().map(site).collect(),
        misses: compiled.report.missed().map(miss).collect(),
        state: states(&compiled.model),
        ..describe(options, origin)
    }
}

fn site(report: &SiteReport) -> manifest::Site {
    manifest::Site {
        name: report.name.clone(),
        layer: report.layer,
        heads: report.heads as usize,
        kv_heads: report.kv_heads as usize,
        head_dim: report.head_dim as usize,
        lowered: report.why_kept.is_none(),
        window: report.window,
    }
}

fn miss(near: &NearMiss) -> manifest::Miss {
    manifest::Miss {
        node: near.node.clone(),
        pattern: near.pattern.to_owned(),
        place: near.miss.place.clone(),
        reason: near.miss.reason.clone(),
    }
}
