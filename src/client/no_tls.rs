//! A build without TLS: there is no session, and no URL that asks for one.

use std::io;
use std::net::TcpStream;
use std::time::Instant;

use super::{Failure, Remote};

/// Nothing is one.
#[derive(Debug)]
pub(super) enum Session {}

impl Session {
    pub(super) fn begin(_: &mut TcpStream, _: &Remote, _: Instant) -> Result<Self, Failure> {
        Err(Failure::passing("this build has no TLS"))
    }

    pub(super) fn read(&mut self, _: &mut TcpStream, _: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }

    pub(super) fn write(&mut self, _: &mut TcpStream, _: &[u8]) -> io::Result<usize> {
        match *self {}
    }

    pub(super) fn flush(&mut self, _: &mut TcpStream) -> io::Result<()> {
        match *self {}
    }

    pub(super) fn finish(&mut self, _: &mut TcpStream) {
        match *self {}
    }
}
