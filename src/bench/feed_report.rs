//! What a report says of a feed, where that is not what it says of messages.

use serde_json::{Value, json};

use super::plan::Load;
use super::report::{Cost, Report};
use super::text::{count, some};

impl Report {
    /// All PUTs that were answered, those of the warm-up included.
    pub(super) fn puts(&self) -> u64 {
        self.acknowledged() + self.published.unchanged
    }

    /// The part of all states that subscribers did not get because a later one came instead.
    fn skipped_share(&self) -> Option<f64> {
        let skipped = self.verdict.findings.skipped;
        let all = skipped + self.verdict.arrived;
        (all > 0).then(|| skipped as f64 / all as f64)
    }

    fn megabytes_per_second(&self) -> f64 {
        self.per_second(self.deliveries) * self.plan.content_bytes as f64 / 1e6
    }

    /// `None` where deliveries cost the most of it.
    fn cpu_micros_per_put(&self, cost: &Cost) -> Option<f64> {
        let puts = self.published.in_window;
        (puts > 0 && self.plan.load == Load::EqualStates)
            .then(|| cost.cpu.as_secs_f64() * 1e6 / puts as f64)
    }

    pub(super) fn feed_json(&self) -> Value {
        let verdict = &self.verdict;
        let per_put = |cost| self.cpu_micros_per_put(cost);
        json!({
            "feed": self.plan.channels.name(0),
            "equal": self.plan.load == Load::EqualStates,
            "puts": self.puts(),
            "puts_per_second": self.per_second(self.published.in_window),
            "changes": self.acknowledged(),
            "deliveries": verdict.arrived,
            "skipped": verdict.findings.skipped,
            "skipped_share": self.skipped_share(),
            "megabytes_per_second": self.megabytes_per_second(),
            "on_an_old_state": verdict.incomplete,
            "server_cpu_microseconds_per_put": self.cost.as_ref().and_then(per_put),
        })
    }

    /// What should not have happened to a feed.
    pub(super) fn feed_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let (changes, unchanged) = (self.acknowledged(), self.published.unchanged);
        let revs = self.published.last_id - self.plan.base;
        if self.plan.load == Load::States && unchanged > 0 {
            faults.push(format!(
                "{} that changed the state answered as no change",
                some(unchanged, "PUT")
            ));
        }
        if self.plan.load == Load::EqualStates && changes > 1 {
            faults.push(format!(
                "{} answered as changes after the first",
                some(changes - 1, "equal PUT")
            ));
        }
        // Without subscribers nobody has said where the revs began.
        if self.plan.subscribers > 0 && changes != revs {
            faults.push(format!(
                "{} acknowledged, but the rev has grown by {}",
                some(changes, "change"),
                count(revs)
            ));
        }
        if self.verdict.incomplete > 0 {
            faults.push(format!(
                "{} on an old state, {} behind in all",
                some(self.verdict.incomplete as u64, "subscriber"),
                some(self.verdict.findings.missing, "rev")
            ));
        }
        faults
    }

    /// Lines of the text that only feeds have: label, figure, details.
    pub(super) fn feed_lines(&self) -> Vec<(&'static str, String, String)> {
        let verdict = &self.verdict;
        let mut lines = Vec::new();
        if self.plan.load == Load::States {
            lines.push((
                "volume",
                count(self.megabytes_per_second().round() as u64),
                "MB/s".to_owned(),
            ));
            lines.push((
                "skipped",
                format!("{:.2}", self.skipped_share().unwrap_or_default() * 100.0),
                format!(
                    "% of all states: {} delivered, {} left out for a later one",
                    count(verdict.arrived),
                    count(verdict.findings.skipped)
                ),
            ));
        }
        if let Some(micros) = self
            .cost
            .as_ref()
            .and_then(|cost| self.cpu_micros_per_put(cost))
        {
            lines.push(("CPU per PUT", format!("{micros:.1}"), "µs".to_owned()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::churn::Gone;
    use super::super::latency::{Histogram, Window};
    use super::super::plan::Plan;
    use super::super::publishers::Published;
    use super::super::received::Progress;
    use super::super::subscribers::Verdict;
    use super::*;

    /// A run of one second on a feed that was at rev 3.
    fn report(load: Load, revs: &[u64], unchanged: usize) -> Report {
        let plan = Plan {
            subscribers: 2,
            base: 3,
            ..Plan::for_tests(load)
        };
        let measured = Window {
            start: 0,
            end: 1_000_000_000,
        };
        let mut published = Published::new(&plan, measured, Arc::new(Progress::default()));
        for &rev in revs {
            published.acknowledge(0, rev, 1, 2);
        }
        for _ in 0..unchanged {
            published.acknowledge_unchanged(1, 2);
        }
        Report {
            plan,
            idle: false,
            measured,
            connect_time: Duration::ZERO,
            drain_time: Duration::ZERO,
            deliveries: 6,
            latency: Histogram::default(),
            published,
            malformed: 0,
            first_malformed: None,
            verdict: Verdict::default(),
            gone: Gone::default(),
            live_time: None,
            cost: None,
            own_cpu: Duration::ZERO,
        }
    }

    #[test]
    fn a_feed_s_faults_are_named() {
        for (load, revs, unchanged, expected) in [
            (Load::States, &[4, 5, 6][..], 0, None),
            (Load::States, &[4, 5], 1, Some("1 PUT that changed")),
            (Load::States, &[4, 6], 0, Some("the rev has grown by 3")),
            (Load::States, &[4, 4, 5], 0, Some("the rev has grown by 2")),
            (Load::EqualStates, &[4], 9, None),
            (Load::EqualStates, &[], 9, None),
            (Load::EqualStates, &[4, 5], 9, Some("1 equal PUT answered")),
        ] {
            let faults = report(load, revs, unchanged).verdict().err();
            match expected {
                None => assert_eq!(faults, None, "{revs:?}"),
                Some(text) => assert!(
                    faults.as_ref().is_some_and(|faults| faults.contains(text)),
                    "{revs:?}: {faults:?}"
                ),
            }
        }
        let mut behind = report(Load::States, &[4, 5, 6], 0);
        behind.verdict.incomplete = 1;
        behind.verdict.findings.missing = 2;
        let expected = "1 subscriber on an old state, 2 revs behind in all";
        assert_eq!(behind.verdict(), Err(expected.to_owned()));
    }

    #[test]
    fn figures_are_those_of_the_feed() {
        let mut report = report(Load::States, &[4, 5, 6, 7], 0);
        report.verdict.arrived = 6;
        report.verdict.findings.skipped = 2;
        let json = report.json();
        for (figure, value) in [
            ("puts_per_second", 4.0),
            ("deliveries_per_second", 6.0),
            ("megabytes_per_second", 0.0012),
            ("skipped_share", 0.25),
        ] {
            assert_eq!(json[figure], value, "{figure}");
        }
        assert_eq!(json["fault"], Value::Null);
        assert!(json.get("messages_per_second").is_none());
        let text = report.text();
        for line in [
            "2 subscribers on 1 feed",
            "4 changes/s",
            "25.00 % of all states",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
