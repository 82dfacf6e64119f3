//! The figures of the README for several nodes on one Redis: three nodes beside one, and beside a
//! server that has none; and how much later a message is where it is to be.
//!
//! `cargo bench --features redis --bench backplane` takes four minutes; with `-- --quick` it only
//! shows that all works. Needs a redis-server (7.0 was measured), which it starts itself.
//!
//! Everything shares the machine: three nodes have no more processors than one. What a cluster
//! costs is in the CPU time of a message, and what more machines would give follows from that.

mod common;
#[path = "common/nodes.rs"]
mod nodes;

use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use tungstenite::{HandshakeError, Message, WebSocket};

use common::{median, middle, shown};
use nodes::Process;

/// The load generators, each with channels of its own, on whatever number of nodes there is.
const GENERATORS: usize = 3;

#[derive(Parser)]
struct Args {
    /// Runs of each; the tables show their medians
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Measured seconds of each run
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// One short run of everything: a smoke test, no figures
    #[arg(long)]
    quick: bool,

    /// Passed by `cargo bench`
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// Nodes without and with Redis.
#[derive(Clone, Copy, PartialEq)]
enum Setup {
    Alone,
    /// Redis' disk has all that is older than a second.
    Nodes(usize),
    /// Redis' disk has what is answered.
    Synced(usize),
}

const SETUPS: [(&str, Setup); 5] = [
    ("one server without Redis", Setup::Alone),
    ("one node", Setup::Nodes(1)),
    ("three nodes", Setup::Nodes(3)),
    ("one node, `appendfsync always`", Setup::Synced(1)),
    ("three nodes, `appendfsync always`", Setup::Synced(3)),
];

/// So many of them are in every table, all in the first.
const IN_EVERY_TABLE: usize = 3;

const LOADS: [(&str, &str); 2] = [
    (
        "no subscriber, 24 HTTP publishers",
        "--subscribers 0 --publishers 8",
    ),
    (
        "3 × 100 subscribers, 12 HTTP publishers",
        "--subscribers 100 --publishers 4 --max-behind 1000",
    ),
];

fn main() -> ExitCode {
    if !common::is_bench() {
        return ExitCode::SUCCESS;
    }
    let mut args = Args::parse();
    if !nodes::has_redis() {
        println!(
            "nothing measured: there is no redis-server (on Debian: apt install redis-server)"
        );
        return ExitCode::SUCCESS;
    }
    if args.quick {
        (args.runs, args.seconds) = (1, 0.5);
    }
    match throughput(&args).and_then(|()| latency(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            println!("{fault}");
            ExitCode::FAILURE
        }
    }
}

/// The servers of a setup, in the order in which they are to end.
struct Servers {
    nodes: Vec<Process>,
    redis: Option<Process>,
}

impl Servers {
    fn start(setup: Setup, dir: &Path) -> Result<Self, String> {
        let database = |number: usize| dir.join(format!("{number}.db"));
        let (number, fsync) = match setup {
            Setup::Alone => {
                return Ok(Self {
                    nodes: vec![Process::server(&database(0), &[])?],
                    redis: None,
                });
            }
            Setup::Nodes(number) => (number, "everysec"),
            Setup::Synced(number) => (number, "always"),
        };
        let redis = Process::redis(dir, &["--appendonly", "yes", "--appendfsync", fsync])?;
        let nodes = (0..number)
            .map(|number| Process::node(&database(number), &redis, &[]))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            nodes,
            redis: Some(redis),
        })
    }

    fn cpu(&self) -> [f64; 2] {
        let nodes = self.nodes.iter().map(Process::cpu).sum();
        [nodes, self.redis.as_ref().map_or(0.0, Process::cpu)]
    }
}

fn directory() -> Result<tempfile::TempDir, String> {
    tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))
}

