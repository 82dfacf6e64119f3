//! `threadcast pub`: messages and states from the command line.

mod input;
mod progress;
mod publisher;
mod state;
mod window;

use std::process::ExitCode;

use serde::Serialize;
use threadcast::protocol::{Channel, Feed};

use super::terms::{Form, Server};
use super::waiting::Stop;
use super::{fail, misused};
use input::Lines;
use publisher::Publisher;

/// Publish messages to a channel, or the state of a feed.
///
/// Without TEXT every line of standard input is a message; they go over one WebSocket, several at a
/// time. Nothing is printed but with --ids.
///
/// With --state, JSON (or standard input as a whole) becomes the state of the feed.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "threadcast pub [OPTIONS] CHANNEL [TEXT]\n       threadcast pub [OPTIONS] --state FEED [JSON]",
    after_help = "Exit codes: 0 when every message was acknowledged, which means that it is stored; \
        1 when not, and then standard error says how many were and of which it is not known; 2 when the flags are wrong."
)]
pub(super) struct Args {
    /// The channel; with --state the JSON
    #[arg(value_name = "CHANNEL", required_unless_present = "state")]
    first: Option<String>,

    /// The message [default: each line of standard input is one]
    #[arg(value_name = "TEXT", conflicts_with = "state")]
    text: Option<String>,

    /// Publish this feed's state
    #[arg(long, value_name = "FEED", conflicts_with_all = ["author", "lane", "provider", "token_count", "ids"])]
    state: Option<Feed>,

    /// Who writes [default: $USER, or "threadcast"]
    #[arg(long, value_name = "NAME")]
    author: Option<String>,

    /// The messages' `lane`
    #[arg(long, value_name = "LANE")]
    lane: Option<String>,

    /// The messages' `provider`
    #[arg(long, value_name = "PROVIDER")]
    provider: Option<String>,

    /// The messages' `token_count`
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    token_count: Option<i64>,

    /// Print the id of every message that was acknowledged
    #[arg(long)]
    ids: bool,

    /// When the connection is lost or the server is busy, try again until it is done: a message whose
    /// acknowledgement was lost is sent once more, and may then be there twice
    #[arg(long)]
    retry: bool,

    #[command(flatten)]
    form: Form,

    #[command(flatten)]
    server: Server,
}

/// What all messages of one call have in common.
#[derive(Debug, Clone, Serialize)]
struct Common {
    author: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lane: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_count: Option<i64>,
}

impl Args {
    pub(super) fn run(mut self) -> ExitCode {
        if let Some(feed) = self.state.take() {
            return self.publish_state(&feed);
        }
        match self.publisher() {
            Ok(mut publisher) => match publisher.run() {
                Ok(()) => ExitCode::SUCCESS,
                Err(sentence) => fail(&sentence),
            },
            Err(sentence) => misused(&sentence),
        }
    }

    fn publish_state(self, feed: &Feed) -> ExitCode {
        let remote = match self.server.remote() {
            Ok(remote) => remote,
            Err(sentence) => return misused(&sentence),
        };
        match state::publish(&remote, feed, self.first, self.retry, self.form) {
            Ok(()) => ExitCode::SUCCESS,
            Err(sentence) => fail(&sentence),
        }
    }

    fn publisher(self) -> Result<Publisher, String> {
        let channel: Channel = self.first.unwrap_or_default().parse()?;
        let user = || std::env::var("USER").ok().filter(|name| !name.is_empty());
        let common = Common {
            author: self
                .author
                .or_else(user)
                .unwrap_or_else(|| "threadcast".to_owned()),
            lane: self.lane,
            provider: self.provider,
            token_count: self.token_count,
        };
        let lines = match self.text {
            Some(text) => Lines::of_text(text),
            None => Lines::of_standard_input()?,
        };
        let stop = Stop::on_signals(1)?;
        let remote = self.server.remote()?;
        let keep_alive = self.server.keep_alive();
        Ok(
            Publisher::new(remote, keep_alive, &channel, common, lines, stop)
                .printing_ids(self.ids)
                .retrying(self.retry),
        )
    }
}
