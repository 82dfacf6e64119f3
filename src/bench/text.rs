//! A report as text for people.

use std::fmt::Write;

use super::Via;
use super::latency::Histogram;
use super::plan::Load;
use super::report::{Report, SHARES};
use super::server::Usage;

impl Report {
    /// The report in a dozen lines: what was run, then a figure per line with its details.
    pub(super) fn text(&self) -> String {
        let mut out = self.heading();
        let mut line = |label: &str, figure: &str, details: &str| {
            writeln!(out, "{label:<12}{figure:>12} {details}").expect("a String takes every text");
        };
        if !self.idle {
            let per_second = |number| count(self.per_second(number).round() as u64);
            let answered = spread("from call to answer", &self.published.latency);
            line(
                "published",
                &per_second(self.published.in_window),
                &format!("{}{answered}", self.unit()),
            );
            let arrived = spread("from call to arrival", &self.latency);
            line(
                "delivered",
                &per_second(self.deliveries),
                &format!("deliveries/s{arrived}"),
            );
            for (label, figure, details) in self.feed_lines() {
                line(label, &figure, &details);
            }
            let (number, what, passed) = self.checked();
            let verdict = self.verdict().err();
            let verdict = verdict.as_deref().unwrap_or(passed);
            line("checked", &count(number), &format!("{what}: {verdict}"));
            line(
                "drained",
                &seconds(self.drain_time),
                "s after the measured time",
            );
        }
        if let Some(time) = self.live_time {
            let replayed = self.replayed_per_second().unwrap_or_default();
            let meanwhile = spread(
                "from call to answer meanwhile",
                &self.published.latency_of_return,
            );
            line(
                "live",
                &seconds(time),
                &format!(
                    "s until all had what they missed, {} messages/s{meanwhile}",
                    count(replayed as u64)
                ),
            );
        }
        if self.plan.churn.is_some() {
            let gone = self.gone;
            line(
                "came back",
                &count(gone.caught_up),
                &format!(
                    "of {} that left and {} that vanished; {} read nothing for a while",
                    count(gone.left),
                    count(gone.vanished),
                    count(gone.stalled)
                ),
            );
        }
        line(
            "connected",
            &seconds(self.connect_time),
            "s for all subscribers",
        );
        if let Some(cost) = &self.cost {
            let per_million = cost.per_million(self.deliveries);
            let per_million =
                per_million.map(|cost| format!(", {cost:.2} s per million deliveries"));
            let per_second = cost.per_second(self.measured);
            line(
                "server CPU",
                &seconds(cost.cpu),
                &format!(
                    "s, {per_second:.2} per second{}",
                    per_million.unwrap_or_default()
                ),
            );
            let before = count(cost.before.resident_kib);
            let each = cost.kib_per_subscriber(self.plan.subscribers);
            let each = each.map(|kib| format!(", {before} before subscribers: {kib:.1} KiB each"));
            line(
                "memory",
                &count(cost.after.resident_kib),
                &format!("KiB{}", each.unwrap_or_default()),
            );
            line("threads", &count(cost.after.threads), "");
            if let (Some(start), Some(end)) = (cost.soundings.first(), cost.soundings.last()) {
                let descriptors = |usage: Usage| count(usage.descriptors.unwrap_or_default());
                line(
                    "descriptors",
                    &descriptors(start),
                    &format!("at first, {} at last", descriptors(end)),
                );
            }
        }
        line("generator", &seconds(self.own_cpu), "s CPU");
        out
    }

    fn unit(&self) -> &'static str {
        match self.plan.load {
            Load::Messages => "messages/s",
            Load::States => "changes/s",
            Load::EqualStates => "PUTs/s",
        }
    }

    /// What was checked: how many, and what is true of them if nothing was found.
    fn checked(&self) -> (u64, &'static str, &'static str) {
        let acknowledged = self.acknowledged();
        match self.plan.load {
            Load::Messages => (
                acknowledged,
                "messages",
                "none missing, duplicated or out of order",
            ),
            Load::States => (
                acknowledged,
                "changes",
                "none out of order or twice, everybody ended on the last",
            ),
            Load::EqualStates => (
                self.puts(),
                "PUTs",
                "none a change after the first, nobody heard of another",
            ),
        }
    }

    fn heading(&self) -> String {
        let plan = &self.plan;
        let (subscribers, channels) = (self.plan.subscribers as u64, plan.channels.count as u64);
        let (topic, what) = match plan.load {
            Load::Messages => ("channel", "content"),
            Load::States => ("feed", "state"),
            Load::EqualStates => ("feed", "equal states"),
        };
        let listeners = format!(
            "{} on {}",
            some(subscribers, "subscriber"),
            some(channels, topic)
        );
        let time = self.measured.seconds();
        if self.idle {
            return format!("{listeners}, nothing published for {time} s\n\n");
        }
        let (kind, in_flight) = match plan.via {
            Via::Http => ("HTTP publisher", String::new()),
            Via::Ws => (
                "WebSocket publisher",
                format!(" with {} in flight", plan.in_flight),
            ),
        };
        let publishers = some(plan.publishers as u64, kind) + &in_flight;
        format!(
            "{listeners}, {publishers}, {what} of {} bytes, {time} s\n\n",
            count(plan.content_bytes as u64)
        )
    }
}

fn spread(what: &str, latency: &Histogram) -> String {
    let percentiles = SHARES
        .iter()
        .map(|&(name, share)| (name, latency.percentile(share)));
    let all = percentiles.chain([("max", latency.max())]);
    let shown: Vec<_> = all
        .filter_map(|(name, time)| Some(format!("{name} {:.2}", time?.as_secs_f64() * 1e3)))
        .collect();
    if shown.is_empty() {
        String::new()
    } else {
        format!("; {what}: {} ms", shown.join(", "))
    }
}

fn seconds(time: std::time::Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

/// A number of things.
pub(super) fn some(number: u64, what: &str) -> String {
    format!(
        "{} {what}{}",
        count(number),
        if number == 1 { "" } else { "s" }
    )
}

/// A number with a comma between thousands.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(count(number), text);
        }
    }
}
