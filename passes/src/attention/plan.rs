//! What takes the place of each site: the attention of the recipe, or, of a site that sees a window of tokens, that window
//! alone, which is what it was: exactly, with a ring of so many keys and values as its state.

use super::rewrite::Options;
use super::site::AttentionSite;
use dijiang_format::recipe::{Attention, Decay, Local, MOST_LOCAL, Readout, Recipe, Rule};

/// What is written of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) rule: Rule,
    pub(super) local: Option<Local>,
    /// The layer whose ring counts the tokens of this one, as of all rings that see the same.
    pub(super) counter: usize,
    /// Whether it computes what the site did.
    pub(super) is_exact: bool,
}

impl Plan {
    /// Whether what is written has parameters of its own.
    pub(super) fn learns(&self) -> bool {
        !self.is_exact && self.rule != Rule::None
    }
}

/// The plan of each site, or why it stays as it is.
pub(super) fn plans(sites: &[AttentionSite], options: &Options<'_>) -> Vec<Result<Plan, String>> {
    let mut counters: Vec<(Local, usize)> = Vec::new();
    let mut counted = |plan: Plan| {
        let Some(local) = plan.local else { return plan };
        let first = counters.iter().find(|(other, _)| *other == local).map(|(_, layer)| *layer);
        counters.extend(first.is_none().then_some((local, plan.counter)));
        Plan { counter: first.unwrap_or(plan.counter), ..plan }
    };
    sites.iter().map(|site| plan(site, options).map(&mut counted)).collect()
}

fn plan(site: &AttentionSite, options: &Options<'_>) -> Result<Plan, String> {
    let recipe = &*options.recipe.at(site.layer, site.mask.is_causal());
    if recipe.attention == Attention::Softmax {
        return Err("the recipe keeps softmax".to_owned());
    }
    if recipe.softmax_layers.contains(&site.layer) {
        return Err("the recipe keeps this layer".to_owned());
    }
    if options.layers.is_some_and(|layers| !layers.contains(&site.layer)) {
        return Err("the layer was not asked for".to_owned());
    }
    match site.mask.window() {
        Some(window) => of_source(site, window),
        None => of_recipe(site, recipe),
    }
}

/// The window that a site has.
fn of_source(site: &AttentionSite, window: u32) -> Result<Plan, String> {
    if window > MOST_LOCAL {
        return Err(format!("it sees a window of {window} tokens, and a ring holds at most {MOST_LOCAL}"));
    }
    let local = Some(Local { window, sinks: 0 });
    Ok(Plan { rule: Rule::None, local, counter: site.layer, is_exact: true })
}

/// What the recipe says of a site that sees all tokens.
fn of_recipe(site: &AttentionSite, recipe: &Recipe) -> Result<Plan, String> {
    let mask = site.mask;
    if !mask.is_causal() && site.cache.is_some() {
        return Err(format!("its mask is {}, and it has a cache: no recurrence runs both ways", mask.name()));
    }
    if let Some(what) = follows_an_order(recipe).filter(|_| !mask.is_causal()) {
        return Err(format!("its mask is {}, and {what} follows the order of the tokens", mask.name()));
    }
    let reads_hidden =
        recipe.decay == Decay::Learned || recipe.readout != Readout::Sum || recipe.rule == Rule::Delta;
    if reads_hidden && site.hidden.is_none() {
        return Err(
            "the recipe's gate reads what the values are projected from, and they are not the output of one linear layer"
                .to_owned(),
        );
    }
    Ok(Plan { rule: recipe.rule, local: recipe.local, counter: site.layer, is_exact: false })
}

/// What of a recipe means nothing where every token sees every other.
fn follows_an_order(recipe: &Recipe) -> Option<&'static str> {
    match recipe.rule {
        Rule::Delta => Some("the delta rule"),
        _ => recipe.local.map(|_| "a window"),
    }
}
