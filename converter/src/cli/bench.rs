//! `dijiang bench BUNDLE…`

use super::bar::Bar;
use super::os::FileError;
use super::{Failure, Outcome, numbers, show};
use crate::bench::table1::paper;
use crate::bench::{BenchOptions, Measured, Phase, Row, alone, bench, counterpart, picture};
use crate::bundle::room;
use dijiang_runtime::{Device, write_file};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Measure how fast bundles are, and how much memory they take.
///
/// Prefill feeds a prompt of each context and takes the time to the first new token. Decode declares that so many
/// tokens came before and takes the time of a step: the cache has the room and is read as far, whatever numbers are in
/// it; a linear model's state is as large at any context. A bundle is decoded as `generate` decodes it at temperature 0.
/// Figures are medians of runs. A model is loaded anew for each figure. On the CPU the memory of each is what one run takes
/// in a process of its own.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the call")]
#[command(after_help = "Examples:
  dijiang bench bundle
  dijiang bench linear --against softmax --context 512,2048 --skip prefill
  dijiang bench linear --against softmax --device cuda:0 --batch 1,8 --svg picture")]
pub(super) struct Args {
    /// Directories that `dijiang convert` wrote
    #[arg(required = true)]
    bundles: Vec<PathBuf>,
    /// A bundle to compare the others with, such as one of the recipe `softmax`
    #[arg(long)]
    against: Option<PathBuf>,
    /// Tokens of context
    #[arg(long, value_delimiter = ',', default_value = "512,2048,8192", allow_negative_numbers = true, value_parser = numbers::count())]
    context: Vec<usize>,
    /// Rows decoded side by side
    #[arg(long, value_delimiter = ',', default_value = "1", allow_negative_numbers = true, value_parser = numbers::count())]
    batch: Vec<usize>,
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Threads inside one operator
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::threads())]
    threads: Option<usize>,
    /// Runs that a figure is the median of
    #[arg(long, default_value = "5", allow_negative_numbers = true, value_parser = numbers::count())]
    runs: usize,
    /// Tokens decoded in a run
    #[arg(long, default_value = "16", allow_negative_numbers = true, value_parser = numbers::count())]
    steps: usize,
    /// Prompt tokens fed at a time; as `generate` does where not given
    #[arg(long, allow_negative_numbers = true, value_parser = numbers::tokens_at_once())]
    segment: Option<usize>,
    /// On a GPU: launch the kernels of a linear model one by one instead of replaying recorded runs, as --profile does
    #[arg(long)]
    no_cuda_graph: bool,
    /// Leave out prefill, or decode
    #[arg(long, value_delimiter = ',')]
    skip: Vec<Skip>,
    /// Find the largest batch that decodes at each context, trying that of --batch first; needs a GPU, whose memory can
    /// run out without harm
    #[arg(long)]
    largest: bool,
    /// Print our decode throughput over that of --against beside the paper's Table 1
    #[arg(long, requires = "against")]
    table1: bool,
    /// Write PREFIX-latency.svg and PREFIX-memory.svg
    #[arg(long)]
    svg: Option<PathBuf>,
    /// A directory for ONNX Runtime's profiles of the graphs
    #[arg(long)]
    profile: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print the bytes of memory that one figure takes
    #[arg(long = alone::OPTION, hide = true)]
    alone: Option<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Skip {
    Prefill,
    Decode,
}

pub(super) fn run(args: &Args) -> Result<Outcome, Failure> {
    if args.largest && args.device == Device::Cpu {
        return Err("--largest: the CPU's memory is not filled up (hint: --device cuda:0)".into());
    }
    check_memory(args)?;
    let skips = |skip: Skip| args.skip.contains(&skip);
    let phases = [
        (Phase::Prefill, !skips(Skip::Prefill)),
        (Phase::Decode, !skips(Skip::Decode)),
        (Phase::Largest, args.largest),
    ];
    let options = BenchOptions {
        contexts: args.context.clone(),
        batches: args.batch.clone(),
        device: args.device,
        threads: args.threads,
        runs: args.runs,
        steps: args.steps,
        segment: args.segment,
        cuda_graph: !args.no_cuda_graph && args.profile.is_none(),
        profile: args.profile.clone(),
        phases: phases.iter().filter(|(_, wanted)| *wanted).map(|(phase, _)| *phase).collect(),
        program: std::env::current_exe().ok(),
    };
    if let (Some(phase), [bundle]) = (args.alone, &args.bundles[..]) {
        let measured = alone::measure(bundle, phase, &options)?.ok_or("this system does not say")?;
        show::line(&measured.to_string());
        return Ok(Outcome::Fine);
    }
    let mut bundles = args.bundles.clone();
    bundles.extend(args.against.clone().filter(|against| !args.bundles.contains(against)));
    let measured = bench(&bundles, &options, &mut Bar::new())?;
    let against = args.against.as_deref();
    if args.json {
        show::object(&object(&measured, against, args.table1)?);
    } else {
        table(&measured, against);
        if args.table1 {
            table1(&measured.rows, against);
        }
    }
    // Behind what was measured, which does not go where a picture cannot be written.
    args.svg.as_ref().map_or(Ok(()), |prefix| write_pictures(prefix, &measured.rows))?;
    Ok(Outcome::Fine)
}

