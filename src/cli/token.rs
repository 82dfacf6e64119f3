//! `threadcast token`: secrets, and the lines of the tokens file that let them in.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use threadcast::access::{Line, Scope};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::flags::duration;
use super::{USAGE, fail};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a token: its secret on standard error, once, its line for the tokens file on standard output
    ///
    /// `(umask 077; threadcast token new --name ci --scope publish >> tokens)` adds the line to a file.
    New(New),
}

#[derive(Debug, Args)]
pub(super) struct New {
    /// What logs and listings call it: 1 to 64 of a-z, A-Z, 0-9, `_`, `.` and `-`
    #[arg(long)]
    name: String,

    /// What it may do; repeatable, or with commas
    #[arg(
        long = "scope",
        value_name = "SCOPE",
        required = true,
        value_delimiter = ','
    )]
    scopes: Vec<ScopeName>,

    /// Channels it is for: a name, or a pattern with * for any characters and ? for one; repeatable
    /// [default: all, if there is no --feed]
    #[arg(long = "channel", value_name = "PATTERN")]
    channels: Vec<String>,

    /// Feeds it is for, written in the same way; repeatable [default: all, if there is no --channel]
    #[arg(long = "feed", value_name = "PATTERN")]
    feeds: Vec<String>,

    /// How long it is good, like 90d, or until when, like 2027-01-31T00:00:00Z [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    expires: Option<OffsetDateTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScopeName {
    /// Publish messages
    Publish,
    /// Read and follow channels and feeds
    Subscribe,
    /// Publish states of feeds
    State,
    /// See and end connections
    Admin,
}

impl From<ScopeName> for Scope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Publish => Self::Publish,
            ScopeName::Subscribe => Self::Subscribe,
            ScopeName::State => Self::State,
            ScopeName::Admin => Self::Admin,
        }
    }
}

pub(super) fn run(command: Command) -> ExitCode {
    let Command::New(new) = command;
    let (mut channels, mut feeds) = (new.channels, new.feeds);
    if channels.is_empty() && feeds.is_empty() {
        channels.push("*".to_owned());
        feeds.push("*".to_owned());
    }
    let mut scopes: Vec<Scope> = new.scopes.into_iter().map(Scope::from).collect();
    scopes.dedup();
    let (secret, line) = match Line::new(&new.name, scopes, channels, feeds, new.expires) {
        Ok(made) => made,
        Err(sentence) => {
            fail(&sentence);
            return ExitCode::from(USAGE);
        }
    };
    let line = serde_json::to_string(&line).expect("strings always have a JSON form");
    // The line first: a secret without its line is good for nothing.
    if let Err(error) = writeln!(io::stdout(), "{line}") {
        return fail(&format!("cannot write the token's line: {error}"));
    }
    let _ = writeln!(
        io::stderr(),
        "The secret of `{}`, shown this once:\n\n  {secret}\n\nIts line, above or where standard output goes, belongs into the file of --tokens; SIGHUP makes a running server read it.",
        new.name
    );
    ExitCode::SUCCESS
}

/// A duration from now on, or a time.
fn expiry(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let from_now =
        |duration: Duration| OffsetDateTime::now_utc().checked_add(duration.try_into().ok()?);
    duration(text)
        .ok()
        .and_then(from_now)
        .and_then(|time| time.replace_nanosecond(0).ok())
        .ok_or_else(|| {
            "it must be a duration like 90d or a time like 2027-01-31T00:00:00Z".to_owned()
        })
}
