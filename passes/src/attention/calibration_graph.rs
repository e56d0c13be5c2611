//! The graph that calibration trains on: the linear attention of each site beside the softmax attention. A site that keeps
//! what it computes has nothing to learn, and none.

use super::patterns::find_sites;
use super::plan::{Plan, plans};
use super::rewrite::{Options, RULE, RewriteError, Work, patch_site};
use super::site_writer::Written;
use crate::feature_map::recipe_check;
use crate::ir::graph::Graph;

/// Names of the outputs, with the layer after them.
pub const SOFTMAX_OUTPUT: &str = "attention.softmax.";
pub const LINEAR_OUTPUT: &str = "attention.linear.";

/// Writes the linear attention of each site beside the softmax attention, which goes on driving the model:
/// both are outputs of the graph. Returns the layers that have one.
pub fn write_beside(graph: &mut Graph, options: &Options<'_>) -> Result<Vec<usize>, RewriteError> {
    recipe_check::check_whole(options.recipe)?;
    let sites = find_sites(graph).sites;
    let mut layers = Vec::new();
    for (site, plan) in sites.iter().zip(plans(&sites, options)) {
        let Some(plan) = plan.ok().filter(Plan::learns) else { continue };
        let layer = site.layer;
        patch_site(graph, RULE, &Work { site, plan, options }, |mut writer| {
            let Written { out, state, .. } = writer.attention();
            if let Some(state) = state {
                writer.output_state(state);
            }
            writer.p.output(&format!("{SOFTMAX_OUTPUT}{layer}"), site.out);
            writer.p.output(&format!("{LINEAR_OUTPUT}{layer}"), out);
        })?;
        layers.push(layer);
    }
    Ok(layers)
}
