//! `dijiang convert SRC -o BUNDLE`

use super::bar::Bar;
use super::hub::HubArgs;
use super::report_args::ReportArgs;
use super::{Failure, Outcome, numbers, show};
use crate::bundle::{atomic, room};
use crate::convert::scan::Keep;
use crate::convert::stop_after::convert_first;
use crate::convert::{ConvertError, ConvertOptions, Converted, convert, estimate};
use crate::hub::HubModel;
use crate::recipes;
use crate::report::outcome::Case;
use crate::report::progress::Estimate;
use crate::verify::{TEXT_CONVERTED, TEXT_SOFTMAX, Verification, VerifyOptions};
use dijiang_format::dtype::DType;
use dijiang_format::quantization::Quantization;
use dijiang_format::recipe::{Attention, Recipe, Rule};
use dijiang_format::target::Target;
use dijiang_format::words::counted;
use dijiang_passes::attention::patterns::NearMiss;
use dijiang_passes::attention::rewrite::SiteReport;
use dijiang_passes::ir::patch::Step;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::num::{IntErrorKind, ParseIntError};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Convert a checkpoint to a bundle, and prove it.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the call")]
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  dijiang convert model -o bundle
  dijiang convert model -o bundle --recipe paper --dtype f16
  dijiang convert model.onnx -o bundle --target portable
  dijiang convert HuggingFaceTB/SmolLM2-135M -o bundle
  dijiang convert model -o bundle --keep 4
  dijiang convert model -o bundle --layers 4-23 --weights int4 --checksums")]
pub(super) struct Args {
    /// A Hugging Face checkpoint (a directory with config.json and safetensors), a GGUF file, an ONNX file, or a model of
    /// the Hugging Face hub: OWNER/MODEL, OWNER/MODEL@REVISION or OWNER/MODEL/FILE.gguf
    source: PathBuf,
    /// The directory to make
    #[arg(short, long)]
    output: PathBuf,
    #[arg(long, help = recipe_help())]
    recipe: Option<String>,
    #[arg(long, default_value_t = Target::default(), help = target_help())]
    target: Target,
    /// f32, f16 or bf16; the checkpoint's where none is given
    #[arg(long, value_parser = numbers::float)]
    dtype: Option<DType>,
    /// Store the weights of linear layers in fewer bits: int4. Tables that tokens are looked up in, and what the
    /// conversion adds, stay as they are. Such a bundle is served, but not trained
    #[arg(long, conflicts_with_all = ["train", "stop_after"])]
    weights: Option<Quantization>,
    /// Rewrite only these layers, such as 0-3,7; the others stay softmax
    #[arg(long, value_parser = layers)]
    layers: Option<Layers>,
    /// Leave so many layers softmax, with a cache that grows: those that lose most where they see near tokens alone, which is
    /// measured; auto: as few as leave a tenth of what it costs to keep none. No layer is wide then
    #[arg(long, value_name = "N|auto", conflicts_with_all = ["layers", "stop_after", "estimate"])]
    keep: Option<Keep>,
    /// Seed of the new parameters and of the checks' prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads that it may take; all cores where not given
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::threads())]
    threads: Option<usize>,
    /// Write the training graphs too, for batches of 16 rows of 512 tokens, or as many as the model has positions
    #[arg(long, conflicts_with = "stop_after")]
    train: bool,
    /// Replace a bundle that is there
    #[arg(long)]
    force: bool,
    /// Link to the source's weight files instead of copying what stays as it is. They must be on the same file system;
    /// such a bundle is served, but not trained, and its weights are not looked through for NaN
    #[arg(long, conflicts_with = "stop_after")]
    link: bool,
    /// Write SHA256SUMS too: the digests of all files, as `sha256sum -c` reads them
    #[arg(long, conflicts_with = "stop_after")]
    checksums: bool,
    /// Write without a proof
    #[arg(long)]
    no_verify: bool,
    /// Apply only the first N patches (clean-ups, then rewrites), write the graph as it stands then, and say which
    /// patch was the last: to find a wrong one by halving. Nothing is verified, and what is written is no
    /// bundle for `verify` or `generate`
    #[arg(long, value_name = "N", conflicts_with_all = ["no_verify", "report"])]
    stop_after: Option<usize>,
    /// Say what the conversion takes of disk and memory, and write nothing
    #[arg(long, conflicts_with_all = ["stop_after", "report"])]
    estimate: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    report: ReportArgs,
}

