//! The command line: one subcommand per file. `--json` prints one object on stdout and nothing else;
//! progress and logs go to stderr, with colour and bars on a terminal alone. Exit codes: 0 fine, 1 a check failed, 2 wrong
//! input or call.

mod adapt;
mod bar;
mod batch;
mod bench;
mod calibrate;
mod completions;
mod convert;
mod diff;
mod eval;
mod export_torch;
mod faults;
mod finetune;
mod generate;
mod hub;
mod import_weights;
mod info;
mod inspect;
mod man;
mod numbers;
mod os;
mod paths;
mod plot;
mod quantize;
mod report;
mod report_args;
mod scan;
mod show;
mod signals;
mod synth;
mod training;
mod verify;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use std::ffi::OsStr;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Compiles pretrained transformers to constant-state ONNX.
#[derive(Debug, Parser)]
#[command(
    name = "dijiang",
    version,
    about,
    max_term_width = 100,
    after_help = "Examples:
  dijiang convert model -o bundle
  dijiang generate bundle --prompt ROMEO:
  dijiang help convert"
)]
pub struct Cli {
    /// Nothing on stderr but errors: no warnings, notes or bars
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Tell on stderr what is done
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Convert(convert::Args),
    Adapt(adapt::Args),
    Inspect(inspect::Args),
    Scan(scan::Args),
    Verify(verify::Args),
    Generate(generate::Args),
    Calibrate(calibrate::Args),
    Finetune(finetune::Args),
    Eval(eval::Args),
    ExportTorch(export_torch::Args),
    ImportWeights(import_weights::Args),
    Quantize(quantize::Args),
    Bench(bench::Args),
    Info(info::Args),
    Diff(diff::Args),
    Synth(synth::Args),
    Plot(plot::Args),
    Report(report::Args),
    Completions(completions::Args),
    Man(man::Args),
    Batch(batch::Args),
}

impl Cli {
    /// The command line, or the end of the program: with help, or with what is wrong.
    fn read() -> Self {
        let read = || {
            let call = Self::command().try_get_matches()?;
            let cli = Self::from_arg_matches(&call).map_err(|e| e.format(&mut Self::command()))?;
            Ok((cli, call))
        };
        let (cli, call) = read().unwrap_or_else(|error: clap::Error| {
            // What clap says beside it is how to ask for help, which is no part of what is wrong with a value.
            if error.kind() == ErrorKind::ValueValidation {
                let text = error.to_string();
                let line = text.lines().next().unwrap_or_default();
                show::error(line.trim_start_matches("error: "));
                std::process::exit(2);
            }
            error.exit()
        });
        if let Err(missing) = paths::check(&call) {
            show::error(&missing.to_string());
            std::process::exit(2);
        }
        cli
    }
}

/// Why a command ended early: wrong input or a wrong call.
type Failure = Box<dyn std::error::Error>;

/// How a command that ran ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Fine,
    CheckFailed,
}

impl Outcome {
    fn of(ok: bool) -> Self {
        if ok { Self::Fine } else { Self::CheckFailed }
    }
}

/// Runs the command line of this process.
///
/// Arguments are UTF-8, paths too: the formats that paths go into, JSON and ONNX, know no others.
pub fn main() -> ExitCode {
    if let Some(argument) = std::env::args_os().skip(1).find(|argument| argument.to_str().is_none()) {
        show::error(&not_text(&argument));
        return ExitCode::from(2);
    }
    let cli = Cli::read();
    show::set_quiet(cli.quiet);
    show::set_verbose(cli.verbose);
    log_to_stderr(&cli);
    if let Err(e) = signals::handle_signals() {
        tracing::warn!("signals end the program without removing what it was writing: {e}");
    }
    if let Err(e) = faults::handle_faults() {
        tracing::warn!("a file that is cut short while it is read may end the program without a word: {e}");
    }
    crate::batch::run::children::end_with_parent();
    run(cli)
}

/// What is logged: what `DIJIANG_LOG` says, or as the call has it.
fn log_to_stderr(cli: &Cli) {
    let level = match (cli.quiet, cli.verbose) {
        (true, _) => "error",
        (_, true) => "warn,dijiang=info,dijiang_passes=info,dijiang_runtime=info",
        _ => "warn",
    };
    let filter = EnvFilter::try_from_env("DIJIANG_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

fn not_text(argument: &OsStr) -> String {
    format!(
        "{}: this argument is not UTF-8, and cannot be told in JSON or in an ONNX file (hint: rename the file, or name it through a link)",
        argument.display()
    )
}

fn run(cli: Cli) -> ExitCode {
    let outcome = match cli.command {
        Command::Convert(args) => convert::run(&args),
        Command::Adapt(args) => adapt::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Scan(args) => scan::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Finetune(args) => finetune::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::ExportTorch(args) => export_torch::run(&args),
        Command::ImportWeights(args) => import_weights::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Batch(args) => batch::run(&args),
    };
    match outcome {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Err(failure) => {
            show::error(&os::told(failure.as_ref()));
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The words of a line as a shell has them, up to where its output goes.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut quoted) = (vec![String::new()], false);
        for c in line.split(" > ").next().unwrap_or(line).chars() {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                c => words.last_mut().expect("a word").push(c),
            }
        }
        words
    }

    #[test]
    fn every_command_has_examples_and_each_is_a_call_of_it() {
        let program = Cli::command();
        for command in std::iter::once(&program).chain(program.get_subcommands()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines =
                help.strip_prefix("Examples:\n").unwrap_or_else(|| panic!("{}: none", command.get_name()));
            assert!(lines.lines().count() > 0, "{}", command.get_name());
            for line in lines.lines() {
                let words = words(line.strip_prefix("  ").expect("two spaces"));
                let is_own = command.get_name() == "dijiang" || words[1] == command.get_name();
                assert!(words[0] == "dijiang" && is_own, "{line}");
                match Cli::try_parse_from(&words) {
                    Err(e) if e.kind() == ErrorKind::DisplayHelp => {}
                    parsed => drop(parsed.unwrap_or_else(|e| panic!("{line}: {e}"))),
                }
            }
        }
        assert!(Cli::try_parse_from(words("dijiang convert 'a b' -o")).is_err(), "what is no call is found");
    }

    #[test]
    fn every_command_that_prints_an_object_has_a_schema() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas");
        for command in Cli::command().get_subcommands() {
            let prints = command.get_arguments().any(|argument| argument.get_id() == "json");
            let schema = directory.join(format!("{}.json", command.get_name()));
            assert_eq!(prints, schema.exists(), "{}", schema.display());
        }
    }
}
