//! Discrete events: nodes that append batches to one stream and read all of it.
//!
//! A node has one batch under way; what comes meanwhile is the next one. Redis does one thing
//! after the other: appends, and each node's reads, as large as the server's own rule has them. A
//! node reads on while its journal applies what was read before, until that is too far behind.

use std::collections::VecDeque;

use threadcast::config::Limits;

use crate::costs::Costs;
use crate::portion::Portion;
use crate::world::Random;

/// Reads that wait for the journal, as in src/journal/shared/mod.rs.
const HANDED_OVER: usize = 2;
/// The way to Redis or back, in microseconds, and a node's work between two appends.
const WAY: f64 = 60.0;

/// How it went, in microseconds where it is a time.
pub(crate) struct Outcome {
    /// Part of the time that Redis works.
    pub(crate) busy: f64,
    /// Messages in an append, on average.
    pub(crate) batch: f64,
    /// From a message's arrival at its node until a node has applied it.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Whether it fell behind: more came than Redis or a journal could take.
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
    /// Entries that it has read, how many it asks for, and when.
    seen: usize,
    portion: Portion,
    read_at: f64,
    journal: Journal,
}

/// The thread that applies what was read, one read after the other.
#[derive(Default)]
struct Journal {
    /// When it began with each of the last reads, and when it is done with all of them.
    began: VecDeque<f64>,
    done_at: f64,
}

impl Journal {
    /// Takes over what was read by now; when the follower was rid of it.
    fn take(&mut self, now: f64, work: f64) -> f64 {
        // There is room as soon as it began with the one before those that may wait.
        let room = match self.began.len() {
            HANDED_OVER.. => self.began.pop_front(),
            _ => None,
        };
        let handed_over = now.max(room.unwrap_or_default());
        let begin = handed_over.max(self.done_at);
        self.began.push_back(begin);
        self.done_at = begin + work;
        handed_over
    }
}

/// Lets `messages` per second come to the nodes, for a time in microseconds.
pub(crate) fn run(costs: &Costs, nodes: usize, messages: f64, time: f64) -> Outcome {
    let max_batch = Limits::default().max_batch;
    let rate = messages / nodes as f64 / 1e6;
    let mut random = Random(nodes as u64);
    let mut all: Vec<Node> = (0..nodes)
        .map(|_| Node {
            waiting: VecDeque::new(),
            next_arrival: random.gap(rate),
            batch: Vec::new(),
            append_at: 0.0,
            seen: 0,
            portion: Portion::default(),
            read_at: 0.0,
            journal: Journal::default(),
        })
        .collect();
    // Arrival times of what is in the stream, in its order.
    let mut stream: Vec<f64> = Vec::new();
    let (mut now, mut busy, mut appends) = (0.0, 0.0, 0);
    let mut delays = Vec::new();
    while now < time {
        let Some((at, number, wish)) = earliest(&all, stream.len()) else {
            break;
        };
        let start = f64::max(now, at);
        let node = &mut all[number];
        let took = match wish {
            Wish::Append => {
                arrive(node, start - WAY, rate, &mut random);
                let size = node.waiting.len().min(max_batch);
                node.batch.extend(node.waiting.drain(..size));
                let took = costs.append + costs.append_message * size as f64;
                stream.append(&mut node.batch);
                node.append_at = start + took + 2.0 * WAY;
                appends += 1;
                took
            }
            Wish::Read => {
                let found = (stream.len() - node.seen).min(node.portion.0);
                let took = costs.read + costs.read_entry * found as f64;
                let entries = &stream[node.seen..node.seen + found];
                node.seen += found;
                let bytes = costs.entry_bytes * found as f64;
                node.portion = Portion::after(found, bytes as usize);
                // What of an entry is not the journal's is the follower's, before it asks again.
                let follow = f64::max(costs.apply - costs.apply_wall, 0.0) * found as f64;
                let apply = costs.commit + costs.apply_wall * found as f64;
                let read = start + took + WAY + follow;
                node.read_at = node.journal.take(read, apply) + WAY;
                // The first node stands for all.
                if number == 0 {
                    let done_at = node.journal.done_at;
                    delays.extend(entries.iter().map(|came| done_at - came));
                }
                took
            }
        };
        busy += took;
        now = start + took;
    }
    let late = all.iter().map(|node| {
        let first = node.waiting.front().unwrap_or(&node.next_arrival);
        let next = stream.get(node.seen).unwrap_or(first);
        now - first.min(*next)
    });
    // Who keeps up is nowhere near a hundredth of the whole time behind at its end.
    let outrun = late.fold(0.0, f64::max) > time / 100.0;
    delays.sort_by(f64::total_cmp);
    let part = |part: f64| delays.get((delays.len() as f64 * part) as usize).copied();
    Outcome {
        busy: (busy / now).min(1.0),
        batch: stream.len() as f64 / f64::max(1.0, f64::from(appends)),
        p50: part(0.5).unwrap_or_default(),
        p99: part(0.99).unwrap_or_default(),
        outrun,
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
