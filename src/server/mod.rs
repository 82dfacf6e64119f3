//! The whole server: wired together, started, shut down.

mod connection;
mod connections;
mod listener;
mod relay;
mod rest;
mod socket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Config, Limits};
use crate::error::{Error, Result};
use crate::frame::CloseCode;
use crate::journal::Journal;
use crate::manager::{ConnectionManager, OutboxLimits};
use crate::store;
use connection::Door;
use connections::Connections;
use listener::Listener;
use relay::Relay;
use rest::Rest;
use socket::Sockets;

pub use rest::{ROUTES, Route};

/// Descriptors that are not connections: the database, the listener, the relay's two ends.
const OWN_DESCRIPTORS: u64 = 64;

/// Descriptors of one WebSocket: its socket and its wake handle.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;

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
    listener: Listener,
    connections: Arc<Connections>,
    manager: Arc<ConnectionManager>,
    journal: Arc<Journal>,
    rest: Rest,
}

impl Server {
    /// Opens the store, binds the port and starts every thread. Clients are served when this
    /// returns.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Listen`] or [`Error::System`]; nothing runs then.
    pub fn start(config: Config) -> Result<Self> {
        let Config {
            listen,
            database: _,
            sync: _,
            drain,
            limits,
        } = &config;
        // First of all, so that a second server on this port leaves the database alone.
        let socket = listener::bind(*listen)?;
        let address = socket
            .local_addr()
            .map_err(Error::system("read the listener's address"))?;
        let (writer, reader) = store::open(&config)?;
        let head = reader.head()?;
        let outbox = OutboxLimits {
            chunks: limits.max_outbox_chunks,
            bytes: limits.max_outbox_bytes,
            replies: limits.max_in_flight,
        };
        let manager = Arc::new(ConnectionManager::new(outbox));
        let journal = Journal::start(writer, head, Arc::clone(&manager), limits)
            .map_err(Error::system("start a thread"))?;
        let journal = Arc::new(journal);
        let rest = Rest::start(Arc::clone(&journal), Arc::clone(&manager), reader, limits)?;
        let connections = Connections::new(max_connections(limits));
        let open_door = |relay| {
            let sockets = Sockets {
                manager: Arc::clone(&manager),
                journal: Arc::clone(&journal),
                limits: limits.clone(),
            };
            let door = Arc::new(Door {
                limits: limits.clone(),
                relay,
                sockets,
            });
            Listener::start(socket, door, Arc::clone(&connections))
        };
        let relay = Relay::new(rest.socket(), limits.max_rest_requests);
        match relay.and_then(open_door) {
            Ok(listener) => Ok(Self {
                address,
                drain: *drain,
                listener,
                connections,
                manager,
                journal,
                rest,
            }),
            Err(error) => {
                rest.stop();
                journal.stop();
                Err(error)
            }
        }
    }

    /// The address it listens on, with the port that the system chose if it was to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The subscribers.
    pub fn manager(&self) -> &ConnectionManager {
        &self.manager
    }

    /// Stops accepting, answers what was accepted, broadcasts what was committed, closes every
    /// client with 1001 and the store. Blocks for no longer than [`Config::drain`], give or
    /// take a commit.
    pub fn shutdown(self) {
        let deadline = Instant::now() + self.drain;
        self.listener.stop();
        self.connections.stop();
        // Requests in hand get half of the time, so that farewells have the rest.
        if !self
            .connections
            .wait_for_http(Instant::now() + self.drain / 2)
        {
            log::warn!("some requests did not end in time and are cut off");
            self.connections.sever_http();
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
        self.rest.stop();
    }
}

/// What the configuration asks for, or what the machine's descriptors allow.
fn max_connections(limits: &Limits) -> usize {
    let descriptors = raise_descriptor_limit();
    let own = OWN_DESCRIPTORS + 4 * limits.max_rest_requests as u64;
    let allowed = usize::try_from(descriptors.saturating_sub(own) / DESCRIPTORS_PER_CONNECTION)
        .unwrap_or(usize::MAX)
        .max(1);
    if allowed < limits.max_connections {
        log::info!(
            "{allowed} connections at most, not {}: the process may have {descriptors} descriptors (see ulimit -n)",
            limits.max_connections
        );
    }
    allowed.min(limits.max_connections)
}

/// Asks for as many descriptors as the process may have, and returns how many that are.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = if setrlimit(Resource::Nofile, raised).is_ok() {
        limit.maximum
    } else {
        limit.current
    };
    current.unwrap_or(u64::MAX)
}