/// Publishers as fast as answers come.
fn throughput(args: &Args) -> Result<(), String> {
    println!(
        "| | messages/s | deliveries/s | answer p50 ms | p99 ms | nodes' CPU µs per message | Redis' |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let mut setups = &SETUPS[..];
    for (load, flags) in LOADS {
        let mut figures = vec![Vec::new(); setups.len()];
        // Interleaved, so that a change of the machine's mood falls on all of them.
        for run in 0..args.runs {
            for ((name, setup), figures) in setups.iter().zip(&mut figures) {
                eprintln!("run {}: {load}: {name}", run + 1);
                figures.push(loaded(*setup, flags, args)?);
            }
        }
        for ((name, _), figures) in setups.iter().zip(figures) {
            let row: Vec<_> = [0, 0, 2, 2, 0, 0]
                .into_iter()
                .enumerate()
                .map(|(column, decimals)| {
                    let of_column = figures.iter().map(|row: &[f64; 6]| row[column]);
                    shown(middle(of_column.collect()), decimals)
                })
                .collect();
            println!("| {name}; {load} | {} |", row.join(" | "));
        }
        setups = &SETUPS[..IN_EVERY_TABLE];
    }
    println!();
    Ok(())
}

/// One run; fails when a check of the generators failed.
fn loaded(setup: Setup, flags: &str, args: &Args) -> Result<[f64; 6], String> {
    let dir = directory()?;
    let servers = Servers::start(setup, dir.path())?;
    let before = servers.cpu();
    let seconds = args.seconds.to_string();
    let reports: Vec<Value> = thread::scope(|scope| {
        let generate = |number: usize| {
            let node = &servers.nodes[number % servers.nodes.len()];
            let url = format!("http://{}", node.address);
            let mut all = vec!["--seconds".to_owned(), seconds.clone()];
            all.extend([
                "--warmup-seconds".to_owned(),
                "0.5".to_owned(),
                "--url".to_owned(),
                url,
            ]);
            all.extend(flags.split(' ').map(str::to_owned));
            scope.spawn(move || common::report(Path::new(common::PROGRAM), &all))
        };
        let all: Vec<_> = (0..GENERATORS).map(generate).collect();
        all.into_iter()
            .map(|one| one.join().map_err(|_| "a generator's thread panicked")?)
            .collect::<Result<_, String>>()
    })?;
    if let Some(fault) = reports.iter().find_map(|report| report["fault"].as_str()) {
        return Err(fault.to_owned());
    }
    let head = servers.nodes[0].head()?;
    for node in &servers.nodes {
        node.await_head(head)?;
    }
    let after = servers.cpu();
    let sum = |place: &str| -> f64 {
        let figure = |report: &Value| report.pointer(place)?.as_f64();
        reports.iter().filter_map(figure).sum()
    };
    let median = |place: &str| median(&reports, place).unwrap_or_default();
    let cost = |of: usize| (after[of] - before[of]) * 1e6 / head as f64;
    Ok([
        sum("/messages_per_second"),
        sum("/deliveries_per_second"),
        median("/publish_ms/p50"),
        median("/publish_ms/p99"),
        cost(0),
        cost(1),
    ])
}

/// Twenty messages a second, and one subscriber on each node.
fn latency(args: &Args) -> Result<(), String> {
    println!(
        "| 20 messages/s | answer p50 ms | p99 ms | arrival, same node p50 ms | p99 ms | arrival, other node p50 ms | p99 ms |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let setups = &SETUPS[..IN_EVERY_TABLE];
    let mut samples: Vec<Samples> = setups.iter().map(|_| Samples::default()).collect();
    for run in 0..args.runs {
        for ((name, setup), samples) in setups.iter().zip(&mut samples) {
            eprintln!("run {}: 20 messages/s: {name}", run + 1);
            let dir = directory()?;
            let servers = Servers::start(*setup, dir.path())?;
            let messages = (args.seconds * 20.0) as usize;
            sample(&servers.nodes, messages, samples)?;
        }
    }
    for ((name, _), mut samples) in setups.iter().zip(samples) {
        let row: Vec<_> = [&mut samples.answer, &mut samples.same, &mut samples.other]
            .into_iter()
            .flat_map(|times| {
                times.sort_by(f64::total_cmp);
                [0.5, 0.99].map(|part| {
                    let at = (times.len() as f64 * part) as usize;
                    shown(times.get(at).copied(), 2)
                })
            })
            .collect();
        println!("| {name} | {} |", row.join(" | "));
    }
    println!();
    Ok(())
}

/// From the call, in milliseconds.
#[derive(Default)]
struct Samples {
    answer: Vec<f64>,
    same: Vec<f64>,
    other: Vec<f64>,
}

fn sample(nodes: &[Process], messages: usize, samples: &mut Samples) -> Result<(), String> {
    let mut http = std::net::TcpStream::connect(nodes[0].address)
        .map_err(|error| format!("can't connect: {error}"))?;
    http.set_nodelay(true).map_err(|error| error.to_string())?;
    let (sender, arrivals) = mpsc::channel();
    for (number, node) in nodes.iter().enumerate() {
        let (mut ws, sender) = (subscribe(node)?, sender.clone());
        // Ends with its node.
        thread::spawn(move || {
            while let Ok(Message::Text(_)) = ws.read() {
                if sender.send((number, Instant::now())).is_err() {
                    return;
                }
            }
        });
    }
    let start = Instant::now();
    for turn in 0..messages {
        let due = start + Duration::from_millis(50) * turn as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let call = Instant::now();
        post(&mut http)?;
        let milliseconds = |time: Instant| (time - call).as_secs_f64() * 1e3;
        samples.answer.push(milliseconds(Instant::now()));
        for _ in nodes {
            let arrival = arrivals.recv_timeout(Duration::from_secs(20));
            let (node, time) = arrival.map_err(|_| "a message did not arrive")?;
            if node == 0 {
                samples.same.push(milliseconds(time));
            } else {
                samples.other.push(milliseconds(time));
            }
        }
    }
    Ok(())
}

fn subscribe(node: &Process) -> Result<WebSocket<std::net::TcpStream>, String> {
    let stream = std::net::TcpStream::connect(node.address)
        .map_err(|error| format!("can't connect: {error}"))?;
    let url = format!("ws://{}/api/ws/lab", node.address);
    match tungstenite::client(url, stream) {
        Ok((ws, _)) => Ok(ws),
        Err(HandshakeError::Failure(error)) => Err(format!("no handshake: {error}")),
        Err(HandshakeError::Interrupted(_)) => Err("no handshake".to_owned()),
    }
}

fn post(http: &mut std::net::TcpStream) -> Result<(), String> {
    use std::io::{Read, Write};
    let body = json!({"channel_id": "lab", "author": "bench", "content": "x".repeat(200)});
    let body = body.to_string();
    let request = format!(
        "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let failed = |error: std::io::Error| format!("no answer: {error}");
    http.write_all(request.as_bytes()).map_err(failed)?;
    // Less than a segment: it comes in one read, or in a second one that ends it.
    let (mut answer, mut bytes) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"}") {
        match http.read(&mut bytes).map_err(failed)? {
            0 => return Err("no answer: the connection ended".to_owned()),
            read => answer.extend_from_slice(&bytes[..read]),
        }
    }
    let is_ok = answer.starts_with(b"HTTP/1.1 200 ");
    is_ok
        .then_some(())
        .ok_or_else(|| String::from_utf8_lossy(&answer).into_owned())
}
