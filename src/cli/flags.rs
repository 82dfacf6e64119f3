//! The flags of the server, each an environment variable, too.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use log::LevelFilter;
use threadcast::access::{AllowedOrigin, Network};
use threadcast::config::{Backplane, Tls, Watch};
use threadcast::{Config, Database, Limits, Sync};

/// Where `--watch` is in the environment.
const WATCH_VARIABLE: &str = "THREADCAST_WATCH";

/// The flags of the server. Durations: 500ms, 10s, 2m, 12h, 30d. Sizes: 4096, 64KiB, 4MiB.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Address to listen on; port 0 takes any free one
    #[arg(
        long,
        env = "THREADCAST_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8010"
    )]
    listen: SocketAddr,

    /// SQLite file that keeps the messages, created if missing; `:memory:` keeps the newest in memory only
    #[arg(
        long,
        env = "THREADCAST_DB",
        value_name = "FILE",
        default_value = "threadcast.db"
    )]
    db: String,

    /// What an acknowledged message survives
    #[arg(
        long,
        env = "THREADCAST_SYNC",
        value_name = "MODE",
        default_value = "normal"
    )]
    sync: SyncMode,

    /// Keep the newest N messages, of all channels together [default: all]
    #[arg(long, env = "THREADCAST_KEEP_MESSAGES", value_name = "N", value_parser = count)]
    keep_messages: Option<usize>,

    /// Keep messages that are younger, like 12h or 30d [default: all]
    #[arg(long, env = "THREADCAST_KEEP_AGE", value_name = "DURATION", value_parser = duration)]
    keep_age: Option<Duration>,

    /// Keep as many messages as fit a database file of this size [default: as many as the disk takes]
    #[arg(long, env = "THREADCAST_MAX_DB_BYTES", value_name = "SIZE", value_parser = size)]
    max_db_bytes: Option<usize>,

    /// Certificate in PEM, with those that signed it: speak https:// and wss:// and nothing else; SIGHUP reads
    /// it and its key anew (needs a build with `--features tls`)
    #[arg(long, env = "THREADCAST_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// Private key of the certificate in PEM, which only its owner may read
    #[arg(long, env = "THREADCAST_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,

    #[command(flatten)]
    backplane: BackplaneFlags,

    /// How much is logged on standard error: off, error, warn, info, debug or trace
    #[arg(
        long,
        env = "THREADCAST_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info"
    )]
    log_level: LevelFilter,

    /// Longest time a shutdown takes; a second signal ends at once
    #[arg(long, env = "THREADCAST_DRAIN", value_name = "DURATION", default_value = "5s", value_parser = duration)]
    drain: Duration,

    /// Time to go on serving before a shutdown, while /api/health says 503 `draining` to load balancers
    #[arg(long, env = "THREADCAST_DRAIN_DELAY", value_name = "DURATION", default_value = "0s", value_parser = duration)]
    drain_delay: Duration,

    /// Take a feed's state from a file (FEED=file:PATH, JSON) or a command (FEED=exec:COMMAND, JSON on
    /// its standard output) while the feed has subscribers; repeatable [env: THREADCAST_WATCH=, one a line]
    #[arg(long, value_name = "FEED=SOURCE")]
    watch: Vec<Watch>,

    /// Time between two looks at a watched source
    #[arg(long, env = "THREADCAST_WATCH_INTERVAL", value_name = "DURATION", default_value = "2s", value_parser = duration)]
    watch_interval: Duration,

    /// Longest time a watched command may run; then it is killed with its children
    #[arg(long, env = "THREADCAST_WATCH_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    watch_timeout: Duration,

    #[command(flatten)]
    access: AccessFlags,

    #[command(flatten)]
    limits: LimitFlags,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SyncMode {
    /// A crash of the program; a power cut too, but for about the last second
    Normal,
    /// A power cut too; slower
    Full,
}

