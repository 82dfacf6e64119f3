//! The figures of the README: every row several times, interleaved, with medians; where the floor can carry
//! the same load it is measured in the same run, in turn, and the ratios are taken within pairs.
//!
//! `cargo bench --bench figures` takes ten minutes; a text behind `--` chooses rows by key or name, and with
//! `-- --quick` it only shows that all works. It prints three tables: figures beside the floor's and what is to be
//! reached, messages, feeds.

mod common;
#[path = "common/comparison.rs"]
mod comparison;
#[path = "common/floor.rs"]
mod floor;
#[path = "common/pairs.rs"]
mod pairs;
#[path = "common/rows.rs"]
mod rows;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use common::{PROGRAM, median, shown};
use comparison::print_comparison;
use pairs::{Pairs, run_pair};
use rows::{MESSAGES, Row};

/// A column: heading, where the figure is in the report, decimals.
type Column = (&'static str, &'static str, usize);

/// Loads with states of one feed.
const FEEDS: [Row<'static>; 4] = [
    Row {
        key: "feed-changes",
        name: "100 KiB state, 100 changes/s, 500 subscribers",
        flags: "--feed --subscribers 500 --content-bytes 102400 --rate 100",
        figures: &[],
        has_floor: false,
    },
    Row {
        key: "feed-equal",
        name: "equal PUTs, 8 publishers",
        flags: "--feed --equal --subscribers 500 --publishers 8",
        figures: &[],
        has_floor: false,
    },
    Row {
        key: "feed-equal-10000",
        name: "equal PUTs, 8 publishers, 10,000/s",
        flags: "--feed --equal --subscribers 500 --publishers 8 --rate 10000",
        figures: &[],
        has_floor: false,
    },
    Row {
        key: "feed-equal-100k",
        name: "equal PUTs of 100 KiB, 8 publishers",
        flags: "--feed --equal --subscribers 500 --publishers 8 --content-bytes 102400",
        figures: &[],
        has_floor: false,
    },
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
    /// Runs of each row, pairs where the floor has a part in it; the tables show medians
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Measured seconds of each run
    #[arg(long, default_value = "5")]
    seconds: String,

    /// One short run of everything: a smoke test, no figures
    #[arg(long)]
    quick: bool,

    /// Only rows with this key, or whose name contains this text
    filter: Option<String>,

    /// Passed by `cargo bench`
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() -> ExitCode {
    if floor::is_wanted() {
        let Err(error) = floor::serve();
        eprintln!("floor: {error}");
        return ExitCode::FAILURE;
    }
    if !common::is_bench() {
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    let Ok(floor) = std::env::current_exe() else {
        eprintln!("can't find this program, which is the floor as well");
        return ExitCode::FAILURE;
    };
    let filter = args.filter.as_deref().unwrap_or_default();
    let rows = |all: &[Row<'static>]| -> Vec<(Row<'static>, Pairs)> {
        let is_chosen = |row: &&Row<'_>| row.key == filter || row.name.contains(filter);
        let chosen = all.iter().filter(is_chosen);
        chosen.map(|row| (*row, Pairs::default())).collect()
    };
    let (mut messages, mut feeds) = (rows(&MESSAGES), rows(&FEEDS));
    // Interleaved, so that a change of the machine's mood falls on all of them.
    for run in 1..=if args.quick { 1 } else { args.runs } {
        for (row, pairs) in messages.iter_mut().chain(&mut feeds) {
            eprintln!("run {run}: {}", row.name);
            measure(row, pairs, &floor, &args);
        }
    }
    if !messages.is_empty() {
        print_comparison(["this server", "floor"], &messages, true);
    }
    print_table(&messages, &MESSAGE_COLUMNS);
    print_table(&feeds, &FEED_COLUMNS);
    let all = || messages.iter().chain(&feeds);
    let is_complete = all().all(|(_, pairs)| !pairs.reports(0).is_empty());
    if is_complete && all().all(|(_, pairs)| pairs.fault().is_none()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a row once more, and the floor beside it where it can.
fn measure(row: &Row<'_>, pairs: &mut Pairs, floor: &Path, args: &Args) {
    let seconds = if args.quick { "0.3" } else { &args.seconds };
    let mut flags = vec!["--seconds", seconds];
    if args.quick {
        flags.extend(["--warmup-seconds", "0.1"]);
    }
    let of_row = row.flags.split(' ');
    // The idle time is a row's own.
    flags.extend(of_row.map(|flag| {
        if args.quick && flag == "5" {
            "0.3"
        } else {
            flag
        }
    }));
    let servers = [PROGRAM.as_ref(), floor];
    let count = 1 + usize::from(row.has_floor);
    run_pair(pairs, PROGRAM.as_ref(), &servers[..count], &flags);
}

/// Prints a line for each row, with this server's figures.
fn print_table(rows: &[(Row<'_>, Pairs)], columns: &[Column]) {
    if rows.is_empty() {
        return;
    }
    let headings: Vec<_> = columns.iter().map(|(heading, ..)| *heading).collect();
    println!("| | {} | checks |", headings.join(" | "));
    println!("|---|{}---|", "---:|".repeat(columns.len()));
    for (row, pairs) in rows {
        let reports = pairs.reports(0);
        let figures: Vec<_> = columns
            .iter()
            .map(|(_, place, decimals)| shown(median(&reports, place), *decimals))
            .collect();
        let checks = match (reports.len(), pairs.fault()) {
            (0, _) => "did not run".to_owned(),
            (_, None) => "passed".to_owned(),
            (_, Some(fault)) => fault,
        };
        println!("| {} | {} | {checks} |", row.name, figures.join(" | "));
    }
    println!();
}
