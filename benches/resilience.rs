//! The figures of the README for subscribers that go, come back, and read too slowly.
//!
//! `cargo bench --bench resilience` takes twenty minutes, ten of them for the soak; a text chooses
//! one of `soak`, `stalled`, `replay`, `storm`, and with `-- --quick` it only shows that all works.
//!
//! In every run each subscriber must get exactly the ids that were acknowledged, in order,
//! those missed included. Subscribers that read nothing stay connected: the server's timeouts for them
//! are longer than the run.

mod common;

use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;

use common::{median, middle, shown};

/// What there must be no more of after a soak.
const COUNTED: [&str; 2] = ["threads", "descriptors"];
const CPU: &str = "/server/cpu_seconds_per_million_deliveries";
const PATIENT: &str = "-- --write-timeout 1h --pong-timeout 1h";

#[derive(Parser)]
struct Args {
    /// Runs of each but the soak, which runs once; the tables show their medians
    #[arg(long, default_value_t = 5)]
    runs: usize,

    /// Length of the soak
    #[arg(long, default_value_t = 600)]
    seconds: u32,

    /// One short run of everything: a smoke test, no figures
    #[arg(long)]
    quick: bool,

    /// Only what contains this text in its name: soak, stalled, replay, storm
    filter: Option<String>,

