//! The pgkeep command: parse, run, exit code. The rules are in [`pgkeep::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(pgkeep::cli::main(std::env::args_os().collect()))
}
