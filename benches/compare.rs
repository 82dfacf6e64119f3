//! Two builds of the server against each other, or one against the floor.
//!
//!     cargo bench --bench compare -- --server NEW --against OLD [ROW…]
//!
//! One and the same generator loads both in turn. A change is one when the least and the
//! greatest of the ratios are on the same side of 1.

mod common;
#[path = "common/comparison.rs"]
mod comparison;
#[path = "common/floor.rs"]
mod floor;
#[path = "common/pairs.rs"]
mod pairs;
#[path = "common/rows.rs"]
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use common::PROGRAM;
use comparison::print_comparison;
use pairs::{Pairs, run_pair};
use rows::{Figure, MESSAGES, Row, Target, figure};

/// For a row given by its flags.
const ALL_FIGURES: &[Figure] = &[
    figure("deliveries/s", "/deliveries_per_second", 0, Target::None),
    figure("messages/s", "/messages_per_second", 0, Target::None),
    figure("arrival p50 ms", "/delivery_ms/p50", 2, Target::None),
    figure("arrival p99 ms", "/delivery_ms/p99", 2, Target::None),
    figure("answer p50 ms", "/publish_ms/p50", 3, Target::None),
    figure("answer p99 ms", "/publish_ms/p99", 3, Target::None),
    figure("CPU s", "/server/cpu_seconds", 2, Target::None),
    figure(
        "CPU s per million",
        "/server/cpu_seconds_per_million_deliveries",
        2,
        Target::None,
    ),
    figure(
        "CPU µs per message",
        "/server_cpu_microseconds_per_message",
        1,
        Target::None,
    ),
    figure("resident KiB", "/server/resident_kib", 0, Target::None),
    figure(
        "KiB per subscriber",
        "/server/kib_per_subscriber",
        1,
        Target::None,
    ),
];

/// Loads two servers in turn and prints medians and the ratios within pairs.
#[derive(Parser)]
struct Args {
    /// The server in question [default: that of this build]
    #[arg(long, value_name = "PROGRAM", default_value = PROGRAM)]
    server: PathBuf,

    /// The server that it is compared with, or `floor`
    #[arg(long, value_name = "PROGRAM", default_value = "floor")]
    against: PathBuf,

    /// The program whose `bench` loads both
    #[arg(long, value_name = "PROGRAM", default_value = PROGRAM)]
    generator: PathBuf,

    /// Pairs of runs
    #[arg(long, default_value_t = 5)]
    pairs: usize,

    /// Measured seconds of each run
    #[arg(long, default_value = "2")]
    seconds: String,

    /// Flags of `threadcast bench` for one more row, for which all figures are printed
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    load: Option<String>,

    /// Keys of rows; without any, and without `--load`, all of them
    #[arg(value_parser = MESSAGES.map(|row| row.key))]
    rows: Vec<String>,

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
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let own =
        std::env::current_exe().map_err(|error| format!("can't find this program: {error}"))?;
    let is_floor = args.against.as_os_str() == "floor";
    let against = if is_floor { &own } else { &args.against };
    let mut rows: Vec<(Row<'_>, Pairs)> = MESSAGES
        .into_iter()
        .filter(|row| is_chosen(row, args) && (row.has_floor || !is_floor))
        .map(|row| (row, Pairs::default()))
        .collect();
    if let Some(flags) = &args.load {
        let row = Row {
            key: "load",
            name: flags,
            flags,
            figures: ALL_FIGURES,
            has_floor: true,
        };
        rows.push((row, Pairs::default()));
    }
    for number in 1..=args.pairs {
        for (row, pairs) in &mut rows {
            eprintln!("pair {number}: {}", row.name);
            let mut flags = vec!["--seconds", &args.seconds];
            flags.extend(row.flags.split_whitespace());
            run_pair(pairs, &args.generator, &[&args.server, against], &flags);
        }
    }
    let names = [&args.server, &args.against].map(|path| path.to_string_lossy());
    print_comparison([&names[0], &names[1]], &rows, is_floor);
    let faults: Vec<_> = rows.iter().filter_map(|(_, pairs)| pairs.fault()).collect();
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults.join("\n"))
    }
}

fn is_chosen(row: &Row<'_>, args: &Args) -> bool {
    let all = args.rows.is_empty() && args.load.is_none();
    all || args.rows.iter().any(|key| key == row.key)
}
