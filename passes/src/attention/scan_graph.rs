//! The graph that tells which layers look far: every causal attention sees as many tokens back as an input says for its
//! layer, and the first ones.

use super::lower::window::{self, Factor};
use super::patterns::find_sites;
use super::plan::plans;
use super::rewrite::{Options, RewriteError, Work, patch_site};
use super::site_writer::SiteWriter;
use crate::feature_map::recipe_check;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::op::Op;
use crate::ir::patch::Patch;
use dijiang_format::dtype::DType;
use dijiang_format::names::{MADE, WINDOWS};

/// Gives the sites that the recipe would replace their windows as the input [`WINDOWS`], f32 `[layers]`; the sinks are those
/// of the recipe. Returns their layers, and how many layers there are. The graph is one of whole texts afterwards, without a
/// past and without padding.
pub fn write_windows(graph: &mut Graph, options: &Options<'_>) -> Result<(Vec<usize>, usize), RewriteError> {
    recipe_check::check(options.recipe)?;
    let found = find_sites(graph);
    let count = found.attentions();
    let sinks = options.recipe.local.map_or(0, |local| local.sinks);
    let mut layers = Vec::new();
    for (site, plan) in found.sites.iter().zip(plans(&found.sites, options)) {
        let Some(plan) = plan.ok().filter(|plan| site.mask.is_causal() && !plan.is_exact) else { continue };
        let work = Work { site, plan, options };
        patch_site(graph, "scanned_attention", &work, |writer| replace(writer, count, sinks))?;
        layers.push(site.layer);
    }
    Ok((layers, count))
}

fn replace(mut writer: SiteWriter<'_, '_, '_>, layers: usize, sinks: u32) {
    let site = writer.site;
    writer.p.set_scope(&format!("{}{MADE}", site.name));
    let dims = writer.dims(site.q);
    let p = &mut *writer.p;
    let windows = p.given(WINDOWS, layers);
    let layer = site.layer as i64;
    let window = p.slice(windows, 0, layer, layer + 1);
    let seen = seen(p, site.q, window, sinks);
    let read = window::read_seen(p, (site.q, Factor::of(site)), [site.k, site.v], seen, dims);
    writer.p.replace(site.out, read);
    writer.drop_cache();
}

/// Whether a query sees a key, bool `[1, sequence, sequence]`.
fn seen(p: &mut Patch<'_>, q: ValueId, window: ValueId, sinks: u32) -> ValueId {
    let time = p.shape_of(q, 2, 3);
    let time = p.squeeze(time, &[0]);
    let places = p.range(time);
    let places = p.cast(places, DType::F32);
    let (query, key) = (p.unsqueeze(places, &[0, 2]), p.unsqueeze(places, &[0, 1]));
    let age = p.sub(query, key);
    let near = p.node(Op::new("Less"), &[age, window]);
    let first = p.scalar_like(key, f64::from(sinks));
    let is_sink = p.node(Op::new("Less"), &[key, first]);
    let stays = p.node(Op::new("Or"), &[near, is_sink]);
    let earlier = p.less_or_equal(key, query);
    p.and(earlier, stays)
}
