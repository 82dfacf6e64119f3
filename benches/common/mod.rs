//! What both benches share: running `threadcast bench`, medians, numbers in a table.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Whether `cargo bench` runs this program. `cargo test` does as well, and there is nothing to test.
pub(crate) fn is_bench() -> bool {
    let passed = |flag| std::env::args().any(|argument| argument == flag);
    passed("--bench") && !passed("--test")
}

/// The program that these benches were built with.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_threadcast");

/// The report of `threadcast bench` with these flags.
pub(crate) fn report<S: AsRef<OsStr>>(program: &Path, flags: &[S]) -> Result<Value, String> {
    let output = Command::new(program)
        .args(["bench", "--json"])
        .args(flags)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("can't run the program: {error}"))?;
    serde_json::from_slice(&output.stdout).map_err(|_| format!("no report ({})", output.status))
}

/// The median of a figure, over the reports that have it.
pub(crate) fn median(reports: &[Value], place: &str) -> Option<f64> {
    let figure = |report: &Value| report.pointer(place)?.as_f64();
    middle(reports.iter().filter_map(figure).collect())
}

/// The median of some numbers.
pub(crate) fn middle(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        length if length % 2 == 1 => Some(figures[middle]),
        _ => Some((figures[middle - 1] + figures[middle]) / 2.0),
    }
}

/// A figure with a comma between thousands; nothing where there is none or it means nothing.
pub(crate) fn shown(figure: Option<f64>, decimals: usize) -> String {
    let Some(figure) = figure.filter(|figure| *figure != 0.0) else {
        return "–".to_owned();
    };
    let text = format!("{figure:.decimals$}");
    if figure < 1000.0 {
        return text;
    }
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}
