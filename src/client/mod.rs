//! The client's side of the wire: where the server is, HTTP answers, WebSockets, when to try again.
//!
//! Nothing here prints, reads standard input or knows of signals: that is the commands' part.

pub(crate) mod answer;
mod backoff;
mod connection;
mod put;
mod remote;
mod shown;
mod socket;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;
mod url;

use std::time::Duration;

pub(crate) use backoff::Backoff;
pub(crate) use put::put;
pub(crate) use remote::{Remote, Token};
pub(crate) use shown::shown;
pub(crate) use socket::{Heard, KeepAlive, Socket};
pub(crate) use url::{Url, percent_encode};

/// Longest wait for a connection, and for the answer to a handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the server did not do what was asked, or is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For the user: lower case, no full stop, no control characters.
    pub(crate) sentence: String,
    pub(crate) retry: Retry,
}

/// Whether trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// The server refused for good.
    Never,
    /// When the [`Backoff`] says.
    Soon,
    /// The server said when (`Retry-After`).
    After(Duration),
}

impl Failure {
    /// One that may be over at the next attempt.
    fn passing(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            retry: Retry::Soon,
        }
    }
}
