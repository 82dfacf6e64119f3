//! Discrete events: nodes that append batches to one stream and read all of it.
//!
//! A node has one batch under way; what comes meanwhile is the next one. Redis does one thing
//! after the other: appends, and each node's reads, which take everything that is new to it.

use std::collections::VecDeque;

use crate::costs::Costs;
use crate::world::Random;

/// Messages in one append, as in the server.
const MOST: usize = 256;
/// The way to Redis or back, in microseconds, and a node's work between two appends.
const WAY: f64 = 60.0;

/// How it went, in microseconds where it is a time.
pub(crate) struct Outcome {
    /// Part of the time that Redis works.
    pub(crate) busy: f64,
    /// Messages in an append, on average.
    pub(crate) batch: f64,
    /// From a message's arrival at its node until another node has read it.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Whether it fell behind: more came than Redis could take.
    pub(crate) outrun: bool,
}

/// What a node wants of Redis.
#[derive(Clone, Copy)]
enum Wish {
    Append,
    Read,
}

struct Node {
    /// When messages came that are in no batch yet.
    waiting: VecDeque<f64>,
    next_arrival: f64,
    /// The batch under way, and when the node may send the next one.
    batch: Vec<f64>,
    append_at: f64,
    /// Entries that it has read, and when it asks again.
    seen: usize,
    read_at: f64,
}

/// Lets `messages` per second come to the nodes, for a time in microseconds.
pub(crate) fn run(costs: &Costs, nodes: usize, messages: f64, time: f64) -> Outcome {
    let rate = messages / nodes as f64 / 1e6;
    let mut random = Random(nodes as u64);
    let mut all: Vec<Node> = (0..nodes)
        .map(|_| Node {
            waiting: VecDeque::new(),
            next_arrival: random.gap(rate),
            batch: Vec::new(),
            append_at: 0.0,
            seen: 0,
            read_at: 0.0,
        })
        .collect();
    // Arrival times of what is in the stream, in its order.
    let mut stream: Vec<f64> = Vec::new();
    let (mut now, mut busy, mut appends) = (0.0, 0.0, 0);
    let mut delays = Vec::new();
    while now < time {
        let Some((at, node, wish)) = earliest(&all, stream.len()) else {
            break;
        };
        let start = f64::max(now, at);
        let node = &mut all[node];
        let took = match wish {
            Wish::Append => {
                arrive(node, start - WAY, rate, &mut random);
                let size = node.waiting.len().min(MOST);
                node.batch.extend(node.waiting.drain(..size));
                let took = costs.append + costs.append_message * size as f64;
                stream.append(&mut node.batch);
                node.append_at = start + took + 2.0 * WAY;
                appends += 1;
                took
            }
            Wish::Read => {
                let new = stream.len() - node.seen;
                let took = costs.read + costs.read_entry * new as f64;
                // One node stands for all: what it reads is on its way back then.
                delays.extend(
                    stream[node.seen..]
                        .iter()
                        .map(|came| start + took + WAY - came),
                );
                node.seen = stream.len();
                let applied = costs.apply_wall * new as f64;
                node.read_at = start + took + 2.0 * WAY + applied;
                took
            }
        };
        busy += took;
        now = start + took;
    }
    delays.sort_by(f64::total_cmp);
    let part = |part: f64| delays.get((delays.len() as f64 * part) as usize).copied();
    Outcome {
        busy: (busy / now).min(1.0),
        batch: stream.len() as f64 / f64::max(1.0, f64::from(appends)),
        p50: part(0.5).unwrap_or_default(),
        p99: part(0.99).unwrap_or_default(),
        outrun: (stream.len() as f64) < 0.95 * messages * now / 1e6,
    }
}

/// The first wish that Redis hears, with the time at which it does.
fn earliest(nodes: &[Node], entries: usize) -> Option<(f64, usize, Wish)> {
    let wishes = nodes.iter().enumerate().flat_map(|(number, node)| {
        let first = node.waiting.front().copied().unwrap_or(node.next_arrival);
        let append = Some((node.append_at.max(first + WAY), number, Wish::Append));
        let read = (node.seen < entries).then_some((node.read_at, number, Wish::Read));
        [append, read]
    });
    wishes.flatten().min_by(|a, b| a.0.total_cmp(&b.0))
}

/// Messages that have come to the node by now.
fn arrive(node: &mut Node, now: f64, rate: f64, random: &mut Random) {
    while node.next_arrival <= now {
        node.waiting.push_back(node.next_arrival);
        node.next_arrival += random.gap(rate);
    }
}
