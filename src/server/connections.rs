//! Every accepted connection, from accept to end: the limits, and what a shutdown waits for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Shutdown};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::answers::Answers;
use crate::access::{Network, Peer, network_of};
use crate::config::Limits;
use crate::http::Problem;
use crate::stream::Stream;
use crate::usage::Usage;

/// What a refused client should wait before it comes again, in seconds.
const RETRY_AFTER: u32 = 1;

/// The open connections. Bounded by its limits.
#[derive(Debug)]
pub(super) struct Connections {
    inner: Mutex<Inner>,
    fewer: Condvar,
    stopping: AtomicBool,
    max: usize,
    max_per_address: usize,
    /// They speak for many, who are counted when they stay.
    proxies: Vec<Network>,
    usage: Arc<Usage>,
}

#[derive(Debug, Default)]
struct Inner {
    open: usize,
    last_id: u64,
    /// Connections by address; an address goes with its last one.
    by_address: HashMap<IpAddr, usize>,
    /// Those that speak HTTP and no other protocol yet.
    http: HashMap<u64, Arc<Ticket>>,
}

/// One connection's place.
#[derive(Debug)]
struct Ticket {
    stream: Arc<Stream>,
    /// A request was read, and its thread does not know yet that it is answered.
    busy: AtomicBool,
    /// Once it has published something.
    answers: OnceLock<Arc<Answers>>,
}

impl Ticket {
    fn answers(&self) -> &Arc<Answers> {
        let make = || Answers::new(Arc::clone(&self.stream));
        self.answers.get_or_init(make)
    }
}

