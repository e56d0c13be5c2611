//! Attention maps (Figure 3 of the paper): softmax beside what took its place, layer by layer.

use super::figure::{number, table, words};
use super::maps::{LayerMap, Which, maps as maps_of};
use super::{PageError, PageOptions, Shown, TEXT, heat};
use crate::report::progress::Progress;
use crate::train::teacher::is_as_it_came;
use dijiang_format::files;
use dijiang_format::recipe::{Recipe, Rule};
use dijiang_runtime::Tokenizer;
use maud::{Markup, html};
use std::collections::BTreeSet;

/// How many tokens back still count as near, where a map is told in words.
const NEAR: usize = 8;

/// Bundles of one source.
struct Group<'a> {
    bundles: Vec<&'a Shown>,
}

/// The maps of one model, which stand below each other.
struct Column {
    name: String,
    note: String,
    maps: Result<Vec<LayerMap>, String>,
}

/// What was asked, and what of it the maps are of.
struct Prompt {
    ids: Vec<i64>,
    shown: String,
}

pub(super) fn maps(
    shown: &[Shown],
    options: &PageOptions,
    progress: &mut dyn Progress,
) -> Result<Result<Markup, String>, PageError> {
    let mut parts = Vec::new();
    for group in groups(shown) {
        parts.push(match prompt(group.bundles[0], options) {
            Ok(prompt) => group.section(&prompt, progress)?,
            Err(why) => html! { p.none { (group.bundles[0].name) ": " (why) } },
        });
    }
    Ok(Ok(html! {
        p {
            "A row is a token, a column a token that it reads: the colour is the weight of that token's value in what the "
            "row's attention gives, averaged over heads. Every attention is linear in its values, so that these weights are "
            "exact: in the graph with all its features, gates and windows, the identity stands in the place of the values, and "
            "what comes out in f64 is the map. Weights of the delta rule may be negative, and their rows need not sum to 1. "
            "Where a norm comes after the sums, the map is of the sums."
        }
        (scale()?)
        @for part in &parts { (part) }
    }))
}

fn scale() -> Result<Markup, PageError> {
    Ok(html! {
        figure.scale {
            img src=(heat::scale()?) width="255" height="1" alt="Colours from -1, dark orange, over 0, pale grey, to 1, dark blue";
            div.ticks aria-hidden="true" { @for tick in ["−1", "−0.25", "0", "0.25", "1"] { span { (tick) } } }
            figcaption { "The weight. Small ones are told apart by the root." }
        }
    })
}

fn groups(shown: &[Shown]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for bundle in shown {
        let is_of =
            |group: &&mut Group<'_>| group.bundles[0].manifest.source.files == bundle.manifest.source.files;
        match groups.iter_mut().find(is_of) {
            Some(group) => group.bundles.push(bundle),
            None => groups.push(Group { bundles: vec![bundle] }),
        }
    }
    groups
}

fn prompt(bundle: &Shown, options: &PageOptions) -> Result<Prompt, String> {
    let path = bundle.path.join(files::TOKENIZER);
    if !path.exists() {
        return Err(format!("it has no {}, and a text has no tokens without", files::TOKENIZER));
    }
    let tokenizer = Tokenizer::load(&path).map_err(|e| e.to_string())?;
    let mut ids = tokenizer.encode(options.text.as_deref().unwrap_or(TEXT)).map_err(|e| e.to_string())?;
    ids.truncate(options.tokens);
    if ids.len() < 2 {
        return Err(format!("a map takes 2 tokens or more, found {} (hint: --prompt TEXT)", ids.len()));
    }
    let shown = tokenizer.decode(&ids).map_err(|e| e.to_string())?;
    Ok(Prompt { ids, shown })
}

