//! What those need who install the program, made from the flags' own definition: completions for
//! shells, and pages of the manual.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man as Page;

use super::{fail, misused};

/// Completions for a shell, on standard output.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Whose completions
    shell: Kind,
}

/// The shells that they are tested with.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Bash,
    Zsh,
    Fish,
}

/// A page of the manual (roff), on standard output.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The command whose page it is, like `sub` or `token new` [default: the program's]
    command: Vec<String>,
}

impl Completions {
    pub(super) fn run(self, mut program: Command) -> ExitCode {
        let shell = match self.shell {
            Kind::Bash => Shell::Bash,
            Kind::Zsh => Shell::Zsh,
            Kind::Fish => Shell::Fish,
        };
        let name = program.get_name().to_owned();
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut program, name, &mut text);
        print(&text)
    }
}

impl Man {
    pub(super) fn run(self, mut program: Command) -> ExitCode {
        // Gives every command its whole name.
        program.build();
        let mut command = &program;
        for name in &self.command {
            let Some(found) = command.find_subcommand(name) else {
                return misused(&format!("there is no command {name:?}; --help names them"));
            };
            command = found;
        }
        let mut text = Vec::new();
        match Page::new(command.clone()).render(&mut text) {
            Ok(()) => print(&text),
            Err(error) => fail(&format!("cannot make the page: {error}")),
        }
    }
}

/// A closed pipe is nobody's fault; a full disk is told.
fn print(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&format!("cannot write to standard output: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}
