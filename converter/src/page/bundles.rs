//! What each bundle is.

use super::Shown;
use bytesize::ByteSize;
use dijiang_format::files;
use dijiang_format::manifest::{Check, Manifest, Site, SourceKind};
use dijiang_format::words::counted;
use maud::{Markup, html};

/// The lengths that states are told at.
const LENGTHS: [u64; 2] = [2048, 8192];

/// What is told of a bundle.
type Fact = fn(&Shown) -> Markup;

pub(super) fn table(shown: &[Shown]) -> Markup {
    let heads: Vec<String> =
        std::iter::once(String::new()).chain(shown.iter().map(|bundle| bundle.name.clone())).collect();
    let facts: [(&str, Fact); 9] = [
        ("Source", source),
        ("Recipe", recipe),
        ("Weights", weights),
        ("Linear layers", |bundle| layers(bundle, Site::is_linear)),
        ("Layers with the window they had", |bundle| layers(bundle, Site::keeps_window)),
        ("Softmax layers", |bundle| layers(bundle, |site| !site.lowered)),
        ("State of a sequence", state),
        ("Checks", checks),
        ("Training", training),
    ];
    let row = |(name, fact): &(&str, Fact)| {
        std::iter::once(html! { (name) }).chain(shown.iter().map(fact)).collect::<Vec<_>>()
    };
    super::figure::table("What each bundle is", &heads, &facts.iter().map(row).collect::<Vec<_>>())
}

fn source(bundle: &Shown) -> Markup {
    let info = &bundle.info;
    let kind = match info.source {
        SourceKind::Checkpoint => format!("a checkpoint of the family {}", info.family),
        SourceKind::Onnx => "an ONNX graph".to_owned(),
    };
    let weights = info.source_files.iter().max_by_key(|file| file.bytes);
    html! {
        (kind) ", " (info.source_dtype.to_string())
        @if let Some(file) = weights { br; (file.name) ", " (ByteSize(file.bytes).to_string()) }
    }
}

fn recipe(bundle: &Shown) -> Markup {
    let recipe = &bundle.manifest.recipe;
    html! {
        (recipe.name)
        @if let Some(local) = recipe.local {
            br; "window of " (local.window) " and " (counted(local.sinks as usize, "first token"))
        }
        @if let Some(wide) = recipe.wide.as_ref() {
            @if let Some(wide_layers) = wide.layers.as_ref().filter(|layers| !layers.is_empty()) {
                br; "window of " (wide.window) " in layers " (ranges(wide_layers))
            }
        }
    }
}

fn weights(bundle: &Shown) -> Markup {
    let info = &bundle.info;
    html! {
        (info.dtype.to_string()) @if let Some(weights) = info.weights { ", " (weights) }
        ", for " (info.target)
        br; (ByteSize(info.bytes).to_string()) " of files"
    }
}

fn layers(bundle: &Shown, is_so: fn(&Site) -> bool) -> Markup {
    let sites: Vec<usize> = bundle.manifest.sites.iter().filter(|s| is_so(s)).map(|s| s.layer).collect();
    let count = bundle.manifest.sites.len() + bundle.manifest.misses.len();
    match sites.is_empty() {
        true => html! { "none" },
        false => html! { (sites.len()) " of " (count) ": " (ranges(&sites)) },
    }
}

/// `0–3, 5`.
fn ranges(layers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for layer in layers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *layer => *last = *layer,
            _ => runs.push((*layer, *layer)),
        }
    }
    let run = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}–{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

fn state(bundle: &Shown) -> Markup {
    let (own, softmax) = (bundle.info.state, softmax_state(&bundle.manifest));
    html! {
        @for (at, tokens) in LENGTHS.into_iter().enumerate() {
            @let bytes = own.bytes + own.bytes_per_token * tokens;
            @if at > 0 { br; }
            (ByteSize(bytes).to_string()) " at " (tokens) " tokens (softmax: "
            (ByteSize(softmax * tokens).to_string()) ")"
        }
    }
}

/// Bytes a token of keys and values, of all attentions that were recognised.
fn softmax_state(manifest: &Manifest) -> u64 {
    let numbers: usize = manifest.sites.iter().map(|site| 2 * site.kv_heads * site.head_dim).sum();
    (numbers * manifest.dtype.size()) as u64
}

fn checks(bundle: &Shown) -> Markup {
    let checks = &bundle.info.checks;
    if bundle.manifest.checks.is_empty() {
        return html! { "none of these weights (" code { "dijiang verify" } ")" };
    }
    html! {
        details {
            summary {
                (checks.held) " held, " (checks.failed.len()) " failed, " (checks.skipped.len()) " skipped"
            }
            ul { @for check in &bundle.manifest.checks { li { (check_line(check)) } } }
        }
    }
}

fn check_line(check: &Check) -> String {
    let limit = check.limit.map_or_else(String::new, |limit| format!(", limit {limit:e}"));
    match (check.ok, &check.skipped) {
        (Some(true), _) => format!("{}: held{limit}", check.name),
        (Some(false), _) => format!("{}: failed{limit}", check.name),
        (None, Some(why)) => format!("{}: skipped, {why}", check.name),
        (None, None) => format!("{}: skipped", check.name),
    }
}

fn training(bundle: &Shown) -> Markup {
    let Some(training) = &bundle.info.training else { return html! { "none" } };
    let runs: Vec<&str> = training.runs.iter().map(|run| run.command.as_str()).collect();
    html! { (runs.join(", ")) ": " (training.tensors.len()) " tensors of " (files::WEIGHTS) " changed" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_in_a_row_are_a_range() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0–2, 5, 7–8");
        assert_eq!(ranges(&[]), "");
    }
}