impl Group<'_> {
    fn section(&self, prompt: &Prompt, progress: &mut dyn Progress) -> Result<Markup, PageError> {
        let columns = self.columns(&prompt.ids, progress);
        let softmax = columns[0].maps.as_ref().ok();
        let drawn = columns.iter().filter_map(|column| column.maps.as_ref().ok()).flatten();
        let missed = drawn.clone().map(LayerMap::missed).fold(0.0, f64::max);
        let layers: BTreeSet<usize> = drawn.map(|map| map.layer).collect();
        let layer = |layer: &usize| layer_figure(*layer, &columns);
        let layers: Vec<Markup> = layers.iter().map(layer).collect::<Result<_, _>>()?;
        Ok(html! {
            p { "On " (prompt.ids.len()) " tokens: " q.prompt { (prompt.shown) } }
            ul {
                @for column in &columns {
                    li {
                        strong { (column.name) } ": " (column.note)
                        @if let Err(why) = &column.maps { ". " em { "There is no map: " (why) } }
                    }
                }
            }
            @if !layers.is_empty() {
                p { "Weights times values are what each attention gives, to " (format!("{missed:.0e}")) " of its largest number." }
                div.layers { @for layer in &layers { (layer) } }
                details {
                    summary { "The maps in numbers" }
                    (in_numbers(&columns, softmax))
                }
            }
        })
    }

    /// The softmax model first, then what each bundle serves that is not it.
    fn columns(&self, ids: &[i64], progress: &mut dyn Progress) -> Vec<Column> {
        let came =
            |bundle: &&&Shown| !bundle.manifest.source.own_attention && is_as_it_came(&bundle.manifest);
        let reference = self.bundles.iter().find(came).or(self.bundles.first());
        let mut columns = Vec::new();
        if let Some(bundle) = reference {
            progress.stage(&format!("the softmax maps of {}", bundle.name));
            let note = match is_as_it_came(&bundle.manifest) {
                true => "the model as it came".to_owned(),
                false => format!("the softmax model with the trained weights of {}", bundle.name),
            };
            let maps = maps_of(&bundle.path, Which::Softmax, ids).map_err(|e| e.to_string());
            columns.push(Column { name: "softmax".to_owned(), note, maps });
        }
        for bundle in &self.bundles {
            let lowered = bundle.manifest.sites.iter().any(|site| site.lowered);
            if !lowered && is_as_it_came(&bundle.manifest) {
                continue;
            }
            progress.stage(&format!("the maps of {}", bundle.name));
            let maps = maps_of(&bundle.path, Which::Served, ids).map_err(|e| e.to_string());
            columns.push(Column { name: bundle.name.clone(), note: describe(&bundle.manifest.recipe), maps });
        }
        columns
    }
}

/// What the weights of a recipe are.
fn describe(recipe: &Recipe) -> String {
    let far = match recipe.rule {
        Rule::Linear => "φ(q)·φ(k) with its decay, over the normaliser",
        Rule::Delta => "the delta rule, which leaves of a value what later tokens did not write over",
        Rule::Slots => "softmax over slots that sum tokens",
        Rule::None => "",
    };
    let near = recipe.local.map(|local| {
        let tokens = format!("exact softmax over {} near and {} first tokens", local.window, local.sinks);
        match recipe.rule {
            Rule::None => tokens,
            Rule::Linear | Rule::Slots => format!(", and {tokens} in the same normalisation"),
            Rule::Delta => format!(", and {tokens}, each by its share"),
        }
    });
    format!("recipe {}: {far}{}", recipe.name, near.unwrap_or_default())
}

fn layer_figure(layer: usize, columns: &[Column]) -> Result<Markup, PageError> {
    let softmax = columns[0].maps.as_ref().ok().and_then(|maps| of_layer(maps, layer));
    let mut cells = Vec::new();
    for column in columns {
        let Ok(maps) = &column.maps else { continue };
        cells.push(match of_layer(maps, layer) {
            Some(map) => picture(&column.name, map, softmax)?,
            None => html! { p.none { (column.name) ": this attention was not recognised" } },
        });
    }
    Ok(html! {
        figure.layer {
            div.maps { @for cell in &cells { (cell) } }
            figcaption { "Layer " (layer) }
        }
    })
}

