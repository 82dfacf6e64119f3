//! Everything that can be set, with its default.
//!
//! Times are [`Duration`]s, sizes are bytes. The program's flags (`cli`) mirror these fields one to one.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::access::{AllowedOrigin, Network};
use crate::protocol::Feed;

/// How a [`Server`](crate::Server) runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Address of the one public port; port 0 lets the system choose.
    ///
    /// Default `127.0.0.1:8010`.
    pub listen: SocketAddr,

    /// Where messages and states are kept.
    ///
    /// Default: the file `threadcast.db` in the working directory.
    pub database: Database,

    /// What a commit waits for.
    ///
    /// Default [`Sync::Normal`].
    pub sync: Sync,

    /// Which messages are kept.
    ///
    /// Default: all.
    pub retention: Retention,

    /// Longest time that [`Server::shutdown`](crate::Server::shutdown) takes.
    ///
    /// Default 5 s.
    pub drain: Duration,

    /// How long [`Server::shutdown`](crate::Server::shutdown) goes on serving before it begins, while
    /// `GET /api/health` answers 503 `draining`: a load balancer sees that and sends nobody any
    /// more. [`Self::drain`] comes after it.
    ///
    /// Default 0 s.
    pub drain_delay: Duration,

    /// Feeds whose state comes from a file or a command.
    ///
    /// Default: none.
    pub watches: Vec<Watch>,

    /// Time between two looks at a watched source, while its feed has subscribers.
    ///
    /// Default 2 s, as in the second seed.
    pub watch_interval: Duration,

    /// Longest time that a watched command may run; then it is killed with its children.
    ///
    /// Default 10 s.
    pub watch_timeout: Duration,

    /// The tokens file: who may do what. Read at the start and by
    /// [`Server::reload`](crate::Server::reload).
    ///
    /// Default `None`: whoever reaches the port may do everything.
    pub tokens: Option<PathBuf>,

    /// Whether to listen beyond loopback although there are no tokens.
    ///
    /// Default `false`: that is refused.
    pub insecure: bool,

    /// Web pages that may use the server, beside its own and, when it listens on loopback,
    /// those of the same machine.
    ///
    /// Default: none.
    pub allow_origins: Vec<AllowedOrigin>,

    /// Proxies whose `X-Forwarded-For` or `Forwarded` header says who the client is.
    ///
    /// Default: none.
    pub trusted_proxies: Vec<Network>,

    /// Messages and states a second that one token, or without tokens one address, may publish;
    /// more is answered 429, on a WebSocket with `rate_limited`. 0 for any number.
    ///
    /// Default `None`: 10, or any number when the server listens on loopback.
    pub publish_rate: Option<u32>,

    /// Messages and states that it may publish at once, before [`Self::publish_rate`] counts.
    ///
    /// Default 60.
    pub publish_burst: u32,

    /// TLS on the public port, which speaks nothing else then.
    ///
    /// Needs a build with the cargo feature `tls`. Default `None`: plain HTTP.
    pub tls: Option<Tls>,

    /// The log that this server shares with others, which are one with it then.
    ///
    /// Needs a build with the cargo feature `redis`. Default `None`: a server by itself.
    pub backplane: Option<Backplane>,

    /// Bounds on what clients may use.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8010)),
            database: Database::File(PathBuf::from("threadcast.db")),
            sync: Sync::default(),
            retention: Retention::default(),
            drain: Duration::from_secs(5),
            drain_delay: Duration::ZERO,
            watches: Vec::new(),
            watch_interval: Duration::from_secs(2),
            watch_timeout: Duration::from_secs(10),
            tokens: None,
            insecure: false,
            allow_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            publish_rate: None,
            publish_burst: 60,
            tls: None,
            backplane: None,
            limits: Limits::default(),
        }
    }
}

/// The files that TLS needs, read at the start and by [`Server::reload`](crate::Server::reload).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate in PEM, behind it those that signed it.
    pub cert: PathBuf,
    /// Its private key in PEM, not encrypted. Only its owner may be allowed to read the file.
    pub key: PathBuf,
}

