//! The graph that fits feature maps without gradients: the scaled queries and keys of each site as outputs.

use super::patterns::find_sites;
use super::plan::{Plan, plans};
use super::rewrite::{Options, RewriteError, Work, patch_site};
use super::site_writer::SiteWriter;
use crate::feature_map::recipe_check;
use crate::ir::graph::Graph;
use dijiang_format::dtype::DType;
use dijiang_format::names::MADE;

/// Names of the outputs, with the layer after them.
pub const SAMPLES: [&str; 3] = ["sample.q.", "sample.k.", "sample.log_decay."];

/// A site whose queries and keys are outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampledSite {
    pub name: String,
    pub layer: usize,
    pub heads: usize,
    pub kv_heads: usize,
}

/// Makes the scaled queries and keys of each site outputs of the graph, with their log decay.
pub fn write_samples(graph: &mut Graph, options: &Options<'_>) -> Result<Vec<SampledSite>, RewriteError> {
    recipe_check::check_whole(options.recipe)?;
    let sites = find_sites(graph).sites;
    let mut sampled = Vec::new();
    for (site, plan) in sites.iter().zip(plans(&sites, options)) {
        let Some(plan) = plan.ok().filter(Plan::learns) else { continue };
        patch_site(graph, "sampled_attention", &Work { site, plan, options }, output_samples)?;
        let (heads, kv_heads) = (site.heads as usize, site.kv_heads as usize);
        sampled.push(SampledSite { name: site.name.clone(), layer: site.layer, heads, kv_heads });
    }
    Ok(sampled)
}

fn output_samples(mut writer: SiteWriter<'_, '_, '_>) {
    let site = writer.site;
    writer.p.set_scope(&format!("{}{MADE}", site.name));
    let [q, k] = [site.q, site.k].map(|x| {
        let wide = writer.p.cast(x, DType::F32);
        writer.scaled(wide)
    });
    let log_decay = writer.log_decay();
    for (name, value) in SAMPLES.iter().zip([Some(q), Some(k), log_decay]) {
        if let Some(value) = value {
            writer.p.output(&format!("{name}{}", site.layer), value);
        }
    }
}