fn recipe_help() -> String {
    let names: Vec<&str> = recipes::PRESETS.iter().map(|(name, _)| *name).collect();
    format!(
        "A recipe's name ({}) or a YAML file; {} where none is given, or the checkpoint's own attention where it brings one along",
        names.join(", "),
        recipes::DEFAULT
    )
}

fn target_help() -> String {
    format!("What runs the serving graph: one of {}", Target::names().collect::<Vec<_>>().join(", "))
}

type Layers = Vec<usize>;

/// `0-3,7`
fn layers(text: &str) -> Result<Layers, String> {
    // A set, so that no text names more layers than there are numbers.
    let mut found = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (layer(first)?, layer(last)?);
        if last < first {
            return Err(format!("`{part}` ends before it begins (expected e.g. 0-3,7)"));
        }
        found.extend(usize::from(first)..=usize::from(last));
    }
    Ok(found.into_iter().collect())
}

fn layer(text: &str) -> Result<u16, String> {
    text.trim().parse().map_err(|e: ParseIntError| match e.kind() {
        IntErrorKind::PosOverflow => format!("`{text}` is no layer (the highest number is {})", u16::MAX),
        _ => format!("`{text}` is no layer (expected e.g. 0-3,7)"),
    })
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    args.report.of("convert", &args.output, args.json, |cases| make(args, cases))
}

fn make(args: &Args, cases: &mut Vec<Case>) -> Result<Outcome, Failure> {
    numbers::take_threads(args.threads);
    let verify = VerifyOptions { seed: args.seed, threads: args.threads, ..VerifyOptions::default() };
    let options = ConvertOptions {
        recipe: recipes::load(args.recipe.as_deref().unwrap_or(recipes::DEFAULT))?,
        is_default_recipe: args.recipe.is_none(),
        target: args.target,
        dtype: args.dtype,
        weights: args.weights,
        layers: args.layers.clone(),
        keep: args.keep,
        seed: args.seed,
        train: args.train,
        force: args.force,
        checksums: args.checksums,
        free_space: room::free_space,
        link: args.link,
        verify: (!args.no_verify).then_some(verify),
    };
    if !args.estimate && args.stop_after.is_none() && HubModel::named_by(&args.source).is_some() {
        // Before it is downloaded.
        atomic::check(&args.output, args.force)?;
    }
    let source = args.hub.located(&args.source)?;
    if let Some(patches) = args.stop_after {
        return stop_after(patches, &source, args, &options);
    }
    if args.estimate {
        print_estimate(args, &estimate(&source, &options)?);
        return Ok(Outcome::Fine);
    }
    let start = Instant::now();
    let converted = convert(&source, &args.output, &options, &mut Bar::new());
    if let Err(ConvertError::NoSites { misses, .. }) = &converted {
        misses.iter().for_each(warn_of_miss);
    }
    let converted = converted?;
    converted.warnings.iter().for_each(|warning| show::warning(warning));
    if options.recipe.attention == Attention::Linear {
        converted.misses.iter().for_each(warn_of_miss);
    }
    let seconds = start.elapsed().as_secs_f64();
    cases.extend(converted.cases(&args.output.display().to_string(), seconds));
    match args.json {
        _ if args.report.on_stdout() => (),
        true => print_json(args, &converted, seconds),
        false => print_text(args, &converted, seconds),
    }
    Ok(Outcome::of(converted.written))
}

fn warn_of_miss(miss: &NearMiss) {
    show::warning(&format!("an attention stays softmax: {miss}"));
}

fn stop_after(
    patches: usize,
    source: &Path,
    args: &Args,
    options: &ConvertOptions,
) -> Result<Outcome, Failure> {
    let partial = convert_first(patches, source, &args.output, options, &mut Bar::new())?;
    if args.json {
        let last = partial.last.as_ref().map(|step| json!({"rule": step.rule, "places": step.places}));
        show::object(&json!({
            "bundle": args.output, "patches": partial.patches, "stopped": partial.stopped, "last": last,
        }));
        return Ok(Outcome::Fine);
    }
    let target = args.output.display();
    match partial.stopped {
        true => show::line(&format!("{target}: as it is after patch {}; not verified", partial.patches)),
        false => show::line(&format!(
            "{target}: there are no more patches after {}; not verified",
            partial.patches
        )),
    }
    if let Some(Step { rule, places }) = &partial.last {
        show::line(&format!("the last is {rule}, at"));
        places.iter().for_each(|place| show::line(&format!("  {place}")));
    }
    Ok(Outcome::Fine)
}