/// The log on Redis or Valkey (5.0 or newer) that several servers share.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backplane {
    /// Where it is: `redis://USER:PASSWORD@HOST:PORT/DATABASE`, all but the host optional;
    /// `rediss://` for TLS, which needs the cargo feature `tls`, too; `unix:PATH` for a socket.
    pub url: String,

    /// Certificates in PEM of those who sign Redis'; read once, at the start.
    ///
    /// Default none: the system's.
    pub cacert: Option<PathBuf>,

    /// The certificate that a Redis is shown that asks for one (`tls-auth-clients`), those that
    /// signed it, and its private key, in one file in PEM that only its owner may be allowed to
    /// read; read once, at the start.
    ///
    /// Default none.
    pub cert: Option<PathBuf>,

    /// The key of the stream. Further keys begin with it in braces, `{threadcast}:`, so that
    /// all are on one node of a Redis Cluster.
    ///
    /// Default `threadcast`.
    pub key: String,

    /// Entries that stay in the stream, about: a server that was away for longer than that has
    /// a hole. Messages and states are an entry each.
    ///
    /// Default 1,000,000.
    pub keep: u64,

    /// Longest time that a publisher waits while it is not known whether its message was
    /// appended; then it is answered 503.
    ///
    /// Default 5 s.
    pub timeout: Duration,
}

impl Backplane {
    /// With the defaults beside this address.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            cacert: None,
            cert: None,
            key: "threadcast".to_owned(),
            keep: 1_000_000,
            timeout: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for Backplane {
    /// Without the address, which may have a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backplane")
            .field("cacert", &self.cacert)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("keep", &self.keep)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A feed and where its state comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The feed.
    pub feed: Feed,
    /// What is looked at.
    pub source: Source,
}

/// What a watcher looks at. Either gives JSON of at most [`Limits::max_body_bytes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file, read when its size or time has changed.
    File(PathBuf),
    /// A command for `/bin/sh`, which prints the state on standard output.
    Exec(String),
}

impl FromStr for Watch {
    type Err = String;

    /// Reads `FEED=file:PATH` or `FEED=exec:COMMAND`; fails with a sentence that says what is
    /// wrong with it.
    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write FEED=file:PATH or FEED=exec:COMMAND";
        let (feed, source) = text
            .split_once('=')
            .ok_or_else(|| format!("there is no `=` in {text:?}; {form}"))?;
        let feed = feed.parse()?;
        let source = match source.split_once(':') {
            Some(("file" | "exec", "")) => {
                return Err(format!("nothing comes behind {source:?}; {form}"));
            }
            Some(("file", path)) => Source::File(path.into()),
            Some(("exec", command)) => Source::Exec(command.to_owned()),
            _ => {
                return Err(format!(
                    "{source:?} is neither a file nor a command; {form}"
                ));
            }
        };
        Ok(Self { feed, source })
    }
}

/// Where messages and states are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// A SQLite file, created when it does not exist.
    File(PathBuf),
    /// A ring in memory of [`Limits::memory_bytes`]: nothing survives a restart.
    Memory,
}

/// Which messages are kept: the oldest go first, a few at a time between commits. Whoever comes
/// back to one that is gone is told that there is a gap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// The newest so many, of all channels together.
    ///
    /// Default `None`: all.
    pub keep_messages: Option<u64>,

    /// Those that are younger, by the time of their commit. The oldest id goes first: one
    /// message with a time ahead keeps those after it.
    ///
    /// Default `None`: all.
    pub keep_age: Option<Duration>,

    /// As many as fit so many bytes of the database file beside the states and remembered
    /// answers in it (an eighth at most), and always the newest; space is given back. At least 1 MiB. The write-ahead log beside it (some
    /// MiB, more while subscribers read) is not counted, and [`Database::Memory`] has
    /// [`Limits::memory_bytes`] instead.
    ///
    /// Default `None`: as many as the disk takes.
    pub max_db_bytes: Option<u64>,
}

/// What a commit waits for before it is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sync {
    /// The operating system has it: survives a crash or `kill -9` of the program. It is brought
    /// to the disk after a second, or after a mebibyte: a power cut may take what came since,
    /// never the file's consistency.
    #[default]
    Normal,
    /// The disk has it: survives a power cut.
    Full,
}

