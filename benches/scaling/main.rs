//! How the cost of a delivery grows with subscribers, channels and the size of messages, what idle
//! connections cost, and where this machine ends.
//!
//! `cargo bench --bench scaling` takes a quarter of an hour; a text behind `--` chooses one of `subscribers`, `channels`,
//! `sizes`, `idle`, `ends`, and with `-- --quick` it only shows that all works. Each prints Markdown rows.
//!
//! Everything is bounded in number and time, and only on this machine. What does not fit into its limits is
//! made smaller, and said.

#[path = "../common/mod.rs"]
mod common;
mod ends;
#[path = "../common/floor.rs"]
mod floor;
mod idle;
#[path = "../common/pairs.rs"]
mod pairs;
mod sections;
mod table;

use std::process::ExitCode;

use clap::Parser;

use common::PROGRAM;
use pairs::{Pairs, run_pair};
use sections::{Section, channels, sizes, subscribers};

#[derive(Parser)]
struct Args {
    /// Runs of each load; the tables show their medians
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Measured seconds of each run
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,

    /// Seconds that idle connections are watched
    #[arg(long, default_value_t = 60.0)]
    idle_seconds: f64,

    /// Most subscribers, and most channels with one each
    #[arg(long, default_value_t = 10_000)]
    most: usize,

    /// One short run of everything, and small: a smoke test, no figures
    #[arg(long)]
    quick: bool,

    /// Only what contains this text in its name: subscribers, channels, sizes, idle, ends
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
    let mut args = Args::parse();
    if args.quick {
        (args.runs, args.seconds, args.idle_seconds) = (1, 0.3, 1.0);
        args.most = args.most.min(100);
    }
    println!("{}\n", ends::limits());
    let most = ends::fitting(args.most);
    if most < args.most {
        println!(
            "{most} subscribers instead of {}: more do not fit\n",
            args.most
        );
    }
    let filter = args.filter.clone().unwrap_or_default();
    let is_chosen = |name: &str| name.contains(&filter);
    let mut faults = Vec::new();
    for section in [subscribers(most), channels(most), sizes()] {
        if is_chosen(section.name) {
            faults.extend(run(&section, &args, most));
        }
    }
    if is_chosen("idle") {
        faults.extend(idle::run(most.min(5000), args.idle_seconds).err());
    }
    if is_chosen("ends") {
        ends::search(if args.quick { 200 } else { 3 * args.most });
    }
    faults.iter().for_each(|fault| println!("{fault}"));
    if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs all loads of a section in turn, prints its table, and returns what was wrong.
fn run(section: &Section, args: &Args, most: usize) -> Vec<String> {
    let Ok(floor) = std::env::current_exe() else {
        return vec!["can't find this program, which is the floor as well".to_owned()];
    };
    let mut loads: Vec<_> = section
        .loads
        .iter()
        .filter(|load| load.subscribers <= most)
        .map(|load| (load, Pairs::default()))
        .collect();
    let seconds = args.seconds.to_string();
    for run in 1..=args.runs {
        for (load, pairs) in &mut loads {
            eprintln!("run {run}: {}", load.name);
            let mut flags = vec!["--seconds", &seconds];
            if args.quick {
                flags.extend(["--warmup-seconds", "0.1"]);
            }
            flags.extend(load.flags.split(' '));
            let servers = [PROGRAM.as_ref(), floor.as_path()];
            let count = 1 + usize::from(load.has_floor);
            run_pair(pairs, PROGRAM.as_ref(), &servers[..count], &flags);
        }
    }
    let rows = loads.iter().map(|(load, pairs)| (&load.name[..], pairs));
    table::print(section.title, rows);
    let fault = |(load, pairs): &(&sections::Load, Pairs)| {
        let fault = match pairs.reports(0).len() < args.runs {
            true => Some("did not run".to_owned()),
            false => pairs.fault(),
        };
        fault.map(|fault| format!("{}: {fault}", load.name))
    };
    loads.iter().filter_map(fault).collect()
}
