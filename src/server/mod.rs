//! The whole server: wired together, started, shut down.

mod answers;
mod capacity;
mod connection;
mod connections;
mod feeds;
mod listener;
mod machine;
mod node;
mod probe;
mod relay;
mod rest;
mod socket;
mod stream;
mod subscriber;
mod waiting;

use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::access::{Access, Callers};
use crate::config::{Config, Database};
use crate::error::{Error, Result};
use crate::frame::{CloseCode, StateFrame};
use crate::journal::Journal;
use crate::manager::{ConnectionManager, Event, EventKind, OutboxLimits, Subscription};
use crate::protocol::{Draft, Feed, MessageId, Published, State};
use crate::store;
use crate::stream::Acceptor;
use crate::usage::Usage;
use crate::watch::Watchers;
use capacity::Capacity;
use connection::Door;
use connections::Connections;
use listener::Listener;
use machine::Machine;
use relay::Relay;
use rest::Rest;
use socket::Sockets;
use stream::Streams;
use subscriber::Subscribers;

pub use probe::Probe;
pub use rest::{ROUTES, Route};

/// Smallest bound on the database: an empty one and some messages fit.
const MIN_DB_BYTES: u64 = 1 << 20;

/// A running server. Only [`Self::shutdown`] ends it; one that is dropped runs on.
///
/// ```
/// # fn main() -> Result<(), threadcast::Error> {
/// use threadcast::{Config, Database, Server};
///
/// let mut config = Config::default();
/// config.listen = "127.0.0.1:0".parse().expect("an address");
/// config.database = Database::Memory;
/// let server = Server::start(config)?;
/// println!("listening on http://{}", server.address());
/// server.shutdown();
/// # Ok(())
/// # }
/// ```
#[must_use = "a server that is dropped runs on; `shutdown` ends it"]
pub struct Server {
    address: SocketAddr,
    drain: Duration,
    drain_delay: Duration,
    usage: Arc<Usage>,
    listener: Listener,
    connections: Arc<Connections>,
    manager: Arc<ConnectionManager>,
    journal: Arc<Journal>,
    access: Arc<Access>,
    rest: Rest,
    relay: Arc<Relay>,
    watchers: Watchers,
    tls: Option<Arc<Acceptor>>,
}

impl Server {
    /// Opens the store, binds the port and starts every thread. Clients are served when this
    /// returns.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Database`], [`Error::Listen`] or [`Error::System`]; nothing
    /// runs then.
    pub fn start(config: Config) -> Result<Self> {
        Self::start_with(config, |address| listener::bind(*address))
    }

