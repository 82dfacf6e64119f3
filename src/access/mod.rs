//! Who may do what: origins, tokens, rates.
//!
//! The door asks [`Access::admit`] once for every request, before its body is read; what comes
//! out, a [`Peer`], goes with the request or the session and is asked for every single right.
//! Secrets end here: they are in no type that is passed on, and no log line has one.

mod credential;
mod file;
mod origin;
mod peer;
mod proxy;
mod rate;
mod stay;
mod token;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::http::{Head, Problem};
use file::TokenFile;
use origin::Origins;
use rate::Buckets;
use token::unauthorized;

pub use origin::AllowedOrigin;
pub use peer::{Callers, On, Peer};
pub use proxy::Network;
pub use stay::Stay;
pub use token::{Line, Scope, Token};

/// The subprotocol that a WebSocket client offers beside its token, and gets.
pub const SUBPROTOCOL: &str = "threadcast";

/// Wrong tokens that an address may try at once, and then one a second.
const FAILURES: u32 = 10;

/// Longest time that the answer to a wrong token waits.
const LONGEST_PENANCE: Duration = Duration::from_secs(10);

/// Messages and states a second that one token or address may publish, unless the server
/// listens on loopback.
const DEFAULT_RATE: u32 = 10;

/// Everything that decides who may do what.
#[derive(Debug)]
pub struct Access {
    origins: Origins,
    tokens: Option<TokenFile>,
    proxies: Vec<Network>,
    publishing: Option<Buckets<Publisher>>,
    failures: Buckets<IpAddr>,
    /// Grows when the tokens were read anew.
    generation: AtomicU64,
}

/// Who shares a bucket.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Publisher {
    Token(String),
    Address(IpAddr),
}

/// Why a request is not let in, and how long its answer is to wait.
#[derive(Debug)]
pub struct Refusal {
    /// What is answered.
    pub problem: Problem,
    /// Not zero when the address has tried many wrong tokens.
    pub wait: Duration,
}

impl From<Problem> for Box<Refusal> {
    fn from(problem: Problem) -> Self {
        Self::new(Refusal {
            problem,
            wait: Duration::ZERO,
        })
    }
}

/// A publisher was faster than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFast {
    /// Until when it has to wait, rounded up.
    pub retry_after_seconds: u32,
}

impl fmt::Display for TooFast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "you publish faster than you may (--publish-rate, --publish-burst); try again in {} s",
            self.retry_after_seconds
        )
    }
}

impl From<TooFast> for Problem {
    fn from(too_fast: TooFast) -> Self {
        Self::new(429, too_fast.to_string())
            .with_header("Retry-After", too_fast.retry_after_seconds.to_string())
    }
}

impl Access {
    /// What the configuration says, with the tokens of its file.
    ///
    /// # Errors
    /// [`Error::Config`] when everybody on a network would be let in without being asked to, or
    /// the tokens file is not as it should be.
    pub fn new(config: &Config) -> Result<Self> {
        let listen = config.listen.ip().to_canonical();
        if !listen.is_loopback() && config.tokens.is_none() && !config.insecure {
            return Err(Error::Config(format!(
                "--listen {} would let everybody on the network read and publish. Give --tokens FILE (`threadcast token new` makes what is in it), or listen on 127.0.0.1, or say --insecure if this is meant",
                config.listen
            )));
        }
        let tokens = config.tokens.as_deref().map(TokenFile::open);
        let rate = config.publish_rate.unwrap_or(if listen.is_loopback() {
            0
        } else {
            DEFAULT_RATE
        });
        let access = Self {
            origins: Origins::new(config.listen, &config.allow_origins),
            tokens: tokens.transpose().map_err(Error::Config)?,
            proxies: config.trusted_proxies.clone(),
            publishing: (rate > 0).then(|| Buckets::new(rate, config.publish_burst)),
            failures: Buckets::new(1, FAILURES),
            generation: AtomicU64::new(0),
        };
        access.warn(config);
        Ok(access)
    }

    /// Says at every start what the configuration leaves open.
    fn warn(&self, config: &Config) {
        let is_far = !config.listen.ip().to_canonical().is_loopback();
        if is_far && self.tokens.is_none() {
            log::warn!(
                "--insecure: everybody who reaches {} may read and publish",
                config.listen
            );
        }
        if config.allow_origins.contains(&AllowedOrigin::Any) {
            log::warn!(
                "--allow-origin *: every web page that a user of this machine's network opens may use this server"
            );
        }
    }

    /// Whether requests need a token, for all but what is for everybody.
    pub fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Messages and states a second that one publisher may publish; 0 for any number.
    pub fn publish_rate(&self) -> usize {
        self.publishing.as_ref().map_or(0, Buckets::per_second)
    }

    /// Reads the tokens file anew; how many tokens it has, if there is one. Requests see at once
    /// what became of their token, sessions when they are woken ([`Stay`]).
    ///
    /// # Errors
    /// [`Error::Config`], with the tokens as they were.
    pub fn reload(&self) -> Result<Option<usize>> {
        let Some(tokens) = &self.tokens else {
            return Ok(None);
        };
        let number = tokens.reload().map_err(Error::Config)?;
        self.generation.fetch_add(1, Ordering::SeqCst);
        Ok(Some(number))
    }

    /// Whose request this is, if it may come in. Takes the token out of the head.
    ///
    /// # Errors
    /// 401 for a token that is not known, 403 for the page of a foreign origin.
    pub fn admit(&self, head: &mut Head, socket: SocketAddr) -> Result<Peer, Box<Refusal>> {
        // First of all, so that no answer and no log line can quote it.
        let credential = credential::take(head);
        self.origins.check(head)?;
        let forwarded = proxy::forwarded(head, socket, &self.proxies);
        let peer = Peer::new(socket, forwarded, !proxy::is_between(head));
        let Some(tokens) = &self.tokens else {
            return Ok(peer);
        };
        let Some(secret) = credential? else {
            return Ok(peer.with_token(None));
        };
        match tokens.find(&secret) {
            Some(token) => Ok(peer.with_token(Some(token))),
            None => Err(self.penance(&peer)),
        }
    }

    /// What somebody with a wrong token gets. Waiting keeps a connection: as many as fit the
    /// longest wait may do so for one address, the others hear at once to come back later.
    fn penance(&self, peer: &Peer) -> Box<Refusal> {
        let address = network_of(peer.ip());
        match self.failures.owe(address, LONGEST_PENANCE) {
            Some(wait) => Box::new(Refusal {
                problem: unauthorized("this token is not known here"),
                wait,
            }),
            None => {
                let seconds = LONGEST_PENANCE.as_secs().to_string();
                let detail = "too many wrong tokens came from this address";
                Problem::new(429, detail)
                    .with_header("Retry-After", seconds)
                    .into()
            }
        }
    }

    /// Whether this peer may publish so many messages or states now.
    ///
    /// # Errors
    /// When its bucket has not so many left; none was taken.
    pub fn publish(&self, peer: &Peer, number: usize) -> Result<(), TooFast> {
        let Some(buckets) = &self.publishing else {
            return Ok(());
        };
        let publisher = match peer.token() {
            Some(name) => Publisher::Token(name.to_owned()),
            None => Publisher::Address(network_of(peer.ip())),
        };
        buckets.take(publisher, number).map_err(|wait| TooFast {
            retry_after_seconds: u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX),
        })
    }
}

/// What counts as one address: a host has a whole /64 of IPv6 addresses (RFC 4291, section
/// 2.5.4).
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}