/// Bounds on what clients may use.
///
/// Each keeps one queue, buffer or wait finite; the defaults suit a small machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections open at once, of every kind; one more is answered 503.
    ///
    /// Default 10,000; less where the machine allows fewer descriptors (a subscriber takes two)
    /// or threads (a connection takes one). What decides is logged at the start.
    pub max_connections: usize,

    /// Connections open at once from one address; one more is answered 429. IPv6 addresses of
    /// one /64 count as one; those of this machine itself (loopback) are not counted.
    ///
    /// Default 256. Raise it when a proxy on another machine brings everybody.
    pub max_connections_per_address: usize,

    /// Subscribers of one channel or feed; one more is answered 503 before its upgrade. All
    /// subscribers together are bounded by [`Self::max_connections`].
    ///
    /// Default 10,000.
    pub max_subscribers: usize,

    /// Longest request head (request line and headers); more is answered 431.
    ///
    /// Default 16 KiB.
    pub max_head_bytes: usize,

    /// Longest request body (413) and longest text frame (`too_large`; twice as much closes with 1009).
    ///
    /// Default 256 KiB.
    pub max_body_bytes: usize,

    /// Time from the first byte of a request head to its last, and for a new connection to
    /// send that first byte; a TLS handshake before it is within the same time.
    ///
    /// Default 10 s.
    pub head_timeout: Duration,

    /// Time for a request body to arrive whole.
    ///
    /// Default 30 s.
    pub body_timeout: Duration,

    /// Time a keep-alive connection may be idle between two requests.
    ///
    /// Default 75 s, as in nginx' `keepalive_timeout`.
    pub idle_timeout: Duration,

    /// Longest time a socket may take no byte before its client is given up (1013).
    ///
    /// Default 10 s, as in NATS' `write_deadline`.
    pub write_timeout: Duration,

    /// Time between two pings to a WebSocket client, give or take a tenth. An event stream's
    /// client gets a comment as often, and every 15 s at the least.
    ///
    /// Default 25 s: below the 30 s and 60 s after which common proxies drop a silent connection.
    pub ping_interval: Duration,

    /// Time for the pong to come before the client is given up (1013). An event stream's client,
    /// who cannot answer, is given up when its system has acknowledged nothing for this and
    /// [`Self::write_timeout`] (Linux).
    ///
    /// Default 10 s.
    pub pong_timeout: Duration,

    /// Chunks of frames waiting for one subscriber before it falls behind and goes on from the
    /// store.
    ///
    /// Default 64.
    pub max_outbox_chunks: usize,

    /// Bytes waiting for one subscriber before it falls behind and goes on from the store. A
    /// single larger chunk still goes to a subscriber that waits for nothing else.
    ///
    /// Default 256 KiB.
    pub max_outbox_bytes: usize,

    /// Bytes of what was broadcast last, of all channels together, that stay in memory for
    /// subscribers that fall behind; what is older they get from the store, which costs more.
    /// Channels with event streams take as much again, for the same as events.
    ///
    /// Default 8 MiB.
    pub recent_bytes: usize,

    /// Messages of one WebSocket client handed to the journal and not yet committed; at the
    /// limit the client is read no further until a commit.
    ///
    /// Default 32.
    pub max_in_flight: usize,

    /// Messages and states in one transaction.
    ///
    /// Default 512.
    pub max_batch: usize,

    /// Bytes of messages and states waiting for the journal; beyond it HTTP publishers get 503 and
    /// WebSocket publishers are read no further.
    ///
    /// Default 16 MiB.
    pub max_queued_bytes: usize,

    /// Bytes of committed frames waiting for the fan-out; beyond it the journal waits.
    ///
    /// Default 8 MiB.
    pub max_fanout_bytes: usize,

    /// A page of history ends after this many bytes, though never before its first message.
    ///
    /// Default 4 MiB.
    pub max_page_bytes: usize,

    /// Size of the ring of [`Database::Memory`]; the oldest messages make room.
    ///
    /// Default 64 MiB.
    pub memory_bytes: usize,

    /// REST requests worked on at once; further ones wait for their turn.
    ///
    /// Default 32.
    pub max_rest_requests: usize,

    /// Feeds that may have a state, beside the three that are built in; one more is answered 422. A state is at most
    /// [`Self::max_body_bytes`] long, in memory and in the database.
    ///
    /// Default 1,000.
    pub max_feeds: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_address: 256,
            max_subscribers: 10_000,
            max_head_bytes: 16 << 10,
            max_body_bytes: 256 << 10,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            max_outbox_chunks: 64,
            max_outbox_bytes: 256 << 10,
            recent_bytes: 8 << 20,
            max_in_flight: 32,
            max_batch: 512,
            max_queued_bytes: 16 << 20,
            max_fanout_bytes: 8 << 20,
            max_page_bytes: 4 << 20,
            memory_bytes: 64 << 20,
            max_rest_requests: 32,
            max_feeds: 1000,
        }
    }
}
