//! `threadcast bench`: loads a server on this machine and reports how fast and how exact it was.
//!
//! One thread (or `--receivers`) receives for all subscribers (epoll), one (or `--publisher-threads`)
//! publishes over HTTP, one for each WebSocket publisher, the main thread keeps time. The generator shares the machine with the server, so the receiving
//! side costs as little as it can: one read takes many frames, no JSON parser runs on most of
//! them, and one clock reading dates all frames of a read. Of a long state only the ends are kept.
//!
//! The checks are real: publishers collect the ids of acknowledged messages, subscribers the
//! ids of delivered ones, and the two are compared as sets at the end. States of a feed may be
//! skipped: their revs must ascend, and everybody must end on the last one.
//!
//! Subscribers may also stop reading, go and come back with `since` (`--stalled`, `--churn`,
//! `--since-back`): each must get the same ids as those that stayed.

mod arriving;
mod churn;
mod connect;
mod exchange;
mod feed_report;
mod latency;
mod load;
mod message_reader;
mod plan;
mod publish_http;
mod publish_ws;
mod publishers;
mod reader;
mod received;
mod receiver;
mod report;
mod requests;
mod returning;
mod scanner;
mod server;
mod soundings;
mod state;
mod state_reader;
mod subscriber;
mod subscribers;
mod tally;
mod text;

use std::path::PathBuf;
use std::time::Duration;

use plan::Load;

/// Load a server on this machine and report speed, latency, losses and the server's cost.
///
/// Starts a server of its own, on a free port with a temporary database, unless `--url` names
/// a running one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Load this running server (`http://127.0.0.1:8010`); only loopback addresses are allowed
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// With `--url`: the server's process, to report its CPU time and memory
    #[arg(long, value_name = "PID", requires = "url")]
    pid: Option<i32>,

    /// Without `--url`: the program that is started as the server, with `serve` and flags [default: this one]
    #[arg(long, value_name = "PROGRAM", conflicts_with = "url")]
    server: Option<PathBuf>,

    /// Without `--url`: the server's database, a file or `:memory:` [default: a temporary file]
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    db: Option<PathBuf>,

    /// Publish states of one feed (`PUT /api/state/{feed}`), each of them a change, instead of messages
    #[arg(long, conflicts_with_all = ["via", "in_flight", "channels", "idle_seconds"])]
    feed: bool,

    /// With `--feed`: publish the same state again and again, every second time with its keys in
    /// another order; nobody may hear of any but the first
    #[arg(long, requires = "feed", conflicts_with = "max_behind")]
    equal: bool,

    /// WebSocket subscribers, spread evenly over the channels
    #[arg(long, value_name = "N", default_value_t = 1000)]
    subscribers: usize,

    /// Of them, so many that read nothing until the measured time is over, and then must get
    /// everything; see the server's `--write-timeout` and `--pong-timeout`
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["feed", "idle_seconds"])]
    stalled: usize,

    /// Subscribers per second of the measured time that, in turn, leave and come back at once with
    /// `since`, vanish and come back later, or stop reading for as long (a quarter of the time, at most 45 s)
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with_all = ["feed", "idle_seconds"])]
    churn: Option<f64>,

    /// Publish N messages first; when the measured time begins, all subscribers connect at once, with
    /// `since` before them. The run goes on until all are live
    #[arg(long, value_name = "N", conflicts_with_all = ["feed", "idle_seconds", "churn", "stalled"])]
    since_back: Option<u64>,

    /// Threads that receive for all of them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    receivers: usize,

    /// Connections that publish
    #[arg(long, value_name = "N", default_value_t = 1)]
    publishers: usize,

    /// HTTP publishers: threads that serve them. One costs the server the least; as many as publishers let
    /// the system take turns among them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    publisher_threads: usize,

    /// How they publish
    #[arg(long, value_enum, default_value_t = Via::Http)]
    via: Via,

    /// WebSocket publishers: messages of one publisher waiting for their ack
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    in_flight: usize,

    /// Messages or states per second, all publishers together [default: as fast as answers come]
    #[arg(long, value_name = "N", value_parser = positive)]
    rate: Option<f64>,

    /// Publishers pause while subscribers are, on average, more than N messages or states behind [default:
    /// never: a server that answers before it has delivered can be outrun]
    #[arg(long, value_name = "N")]
    max_behind: Option<u64>,

    /// Length of each message's content, at least 15 (it starts with a time stamp), or of each
    /// state; above the server's limit of 256 KiB with `-- --max-body-bytes SIZE`
    #[arg(long, value_name = "BYTES", default_value_t = 200, value_parser = content_bytes)]
    content_bytes: usize,

    /// Measured time; afterwards nothing is published and what is under way is waited for
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    seconds: Duration,

    /// Time of the same load before anything is measured
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    warmup_seconds: Duration,

    /// Channels to spread publishers and subscribers over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    channels: usize,

    /// Only connect the subscribers and report what they cost when nothing happens for this time
    #[arg(long, value_name = "S", value_parser = seconds, conflicts_with_all = ["rate", "via", "publishers"])]
    idle_seconds: Option<Duration>,

    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,

    /// Without `--url`: further flags for the server, after `--`
    #[arg(last = true, value_name = "SERVER FLAGS", conflicts_with = "url")]
    server_flags: Vec<String>,
}

/// How publishers publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Via {
    /// `POST /api/messages`, one request at a time on a keep-alive connection
    Http,
    /// `message` frames with `ref`; the publisher also receives its channel, which is read, not counted
    Ws,
}

impl Args {
    fn load(&self) -> Load {
        match (self.feed, self.equal) {
            (false, _) => Load::Messages,
            (true, false) => Load::States,
            (true, true) => Load::EqualStates,
        }
    }
}

/// Runs the load, prints the report on standard output and fails when anything was lost,
/// doubled, out of order, refused or closed, or a subscriber ended on an old state.
pub(crate) fn run(args: Args) -> Result<(), String> {
    let report = load::run(&args)?;
    if args.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text());
    }
    report.verdict()
}

fn at_least_one(text: &str) -> Result<usize, String> {
    at_least(1, text)
}

fn content_bytes(text: &str) -> Result<usize, String> {
    at_least(plan::STAMP_DIGITS, text)
}

fn at_least(least: usize, text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= least => Ok(number),
        _ => Err(format!("must be a whole number of at least {least}")),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("must be a number greater than 0".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=3600.0).contains(&number) => Ok(Duration::from_secs_f64(number)),
        _ => Err("must be a number of seconds from 0 to 3600".to_owned()),
    }
}
