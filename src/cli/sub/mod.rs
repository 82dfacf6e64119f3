//! `threadcast sub`: prints what is published, and comes back where it was.

mod cursor;
mod follow;
mod frame;
mod output;

use std::path::PathBuf;
use std::process::ExitCode;

use threadcast::protocol::{Channel, Feed};

use super::flags::count;
use super::terms::{Form, Server};
use super::waiting::Stop;
use super::{fail, misused};
use cursor::CursorFile;
use follow::{Follower, Start, Topic};
use output::Output;

/// Print what is published on a channel or a feed, and reconnect whenever the connection is lost.
///
/// On a terminal a line for people (date and time in UTC, author, lane, content), into a pipe the
/// message as a JSON object, of a feed the whole frame. After a loss of the connection nothing is
/// missing and nothing is there twice; where the server no longer has it, standard error says so.
/// Pauses before a new attempt are random, up to 200 ms at first and up to 10 s in the end, or as
/// long as the server asks for.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 after Ctrl-C, SIGTERM, --count or when nobody reads the output any more; \
    1 when the server refused for good, or could not be reached with --no-reconnect; 2 when the flags are wrong."
)]
pub(super) struct Args {
    /// The channel
    #[arg(required_unless_present = "feed", conflicts_with = "feed")]
    channel: Option<Channel>,

    /// Print the states of this feed instead
    #[arg(long, value_name = "FEED")]
    feed: Option<Feed>,

    /// Begin with the first message after this id
    #[arg(long, value_name = "ID", conflicts_with_all = ["feed", "last"])]
    since: Option<u64>,

    /// Begin N messages back, at most 1000
    #[arg(long, value_name = "N", conflicts_with = "feed", value_parser = clap::value_parser!(u64).range(..=1000))]
    last: Option<u64>,

    /// Keep the place in this file and go on from there at the next start; --since and --last count
    /// only while there is no such file
    #[arg(long, value_name = "FILE", conflicts_with = "feed")]
    cursor_file: Option<PathBuf>,

    /// End after N messages or states
    #[arg(long, value_name = "N", value_parser = count)]
    count: Option<usize>,

    /// End with exit code 1 when the server cannot be reached or the connection is lost
    #[arg(long)]
    no_reconnect: bool,

    #[command(flatten)]
    form: Form,

    #[command(flatten)]
    server: Server,
}

impl Args {
    pub(super) fn run(self) -> ExitCode {
        match self.follower() {
            Ok(mut follower) => match follower.run() {
                Ok(()) => ExitCode::SUCCESS,
                Err(sentence) => fail(&sentence),
            },
            Err(sentence) => misused(&sentence),
        }
    }

    fn follower(self) -> Result<Follower, String> {
        let remote = self.server.remote()?;
        let is_human = self.form.is_human();
        let mut start = match (self.since, self.last) {
            (Some(id), _) => Start::Since(id),
            (None, last) => Start::Last(last.unwrap_or(0)),
        };
        let mut cursor = None;
        if let (Some(path), Some(channel)) = (self.cursor_file, &self.channel) {
            let file = CursorFile::open(path, channel.as_str())?;
            if let Some(id) = file.saved() {
                start = Start::Since(id);
            }
            cursor = Some(file);
        }
        let topic = match (self.channel, self.feed) {
            (Some(channel), _) => Topic::Channel(channel),
            (None, Some(feed)) => Topic::Feed(feed),
            (None, None) => return Err("a channel or --feed is needed".to_owned()),
        };
        Ok(Follower {
            remote,
            keep_alive: self.server.keep_alive(),
            topic,
            start,
            cursor,
            output: Output::new(is_human)?,
            left: self.count,
            may_reconnect: !self.no_reconnect,
            last_state: String::new(),
            stop: Stop::on_signals(0)?,
        })
    }
}
