//! HTTP/1.1 as it comes through the public door: heads and bodies read under limits and
//! deadlines, framing decided once and strictly, answers that name what was wrong.
//!
//! Nothing here knows a route. RFC 9110 gives the meaning, RFC 9112 the form.

mod body;
mod head;
mod incoming;
mod linger;
mod problem;
mod reply;
mod target;

pub use body::Framing;
pub use head::Head;
pub use incoming::{Incoming, Received};
pub use linger::linger;
pub use problem::{Problem, reason_phrase};
pub use reply::{Reply, SERVER};
pub use target::{percent_decode, query_pairs};
