//! What can go wrong, as far as a caller acts on it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the server could not start, or why the store did not do what was asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The configuration asks for what cannot work. Nothing was started; what was to be
    /// reloaded is as it was.
    Config(String),
    /// The public address can't be listened on: in use, not of this machine, or not allowed.
    /// Nothing was started.
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The database can't be used: missing directory, no database, a newer or a foreign
    /// one. The file is as it was.
    Database {
        /// The file that was asked for.
        path: PathBuf,
        /// What was found and what would be right.
        reason: String,
    },
    /// The machine refused something the server needs to run: a thread, a descriptor, a
    /// private socket. Nothing was started.
    System {
        /// What was being done.
        doing: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A state came for a feed that has none, and there may be no more feeds. Nothing was
    /// changed; publish to a feed that is there, or raise the limit.
    TooManyFeeds {
        /// [`Limits::max_feeds`](crate::Limits::max_feeds).
        limit: usize,
    },
    /// A request came with the `Idempotency-Key` of another one. Nothing was changed; repeat
    /// that one as it was, or take a new key.
    KeyReused,
    /// The log that several servers share cannot be used, or cannot be reached. At the start
    /// nothing was started; of what was published nothing was stored, unless the sentence says
    /// that this is not known.
    Backplane(String),
    /// The store refused a commit or a read: disk full, file locked or damaged. Of a commit
    /// nothing was stored; trying again later is right.
    Store(String),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::System { doing, source }
    }

    /// The same failure of the store, for one more of those that it concerns.
    pub(crate) fn as_store(&self) -> Self {
        match self {
            Self::Store(reason) => Self::Store(reason.clone()),
            Self::Backplane(reason) => Self::Backplane(reason.clone()),
            other => Self::Store(other.to_string()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(sentence) => f.write_str(sentence),
            Self::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "cannot listen on {address}: another program does; end it or choose another address with --listen"
                )
            }
            Self::Listen { address, .. } => write!(f, "cannot listen on {address}"),
            Self::Database { path, reason } => {
                write!(f, "cannot use the database {}: {reason}", path.display())
            }
            Self::System { doing, .. } => write!(f, "cannot {doing}"),
            Self::TooManyFeeds { limit } => write!(
                f,
                "{limit} feeds have a state, which is the limit (--max-feeds)"
            ),
            Self::KeyReused => f.write_str(
                "this `Idempotency-Key` was used for another request within 24 hours; repeat that as it was, or take a new key",
            ),
            Self::Backplane(sentence) => f.write_str(sentence),
            Self::Store(reason) => write!(f, "the store is unavailable: {reason}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => None,
            Self::Listen { source, .. } | Self::System { source, .. } => Some(source),
            Self::Config(_)
            | Self::Database { .. }
            | Self::TooManyFeeds { .. }
            | Self::KeyReused
            | Self::Backplane(_)
            | Self::Store(_) => None,
        }
    }
}
