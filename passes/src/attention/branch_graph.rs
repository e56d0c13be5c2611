//! The graph that tells what the branches of a model's attentions are worth: what windows read, what is read of linear sums,
//! and what an attention gives that stays softmax, each multiplied by a number of an input.

use super::patterns::find_sites;
use super::plan::plans;
use super::rewrite::{Options, RULE, RewriteError, Work, patch_beside, patch_site};
use super::site_writer::{Factors, SiteWriter};
use crate::feature_map::recipe_check;
use crate::ir::graph::{Graph, ValueId};
use crate::ir::patch::Patch;
use dijiang_format::names::BRANCHES;
use dijiang_format::recipe::Rule;

/// A part of what attentions read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Branch {
    Linear,
    Window,
    /// Of layers that stay softmax, or keep the window that they came with.
    Softmax,
}

impl Branch {
    pub const ALL: [Self; 3] = [Self::Linear, Self::Window, Self::Softmax];

    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Window => "window",
            Self::Softmax => "softmax",
        }
    }
}

/// Rewrites the sites of a softmax model as the recipe says, each branch multiplied by its number of the input [`BRANCHES`],
/// f32 `[3]` in the order of [`Branch::ALL`]. Returns the branches that there are. The graph is one of whole texts
/// afterwards, without a past.
///
/// A window and the sums beside it keep their shares: g · window + (1 - g) · linear, with one of the two left out.
pub fn write_branches(graph: &mut Graph, options: &Options<'_>) -> Result<Vec<Branch>, RewriteError> {
    recipe_check::check_whole(options.recipe)?;
    let sites = find_sites(graph).sites;
    let mut found = Vec::new();
    for (site, plan) in sites.iter().zip(plans(&sites, options)) {
        let Ok(plan) = plan else {
            patch_beside(graph, RULE, site, |patch| {
                let number = numbers(patch)[Branch::Softmax as usize];
                let dtype = patch.dtype(site.out);
                let number = patch.cast(number, dtype);
                let out = patch.mul(site.out, number);
                patch.replace(site.out, out);
            })?;
            found.push(Branch::Softmax);
            continue;
        };
        let near = if plan.is_exact { Branch::Softmax } else { Branch::Window };
        found.extend(plan.local.map(|_| near));
        found.extend((plan.rule != Rule::None).then_some(Branch::Linear));
        patch_site(graph, RULE, &Work { site, plan, options }, |mut writer| {
            let numbers = numbers(writer.p);
            let [linear, window] = [Branch::Linear, near].map(|branch| numbers[branch as usize]);
            writer.factors = Some(Factors { linear, window });
            write(writer);
        })?;
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn write(mut writer: SiteWriter<'_, '_, '_>) {
    let out = writer.attention().out;
    writer.drop_cache();
    writer.p.replace(writer.site.out, out);
}

/// What each branch is multiplied by, in the order of [`Branch::ALL`].
fn numbers(p: &mut Patch<'_>) -> [ValueId; 3] {
    let all = p.given(BRANCHES, Branch::ALL.len());
    Branch::ALL.map(|branch| {
        let at = branch as i64;
        let one = p.slice(all, 0, at, at + 1);
        p.reshape(one, &[])
    })
}