    /// Passed by `cargo bench`
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// How much of everything.
struct Size {
    runs: usize,
    soak_seconds: u32,
    /// Subscribers that go or stop reading, per second.
    churn: u32,
    subscribers: u32,
    /// Messages past the stalled one, and in what time.
    passing_rate: u32,
    passing_seconds: u32,
    replayed: u32,
    back: u32,
    storm_seconds: u32,
}

impl Size {
    fn new(args: &Args) -> Self {
        if args.quick {
            return Self {
                runs: 1,
                soak_seconds: 4,
                churn: 30,
                subscribers: 100,
                passing_rate: 500,
                passing_seconds: 1,
                replayed: 5000,
                back: 100,
                storm_seconds: 1,
            };
        }
        Self {
            runs: args.runs,
            soak_seconds: args.seconds,
            churn: 6,
            subscribers: 1000,
            passing_rate: 500,
            passing_seconds: 40,
            replayed: 1_000_000,
            back: 1000,
            storm_seconds: 10,
        }
    }
}

fn main() -> ExitCode {
    if !common::is_bench() {
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    let size = Size::new(&args);
    let filter = args.filter.as_deref().unwrap_or_default();
    let mut faults = Vec::new();
    for (name, run) in [
        ("stalled", stalled as fn(&Size) -> Result<(), String>),
        ("replay", replay),
        ("storm", storm),
        ("soak", soak),
    ] {
        if !name.contains(filter) {
            continue;
        }
        if let Err(fault) = run(&size) {
            faults.push(format!("{name}: {fault}"));
        }
        println!();
    }
    faults.iter().for_each(|fault| println!("{fault}"));
    if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// One that reads nothing among many: what the others and the server's memory notice of it.
fn stalled(size: &Size) -> Result<(), String> {
    let base = format!(
        "--subscribers {} --rate {} --seconds {}",
        size.subscribers, size.passing_rate, size.passing_seconds
    );
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for run in 0..size.runs {
        let mut pair = [("", &mut without), ("--stalled 1 ", &mut with)];
        // Whoever goes second finds another machine.
        if run % 2 == 1 {
            pair.reverse();
        }
        for (stalled, reports) in pair {
            let report = report(run, &format!("{base} {stalled}{PATIENT}"))?;
            let p99 = shown(number(&report, "/delivery_ms/p99"), 1);
            eprintln!("  arrival p99 {p99} ms");
            reports.push(report);
        }
    }
    heading(&[
        "messages",
        "arrival p50 ms",
        "p99 ms",
        "CPU s per million",
        "memory grown KiB",
    ]);
    for (name, reports) in [("all read", &without), ("one does not", &with)] {
        let figures = [
            ("/messages", 0),
            ("/delivery_ms/p50", 2),
            ("/delivery_ms/p99", 2),
            (CPU, 2),
            ("/server/resident_kib_grown", 0),
        ];
        row(
            name,
            figures.map(|(place, decimals)| shown(median(reports, place), decimals)),
        );
    }
    let paired = |place: &str, compare: fn(f64, f64) -> f64| {
        let pairs = with.iter().zip(&without);
        middle(
            pairs
                .filter_map(|(with, without)| {
                    Some(compare(number(with, place)?, number(without, place)?))
                })
                .collect(),
        )
    };
    row(
        "in pairs",
        [
            String::new(),
            times(paired("/delivery_ms/p50", std::ops::Div::div)),
            times(paired("/delivery_ms/p99", std::ops::Div::div)),
            times(paired(CPU, std::ops::Div::div)),
            shown(paired("/server/resident_kib_grown", std::ops::Sub::sub), 0),
        ],
    );
    Ok(())
}

/// One subscriber that has missed everything.
fn replay(size: &Size) -> Result<(), String> {
    let flags = format!(
        "--subscribers 1 --publishers 0 --seconds 0 --since-back {}",
        size.replayed
    );
    let reports = series(size.runs, &flags)?;
    heading(&["messages/s", "resident KiB before", "at most", "after"]);
    let figures = [
        ("/replayed_per_second", 0),
        ("/server/resident_kib_before_subscribers", 0),
        ("/server/resident_kib_most", 0),
        ("/server/resident_kib", 0),
    ];
    row(
        &format!("{} messages to one", shown(Some(size.replayed.into()), 0)),
        figures.map(|(place, decimals)| shown(median(&reports, place), decimals)),
    );
    Ok(())
}

/// Everybody comes back at once, while messages go on.
fn storm(size: &Size) -> Result<(), String> {
    let flags = format!(
        "--subscribers {} --rate 200 --warmup-seconds 0 --seconds {} --since-back {}",
        size.subscribers, size.storm_seconds, size.back
    );
    let reports = series(size.runs, &flags)?;
    heading(&[
        "s until all are live",
        "messages/s",
        "answer p50 ms until then",
        "p99 ms",
        "max ms",
        "resident KiB at most",
    ]);
    let figures = [
        ("/live_seconds", 2),
        ("/replayed_per_second", 0),
        ("/publish_ms_until_live/p50", 2),
        ("/publish_ms_until_live/p99", 2),
        ("/publish_ms_until_live/max", 2),
        ("/server/resident_kib_most", 0),
    ];
    row(
        &format!(
            "{} come back, {} messages each",
            size.subscribers, size.back
        ),
        figures.map(|(place, decimals)| shown(median(&reports, place), decimals)),
    );
    Ok(())
}

/// Many go, come back, stop reading and go on for a long time, and nothing is left of it.
fn soak(size: &Size) -> Result<(), String> {
    let flags = format!(
        "--subscribers {} --via ws --rate 200 --churn {} --stalled {} --seconds {} {PATIENT}",
        size.subscribers,
        size.churn,
        size.subscribers / 100,
        size.soak_seconds
    );
    let report = report(0, &flags)?;
    let nothing = Vec::new();
    let soundings = report["server"]["soundings"].as_array().unwrap_or(&nothing);
    let (Some(first), Some(last)) = (soundings.first(), soundings.last()) else {
        return Err("the server was not looked at".to_owned());
    };
    heading(&["s", "resident KiB", "threads", "descriptors"]);
    for (index, sounding) in soundings.iter().enumerate() {
        let name = match index {
            0 => "start",
            _ if index + 1 == soundings.len() => "end",
            _ => "",
        };
        let figures = ["seconds", "resident_kib", "threads", "descriptors"];
        row(
            name,
            figures.map(|figure| shown(sounding[figure].as_f64(), 0)),
        );
    }
    println!();
    heading(&[
        "messages",
        "left",
        "vanished",
        "stopped reading",
        "came back",
        "arrival p50 ms",
        "p99 ms",
    ]);
    let figures = [
        ("/messages", 0),
        ("/gone/left", 0),
        ("/gone/vanished", 0),
        ("/gone/stalled", 0),
        ("/gone/came_back", 0),
        ("/delivery_ms/p50", 2),
        ("/delivery_ms/p99", 2),
    ];
    row(
        &format!("{} subscribers, 200 messages/s", size.subscribers),
        figures.map(|(place, decimals)| shown(number(&report, place), decimals)),
    );
    for figure in COUNTED {
        if first[figure] != last[figure] {
            return Err(format!(
                "{} {figure} became {}",
                first[figure], last[figure]
            ));
        }
    }
    Ok(())
}

fn series(runs: usize, flags: &str) -> Result<Vec<Value>, String> {
    (0..runs).map(|run| report(run, flags)).collect()
}

/// One run; fails when a check failed.
fn report(run: usize, flags: &str) -> Result<Value, String> {
    eprintln!("run {}: {flags}", run + 1);
    let report = common::report(
        common::PROGRAM.as_ref(),
        &flags.split(' ').collect::<Vec<_>>(),
    )?;
    match report["fault"].as_str() {
        Some(fault) => Err(fault.to_owned()),
        None => Ok(report),
    }
}

fn number(report: &Value, place: &str) -> Option<f64> {
    report.pointer(place)?.as_f64()
}

fn heading(columns: &[&str]) {
    println!("| | {} |", columns.join(" | "));
    println!("|---|{}", "---:|".repeat(columns.len()));
}

fn row<const N: usize>(name: &str, figures: [String; N]) {
    println!("| {name} | {} |", figures.join(" | "));
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".to_owned(), |ratio| format!("× {ratio:.2}"))
}
