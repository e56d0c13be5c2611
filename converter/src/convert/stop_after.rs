//! A conversion that is stopped on the way, for finding a wrong patch by halving.

use crate::bundle::atomic::NewBundle;
use crate::bundle::room;
use crate::bundle::stored_file;
use crate::convert::compile::{CompileOptions, Partial, compile_first};
use crate::convert::estimate::Beside;
use crate::convert::inputs;
use crate::convert::manifest::{Origin, describe};
use crate::convert::refusal::{check_source, of_pipeline};
use crate::convert::source::{self, Source};
use crate::convert::{
    ConvertError, ConvertOptions, graph_bytes, plan_weights, settled, write_file, write_graph, write_weights,
};
use crate::report::progress::{Estimate, Progress};
use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_passes::ir::tensor::Tensor;
use std::path::Path;

/// Writes the serving graph as it stands after the first `patches` patches. Nothing is verified, and what is
/// written is no bundle to generate with.
pub fn convert_first(
    patches: usize,
    source: &Path,
    target: &Path,
    options: &ConvertOptions,
    progress: &mut dyn Progress,
) -> Result<Partial, ConvertError> {
    progress.stage("reading the source");
    check_source(source)?;
    let mut opened = source::open(source, options.dtype)?;
    let own = opened.own_attention.take();
    let options = &settled::settled(source, options, (&opened.meta, own.as_ref()))?;
    opened.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let read: Vec<Tensor> = opened.as_read.consts().map(|(_, _, tensor)| tensor.clone()).collect();
    let bundle = NewBundle::begin(target, options.force)?;
    progress.stage("compiling");
    let how = CompileOptions {
        recipe: &options.recipe,
        target: options.target,
        seed: options.seed,
        layers: options.layers.as_deref(),
    };
    let Source { kind, as_read, meta, dtype, stored, files, hub, .. } = opened;
    let added = own.as_ref().map(|own| &own.added);
    let partial =
        compile_first(patches, (as_read, added), &how).map_err(|error| of_pipeline(source, error))?;
    let origin = Origin {
        kind,
        stored,
        files: inputs::describe(&files)?,
        meta: &meta,
        dtype,
        own_attention: own.is_some(),
        hub,
    };
    let writer = Writer { dir: bundle.path(), target, options, partial: &partial };
    writer.write(&origin, progress).map_err(|error| error.placed(bundle.path(), target))?;
    stored_file::check(read.iter())?;
    bundle.commit()?;
    progress.done();
    Ok(partial)
}

struct Writer<'a> {
    dir: &'a Path,
    /// Where `dir` goes once it is complete.
    target: &'a Path,
    options: &'a ConvertOptions,
    partial: &'a Partial,
}

impl Writer<'_> {
    fn write(&self, origin: &Origin<'_>, progress: &mut dyn Progress) -> Result<(), ConvertError> {
        let Self { dir, target, options, partial } = *self;
        let weights = plan_weights(&[&partial.graph], &[])?;
        let serving = graph_bytes(options.target.opset(), &partial.graph, &weights)?.len() as u64;
        let beside = Beside { serving, ..Beside::default() };
        let estimate = Estimate::of(weights.size(), &beside, &partial.graph);
        progress.estimate(&estimate);
        room::check(dir, target, estimate.disk, options.free_space)?;
        let written = write_weights(dir, &weights, progress)?;
        write_graph(dir, files::MODEL, options.target.opset(), &partial.graph, &weights)?;
        let manifest = Manifest {
            stopped_after: Some(partial.patches as u64),
            digests: Some(written.digests),
            ..describe(options, origin)
        };
        write_file(dir, files::MANIFEST, manifest.to_json()?.as_bytes())?;
        Ok(())
    }
}
