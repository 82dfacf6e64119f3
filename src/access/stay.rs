//! A session's right to be there, looked at again whenever it may have ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Access, On, Peer, Scope};
use crate::http::Problem;

/// Longest time between two looks at a clock that may be set.
const LONGEST: Duration = Duration::from_secs(3600);

/// For how long a subscriber may stay: until its token expires, or the tokens are read anew
/// without it.
#[derive(Debug)]
pub struct Stay {
    access: Arc<Access>,
    seen: u64,
    until: Option<Instant>,
}

impl Stay {
    /// The stay of a peer who may come in.
    pub fn new(access: Arc<Access>, peer: &Peer) -> Self {
        let seen = access.generation.load(Ordering::SeqCst);
        Self {
            access,
            seen,
            until: until(peer),
        }
    }

    /// Whether it may stay. Costs one look at a number when nothing has happened.
    ///
    /// # Errors
    /// 401 or 403, with the check that fails now.
    pub fn check(&mut self, peer: &Peer, on: On<'_>) -> Result<(), Problem> {
        let generation = self.access.generation.load(Ordering::SeqCst);
        let is_over = self.until.is_some_and(|until| until <= Instant::now());
        if generation == self.seen && !is_over {
            return Ok(());
        }
        self.seen = generation;
        peer.may(Scope::Subscribe, on)?;
        self.until = until(peer);
        Ok(())
    }

    /// When [`Self::check`] has to be asked again, if it has.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }
}

fn until(peer: &Peer) -> Option<Instant> {
    Some(Instant::now() + peer.expires_in()?.min(LONGEST))
}