fn of_layer(maps: &[LayerMap], layer: usize) -> Option<&LayerMap> {
    maps.iter().find(|map| map.layer == layer)
}

fn picture(name: &str, map: &LayerMap, softmax: Option<&LayerMap>) -> Result<Markup, PageError> {
    let mean = map.mean();
    let told = Shares::of(&mean, map.tokens);
    let apart =
        softmax.filter(|softmax| *softmax != map).map(|softmax| apart(&mean, &softmax.mean(), map.tokens));
    let alt = format!(
        "Layer {}, {name}: of all weight {} is on the token itself, {} on the {NEAR} before, {} on the first",
        map.layer,
        percent(told.itself),
        percent(told.near),
        percent(told.first)
    );
    Ok(html! {
        figure.map {
            img src=(heat::picture(&mean, map.tokens)?) alt=(alt) width=(map.tokens) height=(map.tokens);
            figcaption {
                (name)
                @if let Some(apart) = apart { br; span.apart { (percent(apart)) " elsewhere" } }
            }
        }
    })
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// Where the weight of a map lies, signs left out: means over all rows but the first.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shares {
    itself: f64,
    near: f64,
    first: f64,
}

impl Shares {
    fn of(mean: &[f64], tokens: usize) -> Self {
        let mut shares = Self { itself: 0.0, near: 0.0, first: 0.0 };
        let rows = (tokens.max(2) - 1) as f64;
        for (at, row) in mean.chunks(tokens).enumerate().skip(1) {
            let whole: f64 = row.iter().map(|weight| weight.abs()).sum();
            let share = |weights: &[f64]| match whole > 0.0 {
                true => weights.iter().map(|weight| weight.abs()).sum::<f64>() / whole / rows,
                false => 0.0,
            };
            shares.itself += share(&row[at..=at]);
            shares.near += share(&row[at.saturating_sub(NEAR)..at]);
            shares.first += share(&row[..1]);
        }
        shares
    }
}

/// How much of the weight lies elsewhere: half the sum of differences, the mean over rows.
fn apart(map: &[f64], other: &[f64], tokens: usize) -> f64 {
    let differences: f64 = map.iter().zip(other).map(|(a, b)| (a - b).abs()).sum();
    differences / 2.0 / tokens as f64
}

fn in_numbers(columns: &[Column], softmax: Option<&Vec<LayerMap>>) -> Markup {
    let heads = words(&[
        "layer",
        "model",
        "itself, %",
        "the 8 before, %",
        "the first, %",
        "elsewhere than softmax, %",
    ]);
    let mut rows = Vec::new();
    for (column, map) in
        columns.iter().flat_map(|column| column.maps.iter().flatten().map(move |map| (column, map)))
    {
        let mean = map.mean();
        let told = Shares::of(&mean, map.tokens);
        let other = softmax.and_then(|maps| of_layer(maps, map.layer));
        let apart = other.map(|other| 100.0 * apart(&mean, &other.mean(), map.tokens));
        let shares = [told.itself, told.near, told.first].map(|share| number(Some(100.0 * share), 1));
        let first = [html! { (map.layer) }, html! { (column.name) }];
        rows.push((map.layer, first.into_iter().chain(shares).chain([number(apart, 1)]).collect()));
    }
    // Of equal layers the columns keep their order.
    rows.sort_by_key(|(layer, _)| *layer);
    table(
        "Where the weight of each map lies, signs left out",
        &heads,
        &rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_told_in_shares() {
        let map = [1.0, 0.0, 0.25, -0.75];
        let told = Shares::of(&map, 2);
        assert_eq!(told, Shares { itself: 0.75, near: 0.25, first: 0.25 });
        assert_eq!(apart(&map, &[1.0, 0.0, 1.0, 0.0], 2), 0.375);
    }
}
