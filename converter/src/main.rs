//! The command `dijiang`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dijiang::cli::main()
}
