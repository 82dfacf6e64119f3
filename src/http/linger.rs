//! The end of a connection that the server closes first.

use std::io::{self, Read};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::stream::Stream;

/// Closes the sending side, then lets the peer read the last word: closing a socket with
/// unread bytes would reset the connection and could take that word with it (RFC 9112,
/// section 9.6). What the peer still sends is dropped. Blocks until the peer closes too, at
/// most for `limit`.
#[inline(never)]
pub fn linger(mut stream: &Stream, limit: Duration) {
    let deadline = Instant::now() + limit;
    if stream.set_nonblocking(false).is_err() || stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut dropped = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match stream.read(&mut dropped) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
        }
    }
}
