//! The program: reads its flags, runs the server until a signal, reports what went wrong.

mod bench;
mod cli;
mod client;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
