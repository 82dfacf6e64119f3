//! The subscribers as the main thread handles them: begin, end, compare.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use super::connect::{self, Open};
use super::latency::Window;
use super::plan::{Load, Plan};
use super::publishers::Published;
use super::received::{Progress, Received};
use super::receiver::Receiver;
use super::scanner::{self, Kind, shortened};
use super::state_reader::StateReader;
use super::subscriber::{Seat, Subscriber};
use super::tally::Findings;

/// How the subscribers' ids differ from the publishers'.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Of the subscribers that stayed to the end.
    pub(super) findings: Findings,
    /// Those of them that something acknowledged never reached.
    pub(super) incomplete: usize,
    /// What arrived in order, at all subscribers.
    pub(super) arrived: u64,
    /// Subscribers whose connection the server ended, by close code.
    pub(super) closed: BTreeMap<u16, usize>,
    /// What those did not get.
    pub(super) undelivered: u64,
}

/// Reads the first frame of every subscriber of a feed, its state so far, and returns its rev.
pub(super) fn take_snapshots(sockets: &mut [Open], plan: &Plan) -> Result<u64, String> {
    let reader = StateReader::new(&plan.channels.name(0), plan.content_bytes);
    let mut revs = BTreeSet::new();
    for (socket, tail) in sockets {
        revs.insert(take_snapshot(socket, tail, &reader)?);
    }
    match (revs.pop_first(), revs.pop_first()) {
        (rev, None) => Ok(rev.unwrap_or_default()),
        (_, Some(_)) => Err("somebody else publishes to the feed".to_owned()),
    }
}

fn take_snapshot(
    socket: &mut TcpStream,
    tail: &mut Vec<u8>,
    reader: &StateReader,
) -> Result<u64, String> {
    let mut chunk = [0; 4096];
    loop {
        if let Some((frame, rest)) = scanner::split(tail)? {
            if frame.kind != Kind::Text {
                return Err(format!("no snapshot: {}", shortened(frame.payload)));
            }
            let rev = reader.snapshot(frame.payload)?;
            *tail = rest.to_vec();
            return Ok(rev);
        }
        match connect::read(socket, &mut chunk) {
            Ok(0) => return Err("the server closed a connection before the snapshot".to_owned()),
            Ok(read) => tail.extend_from_slice(&chunk[..read]),
            Err(error) => return Err(format!("no snapshot: {error}")),
        }
    }
}

/// The receiving threads.
#[derive(Debug)]
pub(super) struct Subscribers {
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<Result<Received, String>>>,
}

impl Subscribers {
    /// Takes over the open WebSockets; socket n is on channel n modulo the number of channels.
    /// Subscribers without one connect now, and ask for what they have missed.
    pub(super) fn start(
        sockets: Vec<Open>,
        plan: &Plan,
        window: Window,
        receivers: usize,
        progress: Arc<Progress>,
    ) -> Result<Self, String> {
        let mut shares: Vec<_> = (0..receivers).map(|_| Vec::new()).collect();
        let mut sockets = sockets.into_iter();
        for index in 0..plan.subscribers {
            shares[index % receivers].push(Seat {
                channel: index % plan.channels.count,
                socket: sockets.next(),
                is_stalled: index < plan.stalled,
            });
        }
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
    /// Compares what arrived with what each channel's publishers got acknowledged, or with
    /// the feed's last rev.
    pub(super) fn of(subscribers: Vec<Subscriber>, plan: &Plan, published: &Published) -> Self {
        let mut verdict = Self::default();
        for subscriber in subscribers {
            let tally = subscriber.tally;
            verdict.arrived += tally.arrived();
            let findings = match plan.load {
                Load::Messages => tally.compare(published.acknowledged[subscriber.channel]),
                Load::States | Load::EqualStates => {
                    tally.compare_states(plan.base + 1, published.last_id)
                }
            };
            match subscriber.closed {
                None => {
                    verdict.incomplete += usize::from(findings.missing > 0);
                    verdict.findings += findings;
                }
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
