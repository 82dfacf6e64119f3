//! Two servers in turn, again and again: the machine's moods fall on both, and what counts is
//! the median of the ratios within pairs.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use crate::common::{middle, report};

/// The reports of two servers under the same load, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Pairs(Vec<[Option<Value>; 2]>);

/// Loads two servers, or the only one. The first goes first in every second pair: whoever goes second
/// finds another machine.
pub(crate) fn run_pair(pairs: &mut Pairs, generator: &Path, servers: &[&Path], flags: &[&str]) {
    let mut order: Vec<_> = servers.iter().enumerate().collect();
    if pairs.0.len() % 2 == 1 {
        order.reverse();
    }
    let mut pair = [None, None];
    for (index, server) in order {
        let mut all = vec![OsStr::new("--server"), server.as_os_str()];
        all.extend(flags.iter().map(OsStr::new));
        match report(generator, &all) {
            Ok(report) => pair[index] = Some(report),
            Err(error) => eprintln!("  {error}"),
        }
    }
    pairs.0.push(pair);
}

impl Pairs {
    /// The reports of the first (0) or the second (1).
    pub(crate) fn reports(&self, index: usize) -> Vec<Value> {
        self.0
            .iter()
            .filter_map(|pair| pair[index].clone())
            .collect()
    }

    /// The first one's figure divided by the second one's: least, median and greatest of all pairs.
    pub(crate) fn ratios(&self, place: &str) -> Option<[f64; 3]> {
        let figure = |report: &Option<Value>| report.as_ref()?.pointer(place)?.as_f64();
        let ratio = |pair: &[Option<Value>; 2]| {
            let (first, second) = (figure(&pair[0])?, figure(&pair[1])?);
            (second > 0.0).then(|| first / second)
        };
        let mut ratios: Vec<_> = self.0.iter().filter_map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (*ratios.first()?, *ratios.last()?);
        Some([least, middle(ratios)?, most])
    }

    /// What was wrong in any of the runs.
    pub(crate) fn fault(&self) -> Option<String> {
        let reports = self.0.iter().flatten();
        reports
            .flatten()
            .find_map(|report| report["fault"].as_str())
            .map(str::to_owned)
    }
}
