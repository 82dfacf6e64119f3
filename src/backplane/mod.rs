//! The log that several nodes share: one stream on Redis or Valkey.
//!
//! A *node* is a server. To publish, it *appends* a batch: one script, one round trip, in which
//! Redis gives the ids, in the order of the stream. To hear of it, every node *follows* the
//! stream, and what it reads goes to its own store. An entry's id in the stream is its place in
//! the order: `41-0` is message 41, `41-2` the second state after it. So no counter is kept
//! beside the stream, and each entry names the one before it: whoever misses one notices.
//!
//! | key | what it has |
//! |---|---|
//! | `threadcast` | the stream |
//! | `{threadcast}:log` | which log it is: `NODE/DATABASE/KEY`, by which node it was begun and where; its version; in which run of Redis it was last gone on with |
//! | `{threadcast}:feeds` | each feed's revision and state, for nodes that come when the stream has them no more |
//! | `{threadcast}:batch:NODE` | what this node's last batch came to, for a repetition; an hour |
//! | `{threadcast}:once:KEY` | what an `Idempotency-Key` came to; 24 hours |
//! | `{threadcast}:nodes`, `{threadcast}:node:NODE` | who is there, with how many subscribers |
//!
//! This room does no more than speak to Redis; [`journal`](crate::journal) has the threads.

#![cfg_attr(
    not(feature = "redis"),
    expect(
        dead_code,
        unreachable_code,
        unused_variables,
        reason = "no build without Redis makes a connection, but each knows what one would do"
    )
)]

mod append;
mod backoff;
mod entry;
mod feeds;
mod follower;
mod identity;
mod join;
mod link;
mod portion;
mod presence;
#[cfg_attr(not(feature = "redis"), path = "no_redis.rs")]
mod redis;
mod server;
mod setup;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use data_encoding::HEXLOWER;

use crate::config;
use crate::error::{Error, Result};
use crate::protocol::LogMark;

pub(crate) use append::{Appended, Appender, Asked, Outcome};
pub(crate) use backoff::Backoff;
pub(crate) use entry::{Content, Entry};
pub(crate) use follower::{Follower, Read};
pub(crate) use join::{Own, Refusal};
pub(crate) use link::{Link, Status};
pub(crate) use presence::{INTERVAL, Presence};
use redis::{Connection, Remote};

/// Longest time that connecting takes, and any answer that is not waited for on purpose.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Where the log is, and as which node this server goes there.
#[derive(Clone)]
pub(crate) struct Backplane {
    remote: Remote,
    keys: Arc<Keys>,
    /// This run of this server.
    node: Arc<str>,
    keep: u64,
    /// It was said that Redis may evict keys.
    has_warned: Arc<AtomicBool>,
    /// See [`config::Backplane::timeout`].
    pub(crate) timeout: Duration,
}

/// The names of the keys.
struct Keys {
    stream: String,
    log: String,
    feeds: String,
    /// `{threadcast}:`
    prefix: String,
}

impl Backplane {
    /// Reads what is asked for. Nothing is connected yet.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub(crate) fn new(config: &config::Backplane) -> Result<Self> {
        let remote = Remote::new(config).map_err(Error::Config)?;
        if config.key.is_empty() || config.key.contains(['{', '}']) {
            return Err(Error::Config(
                "--backplane-key must be a name without braces".to_owned(),
            ));
        }
        if config.timeout.is_zero() || config.keep == 0 {
            return Err(Error::Config(
                "--backplane-timeout and --backplane-keep must be more than 0".to_owned(),
            ));
        }
        let prefix = format!("{{{}}}:", config.key);
        Ok(Self {
            remote,
            keys: Arc::new(Keys {
                // Braces are a Redis Cluster's: the key without them is in the same slot.
                stream: config.key.clone(),
                log: format!("{prefix}log"),
                feeds: format!("{prefix}feeds"),
                prefix,
            }),
            node: random().into(),
            keep: config.keep,
            has_warned: Arc::default(),
            timeout: config.timeout,
        })
    }

    /// Marks that this node is about to begin a log.
    pub(crate) fn intend(&self, mark: &mut LogMark) {
        mark.intend(&self.identity_by(&self.node));
    }

    /// Where the log is, without a password.
    pub(crate) fn address(&self) -> String {
        self.remote.address()
    }

    fn connect(&self, patience: Duration) -> Result<Connection, Failure> {
        self.remote.connect(patience)
    }
}

