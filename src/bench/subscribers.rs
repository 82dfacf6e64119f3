//! The subscribers as the main thread handles them: begin, end, compare.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use super::latency::Window;
use super::plan::Plan;
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

/// The receiving threads.
#[derive(Debug)]
pub(super) struct Subscribers {
    pub(super) progress: Arc<Progress>,
    threads: Vec<JoinHandle<Result<Received, String>>>,
}

impl Subscribers {
    /// Takes over the open WebSockets; socket n is on channel n modulo the number of channels.
    pub(super) fn start(
        sockets: Vec<(TcpStream, Vec<u8>)>,
        plan: &Plan,
        window: Window,
        receivers: usize,
    ) -> Result<Self, String> {
        let mut shares: Vec<_> = (0..receivers).map(|_| Vec::new()).collect();
        for (index, (socket, tail)) in sockets.into_iter().enumerate() {
            shares[index % receivers].push((index % plan.channels.count, socket, tail));
        }
        let progress = Arc::new(Progress::default());
        let start = |share| -> std::io::Result<_> {
            let receiver = Receiver::new(share, plan, window, Arc::clone(&progress))?;
            let thread = std::thread::Builder::new().name("subscribers".to_owned());
            thread.spawn(|| receiver.run())
        };
        let threads: Result<_, _> = shares.into_iter().map(start).collect();
        let threads = threads.map_err(|error| format!("can't start receiving: {error}"))?;
        Ok(Self { progress, threads })
    }

    /// Closes all subscribers and returns what they received.
    pub(super) fn leave(self) -> Result<Received, String> {
        self.progress.leave.store(true, Ordering::Relaxed);
        let mut all = Received::default();
        for thread in self.threads {
            let received = thread
                .join()
                .map_err(|_| "a receiving thread panicked".to_owned())?;
            all.merge(received?);
        }
        Ok(all)
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
