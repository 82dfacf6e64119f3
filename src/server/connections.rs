//! Every accepted connection, from accept to end: the limit, and what a shutdown waits for.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The open connections. Bounded by its limit.
#[derive(Debug)]
pub(super) struct Connections {
    inner: Mutex<Inner>,
    fewer: Condvar,
    stopping: AtomicBool,
    limit: usize,
}

#[derive(Debug, Default)]
struct Inner {
    open: usize,
    last_id: u64,
    /// Those that speak HTTP and no other protocol yet.
    http: HashMap<u64, Arc<Ticket>>,
}

/// One connection's place.
#[derive(Debug)]
struct Ticket {
    stream: Arc<TcpStream>,
    /// A request was read and is not answered yet.
    busy: AtomicBool,
}

impl Connections {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            fewer: Condvar::new(),
            stopping: AtomicBool::new(false),
            limit,
        })
    }

    /// Takes a place for a connection; `None` at the limit.
    pub(super) fn admit(self: &Arc<Self>, stream: &Arc<TcpStream>) -> Option<Admitted> {
        let mut inner = self.lock();
        if inner.open >= self.limit {
            return None;
        }
        inner.open += 1;
        inner.last_id += 1;
        let id = inner.last_id;
        let ticket = Arc::new(Ticket {
            stream: Arc::clone(stream),
            busy: AtomicBool::new(false),
        });
        inner.http.insert(id, Arc::clone(&ticket));
        Some(Admitted {
            connections: Arc::clone(self),
            id,
            ticket,
        })
    }

    /// The most connections that may be open.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Ends idle HTTP connections now and busy ones after their answer.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for ticket in self
            .lock()
            .http
            .values()
            .filter(|ticket| !ticket.busy.load(Ordering::SeqCst))
        {
            // Ends the wait for a request; one that has arrived is still read.
            let _ = ticket.stream.shutdown(Shutdown::Read);
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

    /// The answer is written; `false` when the server is shutting down.
    pub(super) fn end_request(&self) -> bool {
        self.ticket.busy.store(false, Ordering::SeqCst);
        !self.is_stopping()
    }

    /// Whether the server is shutting down.
    pub(super) fn is_stopping(&self) -> bool {
        self.connections.stopping.load(Ordering::SeqCst)
    }

    /// It speaks another protocol from now on, whose own shutdown ends it.
    pub(super) fn leave_http(&self) {
        self.connections.lock().http.remove(&self.id);
        self.connections.fewer.notify_all();
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut inner = self.connections.lock();
        inner.http.remove(&self.id);
        inner.open -= 1;
        drop(inner);
        self.connections.fewer.notify_all();
    }
}
