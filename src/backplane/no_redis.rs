//! A build without Redis: there is no connection, and no URL that asks for one.

use std::time::Duration;

use super::{Failure, Reply};
use crate::config;

/// Nothing is one.
#[derive(Clone)]
pub(crate) enum Remote {}

/// Nothing is one.
pub(crate) enum Connection {}

impl Remote {
    /// # Errors
    /// Always.
    pub(crate) fn new(_: &config::Backplane) -> Result<Self, String> {
        Err("this build has no backplane (--backplane); \
             build with `cargo build --release --features redis`"
            .to_owned())
    }

    pub(crate) fn address(&self) -> String {
        match *self {}
    }

    pub(crate) fn database(&self) -> i64 {
        match *self {}
    }

    pub(crate) fn connect(&self, _: Duration) -> Result<Connection, Failure> {
        match *self {}
    }
}

impl Connection {
    pub(crate) fn set_patience(&mut self, _: Duration) -> Result<(), Failure> {
        match *self {}
    }

    pub(crate) fn run(&mut self, _: &str, _: &[&[u8]]) -> Result<Reply, Failure> {
        match *self {}
    }
}
