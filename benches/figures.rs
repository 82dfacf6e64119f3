//! The figures of the README: every scenario several times, interleaved, and the medians in two
//! tables, one for messages and one for feeds.
//!
//! `cargo bench --bench figures` takes five minutes; with `-- --quick` it only shows that all works.
//!
//! Where publishers go as fast as answers come they wait for the subscribers, who share the
//! machine and would else be outrun: an answer means stored, not delivered.

mod common;

use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;

use common::{median, shown};

/// A name and the flags of `threadcast bench` for it.
type Scenario = (&'static str, &'static str);
/// A column: heading, where the figure is in the report, decimals.
type Column = (&'static str, &'static str, usize);

const MESSAGES: [Scenario; 8] = [
    (
        "1,000 subscribers, 1 HTTP publisher",
        "--publishers 1 --max-behind 1000",
    ),
    (
        "1,000 subscribers, 8 HTTP publishers",
        "--publishers 8 --max-behind 1000",
    ),
    (
        "1,000 subscribers, 1 WebSocket publisher, 16 in flight",
        "--via ws --in-flight 16 --max-behind 1000",
    ),
    ("1,000 subscribers, 20 messages/s", "--rate 20"),
    (
        "no subscriber, 1 HTTP publisher",
        "--subscribers 0 --publishers 1",
    ),
    (
        "no subscriber, 8 HTTP publishers",
        "--subscribers 0 --publishers 8",
    ),
    (
        "the same, one commit per message",
        "--subscribers 0 --publishers 8 -- --max-batch 1",
    ),
    ("1,000 idle subscribers", IDLE),
];
const IDLE: &str = "--idle-seconds 5";

const FEEDS: [Scenario; 4] = [
    (
        "100 KiB state, 100 changes/s, 500 subscribers",
        "--feed --subscribers 500 --content-bytes 102400 --rate 100",
    ),
    (
        "equal PUTs, 8 publishers",
        "--feed --equal --subscribers 500 --publishers 8",
    ),
    (
        "equal PUTs, 8 publishers, 10,000/s",
        "--feed --equal --subscribers 500 --publishers 8 --rate 10000",
    ),
    (
        "equal PUTs of 100 KiB, 8 publishers",
        "--feed --equal --subscribers 500 --publishers 8 --content-bytes 102400",
    ),
];

const MESSAGE_COLUMNS: [Column; 9] = [
    ("deliveries/s", "/deliveries_per_second", 0),
    ("messages/s", "/messages_per_second", 0),
    ("arrival p50 ms", "/delivery_ms/p50", 2),
    ("p99 ms", "/delivery_ms/p99", 2),
    ("answer p50 ms", "/publish_ms/p50", 2),
    ("p99 ms", "/publish_ms/p99", 2),
    (
        "CPU s per million",
        "/server/cpu_seconds_per_million_deliveries",
        2,
    ),
    ("resident KiB", "/server/resident_kib", 0),
    ("KiB per subscriber", "/server/kib_per_subscriber", 1),
];

const FEED_COLUMNS: [Column; 12] = [
    ("PUTs/s", "/puts_per_second", 0),
    ("deliveries/s", "/deliveries_per_second", 0),
    ("MB/s", "/megabytes_per_second", 0),
    ("skipped share", "/skipped_share", 3),
    ("arrival p50 ms", "/delivery_ms/p50", 2),
    ("p99 ms", "/delivery_ms/p99", 2),
    ("answer p50 ms", "/publish_ms/p50", 2),
    ("p99 ms", "/publish_ms/p99", 2),
    (
        "CPU s per million",
        "/server/cpu_seconds_per_million_deliveries",
        1,
    ),
    ("CPU s per s", "/server/cpu_seconds_per_second", 2),
    ("CPU µs per PUT", "/server_cpu_microseconds_per_put", 1),
    ("resident KiB", "/server/resident_kib", 0),
];

#[derive(Parser)]
struct Args {
    /// Runs of each scenario; the table shows their medians
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Measured seconds of each run
    #[arg(long, default_value = "5")]
    seconds: String,

    /// One short run of everything: a smoke test, no figures
    #[arg(long)]
    quick: bool,

    /// Only scenarios whose name contains this text
    filter: Option<String>,

    /// Passed by `cargo bench`
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() -> ExitCode {
    if !common::is_bench() {
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    let filter = args.filter.as_deref().unwrap_or_default();
    let scenarios: Vec<_> = MESSAGES
        .into_iter()
        .chain(FEEDS)
        .filter(|(name, _)| name.contains(filter))
        .collect();
    let mut reports = vec![Vec::new(); scenarios.len()];
    // Interleaved, so that a change of the machine's mood falls on all of them.
    for run in 0..if args.quick { 1 } else { args.runs } {
        for ((name, flags), reports) in scenarios.iter().zip(&mut reports) {
            eprintln!("run {}: {name}", run + 1);
            match report(flags, &args) {
                Ok(report) => reports.push(report),
                Err(error) => eprintln!("  {error}"),
            }
        }
    }
    print_table(&MESSAGES, &MESSAGE_COLUMNS, &scenarios, &reports);
    print_table(&FEEDS, &FEED_COLUMNS, &scenarios, &reports);
    let faults = reports
        .iter()
        .flatten()
        .filter(|report| !report["fault"].is_null())
        .count();
    let complete = reports.iter().all(|reports| !reports.is_empty());
    if faults == 0 && complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn report(flags: &str, args: &Args) -> Result<Value, String> {
    let seconds = if args.quick { "0.3" } else { &args.seconds };
    let mut all = vec!["--seconds", seconds];
    if args.quick {
        all.extend(["--warmup-seconds", "0.1"]);
    }
    let flags = if args.quick && flags == IDLE {
        "--idle-seconds 0.3"
    } else {
        flags
    };
    all.extend(flags.split(' '));
    common::report(&all)
}

/// Prints those of the scenarios that were run as a table of their own.
fn print_table(of: &[Scenario], columns: &[Column], run: &[Scenario], reports: &[Vec<Value>]) {
    let rows: Vec<_> = run
        .iter()
        .zip(reports)
        .filter(|(scenario, _)| of.contains(scenario))
        .collect();
    if rows.is_empty() {
        return;
    }
    let headings: Vec<_> = columns.iter().map(|(heading, ..)| *heading).collect();
    println!("| | {} | checks |", headings.join(" | "));
    println!("|---|{}---|", "---:|".repeat(columns.len()));
    for ((name, _), reports) in rows {
        let figures: Vec<_> = columns
            .iter()
            .map(|(_, place, decimals)| shown(median(reports, place), *decimals))
            .collect();
        let faults: Vec<_> = reports
            .iter()
            .filter_map(|report| report["fault"].as_str())
            .collect();
        let checks = match (reports.len(), faults.first()) {
            (0, _) => "did not run",
            (_, None) => "passed",
            (_, Some(fault)) => fault,
        };
        println!("| {name} | {} | {checks} |", figures.join(" | "));
    }
    println!();
}
