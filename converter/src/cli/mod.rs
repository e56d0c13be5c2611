//! The command line: one subcommand per file. `--json` prints one object on stdout and nothing else;
//! progress and logs go to stderr. Exit codes: 0 fine, 1 a check failed, 2 wrong input or call.

mod bar;
mod bench;
mod calibrate;
mod convert;
mod eval;
mod export_torch;
mod finetune;
mod generate;
mod import_weights;
mod inspect;
mod numbers;
mod paths;
mod plot;
mod quantize;
mod report;
mod show;
mod signals;
mod synth;
mod training;
mod verify;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use std::ffi::OsStr;
use std::process::ExitCode;

/// Compiles pretrained transformers to constant-state ONNX.
#[derive(Debug, Parser)]
#[command(name = "dijiang", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Convert(convert::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Generate(generate::Args),
    Calibrate(calibrate::Args),
    Finetune(finetune::Args),
    Eval(eval::Args),
    ExportTorch(export_torch::Args),
    ImportWeights(import_weights::Args),
    Quantize(quantize::Args),
    Bench(bench::Args),
    Synth(synth::Args),
    Plot(plot::Args),
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
    if let Err(e) = signals::handle_signals() {
        tracing::warn!("signals end the program without removing what it was writing: {e}");
    }
    run(cli)
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
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Finetune(args) => finetune::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::ExportTorch(args) => export_torch::run(&args),
        Command::ImportWeights(args) => import_weights::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Plot(args) => plot::run(&args),
    };
    match outcome {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Err(failure) => {
            show::error(&failure.to_string());
            ExitCode::from(2)
        }
    }
}
