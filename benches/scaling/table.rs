//! The tables of the scaling bench.

use crate::common::{median, shown};
use crate::pairs::Pairs;

/// A column: heading, where the figure is in the report, what it is multiplied with, decimals.
pub(crate) type Column = (&'static str, &'static str, f64, usize);

const CPU: &str = "/server/cpu_seconds_per_million_deliveries";

pub(crate) const COLUMNS: [Column; 10] = [
    ("deliveries/s", "/deliveries_per_second", 1.0, 0),
    ("messages/s", "/messages_per_second", 1.0, 0),
    ("CPU ns per delivery", CPU, 1000.0, 0),
    (
        "CPU µs per message",
        "/server_cpu_microseconds_per_message",
        1.0,
        0,
    ),
    ("CPU s per s", "/server/cpu_seconds_per_second", 1.0, 2),
    ("arrival p50 ms", "/delivery_ms/p50", 1.0, 2),
    ("p99 ms", "/delivery_ms/p99", 1.0, 2),
    ("answer p50 ms", "/publish_ms/p50", 1.0, 2),
    ("resident KiB", "/server/resident_kib", 1.0, 0),
    ("threads", "/server/threads", 1.0, 0),
];

/// Prints a table with a row of medians for each load.
pub(crate) fn print<'a>(title: &str, rows: impl Iterator<Item = (&'a str, &'a Pairs)>) {
    let headings: Vec<_> = COLUMNS.iter().map(|(heading, ..)| *heading).collect();
    println!(
        "| {title} | {} | floor: CPU ns | ratio |",
        headings.join(" | ")
    );
    println!("|---|{}", "---:|".repeat(COLUMNS.len() + 2));
    for (name, pairs) in rows {
        let [ours, floor] = [0, 1].map(|index| pairs.reports(index));
        let figures = COLUMNS.map(|(_, place, factor, decimals)| {
            let figure = median(&ours, place).map(|figure| figure * factor);
            shown(figure, decimals)
        });
        let floor = median(&floor, CPU).map(|cost| cost * 1000.0);
        let ratio = pairs.ratios(CPU).map(|[_, middle, _]| middle);
        println!(
            "| {name} | {} | {} | {} |",
            figures.join(" | "),
            shown(floor, 0),
            shown(ratio, 2)
        );
    }
    println!();
}
