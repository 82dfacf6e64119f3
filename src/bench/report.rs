//! What a run found, as JSON and as a verdict.

use std::time::Duration;

use serde_json::{Value, json};

use super::Via;
use super::churn::Gone;
use super::latency::{Histogram, Window};
use super::plan::{Load, Plan};
use super::publishers::Published;
use super::server::Usage;
use super::soundings::Soundings;
use super::subscribers::Verdict;
use super::text::count;

/// The figures of one run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) plan: Plan,
    pub(super) idle: bool,
    pub(super) measured: Window,
    /// Until all subscribers were connected.
    pub(super) connect_time: Duration,
    /// From the end of the measured time to the last delivery.
    pub(super) drain_time: Duration,
    /// In the measured time.
    pub(super) deliveries: u64,
    pub(super) latency: Histogram,
    pub(super) published: Published,
    pub(super) malformed: u64,
    pub(super) first_malformed: Option<String>,
    pub(super) verdict: Verdict,
    /// Subscribers that went and came.
    pub(super) gone: Gone,
    /// From the beginning of the measured time until all that came back had what they had missed.
    pub(super) live_time: Option<Duration>,
    /// `None` for a server whose process is not known.
    pub(super) cost: Option<Cost>,
    /// CPU time of this program in the measured time.
    pub(super) own_cpu: Duration,
}

/// What the server used.
#[derive(Debug)]
pub(super) struct Cost {
    /// CPU time in the measured time.
    pub(super) cpu: Duration,
    /// Before the first subscriber connected.
    pub(super) before: Usage,
    /// At the beginning of the measured time.
    pub(super) start: Usage,
    /// At its end.
    pub(super) after: Usage,
    /// From the beginning to when all had arrived.
    pub(super) soundings: Soundings,
}

impl Cost {
    pub(super) fn per_million(&self, deliveries: u64) -> Option<f64> {
        (deliveries > 0).then(|| self.cpu.as_secs_f64() * 1e6 / deliveries as f64)
    }

    pub(super) fn micros_per(&self, number: u64) -> Option<f64> {
        (number > 0).then(|| self.cpu.as_secs_f64() * 1e6 / number as f64)
    }

    pub(super) fn per_second(&self, measured: Window) -> f64 {
        self.cpu.as_secs_f64() / measured.seconds().max(1e-9)
    }

    /// Resident memory that each subscriber added.
    pub(super) fn kib_per_subscriber(&self, subscribers: usize) -> Option<f64> {
        let added = self.after.resident_kib as f64 - self.before.resident_kib as f64;
        (subscribers > 0).then(|| added / subscribers as f64)
    }
}

impl Report {
    pub(super) fn json(&self) -> Value {
        let mut report = self.common_json();
        let of_load = match self.plan.load {
            Load::Messages => self.messages_json(),
            Load::States | Load::EqualStates => self.feed_json(),
        };
        if let (Some(report), Value::Object(mut of_load)) = (report.as_object_mut(), of_load) {
            report.append(&mut of_load);
        }
        report
    }

    fn messages_json(&self) -> Value {
        let findings = self.verdict.findings;
        json!({
            "via": self.via(),
            "in_flight": (self.plan.via == Via::Ws).then_some(self.plan.in_flight),
            "channels": self.plan.channels.count,
            "messages": self.acknowledged(),
            "messages_per_second": self.per_second(self.published.in_window),
            "server_cpu_microseconds_per_message": self.cost.as_ref().and_then(|cost| {
                cost.micros_per(self.published.in_window)
            }),
            "missing": findings.missing,
            "duplicated": findings.duplicated,
            "stalled": self.plan.stalled,
            "gone": {
                "left": self.gone.left,
                "vanished": self.gone.vanished,
                "stalled": self.gone.stalled,
                "came_back": self.gone.caught_up,
            },
            "live_seconds": self.live_time.map(|time| time.as_secs_f64()),
            "replayed_per_second": self.replayed_per_second(),
            "publish_ms_until_live": percentiles(&self.published.latency_of_return),
        })
    }