    /// Starts on a socket that is listening already, made by the embedding program or whoever
    /// started it, instead of binding [`Config::listen`]. Its address decides what that one
    /// would: whether tokens are needed, and which pages may use the server. Connections that
    /// wait on it are served. How many may wait stays as it is; the standard library asks for 128.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(socket: TcpListener, mut config: Config) -> Result<Self> {
        config.listen = socket
            .local_addr()
            .map_err(Error::system("read the listener's address"))?;
        socket
            .set_nonblocking(true)
            .map_err(Error::system("set up the listener"))?;
        Self::start_with(config, |_| Ok(socket))
    }

    fn start_with(
        config: Config,
        bind: impl FnOnce(&SocketAddr) -> Result<TcpListener>,
    ) -> Result<Self> {
        let Config {
            listen,
            database: _,
            sync: _,
            retention: _,
            drain,
            drain_delay,
            watches: _,
            watch_interval: _,
            watch_timeout: _,
            tokens: _,
            insecure: _,
            allow_origins: _,
            trusted_proxies,
            publish_rate: _,
            publish_burst: _,
            tls,
            backplane: _,
            limits: asked,
        } = &config;
        check(&config)?;
        let access = Arc::new(Access::new(&config)?);
        let backplane = node::backplane(&config)?;
        let tls = tls.as_ref().map(Acceptor::new).transpose()?.map(Arc::new);
        // First of all, so that a second server on this port leaves the database alone.
        let socket = bind(listen)?;
        let address = socket
            .local_addr()
            .map_err(Error::system("read the listener's address"))?;
        let (mut writer, reader) = store::open(&config)?;
        let mut head = reader.head().map_err(|error| unreadable(&config, error))?;
        let stored = reader
            .states()
            .map_err(|error| unreadable(&config, error))?;
        let mark = reader.mark().map_err(|error| unreadable(&config, error))?;
        let node = node::join(
            backplane,
            writer.as_mut(),
            mark,
            head,
            &stored,
            &config.watches,
        )?;
        if let Some(node) = &node {
            // The log may go on behind the newest message.
            head = head.max(node.mark.position.id);
        }
        let capacity = Capacity::within(asked, &Machine::of_this_process());
        capacity.log(asked);
        let limits = &capacity.limits;
        let usage = Arc::new(Usage::default());
        let outbox = OutboxLimits {
            chunks: limits.max_outbox_chunks,
            bytes: limits.max_outbox_bytes,
            replies: limits.max_in_flight,
            recent: limits.recent_bytes,
        };
        let manager = Arc::new(ConnectionManager::new(outbox));
        let history = feeds::restore(
            &manager,
            stored,
            &config.watches,
            node.is_none().then_some(writer.as_mut()),
        );
        let journal = Journal::start_with(
            writer,
            head,
            history,
            Arc::clone(&manager),
            Arc::clone(&usage),
            &config,
            node,
        );
        let journal = Arc::new(journal.map_err(Error::system("start a thread"))?);
        let callers = Arc::new(Callers::new(relay::connections(limits)));
        let rest = Rest::start(
            Arc::clone(&journal),
            Arc::clone(&manager),
            Arc::clone(&reader),
            Arc::clone(&access),
            Arc::clone(&callers),
            Arc::clone(&usage),
            limits,
        );
        let end = || {
            journal.stop();
            journal.close();
        };
        let rest = rest
            .and_then(|rest| node::tell(&journal, &manager).map(|()| rest))
            .inspect_err(|_| end())?;
        let connections = Connections::new(limits, trusted_proxies, Arc::clone(&usage));
        let open_door = |relay: Arc<Relay>| {
            let subscribers = Subscribers {
                manager: Arc::clone(&manager),
                reader: Arc::clone(&reader),
                access: Arc::clone(&access),
                usage: Arc::clone(&usage),
                limits: limits.clone(),
                link: journal.link().cloned(),
            };
            let streams = Streams {
                subscribers: subscribers.clone(),
                journal: Arc::clone(&journal),
            };
            let sockets = Sockets {
                subscribers,
                journal: Arc::clone(&journal),
            };
            let door = Arc::new(Door {
                limits: limits.clone(),
                usage: Arc::clone(&usage),
                access: Arc::clone(&access),
                relay: Arc::clone(&relay),
                publishing: rest.publishing(),
                sockets,
                tls: tls.clone(),
                streams,
            });
            Listener::start(socket, door, Arc::clone(&connections)).map(|it| (relay, it))
        };
        let relay = Relay::new(
            rest.socket(),
            limits.max_rest_requests,
            callers,
            Arc::clone(&usage),
        )
        .map(Arc::new);
        let watch = |(relay, listener): (_, Listener)| match Watchers::start(
            &config, &manager, &journal, &usage,
        ) {
            Ok(watchers) => Ok((relay, listener, watchers)),
            Err(error) => {
                listener.stop();
                Err(Error::system("start a thread")(error))
            }
        };
        match relay.and_then(open_door).and_then(watch) {
            Ok((relay, listener, watchers)) => Ok(Self {
                address,
                drain: *drain,
                drain_delay: *drain_delay,
                usage,
                listener,
                connections,
                manager,
                journal,
                access,
                rest,
                relay,
                watchers,
                tls,
            }),
            Err(error) => {
                rest.stop();
                end();
                Err(error)
            }
        }
    }

    /// The address it listens on, with the port that the system chose if it was to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many clients are connected to channels and feeds.
    pub fn active_connections(&self) -> usize {
        self.manager.active_connections()
    }

    /// What asks the server whether it still works, for a watchdog.
    pub fn probe(&self) -> Probe {
        Probe::new(Arc::clone(&self.journal), Arc::clone(&self.relay))
    }

    /// Reads anew what may change while it runs: the tokens file, which ends whoever may no
    /// longer be there with 1008, and the certificate and its key, for connections accepted from
    /// now on. `false` when it runs with nothing that could be read anew.
    ///
    /// # Errors
    /// [`Error::Config`], with the file and what would be right; that file counts as it was then.
    pub fn reload(&self) -> Result<bool> {
        let tokens = self.access.reload();
        if let Ok(Some(tokens)) = tokens {
            log::info!("{tokens} tokens read anew");
            self.manager.wake_all();
        }
        let certificate = self.tls.as_ref().map(|tls| tls.reload());
        if let Some(Ok(())) = certificate {
            log::info!("new connections have the certificate as it is now");
        }
        let tokens = tokens?;
        Ok(certificate.transpose()?.is_some() || tokens.is_some())
    }

    /// Stores a message and broadcasts it, as `POST /api/messages` does. Blocks until it is
    /// committed.
    ///
    /// # Errors
    /// [`Error::Store`]; nothing was stored or broadcast then.
    pub fn publish(&self, draft: Draft) -> Result<MessageId> {
        self.journal.submit_and_wait(draft)
    }

    /// Stores a feed's state and tells its subscribers if it differs from the last one, as
    /// `PUT /api/state/{feed}` does. Blocks until it is committed.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::TooManyFeeds`]; nothing has changed then.
    pub fn publish_state(&self, feed: &Feed, state: State) -> Result<Published> {
        self.journal.publish_and_wait(feed, state)
    }

    /// A feed's last state; the one it starts with if nobody has published to it.
    pub fn last_state(&self, feed: &Feed) -> StateFrame {
        self.manager.last_state(feed)
    }

    /// Calls a handler with every event of a type: [`ConnectionManager::subscribe`].
    ///
    /// # Errors
    /// When the process may not have another thread.
    pub fn subscribe<E: Display>(
        &self,
        kind: EventKind,
        handler: impl FnMut(&Event) -> Result<(), E> + Send + 'static,
    ) -> Result<Subscription> {
        self.manager
            .subscribe(kind, handler)
            .map_err(Error::system("start a thread"))
    }

    /// Ends a subscription: [`ConnectionManager::unsubscribe`].
    pub fn unsubscribe(&self, subscription: Subscription) -> bool {
        self.manager.unsubscribe(subscription)
    }

    /// Says `draining` to whoever asks `GET /api/health`, and goes on for [`Config::drain_delay`]. Then
    /// stops accepting, answers what was accepted, broadcasts what was committed, closes every
    /// client (a WebSocket with 1001) and the store. Blocks for that delay and then no longer than
    /// [`Config::drain`], give or take a commit.
    pub fn shutdown(mut self) {
        self.usage.traffic.draining.store(true, Ordering::SeqCst);
        if !self.drain_delay.is_zero() {
            log::info!("draining: going on for {:?}", self.drain_delay);
            thread::sleep(self.drain_delay);
        }
        let deadline = Instant::now() + self.drain;
        self.watchers.stop();
        self.listener.stop();
        self.connections.stop();
        self.manager.wake_waiting();
        // Requests in hand get half of the time, so that farewells have the rest.
        if !self
            .connections
            .wait_for_http(Instant::now() + self.drain / 2)
        {
            log::warn!("some requests did not end in time and are cut off");
            self.connections.sever_http();
        }
        if !self.watchers.wait(Instant::now() + self.drain / 4) {
            log::warn!("a watcher still waits for its source or the store");
        }
        self.journal.stop();
        self.manager
            .finish_all(CloseCode::GoingAway, "the server is shutting down");
        if !self.connections.wait_for_all(deadline) {
            log::warn!(
                "{} clients did not leave in time and are cut off",
                self.manager.active_connections()
            );
            self.manager.sever_all();
            self.connections.sever_http();
            self.connections
                .wait_for_all(Instant::now() + Duration::from_millis(500));
        }
        drop(self.relay);
        self.rest.stop();
        // Last of all: until then subscribers may be reading what they have missed.
        self.journal.close();
    }
}

/// Refuses what could not work.
fn check(config: &Config) -> Result<()> {
    let watches = &config.watches;
    for (at, watch) in watches.iter().enumerate() {
        if watches[..at].iter().any(|other| other.feed == watch.feed) {
            return Err(Error::Config(format!(
                "--watch names the feed {} twice; a feed has one source",
                watch.feed
            )));
        }
    }
    if let Some(bytes) = config.retention.max_db_bytes
        && bytes < MIN_DB_BYTES
    {
        return Err(Error::Config(format!(
            "--max-db-bytes is {bytes}; it must be {MIN_DB_BYTES} (1MiB) or more"
        )));
    }
    for (flag, time) in [
        ("--watch-interval", config.watch_interval),
        ("--watch-timeout", config.watch_timeout),
    ] {
        if time.is_zero() {
            return Err(Error::Config(format!("{flag} is 0; it must be longer")));
        }
    }
    Ok(())
}

/// A store that cannot be read at the start, by the name of its file.
fn unreadable(config: &Config, error: Error) -> Error {
    match &config.database {
        Database::File(path) => Error::Database {
            path: path.clone(),
            reason: error.to_string(),
        },
        Database::Memory => error,
    }
}
