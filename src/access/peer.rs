//! Who is at the other end of a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;

use super::token::{Scope, Token, unauthorized};
use crate::http::Problem;
use crate::protocol::{Channel, Feed, Topic};

/// Who is at the other end: where from, and by which token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Peer {
    socket: SocketAddr,
    forwarded: Option<IpAddr>,
    /// No proxy says that it is in between, believed or not.
    is_direct: bool,
    standing: Standing,
}

#[derive(Debug, Clone)]
enum Standing {
    /// The server knows no tokens: everybody may do what is not for administrators.
    Open,
    /// It does, and this peer has shown none.
    Nobody,
    Known(Arc<Token>),
}

/// What a right is asked for.
#[derive(Debug, Clone, Copy)]
pub enum On<'a> {
    /// Whatever it covers.
    Anything,
    /// All channels.
    Everything,
    /// One channel.
    Channel(&'a Channel),
    /// One feed.
    Feed(&'a Feed),
}

impl<'a> From<&'a Topic> for On<'a> {
    fn from(topic: &'a Topic) -> Self {
        match topic {
            Topic::Channel(channel) => Self::Channel(channel),
            Topic::Feed(feed) => Self::Feed(feed),
        }
    }
}

/// A peer of a server without tokens, as embedding programs have them.
impl From<SocketAddr> for Peer {
    fn from(socket: SocketAddr) -> Self {
        Self {
            socket,
            forwarded: None,
            is_direct: true,
            standing: Standing::Open,
        }
    }
}

impl Peer {
    /// A peer behind a proxy, or not.
    pub(super) fn new(socket: SocketAddr, forwarded: Option<IpAddr>, is_direct: bool) -> Self {
        Self {
            forwarded,
            is_direct,
            ..Self::from(socket)
        }
    }

    pub(super) fn with_token(self, token: Option<Arc<Token>>) -> Self {
        Self {
            standing: token.map_or(Standing::Nobody, Standing::Known),
            ..self
        }
    }

    /// Its address: that of the connection, or what a trusted proxy says.
    pub fn ip(&self) -> IpAddr {
        self.forwarded.unwrap_or(self.socket.ip()).to_canonical()
    }

    /// Its address for listings: with the port, where that is its own.
    pub fn address(&self) -> String {
        match self.forwarded {
            Some(address) => address.to_string(),
            None => self.socket.to_string(),
        }
    }

    /// Whether it came over a proxy that was believed.
    pub fn is_forwarded(&self) -> bool {
        self.forwarded.is_some()
    }

    /// The name of its token.
    pub fn token(&self) -> Option<&str> {
        match &self.standing {
            Standing::Known(token) => Some(token.name()),
            Standing::Open | Standing::Nobody => None,
        }
    }

    /// Whether it may do this at this moment.
    ///
    /// # Errors
    /// 401 or 403, saying which check failed and nothing about what exists.
    pub fn may(&self, scope: Scope, on: On<'_>) -> Result<(), Problem> {
        match &self.standing {
            Standing::Known(token) => token.may(scope, on),
            Standing::Nobody => Err(missing()),
            Standing::Open if scope != Scope::Admin => Ok(()),
            Standing::Open if self.ip().is_loopback() && self.is_direct => Ok(()),
            Standing::Open => Err(Problem::new(
                403,
                "without tokens (--tokens) this is for clients of the same machine only",
            )),
        }
    }

    /// Whether it may be here at all, whatever it then wants.
    ///
    /// # Errors
    /// 401.
    pub fn is_known(&self) -> Result<(), Problem> {
        match &self.standing {
            Standing::Known(token) => token.is_valid(),
            Standing::Nobody => Err(missing()),
            Standing::Open => Ok(()),
        }
    }

    /// How long its token is still good, if it ends.
    pub fn expires_in(&self) -> Option<Duration> {
        let Standing::Known(token) = &self.standing else {
            return None;
        };
        let left = token.expires()? - OffsetDateTime::now_utc();
        Some(left.try_into().unwrap_or(Duration::ZERO))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.forwarded {
            Some(address) => write!(f, "{address} (by {})", self.socket),
            None => self.socket.fmt(f),
        }
    }
}

fn missing() -> Problem {
    unauthorized(
        "a token is needed: send `Authorization: Bearer …` (or as the password of Basic, as `?token=…`, or as the WebSocket subprotocol `bearer.…`)",
    )
}

/// The peers whose requests are with the REST thread, by the connection they went over: each
/// carries one at a time.
#[derive(Debug, Default)]
pub struct Callers(Vec<Mutex<Option<Peer>>>);

impl Callers {
    /// The header that tells the REST thread on which connection a request came. The relay
    /// writes it and lets none through.
    pub const HEADER: &str = "X-Threadcast-Caller";

    /// Places for so many connections.
    pub fn new(connections: usize) -> Self {
        Self((0..connections).map(|_| Mutex::default()).collect())
    }

    /// Notes whose request comes next on a connection.
    pub fn set(&self, connection: usize, peer: &Peer) {
        if let Some(place) = self.0.get(connection) {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer.clone());
        }
    }

    /// Whose request came on it.
    pub fn get(&self, connection: usize) -> Option<Peer> {
        let place = self.0.get(connection)?;
        place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