impl Connections {
    pub(super) fn new(limits: &Limits, proxies: &[Network], usage: Arc<Usage>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            fewer: Condvar::new(),
            stopping: AtomicBool::new(false),
            max: limits.max_connections.max(1),
            max_per_address: limits.max_connections_per_address.max(1),
            proxies: proxies.to_vec(),
            usage,
        })
    }

    /// Takes a place for a connection from this address.
    ///
    /// # Errors
    /// 429 when its address has as many as one may have, 503 when that many are open in all.
    pub(super) fn admit(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        peer: IpAddr,
    ) -> Result<Admitted, Problem> {
        let counted = self.count(peer)?;
        let mut inner = self.lock();
        if inner.open >= self.max {
            drop(inner);
            return Err(self.no_place(&format!(
                "{} connections are open, which is the limit",
                self.max
            )));
        }
        inner.open += 1;
        self.usage.connections.store(inner.open, Ordering::Relaxed);
        inner.last_id += 1;
        let id = inner.last_id;
        let ticket = Arc::new(Ticket {
            stream: Arc::clone(stream),
            busy: AtomicBool::new(false),
            answers: OnceLock::new(),
        });
        inner.http.insert(id, Arc::clone(&ticket));
        self.show_http(&inner);
        Ok(Admitted {
            connections: Arc::clone(self),
            id,
            ticket,
            _counted: counted,
        })
    }

    /// Counts a connection under its address, until what is returned is dropped; `None` for
    /// addresses that are exempt.
    ///
    /// # Errors
    /// 429 when its address has as many as one may have.
    fn count(self: &Arc<Self>, address: IpAddr) -> Result<Option<Counted>, Problem> {
        if self.proxies.iter().any(|network| network.contains(address)) {
            return Ok(None);
        }
        let Some(address) = counted_as(address) else {
            return Ok(None);
        };
        let mut inner = self.lock();
        let open = inner.by_address.get(&address).copied().unwrap_or(0);
        if open >= self.max_per_address {
            drop(inner);
            return Err(self.too_many_of_one_address());
        }
        inner.by_address.insert(address, open + 1);
        Ok(Some(Counted {
            connections: Arc::clone(self),
            address,
        }))
    }

    /// 503 for a connection that cannot be served now; counted.
    pub(super) fn no_place(&self, why: &str) -> Problem {
        self.usage.refused.connections.add();
        Problem::unavailable(why, RETRY_AFTER)
    }

    fn too_many_of_one_address(&self) -> Problem {
        self.usage.refused.per_address.add();
        let detail = format!(
            "{} connections from your address are open, which is the limit (--max-connections-per-address)",
            self.max_per_address
        );
        Problem::new(429, detail).with_header("Retry-After", RETRY_AFTER.to_string())
    }

    /// Ends idle HTTP connections now and busy ones after their answer.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for ticket in self.lock().http.values() {
            if !ticket.busy.load(Ordering::SeqCst) {
                // Ends the wait for a request; one that has arrived is still read.
                let _ = ticket.stream.shutdown(Shutdown::Read);
            } else {
                // It may be answered already, or about to wait for that.
                ticket.answers().wake();
            }
        }
    }

    /// Waits until no connection speaks HTTP; `false` at the deadline.
    pub(super) fn wait_for_http(&self, deadline: Instant) -> bool {
        self.wait(deadline, |inner| inner.http.is_empty())
    }

    /// Waits until there is no connection; `false` at the deadline.
    pub(super) fn wait_for_all(&self, deadline: Instant) -> bool {
        self.wait(deadline, |inner| inner.open == 0)
    }

    /// Cuts off every connection that still speaks HTTP.
    pub(super) fn sever_http(&self) {
        for ticket in self.lock().http.values() {
            let _ = ticket.stream.shutdown(Shutdown::Both);
        }
    }

    fn wait(&self, deadline: Instant, done: impl Fn(&Inner) -> bool) -> bool {
        let mut inner = self.lock();
        while !done(&inner) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = self
                .fewer
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    fn show_http(&self, inner: &Inner) {
        let http = &self.usage.traffic.http_connections;
        http.store(inner.http.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place, given back when this is dropped: the one place where it ends.
#[derive(Debug)]
pub(super) struct Admitted {
    connections: Arc<Connections>,
    id: u64,
    ticket: Arc<Ticket>,
    _counted: Option<Counted>,
}

/// One connection of an address, until this is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    connections: Arc<Connections>,
    address: IpAddr,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut inner = self.connections.lock();
        if let Entry::Occupied(mut entry) = inner.by_address.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

impl Admitted {
    /// Its number, for the thread's name.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// A whole request head has arrived: a shutdown waits for its answer.
    pub(super) fn begin_request(&self) {
        self.ticket.busy.store(true, Ordering::SeqCst);
    }

    /// Where answers to what it publishes go.
    pub(super) fn answers(&self) -> &Arc<Answers> {
        self.ticket.answers()
    }

    /// The answer is written; `false` when the server is shutting down.
    pub(super) fn end_request(&self) -> bool {
        self.ticket.busy.store(false, Ordering::SeqCst);
        !self.is_stopping()
    }

    /// Whether the server is shutting down.
    pub(super) fn is_stopping(&self) -> bool {
        self.connections.stopping.load(Ordering::SeqCst)
    }

    /// Counts a session that a proxy brought under the address of its client.
    ///
    /// # Errors
    /// 429 when that address has as many as one may have.
    pub(super) fn count(&self, client: &Peer) -> Result<Option<Counted>, Problem> {
        if client.is_forwarded() {
            self.connections.count(client.ip())
        } else {
            Ok(None)
        }
    }

    /// It speaks another protocol from now on, whose own shutdown ends it.
    pub(super) fn leave_http(&self) {
        let mut inner = self.connections.lock();
        inner.http.remove(&self.id);
        self.connections.show_http(&inner);
        drop(inner);
        self.connections.fewer.notify_all();
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut inner = self.connections.lock();
        inner.http.remove(&self.id);
        self.connections.show_http(&inner);
        inner.open -= 1;
        let open = &self.connections.usage.connections;
        open.store(inner.open, Ordering::Relaxed);
        drop(inner);
        self.connections.fewer.notify_all();
    }
}

/// Whose connections are counted together; `None` for this machine itself, where a proxy or a
/// load generator may speak for many.
fn counted_as(peer: IpAddr) -> Option<IpAddr> {
    let network = network_of(peer);
    (!peer.to_canonical().is_loopback()).then_some(network)
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