/// Several servers as one.
#[derive(Debug, Args)]
#[command(next_help_heading = "Several servers as one")]
struct BackplaneFlags {
    /// Redis or Valkey whose stream is the log of several servers, like redis://USER:PASSWORD@HOST:6379/0;
    /// rediss:// for TLS (needs a build with `--features redis`)
    #[arg(
        long,
        env = "THREADCAST_BACKPLANE",
        hide_env_values = true,
        value_name = "URL"
    )]
    backplane: Option<String>,

    /// Certificates in PEM of those who sign Redis', if not the system's
    #[arg(long, env = "THREADCAST_BACKPLANE_CACERT", value_name = "FILE")]
    backplane_cacert: Option<PathBuf>,

    /// Certificate and private key, both in this file in PEM, for a Redis that asks for one
    #[arg(long, env = "THREADCAST_BACKPLANE_CERT", value_name = "FILE")]
    backplane_cert: Option<PathBuf>,

    /// Key of the stream, and what other keys begin with
    #[arg(
        long,
        env = "THREADCAST_BACKPLANE_KEY",
        value_name = "KEY",
        default_value = "threadcast"
    )]
    backplane_key: String,

    /// Entries that stay in the stream, about; a server that was away for longer has a hole
    #[arg(long, env = "THREADCAST_BACKPLANE_KEEP", value_name = "N", default_value = "1000000", value_parser = count)]
    backplane_keep: usize,

    /// Longest time a publisher waits while it is not known whether its message was appended (503)
    #[arg(long, env = "THREADCAST_BACKPLANE_TIMEOUT", value_name = "DURATION", default_value = "5s", value_parser = duration)]
    backplane_timeout: Duration,
}

impl BackplaneFlags {
    fn backplane(self) -> Option<Backplane> {
        let mut backplane = Backplane::new(self.backplane?);
        backplane.cacert = self.backplane_cacert;
        backplane.cert = self.backplane_cert;
        backplane.key = self.backplane_key;
        backplane.keep = self.backplane_keep as u64;
        backplane.timeout = self.backplane_timeout;
        Some(backplane)
    }
}

/// Who may use the server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
struct AccessFlags {
    /// File of tokens, made with `threadcast token new`: who may do what [default: everybody everything]
    #[arg(long, env = "THREADCAST_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,

    /// Listen beyond loopback although there are no tokens
    #[arg(long, env = "THREADCAST_INSECURE", value_parser = clap::builder::BoolishValueParser::new())]
    insecure: bool,

    /// Origin of web pages that may use the server, like https://board.example; repeatable, * for all
    #[arg(
        long = "allow-origin",
        env = "THREADCAST_ALLOW_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    allow_origins: Vec<AllowedOrigin>,

    /// Network of proxies whose X-Forwarded-For is believed, like 10.0.0.0/8; repeatable
    #[arg(
        long = "trusted-proxy",
        env = "THREADCAST_TRUSTED_PROXY",
        value_name = "NETWORK",
        value_delimiter = ','
    )]
    trusted_proxies: Vec<Network>,

    /// Messages and states a second that one token or address may publish (429), 0 for any
    /// number [default: 10, any number when listening on loopback]
    #[arg(long, env = "THREADCAST_PUBLISH_RATE", value_name = "N")]
    publish_rate: Option<u32>,

    /// Messages and states that it may publish at once before the rate counts
    #[arg(
        long,
        env = "THREADCAST_PUBLISH_BURST",
        value_name = "N",
        default_value = "60"
    )]
    publish_burst: u32,
}

/// One flag for every field of [`Limits`].
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
struct LimitFlags {
    /// Connections open at once; one more is answered 503
    #[arg(long, env = "THREADCAST_MAX_CONNECTIONS", value_name = "N", default_value = "10000", value_parser = count)]
    max_connections: usize,

    /// Connections open at once from one address, loopback excepted; one more is answered 429
    #[arg(long, env = "THREADCAST_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N", default_value = "256", value_parser = count)]
    max_connections_per_address: usize,

    /// Subscribers of one channel or feed; one more is answered 503
    #[arg(long, env = "THREADCAST_MAX_SUBSCRIBERS", value_name = "N", default_value = "10000", value_parser = count)]
    max_subscribers: usize,

    /// Longest request head (431)
    #[arg(long, env = "THREADCAST_MAX_HEAD_BYTES", value_name = "SIZE", default_value = "16KiB", value_parser = size)]
    max_head_bytes: usize,

    /// Longest request body (413) and WebSocket text (`too_large`)
    #[arg(long, env = "THREADCAST_MAX_BODY_BYTES", value_name = "SIZE", default_value = "256KiB", value_parser = size)]
    max_body_bytes: usize,

    /// Time for a request head to arrive (408)
    #[arg(long, env = "THREADCAST_HEAD_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    head_timeout: Duration,

    /// Time for a request body to arrive (408)
    #[arg(long, env = "THREADCAST_BODY_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    body_timeout: Duration,

