//! In place of [`Acceptor`] in a build without TLS: there is none.

use std::time::Instant;

use super::{Refused, Stream};
use crate::config::Tls;
use crate::error::{Error, Result};

/// Nothing makes one.
pub(crate) enum Acceptor {}

impl Acceptor {
    /// # Errors
    /// Always [`Error::Config`].
    pub(crate) fn new(_: &Tls) -> Result<Self> {
        Err(Error::Config(
            "this build has no TLS (--tls-cert, --tls-key); \
             build with `cargo build --release --features tls`"
                .to_owned(),
        ))
    }

    pub(crate) fn reload(&self) -> Result<()> {
        match *self {}
    }

    pub(crate) fn accept(&self, _: &Stream, _: Instant) -> Result<(), Refused> {
        match *self {}
    }
}
