//! The graph that tells which layers should have stayed softmax: every attention that a recipe replaced, beside the one that
//! it replaced, and an input that says for each layer which of the two counts.

use super::patterns::find_sites;
use super::plan::plans;
use super::rewrite::{Options, RULE, RewriteError, Work, patch_site};
use super::site_writer::SiteWriter;
use crate::feature_map::recipe_check;
use crate::ir::graph::Graph;
use dijiang_format::names::KEPT;

/// Writes the sites of a softmax model as the recipe says, each beside the softmax that it stands for, with the input
/// [`KEPT`]. Returns their layers, and how many layers there are. The graph is one of whole texts afterwards, without a past.
pub fn write_kept(graph: &mut Graph, options: &Options<'_>) -> Result<(Vec<usize>, usize), RewriteError> {
    recipe_check::check_whole(options.recipe)?;
    let found = find_sites(graph);
    let count = found.attentions();
    let mut layers = Vec::new();
    for (site, plan) in found.sites.iter().zip(plans(&found.sites, options)) {
        let Some(plan) = plan.ok().filter(|plan| !plan.is_exact) else { continue };
        patch_site(graph, RULE, &Work { site, plan, options }, |writer| write(writer, count))?;
        layers.push(site.layer);
    }
    Ok((layers, count))
}

fn write(mut writer: SiteWriter<'_, '_, '_>, layers: usize) {
    let (softmax, layer) = (writer.site.out, writer.site.layer as i64);
    let linear = writer.attention().out;
    writer.drop_cache();
    let p = &mut *writer.p;
    let kept = p.given(KEPT, layers);
    let kept = p.slice(kept, 0, layer, layer + 1);
    let kept = p.reshape(kept, &[]);
    let dtype = p.dtype(linear);
    let kept = p.cast(kept, dtype);
    // Not a difference of the two, which would round what is much larger than it.
    let one = p.scalar_like(kept, 1.0);
    let rest = p.sub(one, kept);
    let (softmax_part, linear_part) = (p.mul(softmax, kept), p.mul(linear, rest));
    let out = p.add(softmax_part, linear_part);
    p.replace(softmax, out);
}