fn eval(
    connection: &mut Connection,
    script: &[u8],
    keys: &[&String],
    arguments: &[Vec<u8>],
) -> Result<Reply, Failure> {
    let count = keys.len().to_string();
    let mut all: Vec<&[u8]> = vec![script, count.as_bytes()];
    all.extend(keys.iter().map(|key| key.as_bytes()));
    all.extend(arguments.iter().map(Vec::as_slice));
    connection.run("EVAL", &all)
}

/// Nothing has to be secret here, but no two may be the same.
fn random() -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    HEXLOWER.encode(&bytes)
}

/// What a command came to when it did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The connection did not come, broke, or was too slow: whether the command was done is
    /// not known.
    Lost(String),
    /// The password is wrong or missing.
    Password,
    /// It cannot be used as it is configured: nothing was done.
    Unusable(String),
    /// One of the two does not accept the other's certificate: nothing was done.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "only TLS has them"))]
    Distrust(String),
    /// Redis has refused it and done nothing.
    Refused {
        /// The error's first word, as `WRONGTYPE`.
        code: String,
        /// All of it.
        reason: String,
    },
}

impl Failure {
    /// From all of an error of Redis, without where in which script it came up.
    fn refused(error: &str) -> Self {
        let mut reason = error;
        // Since Redis 7 that is behind it: `… script: 08be…, on @user_script:1.`
        if let Some((before, behind)) = error.rsplit_once(" script: ")
            && behind.contains(", on @user_script")
        {
            reason = before;
        } else if error.starts_with("ERR Error running script")
            && let Some((_, behind)) = error.rsplit_once("@user_script:")
            && let Some((_, within)) = behind.split_once(": ")
        {
            // Before: `ERR Error running script (call to f_08be…): @user_script:1: …`
            reason = within.trim_start_matches('-');
        }
        Self::Refused {
            code: reason.split(' ').next().unwrap_or_default().to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }

    /// A script has failed at one of its commands, which may come after one that has written. What
    /// forbids all writing Redis says before that.
    fn is_of_a_script(&self) -> bool {
        let Self::Refused { code, reason } = self else {
            return false;
        };
        match code.as_str() {
            "NOPERM" => ["the script", "in script"]
                .iter()
                .any(|words| reason.contains(words)),
            "OOM" | "READONLY" | "MISCONF" | "NOREPLICAS" | "LOADING" | "MASTERDOWN" | "BUSY"
            | "NOAUTH" | "CLUSTERDOWN" | "MOVED" | "ASK" | "TRYAGAIN" | "NOSCRIPT" => false,
            _ => true,
        }
    }

    /// In words.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Lost(reason)
            | Self::Unusable(reason)
            | Self::Distrust(reason)
            | Self::Refused { reason, .. } => reason.clone(),
            Self::Password => "the password is wrong or missing".to_owned(),
        }
    }
}

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Null, or what nobody asks for.
    Nothing,
    /// An integer.
    Number(i64),
    /// A string of either kind.
    Bytes(Vec<u8>),
    /// An array.
    List(Vec<Reply>),
}

impl Reply {
    fn into_list(self) -> Option<Vec<Self>> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Bytes of all strings in it.
    fn size(&self) -> usize {
        match self {
            Self::List(list) => list.iter().map(Self::size).sum(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Nothing | Self::Number(_) => 0,
        }
    }
}

/// Microseconds since 1970 from Redis' TIME.
fn micros(time: &Reply) -> Option<u64> {
    let Reply::List(parts) = time else {
        return None;
    };
    let part = |at: usize| parts.get(at)?.text()?.parse::<u64>().ok();
    Some(part(0)? * 1_000_000 + part(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_within_a_script_is_told_as_one_without() {
        let hash = "08be99c76f7a10d96dc9ea23ee73a858e02d5ce8";
        let readonly = "READONLY You can't write against a read only replica.";
        let may_not = "ERR The user executing the script can't run this command or subcommand";
        for (error, reason) in [
            (readonly.to_owned(), readonly),
            (
                format!("{readonly} script: {hash}, on @user_script:12."),
                readonly,
            ),
            (
                format!("{may_not} script: {hash}, on @user_script:12."),
                may_not,
            ),
            (
                format!("ERR Error running script (call to f_{hash}): @user_script:9: {readonly}"),
                readonly,
            ),
            (
                format!(
                    "ERR Error running script (call to f_{hash}): \
                     @user_script:9: @user_script: 9: -{readonly}"
                ),
                readonly,
            ),
            (
                "ERR no such script: ours".to_owned(),
                "ERR no such script: ours",
            ),
        ] {
            let code = reason.split(' ').next().unwrap_or_default();
            assert_eq!(
                Failure::refused(&error),
                Failure::Refused {
                    code: code.to_owned(),
                    reason: reason.to_owned()
                }
            );
        }
    }
}
