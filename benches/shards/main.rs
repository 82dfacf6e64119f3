//! Beyond one stream, on paper: where a cluster's first bottleneck is at a million subscribers and a
//! hundred thousand messages a second, and what shards, Redis Cluster and nodes that follow only
//! what they need would move.
//!
//! `cargo bench --features redis --bench shards` measures what the parts cost here (two minutes) and
//! reckons with that; `-- --recorded` reckons with what was measured for the README; `-- --quick`
//! measures so shortly that it only shows that all works. Nothing of this is built: it is what to
//! know before.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "medians are for benches with several runs")]
mod common;
mod costs;
mod measure;
#[path = "../common/nodes.rs"]
mod nodes;
#[path = "../../src/backplane/portion.rs"]
mod portion;
mod queue;
#[path = "../../tests/common/resp.rs"]
#[allow(dead_code, unreachable_pub, reason = "written for tests")]
mod resp;
mod world;

use std::process::ExitCode;

use clap::Parser;
use threadcast::config::Limits;

use common::shown;
use costs::{Costs, RECORDED};
use portion::MOST;
use world::{Followed, Traffic, World};

const SUBSCRIBERS: f64 = 1e6;
const MESSAGES: f64 = 1e5;
const CHANNELS: usize = 100_000;
/// Subscribers that one node may have: a thread each, and a stock kernel ends at 16,000.
const PER_NODE: f64 = 15_000.0;
/// Cores of a node, bytes per second of its network and Redis' (10 Gbit/s).
const CORES: f64 = 8.0;
const NETWORK: f64 = 1.25e9;
/// Bytes of a message on its way to a subscriber.
const FRAME: f64 = 330.0;

#[derive(Parser)]
struct Args {
    /// Reckon with the recorded costs, without measuring
    #[arg(long)]
    recorded: bool,

    /// Measure for a moment only: a smoke test, no figures
    #[arg(long)]
    quick: bool,

