//! Figures of two servers side by side, with what is to be reached.

use crate::common::median;
use crate::pairs::Pairs;
use crate::rows::{Figure, Row};

/// Prints medians of both servers, the ratios, and the targets: one line for each figure of a row.
/// A target that is relative to the floor's figure is judged when the floor is the second.
pub(crate) fn print_comparison(names: [&str; 2], rows: &[(Row<'_>, Pairs)], is_floor: bool) {
    let [ours, theirs] = names;
    println!("| | | {theirs} | {ours} | ratio | least – most | to reach |");
    println!("|---|---|---:|---:|---:|---:|---|");
    for (row, pairs) in rows {
        for figure in row.figures {
            println!("| {} | {} |", row.name, line(figure, pairs, is_floor));
        }
    }
    println!();
}

fn line(figure: &Figure, pairs: &Pairs, is_floor: bool) -> String {
    let [ours, theirs] = [0, 1].map(|index| median(&pairs.reports(index), figure.place));
    let ratios = pairs.ratios(figure.place);
    let (ratio, range) = match ratios {
        Some([least, middle, most]) => {
            (format!("× {middle:.2}"), format!("{least:.2} – {most:.2}"))
        }
        None => ("–".to_owned(), String::new()),
    };
    let times_floor = ratios.filter(|_| is_floor).map(|[_, middle, _]| middle);
    [
        figure.heading.to_owned(),
        figure.shown(theirs),
        figure.shown(ours),
        ratio,
        range,
        figure.verdict(ours, times_floor),
    ]
    .join(" | ")
}