    fn common_json(&self) -> Value {
        let findings = self.verdict.findings;
        json!({
            "subscribers": self.plan.subscribers,
            "publishers": self.plan.publishers,
            "rate": self.plan.rate,
            "max_behind": self.plan.max_behind,
            "content_bytes": self.plan.content_bytes,
            "seconds": self.measured.seconds(),
            "connect_seconds": self.connect_time.as_secs_f64(),
            "drain_seconds": self.drain_time.as_secs_f64(),
            "deliveries_per_second": self.per_second(self.deliveries),
            "delivery_ms": percentiles(&self.latency),
            "publish_ms": percentiles(&self.published.latency),
            "out_of_order": findings.out_of_order,
            "unexpected": findings.unexpected,
            "malformed": self.malformed,
            "refused": self.published.refused,
            "closed": self.verdict.closed.values().sum::<usize>(),
            "undelivered_to_closed": self.verdict.undelivered,
            "generator_cpu_seconds": self.own_cpu.as_secs_f64(),
            "server": self.cost.as_ref().map(|cost| json!({
                "cpu_seconds": cost.cpu.as_secs_f64(),
                "cpu_seconds_per_second": cost.per_second(self.measured),
                "cpu_seconds_per_million_deliveries": cost.per_million(self.deliveries),
                "resident_kib": cost.after.resident_kib,
                "resident_kib_before_subscribers": cost.before.resident_kib,
                "kib_per_subscriber": cost.kib_per_subscriber(self.plan.subscribers),
                "threads": cost.after.threads,
                "resident_kib_grown": cost.after.resident_kib as i64 - cost.start.resident_kib as i64,
                "resident_kib_most": cost.soundings.most_resident_kib(),
                "soundings": cost.soundings.json(self.measured),
            })),
            "fault": self.verdict().err(),
        })
    }

    /// Fails with everything that should not have happened.
    pub(super) fn verdict(&self) -> Result<(), String> {
        let findings = self.verdict.findings;
        let mut faults = Vec::new();
        faults.extend(self.published.failure.clone());
        let missing = match self.plan.load {
            Load::Messages => findings.missing,
            Load::States | Load::EqualStates => {
                faults.extend(self.feed_faults());
                0
            }
        };
        for (number, what) in [
            (missing, "missing"),
            (findings.duplicated, "duplicated"),
            (findings.out_of_order, "out of order"),
            (findings.unexpected, "delivered but never acknowledged"),
        ] {
            if number > 0 {
                faults.push(format!("{} {what}", count(number)));
            }
        }
        if self.gone.caught_up != self.gone.returns {
            faults.push(format!(
                "{} came back and only {} were told that they have what they missed",
                count(self.gone.returns),
                count(self.gone.caught_up)
            ));
        }
        for (code, number) in &self.verdict.closed {
            faults.push(format!(
                "{} closed by the server with {code}",
                count(*number as u64)
            ));
        }
        let quoted = |text: &Option<String>| text.clone().unwrap_or_default();
        if self.published.refused > 0 {
            faults.push(format!(
                "{} refused, first: {}",
                count(self.published.refused),
                quoted(&self.published.first_refusal)
            ));
        }
        if self.malformed > 0 {
            faults.push(format!(
                "{} malformed, first: {}",
                count(self.malformed),
                quoted(&self.first_malformed)
            ));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join("; "))
        }
    }

    /// Messages that had been missed, brought to all that came back, per second until they were live.
    pub(super) fn replayed_per_second(&self) -> Option<f64> {
        let plan = &self.plan;
        let each = plan.since_back? / plan.channels.count as u64;
        let seconds = self.live_time?.as_secs_f64();
        (seconds > 0.0).then(|| (each * plan.subscribers as u64) as f64 / seconds)
    }

    pub(super) fn via(&self) -> &'static str {
        match self.plan.via {
            Via::Http => "http",
            Via::Ws => "ws",
        }
    }

    /// All acknowledged messages or changes, those of the warm-up included.
    pub(super) fn acknowledged(&self) -> u64 {
        self.published
            .acknowledged
            .iter()
            .map(|ids| ids.count)
            .sum()
    }

    pub(super) fn per_second(&self, number: u64) -> f64 {
        number as f64 / self.measured.seconds().max(1e-9)
    }
}

/// The percentiles that are reported.
pub(super) const SHARES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

fn percentiles(latency: &Histogram) -> Value {
    let in_ms = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1e3);
    let mut all: serde_json::Map<_, _> = SHARES
        .iter()
        .map(|&(name, share)| (name.to_owned(), json!(in_ms(latency.percentile(share)))))
        .collect();
    all.insert("max".to_owned(), json!(in_ms(latency.max())));
    Value::Object(all)
}