    /// Passed by `cargo bench`
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() -> ExitCode {
    if !common::is_bench() {
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    let costs = match (args.recorded, nodes::has_redis()) {
        (true, _) => RECORDED,
        (false, false) => {
            println!("reckoned with recorded costs: there is no redis-server to measure\n");
            RECORDED
        }
        (false, true) => match measure::all(args.quick) {
            Ok(costs) => costs,
            Err(fault) => {
                println!("{fault}");
                return ExitCode::FAILURE;
            }
        },
    };
    print_costs(&costs);
    print_queue(&costs, args.quick);
    print_one_stream(&costs);
    print_shards(&costs);
    print_audience(&costs);
    ExitCode::SUCCESS
}

fn print_costs(costs: &Costs) {
    println!("What it costs, in µs of one core:\n");
    println!("| | measured | recorded |\n|---|---:|---:|");
    for ((name, measured), (_, recorded)) in costs.rows().into_iter().zip(RECORDED.rows()) {
        let [measured, recorded] = [measured, recorded].map(|cost| shown(Some(cost), 2));
        println!("| {name} | {measured} | {recorded} |");
    }
}

/// One stream under more and more messages and nodes, event by event.
fn print_queue(costs: &Costs, quick: bool) {
    let time = if quick { 2e4 } else { 1e7 };
    println!(
        "\nOne stream, simulated: Redis' time, and from one node's door until another has applied it, in ms:\n"
    );
    println!("| nodes | messages/s | Redis busy | in an append | p50 | p99 | |");
    println!("|---:|---:|---:|---:|---:|---:|---|");
    for nodes in [3, 10, 67] {
        for messages in [1e3, 1e4, 2e4, 2.6e4, 3e4, 1e5, 1.2e5, 1.4e5] {
            let run = queue::run(costs, nodes, messages, time);
            let fault = if run.outrun { "outrun" } else { "" };
            println!(
                "| {nodes} | {} | {:.0} % | {:.1} | {:.2} | {:.2} | {fault} |",
                shown(Some(messages), 0),
                100.0 * run.busy,
                run.batch,
                run.p50 / 1e3,
                run.p99 / 1e3
            );
        }
    }
}

/// What of its place each part uses; 1 is all of it.
struct Uses {
    parts: [(&'static str, f64); 5],
}

impl Uses {
    /// `masters` hold the stream's shards; a node applies this part of all messages.
    fn new(
        costs: &Costs,
        world: &World,
        nodes: f64,
        masters: f64,
        busiest: f64,
        part: f64,
    ) -> Self {
        let applied = world.messages * part;
        let reads = nodes * applied / masters;
        // Under load an append is as large as it may be, and a read as well.
        let appends = world.messages * busiest / Limits::default().max_batch as f64;
        let redis = appends * costs.append
            + world.messages * busiest * costs.append_message
            + reads * costs.read_entry
            + reads / MOST as f64 * costs.read;
        let deliveries = world.deliveries() / nodes;
        let node = applied * costs.apply
            + world.messages / nodes * costs.publish
            // Spread over so many channels, nearly each goes alone.
            + deliveries * costs.delivery_alone;
        Self {
            parts: [
                ("Redis' core", redis / 1e6),
                ("Redis' network", reads * costs.entry_bytes / NETWORK),
                ("a node's journal", applied * costs.apply_wall / 1e6),
                ("a node's cores", node / 1e6 / CORES),
                ("a node's network", deliveries * FRAME / NETWORK),
            ],
        }
    }

    fn row(&self) -> String {
        let shown: Vec<_> = self.parts.iter().map(|(_, use_)| percent(*use_)).collect();
        let (first, most) =
            self.parts.iter().copied().fold(
                ("", 0.0),
                |most, part| {
                    if part.1 > most.1 { part } else { most }
                },
            );
        let verdict = if most > 1.0 { first } else { "fits" };
        format!("{} | {verdict} |", shown.join(" | "))
    }

    fn heading(first: &str) {
        println!("\n{first}\n");
    }
}

fn percent(part: f64) -> String {
    format!("{} %", shown(Some(100.0 * part), 0))
}

const USES: &str = "Redis' core | Redis' network | a node's journal | a node's cores | a node's network | first bottleneck |";
const LINE: &str = "---:|---:|---:|---:|---:|---|";

fn print_one_stream(costs: &Costs) {
    Uses::heading("One stream, every node applies all of it (even traffic):");
    println!("| nodes | messages/s | {USES}\n|---:|---:|{LINE}");
    let least = (SUBSCRIBERS / PER_NODE).ceil();
    for nodes in [3.0, 10.0, least] {
        for messages in [1e3, 1e4, 3e4, MESSAGES] {
            let subscribers = SUBSCRIBERS.min(nodes * PER_NODE);
            let world = World::new(CHANNELS, subscribers, messages, Traffic::Even);
            let uses = Uses::new(costs, &world, nodes, 1.0, 1.0, 1.0);
            println!("| {nodes} | {} | {}", shown(Some(messages), 0), uses.row());
        }
    }
}

/// How subscribers come to nodes, and what these follow. The last needs a stream for each channel,
/// or a Redis that leaves out what a node does not want.
#[derive(Clone, Copy)]
enum Plan {
    Everything,
    Anywhere,
    ByShard,
    OnlyChannels,
}

const PLANS: [(&str, Plan); 4] = [
    ("all nodes follow all shards", Plan::Everything),
    (
        "shards with local subscribers, placed anywhere",
        Plan::Anywhere,
    ),
    ("the same, subscribers placed by shard", Plan::ByShard),
    (
        "only channels with local subscribers, placed by shard",
        Plan::OnlyChannels,
    ),
];

fn print_shards(costs: &Costs) {
    let nodes = (SUBSCRIBERS / PER_NODE).ceil() as usize;
    Uses::heading(&format!(
        "Shards by channel, one master each up to 64, {nodes} nodes, 100,000 messages/s, even traffic:"
    ));
    println!("| shards | nodes follow | of all messages | {USES}\n|---:|---|---:|{LINE}");
    let world = World::new(CHANNELS, SUBSCRIBERS, MESSAGES, Traffic::Even);
    for (name, plan) in PLANS {
        for shards in [1, 4, 16, 64, 1024] {
            let of = |followed: Followed, only: bool| {
                if only {
                    followed.by_channel
                } else {
                    followed.by_shard
                }
            };
            let part = match plan {
                Plan::Everything => 1.0,
                Plan::Anywhere => of(world.anywhere(nodes, shards, 1), false),
                Plan::ByShard => of(world.by_shard(nodes, shards), false),
                Plan::OnlyChannels => of(world.by_shard(nodes, shards), true),
            };
            let masters = shards.min(64);
            let busiest = world.busiest_shard(masters);
            let uses = Uses::new(costs, &world, nodes as f64, masters as f64, busiest, part);
            println!("| {shards} | {name} | {} | {}", percent(part), uses.row());
        }
    }
    let anywhere = world.anywhere(nodes, 64, 1);
    let placed = world.by_shard(nodes, 1024);
    println!(
        "\nA node with {} subscribers placed anywhere has {} channels, and of 64 shards {}; placed by \
         shard {} channels, and of 1,024 shards {}.",
        shown(Some(SUBSCRIBERS / nodes as f64), 0),
        shown(Some(anywhere.channels), 0),
        shown(Some(anywhere.shards), 0),
        shown(Some(placed.channels), 0),
        shown(Some(placed.shards), 0),
    );
}

/// What no shard helps against: popular channels that are busy, too.
fn print_audience(costs: &Costs) {
    Uses::heading("Deliveries, which no stream and no shard makes fewer:");
    println!(
        "| traffic | deliveries/s | cores, merged | cores, alone | network | nodes for that | largest channel: messages/s | subscribers | deliveries/s |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (name, traffic) in [
        ("even", Traffic::Even),
        ("like the audience", Traffic::LikeAudience),
    ] {
        let world = World::new(CHANNELS, SUBSCRIBERS, MESSAGES, traffic);
        let deliveries = world.deliveries();
        let (messages, audience) = world.largest();
        let cores = |cost: f64| deliveries * cost / 1e6;
        let network = deliveries * FRAME;
        let nodes = f64::max(network / NETWORK, cores(costs.delivery) / CORES);
        let figures = [
            deliveries,
            cores(costs.delivery),
            cores(costs.delivery_alone),
        ]
        .map(|figure| shown(Some(figure), 1));
        let largest = [messages, audience, messages * audience].map(|it| shown(Some(it), 0));
        println!(
            "| {name} | {} | {} Gbit/s | {} | {} |",
            figures.join(" | "),
            shown(Some(network * 8.0 / 1e9), 1),
            shown(Some(nodes.max(SUBSCRIBERS / PER_NODE).ceil()), 0),
            largest.join(" | ")
        );
    }
}
