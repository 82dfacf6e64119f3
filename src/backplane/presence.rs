//! Who is there, with how many subscribers: what every node tells every two seconds, and is
//! forgotten ten seconds after it was told last.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Backplane, Connection, Failure, eval};
use crate::error::{Error, Result};

const SCRIPT: &[u8] = include_bytes!("heartbeat.lua");

/// Time between two heartbeats.
pub(crate) const INTERVAL: Duration = Duration::from_secs(2);

/// Time after which a node that says nothing is not there any more.
pub(super) const EXPIRY: Duration = Duration::from_secs(10);

/// Longest time that Redis may take for either: whoever asks waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to what other nodes tell of themselves.
pub(crate) struct Presence {
    backplane: Backplane,
    /// Taken by heartbeats and by whoever asks, one at a time.
    connection: Mutex<Option<Connection>>,
}

/// The subscribers of other nodes.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// Nodes alive, beside this one.
    pub(crate) nodes: usize,
    /// By channel, all of them together.
    pub(crate) subscribers: BTreeMap<String, usize>,
}

impl Presence {
    pub(crate) fn new(backplane: Backplane) -> Self {
        Self {
            backplane,
            connection: Mutex::new(None),
        }
    }

    /// Tells of this node. Blocks for a second or two at most.
    ///
    /// # Errors
    /// In words, when Redis does not answer.
    pub(crate) fn tell(&self, subscribers: &BTreeMap<String, usize>) -> Result<(), String> {
        let told =
            serde_json::to_vec(subscribers).expect("numbers by name always have a JSON form");
        let node = self.backplane.node.as_bytes().to_vec();
        let (nodes, key) = (self.nodes(), self.key(&self.backplane.node));
        let arguments = [node, told, EXPIRY.as_secs().to_string().into_bytes()];
        self.with(|connection| eval(connection, SCRIPT, &[&nodes, &key], &arguments).map(drop))
    }

    /// Takes leave, as far as that goes.
    pub(crate) fn leave(&self) {
        let (nodes, key) = (self.nodes(), self.key(&self.backplane.node));
        let _ = self.with(|connection| {
            connection.run("ZREM", &[nodes.as_bytes(), self.backplane.node.as_bytes()])?;
            connection.run("DEL", &[key.as_bytes()]).map(drop)
        });
    }

    /// What the other nodes have told. Blocks for some seconds at most.
    ///
    /// # Errors
    /// [`Error::Backplane`] when Redis does not answer.
    pub(crate) fn others(&self) -> Result<Others> {
        let nodes = self.nodes();
        let found = self.with(|connection| {
            let names = connection.run("ZRANGE", &[nodes.as_bytes(), b"0", b"-1"])?;
            let names = names.into_list().unwrap_or_default();
            let others = names.iter().filter_map(|name| name.text());
            let keys: Vec<String> = others
                .filter(|name| *name != &*self.backplane.node)
                .map(|name| self.key(name))
                .collect();
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
            Ok(connection
                .run("MGET", &keys)?
                .into_list()
                .unwrap_or_default())
        });
        let found = found.map_err(|reason| {
            let address = self.backplane.address();
            Error::Backplane(format!("the backplane {address} is unavailable: {reason}"))
        })?;
        let mut others = Others::default();
        for told in found.into_iter().filter_map(super::Reply::into_bytes) {
            let counts: BTreeMap<String, usize> = serde_json::from_slice(&told).unwrap_or_default();
            others.nodes += 1;
            for (channel, number) in counts {
                *others.subscribers.entry(channel).or_default() += number;
            }
        }
        Ok(others)
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, String> {
        let mut place = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let outcome = match &mut *place {
            Some(connection) => work(connection),
            place => self
                .backplane
                .connect(PATIENCE)
                .and_then(|connection| work(place.insert(connection))),
        };
        outcome.map_err(|failure| {
            *place = None;
            failure.reason()
        })
    }

    fn nodes(&self) -> String {
        format!("{}nodes", self.backplane.keys.prefix)
    }

    fn key(&self, node: &str) -> String {
        format!("{}node:{node}", self.backplane.keys.prefix)
    }
}