fn estimate_object(estimate: &Estimate) -> Value {
    json!({"disk_bytes": estimate.disk, "memory_bytes": estimate.memory})
}

fn print_estimate(args: &Args, estimate: &Estimate) {
    if args.json {
        return show::object(&json!({"bundle": args.output, "estimate": estimate_object(estimate)}));
    }
    let [disk, memory] = [estimate.disk, estimate.memory].map(|bytes| bytes as f64 / 1e6);
    show::line(&format!(
        "{}: up to {disk:.1} MB of disk and about {memory:.1} MB of memory are needed",
        args.output.display()
    ));
}

fn print_json(args: &Args, converted: &Converted, seconds: f64) {
    show::object(&json!({
        "bundle": args.output,
        "sites": show::sites(&converted.sites),
        "recipe": recipe_name(args, converted),
        "target": args.target.name(),
        "dtype": converted.dtype.name(),
        "weights": args.weights.map(Quantization::name),
        "estimate": estimate_object(&converted.estimate),
        "seconds": seconds,
        "bytes_written": converted.bytes_written,
        "dropped_inputs": converted.dropped_inputs,
        "added_inputs": converted.added_inputs,
        "misses": show::misses(&converted.misses),
        "notes": converted.notes,
        "warnings": converted.warnings,
        "checks": converted.verification.as_ref().map_or(json!([]), show::checks),
        "skipped": converted.verification.as_ref().map_or(json!([]), |v| json!(v.skipped())),
        "written": converted.written,
    }));
}

/// A loss of less than this share is none that training would win back.
const LOST: f64 = 1.02;

/// What the conversion lost, and what wins it back.
fn verdict(args: &Args, recipe: &Recipe, verification: &Verification) {
    let perplexity = |name: &str| verification.checks.iter().find(|c| c.name == name).map(|c| c.measured);
    let Some((came, converted)) = perplexity(TEXT_SOFTMAX).zip(perplexity(TEXT_CONVERTED)) else { return };
    let bundle = args.output.display();
    // Windows alone have nothing to calibrate.
    let remedy = match (converted > LOST * came, recipe.rule != Rule::None) {
        (true, true) => format!(
            " (hint: `dijiang calibrate {bundle} --data TEXT` and then `dijiang finetune {bundle} --data TEXT` win back most of it)"
        ),
        (true, false) => format!(" (hint: `dijiang finetune {bundle} --data TEXT` wins back most of it)"),
        (false, _) => String::new(),
    };
    show::line(&format!(
        "a short text has perplexity {converted:.1}, and {came:.1} as the model came{remedy}"
    ));
}

/// What is said of attentions that are not linear; those that stay softmax have names.
fn others(windows: usize, softmax: &[&str], linear: usize) -> String {
    let kept = match windows {
        0 => None,
        1 => Some("1 keeps its window".to_owned()),
        n => Some(format!("{n} keep their windows")),
    };
    let stays = match softmax.len() {
        0 => None,
        // Where all are, the number of linear ones has said it.
        _ if linear + windows == 0 => None,
        1 => Some(format!("1 stays softmax ({})", softmax[0])),
        n => Some(format!("{n} stay softmax ({})", named(softmax))),
    };
    match (kept, stays) {
        (None, None) => String::new(),
        (Some(one), None) | (None, Some(one)) => format!(", and {one}"),
        (Some(kept), Some(stays)) => format!(", {kept}, and {stays}"),
    }
}

/// The most attentions that are told one by one why they stay softmax.
const TOLD: usize = 4;

/// Names in a row: all of a few, or the first of many.
fn named(names: &[&str]) -> String {
    match names.len().checked_sub(TOLD) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..TOLD].join(", ")),
    }
}

