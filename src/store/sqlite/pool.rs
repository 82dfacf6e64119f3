//! A fixed number of connections that readers borrow.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::error::{Error, Result};

/// Longest wait, when the pool is closed, for a read that is under way.
const CLOSING: Duration = Duration::from_secs(2);

/// All its connections are made at the start: reading goes on when the process has no
/// descriptor left.
pub(super) struct Pool {
    inner: Mutex<Inner>,
    /// A connection came back.
    returned: Condvar,
    size: usize,
}

#[derive(Default)]
struct Inner {
    idle: Vec<Connection>,
    closed: bool,
}

/// A borrowed connection, given back when this is dropped.
struct Lease<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.pool.lock().idle.extend(self.connection.take());
        self.pool.returned.notify_all();
    }
}

impl Pool {
    /// A pool of this size.
    ///
    /// # Errors
    /// When a connection cannot be made.
    pub(super) fn new(
        size: usize,
        connect: impl Fn() -> rusqlite::Result<Connection>,
    ) -> rusqlite::Result<Self> {
        let idle = (0..size).map(|_| connect()).collect::<Result<_, _>>()?;
        Ok(Self {
            inner: Mutex::new(Inner {
                idle,
                closed: false,
            }),
            returned: Condvar::new(),
            size,
        })
    }

    /// Reads with a connection. Blocks while all are in use.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let connection = {
            let mut inner = self.lock();
            loop {
                if inner.closed {
                    return Err(Error::Store("it is closed".to_owned()));
                }
                match inner.idle.pop() {
                    Some(connection) => break connection,
                    None => {
                        inner = self
                            .returned
                            .wait(inner)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
        };
        let lease = Lease {
            pool: self,
            connection: Some(connection),
        };
        let connection = lease.connection.as_ref().expect("it was just put there");
        Ok(work(connection)?)
    }

    /// Closes all connections, when those in use are back; refuses what comes after.
    pub(super) fn close(&self) {
        let deadline = Instant::now() + CLOSING;
        let mut inner = self.lock();
        inner.closed = true;
        self.returned.notify_all();
        while inner.idle.len() < self.size {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inner = self
                .returned
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        inner.idle.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