/// Refuses tokens that the host has no room for, whatever else a figure takes.
fn check_memory(args: &Args) -> Result<(), Failure> {
    let free = room::free_memory().unwrap_or(i64::MAX as u64);
    for (context, batch) in args.context.iter().flat_map(|c| args.batch.iter().map(move |b| (*c, *b))) {
        // An id and a mask of each.
        let needed = (context as u64).saturating_mul(batch as u64).saturating_mul(16);
        if needed > free {
            let [needed, free] = [needed, free].map(|bytes| bytes as f64 / 1e9);
            return Err(format!(
                "--context {context} --batch {batch}: the tokens alone take {needed:.1} GB of memory, and {free:.1} GB are free"
            )
            .into());
        }
    }
    Ok(())
}

fn write_pictures(prefix: &Path, rows: &[Row]) -> Result<(), Failure> {
    for (name, svg) in [("latency", picture::latency(rows)?), ("memory", picture::memory(rows)?)] {
        let path = PathBuf::from(format!("{}-{name}.svg", prefix.display()));
        write_file(&path, svg.as_bytes()).map_err(FileError::of(&path))?;
    }
    Ok(())
}

/// How much better a row is: tokens per second, or rows in the largest batch, over those of the counterpart.
fn ratio(rows: &[Row], row: &Row, against: Option<&Path>) -> Option<f64> {
    let other = counterpart(rows, row, against?).filter(|other| other.bundle != row.bundle)?;
    match row.phase {
        Phase::Largest => other.tokens_per_second.map(|_| row.batch as f64 / other.batch as f64),
        _ => Some(row.tokens_per_second? / other.tokens_per_second?),
    }
}

fn object(measured: &Measured, against: Option<&Path>, table1: bool) -> Result<Value, Failure> {
    let rows = measured.rows.iter().map(|row| {
        let mut value = serde_json::to_value(row)?;
        value["ratio"] = json!(ratio(&measured.rows, row, against));
        Ok(value)
    });
    let rows = rows.collect::<Result<Vec<Value>, serde_json::Error>>()?;
    let mut object = json!({"copy_bandwidth": measured.copy_bandwidth, "rows": rows});
    if table1 {
        let lines = beside_the_paper(&measured.rows, against).into_iter();
        object["table1"] = lines
            .map(|(row, ratio, paper)| {
                json!({"bundle": row.bundle, "batch": row.batch, "context": row.context, "ratio": ratio, "paper": paper})
            })
            .collect();
    }
    Ok(object)
}

fn table(measured: &Measured, against: Option<&Path>) {
    let rows = &measured.rows;
    let width = rows.iter().map(|row| row.bundle.len()).max().unwrap_or(0).max("bundle".len());
    show::line(&format!(
        "{:width$}  phase    batch  context    tokens/s  ms/token  first ms  memory MiB  state MiB  bandwidth  ratio",
        "bundle"
    ));
    for row in rows {
        let head =
            format!("{:width$}  {:<7}  {:>5}  {:>7}", row.bundle, row.phase.name(), row.batch, row.context);
        if let Some(reason) = &row.failed {
            show::line(&format!("{head}  {}", reason.replace('\n', " ")));
            continue;
        }
        let megabytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
        show::line(&format!(
            "{head}  {}  {}  {}  {}  {}  {}  {}",
            cell(row.tokens_per_second, 10, 1),
            cell(row.ms_per_token, 8, 3),
            cell(row.first_token_ms, 8, 1),
            cell(megabytes(row.memory_bytes), 10, 1),
            cell(megabytes(row.state_bytes), 9, 1),
            cell(row.bandwidth, 9, 3),
            cell(ratio(rows, row, against), 5, 2)
        ));
    }
    show::line(&format!("a copy moves {:.1} GB/s, read and written", measured.copy_bandwidth / 1e9));
}

fn cell(value: Option<f64>, width: usize, decimals: usize) -> String {
    value.map_or_else(|| format!("{:>width$}", "-"), |value| format!("{value:>width$.decimals$}"))
}

/// Decode rows of bundles named after a shape of Table 1, our ratio and the paper's.
fn beside_the_paper<'a>(rows: &'a [Row], against: Option<&Path>) -> Vec<(&'a Row, f64, Option<f64>)> {
    let decode = rows.iter().filter(|row| row.phase != Phase::Prefill);
    let compared = decode.filter_map(|row| {
        let other = counterpart(rows, row, against?).filter(|other| other.bundle != row.bundle)?;
        Some((row, row.tokens_per_second? / other.tokens_per_second?))
    });
    compared.map(|(row, ratio)| (row, ratio, paper(&row.bundle).map(|(_, ratio)| ratio))).collect()
}

fn table1(rows: &[Row], against: Option<&Path>) {
    show::line("decode throughput over that of softmax, beside Table 1 of arXiv 2403.19928");
    for (row, ratio, paper) in beside_the_paper(rows, against) {
        let paper = paper.map_or_else(|| "not known here".to_owned(), |paper| format!("{paper:.1}"));
        show::line(&format!(
            "  {}, batch {}, context {}: {ratio:.2} (paper: {paper})",
            row.bundle, row.batch, row.context
        ));
    }
}
