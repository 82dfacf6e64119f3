//! Commands, signals and exit codes.

mod flags;
mod generate;
mod publish;
mod sub;
mod systemd;
mod terms;
mod token;
mod waiting;

use std::error::Error as _;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::bench;
use clap::{CommandFactory, Parser, Subcommand};
use log::LevelFilter;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use threadcast::{Database, Error, Server};

use flags::Serve;
use systemd::Supervisor;

/// Exit code of a bad flag or value, as shells and clap have it.
const USAGE: u8 = 2;

/// Exit code when a second signal cuts the shutdown short.
const CUT_SHORT: i32 = 1;

/// Real-time broadcast: POST a message, every WebSocket client of its channel has it, stored, in one order.
///
/// Without a command it serves.
#[derive(Debug, Parser)]
#[command(name = "threadcast", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGINT or SIGTERM
    Serve(Box<Serve>),
    /// Make tokens, which say who may do what
    #[command(subcommand)]
    Token(token::Command),
    /// Measure a server on this machine: its own by default
    Bench(Box<bench::Args>),
    // Their own words are those of the help.
    Sub(sub::Args),
    Pub(publish::Args),
    // For those who install it: they would crowd the help.
    #[command(hide = true)]
    Completions(generate::Completions),
    #[command(hide = true)]
    Man(generate::Man),
}

/// Runs the command that the arguments name.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too. A closed pipe is nobody's fault.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.command {
        None => serve(cli.serve),
        Some(Command::Serve(flags)) => serve(*flags),
        Some(Command::Token(command)) => token::run(command),
        Some(Command::Bench(args)) => match bench::run(*args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string()),
        },
        Some(Command::Sub(args)) => args.run(),
        Some(Command::Pub(args)) => args.run(),
        Some(Command::Completions(args)) => args.run(Cli::command()),
        Some(Command::Man(args)) => args.run(Cli::command()),
    }
}

fn serve(flags: Serve) -> ExitCode {
    let (config, level) = match flags.config() {
        Ok(config) => config,
        Err(sentence) => return misused(&sentence),
    };
    // What the libraries tell at these levels is about themselves.
    let foreign = if level == LevelFilter::Trace {
        level
    } else {
        level.min(LevelFilter::Warn)
    };
    let logger = simple_logger::SimpleLogger::new()
        .with_level(level)
        .with_module_level("tungstenite", foreign)
        .with_module_level("tiny_http", foreign)
        .with_utc_timestamps()
        .with_threads(true);
    log::set_max_level(logger.max_level());
    if let Err(error) = log::set_boxed_logger(Box::new(Unheard(logger))) {
        return fail(&format!("cannot log: {error}"));
    }
    // Before there is another thread: it takes what it has read out of the environment.
    let socket = match systemd::passed_socket() {
        Ok(socket) => socket,
        Err(sentence) => return misused(&sentence),
    };
    let supervisor = Supervisor::of_this_process();
    // Before anything is started, so that no signal finds the server half made.
    let can_reload = config.tls.is_some() || config.tokens.is_some() || supervisor.is_there();
    let mut signals = match Signals::new(heeded(can_reload)).and_then(second_signal_ends) {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("cannot listen for signals: {error}")),
    };
    let database = match &config.database {
        Database::Memory => ":memory:".to_owned(),
        Database::File(path) => path.display().to_string(),
    };
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let needs_token = config.tokens.is_some();
    let started = match socket {
        Some(socket) => Server::start_on(socket, config),
        None => Server::start(config),
    };
    let server = match started {
        Ok(server) => server,
        Err(error) => return fail(&sentence(&error)),
    };
    announce(scheme, server.address(), &database, needs_token);
    supervisor.ready(&format!("listening on {scheme}://{}", server.address()));
    let watchdog = supervisor.watch(server.probe());
    let signal = signals
        .forever()
        .find(|signal| *signal != SIGHUP || !reload(&server, &supervisor));
    // What ends on purpose needs no rescue.
    drop(watchdog);
    supervisor.stopping();
    log::info!(
        "{}, shutting down",
        match signal {
            Some(SIGINT) => "SIGINT",
            Some(SIGHUP) => "SIGHUP (the terminal is closed, and there is nothing to reload)",
            _ => "SIGTERM",
        }
    );
    server.shutdown();
    ExitCode::SUCCESS
}

/// What ends the server, and what makes it reload. `nohup` has SIGHUP ignored, so that it does
/// not end with the terminal.
fn heeded(can_reload: bool) -> Vec<i32> {
    if is_sighup_ignored() && !can_reload {
        vec![SIGINT, SIGTERM]
    } else {
        vec![SIGHUP, SIGINT, SIGTERM]
    }
}

/// As Linux tells it, a bit for each ignored signal (proc_pid_status(5)).
fn is_sighup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 << (SIGHUP - 1) != 0)
}

/// Says what failed; `false` when nobody meant a reload: there is nothing to read anew, and no
/// supervisor who would ask for it all the same.
fn reload(server: &Server, supervisor: &Supervisor) -> bool {
    supervisor.reloading();
    let outcome = server.reload();
    supervisor.ready(&match &outcome {
        Ok(_) => format!("listening on {}, reloaded", server.address()),
        Err(error) => format!("not reloaded: {}", sentence(error)),
    });
    outcome.unwrap_or_else(|error| {
        log::error!("SIGHUP: {}; that stays as it was", sentence(&error));
        true
    }) || supervisor.is_there()
}

/// simple_logger panics when standard error is closed (`threadcast 2>&1 | head`): nobody
/// listening must not end a thread.
struct Unheard(simple_logger::SimpleLogger);

impl log::Log for Unheard {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.0.log(record)));
    }

    fn flush(&self) {}
}

/// Registered first, this acts last: the flag is still false when the first signal comes.
fn second_signal_ends(signals: Signals) -> std::io::Result<Signals> {
    let first_came = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            CUT_SHORT,
            Arc::clone(&first_came),
        )?;
        signal_hook::flag::register(signal, Arc::clone(&first_came))?;
    }
    Ok(signals)
}

/// On standard output, whatever the log level; one that is closed is not an error.
fn announce(scheme: &str, address: SocketAddr, database: &str, needs_token: bool) {
    // No certificate is for an address like this one.
    let insecure = if scheme == "https" { " -k" } else { "" };
    let token = if needs_token { " -u :TOKEN" } else { "" };
    let _ = write!(
        std::io::stdout(),
        "threadcast {} listening on {scheme}://{address}, database {database}\n\
         try: curl{insecure}{token} -X POST {scheme}://{address}/api/messages -H 'Content-Type: application/json' \
         -d '{{\"channel_id\":\"lab\",\"author\":\"me\",\"content\":\"hello\"}}'\n",
        env!("CARGO_PKG_VERSION"),
    );
}

/// The error and what caused it, in one line.
fn sentence(error: &Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn fail(sentence: &str) -> ExitCode {
    note(sentence);
    ExitCode::FAILURE
}

/// What was asked for is wrong, whatever the server says.
fn misused(sentence: &str) -> ExitCode {
    note(sentence);
    ExitCode::from(USAGE)
}

/// On standard error; one that is closed is not an error.
fn note(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "threadcast: {sentence}");
}
