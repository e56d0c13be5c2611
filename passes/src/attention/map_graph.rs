//! The graph that tells how much each token weighs in what another reads: the values of each site, and the last that is a
//! weighted sum of them.

use super::patterns::find_sites;
use super::plan::plans;
use super::rewrite::{Options, RULE, RewriteError, Work, patch_beside, patch_site};
use super::site_writer::Written;
use crate::feature_map::recipe_check;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::walk::{computed_from, depth_first_from, inputs_of};
use std::collections::BTreeSet;

/// Names of the outputs, with the layer after them.
const VALUES: &str = "map.values.";
const WEIGHED: &str = "map.weighed.";

/// A site whose values and weighted sums are outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedSite {
    pub layer: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub value_dim: usize,
    /// `[batch, kv_heads, sequence, value_dim]`
    pub values: ValueId,
    /// `[batch, heads, sequence, value_dim]`
    pub weighed: ValueId,
    /// All else that `weighed` is computed from along with the values.
    pub beside: Vec<ValueId>,
}

/// Rewrites the sites of a softmax model as the recipe says, and finds what is weighed in each site, rewritten or not. The
/// graph is one of whole texts afterwards, without a past.
pub fn write_maps(graph: &mut Graph, options: &Options<'_>) -> Result<Vec<MappedSite>, RewriteError> {
    recipe_check::check_whole(options.recipe)?;
    let sites = find_sites(graph).sites;
    for (site, plan) in sites.iter().zip(plans(&sites, options)) {
        let (values, weighed) = (format!("{VALUES}{}", site.layer), format!("{WEIGHED}{}", site.layer));
        let Ok(plan) = plan else {
            patch_beside(graph, RULE, site, |patch| {
                patch.output(&values, site.v);
                patch.output(&weighed, site.out);
            })?;
            continue;
        };
        patch_site(graph, RULE, &Work { site, plan, options }, |mut writer| {
            let Written { out, weighed: sums, .. } = writer.attention();
            writer.drop_cache();
            writer.p.output(&values, site.v);
            writer.p.output(&weighed, sums);
            writer.p.replace(site.out, out);
        })?;
    }
    let mapped = sites.iter().filter_map(|site| {
        let values = graph.output(&format!("{VALUES}{}", site.layer))?;
        let weighed = graph.output(&format!("{WEIGHED}{}", site.layer))?;
        Some(MappedSite {
            layer: site.layer,
            heads: site.heads as usize,
            kv_heads: site.kv_heads as usize,
            value_dim: site.value_dim as usize,
            values,
            weighed,
            beside: beside(graph, values, weighed),
        })
    });
    Ok(mapped.collect())
}

/// What is read, between `from` and `to`, of what does not depend on `from`.
fn beside(graph: &Graph, from: ValueId, to: ValueId) -> Vec<ValueId> {
    let dependent = computed_from(graph, &[from]);
    let between = |value: ValueId| match dependent.contains(value) && value != from {
        true => inputs_of(graph, value),
        false => Vec::new(),
    };
    let read: BTreeSet<ValueId> = depth_first_from(vec![to], between).collect();
    let is_beside = |value: &ValueId| !dependent.contains(*value) && graph.as_const(*value).is_none();
    read.into_iter().filter(is_beside).collect()
}
