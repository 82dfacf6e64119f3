//! The subscribers as the main thread handles them: begin, end, compare.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use super::connect::Channels;
use super::latency::{Clock, Window};
use super::receiver::{Progress, Received, Receiver, Subscriber};
use super::tally::{Findings, Ids};

/// How the subscribers' ids differ from the publishers'.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Of the subscribers that stayed to the end.
    pub(super) findings: Findings,
    /// Subscribers whose connection the server ended, by close code.
    pub(super) closed: BTreeMap<u16, usize>,
    /// What those did not get.
    pub(super) undelivered: u64,
}

/// The receiving thread.
#[derive(Debug)]
pub(super) struct Subscribers {
    pub(super) progress: Arc<Progress>,
    thread: JoinHandle<Result<Received, String>>,
}

impl Subscribers {
    /// Takes over the open WebSockets; socket n is on channel n modulo the number of channels.
    pub(super) fn start(
        sockets: Vec<(TcpStream, Vec<u8>)>,
        channels: Channels,
        content_bytes: usize,
        clock: Clock,
        window: Window,
    ) -> Result<Self, String> {
        let progress = Arc::new(Progress::default());
        let receiver = Receiver::new(
            sockets,
            channels,
            content_bytes,
            clock,
            window,
            Arc::clone(&progress),
        )
        .map_err(|error| format!("epoll: {error}"))?;
        let thread = std::thread::Builder::new()
            .name("subscribers".to_owned())
            .spawn(|| receiver.run())
            .map_err(|error| format!("can't start a thread: {error}"))?;
        Ok(Self { progress, thread })
    }

    /// Closes all subscribers and returns what they received.
    pub(super) fn leave(self) -> Result<Received, String> {
        self.progress.leave.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| "the receiving thread panicked".to_owned())?
    }
}

impl Verdict {
    /// Compares what arrived with what each channel's publishers got acknowledged.
    pub(super) fn of(subscribers: Vec<Subscriber>, acknowledged: &[Ids]) -> Self {
        let mut verdict = Self::default();
        for subscriber in subscribers {
            let findings = subscriber.tally.compare(acknowledged[subscriber.channel]);
            match subscriber.closed {
                None => verdict.findings += findings,
                Some(code) => {
                    *verdict.closed.entry(code).or_default() += 1;
                    verdict.undelivered += findings.missing;
                    verdict.findings += Findings {
                        missing: 0,
                        ..findings
                    };
                }
            }
        }
        verdict
    }
}