    /// Time a keep-alive connection may be idle
    #[arg(long, env = "THREADCAST_IDLE_TIMEOUT", value_name = "DURATION", default_value = "75s", value_parser = duration)]
    idle_timeout: Duration,

    /// Time a socket may take no byte before its client is given up
    #[arg(long, env = "THREADCAST_WRITE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    write_timeout: Duration,

    /// Time between two pings to a WebSocket client
    #[arg(long, env = "THREADCAST_PING_INTERVAL", value_name = "DURATION", default_value = "25s", value_parser = duration)]
    ping_interval: Duration,

    /// Time for a client to answer a ping (1013)
    #[arg(long, env = "THREADCAST_PONG_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pong_timeout: Duration,

    /// Chunks of messages that may wait for one slow subscriber; then it goes on from the store
    #[arg(long, env = "THREADCAST_MAX_OUTBOX_CHUNKS", value_name = "N", default_value = "64", value_parser = count)]
    max_outbox_chunks: usize,

    /// Bytes that may wait for one slow subscriber; then it goes on from the store
    #[arg(long, env = "THREADCAST_MAX_OUTBOX_BYTES", value_name = "SIZE", default_value = "256KiB", value_parser = size)]
    max_outbox_bytes: usize,

    /// What was broadcast last stays in memory, up to so many bytes, for subscribers that fall behind
    #[arg(long, env = "THREADCAST_RECENT_BYTES", value_name = "SIZE", default_value = "8MiB", value_parser = size)]
    recent_bytes: usize,

    /// Messages of one WebSocket publisher waiting for their commit; then it is read more slowly
    #[arg(long, env = "THREADCAST_MAX_IN_FLIGHT", value_name = "N", default_value = "32", value_parser = count)]
    max_in_flight: usize,

    /// Messages in one transaction
    #[arg(long, env = "THREADCAST_MAX_BATCH", value_name = "N", default_value = "512", value_parser = count)]
    max_batch: usize,

    /// Bytes of messages waiting to be stored (503)
    #[arg(long, env = "THREADCAST_MAX_QUEUED_BYTES", value_name = "SIZE", default_value = "16MiB", value_parser = size)]
    max_queued_bytes: usize,

    /// Bytes of messages stored and waiting to be broadcast; then publishers wait
    #[arg(long, env = "THREADCAST_MAX_FANOUT_BYTES", value_name = "SIZE", default_value = "8MiB", value_parser = size)]
    max_fanout_bytes: usize,

    /// A page of history ends after so many bytes
    #[arg(long, env = "THREADCAST_MAX_PAGE_BYTES", value_name = "SIZE", default_value = "4MiB", value_parser = size)]
    max_page_bytes: usize,

    /// Memory for messages with `--db :memory:`; the oldest make room
    #[arg(long, env = "THREADCAST_MEMORY_BYTES", value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    memory_bytes: usize,

    /// REST requests worked on at once; further ones wait
    #[arg(long, env = "THREADCAST_MAX_REST_REQUESTS", value_name = "N", default_value = "32", value_parser = count)]
    max_rest_requests: usize,

    /// Feeds that may have a state; one more is answered 422
    #[arg(long, env = "THREADCAST_MAX_FEEDS", value_name = "N", default_value = "1000", value_parser = count)]
    max_feeds: usize,
}

impl Serve {
    /// What they ask for, and how much is logged.
    pub(super) fn config(self) -> Result<(Config, LevelFilter), String> {
        let mut config = Config::default();
        config.listen = self.listen;
        config.database = if self.db == ":memory:" {
            Database::Memory
        } else {
            Database::File(self.db.into())
        };
        config.sync = match self.sync {
            SyncMode::Normal => Sync::Normal,
            SyncMode::Full => Sync::Full,
        };
        config.retention.keep_messages = self.keep_messages.map(|number| number as u64);
        config.retention.keep_age = self.keep_age;
        config.retention.max_db_bytes = self.max_db_bytes.map(|bytes| bytes as u64);
        config.drain = self.drain;
        config.drain_delay = self.drain_delay;
        config.watches = if self.watch.is_empty() {
            watches(&std::env::var(WATCH_VARIABLE).unwrap_or_default())?
        } else {
            self.watch
        };
        config.watch_interval = self.watch_interval;
        config.watch_timeout = self.watch_timeout;
        config.tokens = self.access.tokens;
        config.insecure = self.access.insecure;
        config.allow_origins = self.access.allow_origins;
        config.trusted_proxies = self.access.trusted_proxies;
        config.publish_rate = self.access.publish_rate;
        config.publish_burst = self.access.publish_burst;
        config.tls = tls(self.tls_cert, self.tls_key)?;
        config.backplane = self.backplane.backplane();
        config.limits = self.limits.limits();
        Ok((config, self.log_level))
    }
}