/// Why attentions stay softmax, those of one reason together where they are many.
fn kept_lines(sites: &[SiteReport]) -> Vec<String> {
    let mut by_reason: Vec<(&str, Vec<&str>)> = Vec::new();
    for (reason, name) in sites.iter().filter_map(|site| Some((site.why_kept.as_deref()?, &site.name))) {
        match by_reason.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(name),
            None => by_reason.push((reason, vec![name])),
        }
    }
    let lines = |(reason, names): (&str, Vec<&str>)| -> Vec<String> {
        let more = names.len() - 1;
        match names.len() <= TOLD {
            true => names.iter().map(|name| format!("  {name} stays softmax: {reason}")).collect(),
            false => vec![format!("  {} and {more} more stay softmax: {reason}", names[0])],
        }
    };
    by_reason.into_iter().flat_map(lines).collect()
}

/// As it was asked for, or else as it is called.
fn recipe_name<'a>(args: &'a Args, converted: &'a Converted) -> &'a str {
    args.recipe.as_deref().unwrap_or(&converted.recipe.name)
}

fn print_text(args: &Args, converted: &Converted, seconds: f64) {
    let linear = converted.sites.iter().filter(|s| s.is_linear()).count();
    let windows = converted.sites.iter().filter(|s| s.keeps_window()).count();
    let all = converted.sites.len() + converted.misses.len();
    let kept = converted.sites.iter().filter(|site| site.why_kept.is_some()).map(|site| site.name.as_str());
    let kept: Vec<&str> = kept.chain(converted.misses.iter().map(|miss| miss.node.as_str())).collect();
    show::line(&format!(
        "{}: {linear} of {} {} linear{} (recipe {}, target {}, {}{})",
        args.output.display(),
        counted(all, "attention"),
        if all == 1 { "is" } else { "are" },
        others(windows, &kept, linear),
        recipe_name(args, converted),
        args.target,
        converted.dtype,
        args.weights.map_or(String::new(), |weights| format!(", {} weights", weights.name()))
    ));
    kept_lines(&converted.sites).iter().for_each(|line| show::line(line));
    for input in &converted.added_inputs {
        show::line(&format!(
            "  `{input}` is a new input: the graph counted it from the cache or the sequence"
        ));
    }
    for note in &converted.notes {
        show::line(&format!("  {note}"));
    }
    if let Some(verification) = &converted.verification {
        verdict(args, &converted.recipe, verification);
        show::proof(verification);
    }
    let megabytes = converted.bytes_written as f64 / 1e6;
    show::line(&format!("{megabytes:.1} MB in {seconds:.1} s"));
    if !converted.written {
        show::note("a check failed: nothing was written (--no-verify writes it all the same)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_attentions_of_one_reason_are_one_line() {
        let site = |layer: usize, why: &str| SiteReport {
            name: format!("h.{layer}.attn"),
            layer,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            scale: 1.0,
            softcap: None,
            mask: "causal",
            window: None,
            rotary: false,
            cache: false,
            why_kept: Some(why.to_owned()),
        };
        let four: Vec<SiteReport> = (0..4).map(|layer| site(layer, "the recipe keeps softmax")).collect();
        assert_eq!(kept_lines(&four)[3], "  h.3.attn stays softmax: the recipe keeps softmax");
        let five = [&four[..], &[site(4, "the recipe keeps softmax"), site(5, "no cache")]].concat();
        assert_eq!(
            kept_lines(&five),
            [
                "  h.0.attn and 4 more stay softmax: the recipe keeps softmax",
                "  h.5.attn stays softmax: no cache"
            ]
        );
    }

    #[test]
    fn layers_are_numbers_and_ranges() {
        assert_eq!(layers("0-2,7"), Ok(vec![0, 1, 2, 7]));
        assert_eq!(layers("7,2-3,2"), Ok(vec![2, 3, 7]));
        assert_eq!(layers("0-65535").map(|l| l.len()), Ok(65536));
        assert!(layers("a").is_err() && layers("1-").is_err());
    }

    #[test]
    fn ranges_that_are_empty_or_endless_are_refused() {
        let refused = |text| layers(text).expect_err("it is refused");
        assert_eq!(refused("5-2"), "`5-2` ends before it begins (expected e.g. 0-3,7)");
        assert_eq!(refused("0-65536"), "`65536` is no layer (the highest number is 65535)");
        assert_eq!(refused("0-99999999999"), "`99999999999` is no layer (the highest number is 65535)");
        assert_eq!(
            refused("0-18446744073709551615"),
            "`18446744073709551615` is no layer (the highest number is 65535)"
        );
    }
}
