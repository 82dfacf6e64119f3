//! A fixed number of connections that readers borrow.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rusqlite::Connection;

use crate::error::{Error, Result};

/// All its connections are made at the start: reading goes on when the process has no
/// descriptor left.
pub(super) struct Pool {
    inner: Mutex<Inner>,
    /// A connection came back.
    returned: Condvar,
}

#[derive(Default)]
struct Inner {
    idle: Vec<Connection>,
    /// How many there are, those in use included.
    open: usize,
    closed: bool,
}

/// A borrowed connection, given back when this is dropped.
struct Lease<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut inner = self.pool.lock();
        if inner.closed {
            inner.open -= 1;
            self.connection = None;
            self.pool.returned.notify_all();
        } else {
            inner.idle.extend(self.connection.take());
            self.pool.returned.notify_one();
        }
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
                open: size,
                closed: false,
            }),
            returned: Condvar::new(),
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

    /// Closes all connections, those in use when they come back; refuses what comes after.
    /// Blocks until that is done, up to the deadline.
    pub(super) fn close(&self, deadline: Instant) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.open -= inner.idle.len();
        inner.idle.clear();
        self.returned.notify_all();
        while inner.open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self
                .returned
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