/// Neither is of use without the other.
fn tls(cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<Tls>, String> {
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(Tls { cert, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err("--tls-cert needs --tls-key, too: \
             the file with the private key of that certificate"
            .to_owned()),
        (None, Some(_)) => Err("--tls-key needs --tls-cert, too: \
             the file with the certificate of that private key"
            .to_owned()),
    }
}

/// One watch a line: clap would split flags, too, and commands may have several lines there.
fn watches(lines: &str) -> Result<Vec<Watch>, String> {
    lines
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.trim_start().parse())
        .collect::<Result<_, _>>()
        .map_err(|error: String| format!("--watch ({WATCH_VARIABLE}): {error}"))
}

impl LimitFlags {
    fn limits(self) -> Limits {
        let mut limits = Limits::default();
        limits.max_connections = self.max_connections;
        limits.max_connections_per_address = self.max_connections_per_address;
        limits.max_subscribers = self.max_subscribers;
        limits.max_head_bytes = self.max_head_bytes;
        limits.max_body_bytes = self.max_body_bytes;
        limits.head_timeout = self.head_timeout;
        limits.body_timeout = self.body_timeout;
        limits.idle_timeout = self.idle_timeout;
        limits.write_timeout = self.write_timeout;
        limits.ping_interval = self.ping_interval;
        limits.pong_timeout = self.pong_timeout;
        limits.max_outbox_chunks = self.max_outbox_chunks;
        limits.max_outbox_bytes = self.max_outbox_bytes;
        limits.recent_bytes = self.recent_bytes;
        limits.max_in_flight = self.max_in_flight;
        limits.max_batch = self.max_batch;
        limits.max_queued_bytes = self.max_queued_bytes;
        limits.max_fanout_bytes = self.max_fanout_bytes;
        limits.max_page_bytes = self.max_page_bytes;
        limits.memory_bytes = self.memory_bytes;
        limits.max_rest_requests = self.max_rest_requests;
        limits.max_feeds = self.max_feeds;
        limits
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a duration is a number with ms, s, m, h or d, like 500ms or 10s".to_owned();
    let digits = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let seconds = match &text[digits..] {
        "ms" => return Ok(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(seconds)
        .filter(|seconds| *seconds <= LONGEST_SECONDS)
        .map(Duration::from_secs)
        .ok_or_else(|| "a duration is at most 36500d, a hundred years".to_owned())
}

/// Beyond this the clock's arithmetic could overflow.
const LONGEST_SECONDS: u64 = 36_500 * 86_400;

fn size(text: &str) -> Result<usize, String> {
    let wrong = || "a size is a number of bytes or with KiB, MiB or GiB, like 64KiB".to_owned();
    let digits = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let number: usize = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match &text[digits..] {
        "" | "B" => 1,
        "KiB" | "K" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(unit)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(wrong)
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "a whole number of at least 1 is needed".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        serve: Serve,
    }

    #[test]
    fn no_flags_give_the_library_s_defaults() {
        let cli = Only::try_parse_from(["threadcast"]).expect("no flag is required");
        let config = cli.serve.config().map(|(config, _)| config);
        assert_eq!(config, Ok(Config::default()));
    }

    #[test]
    fn the_environment_has_one_watch_a_line() {
        let found = watches("\n a=file:/x y\n\nb=exec:date +%s | tr 1 2\n").expect("two");
        let watches_of: Vec<_> = found.iter().map(|watch| watch.feed.as_str()).collect();
        assert_eq!(watches_of, ["a", "b"]);
        assert_eq!(watches(" \n"), Ok(Vec::new()));
        let error = watches("a=file:/x\nb").expect_err("no `=`");
        assert!(error.starts_with("--watch (THREADCAST_WATCH): "), "{error}");
    }

    #[test]
    fn units_are_understood() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("36500d"), Ok(Duration::from_secs(LONGEST_SECONDS)));
        assert_eq!(size("64KiB"), Ok(65536));
        for wrong in [
            "",
            "s",
            "1 s",
            "-1s",
            "1x",
            "36501d",
            "18446744073709551615s",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "0", "KiB", "-1", "1TiB", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
