//! The rows of the figures: what is run, which numbers of it count, and what they are to reach.

use super::common::shown;

/// One shape of load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    /// Short, to choose it by.
    pub(crate) key: &'a str,
    pub(crate) name: &'a str,
    /// For `threadcast bench`.
    pub(crate) flags: &'a str,
    /// The numbers that are compared and have targets.
    pub(crate) figures: &'a [Figure],
    /// Whether the floor can carry it: it knows one channel, and no WebSocket publisher.
    pub(crate) has_floor: bool,
}

/// A number in the report of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) heading: &'static str,
    /// Where it is in the report.
    pub(crate) place: &'static str,
    pub(crate) decimals: usize,
    pub(crate) target: Target,
}

/// What a number is to reach.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    None,
    AtLeast(f64),
    AtMost(f64),
    /// So many times the floor's at most, measured in the same pair.
    TimesFloor(f64),
}

use Target::{AtLeast, AtMost, TimesFloor};

/// A number of a report without its target.
pub(crate) const fn figure(
    heading: &'static str,
    place: &'static str,
    decimals: usize,
    target: Target,
) -> Figure {
    Figure {
        heading,
        place,
        decimals,
        target,
    }
}

const fn deliveries(target: Target) -> Figure {
    figure("deliveries/s", "/deliveries_per_second", 0, target)
}

const fn posts(target: Target) -> Figure {
    figure("POST/s", "/messages_per_second", 0, target)
}

const fn cpu(target: Target) -> Figure {
    figure(
        "CPU s per million",
        "/server/cpu_seconds_per_million_deliveries",
        2,
        target,
    )
}

const CPU_PER_MESSAGE: Figure = figure(
    "CPU µs per message",
    "/server_cpu_microseconds_per_message",
    1,
    Target::None,
);
const ANSWER: Figure = figure("answer p50 ms", "/publish_ms/p50", 3, Target::None);

/// Loads with messages. Where publishers go as fast as answers come they wait for the subscribers, who share
/// the machine and would else be outrun: an answer means stored, not delivered.
pub(crate) const MESSAGES: [Row<'static>; 11] = [
    Row {
        key: "http1",
        name: "1,000 subscribers, 1 HTTP publisher",
        flags: "--publishers 1 --max-behind 1000",
        figures: &[deliveries(AtLeast(1.5e6)), cpu(Target::None), ANSWER],
        has_floor: true,
    },
    Row {
        key: "http8",
        name: "1,000 subscribers, 8 HTTP publishers",
        flags: "--publishers 8 --max-behind 1000",
        figures: &[deliveries(AtLeast(4e6)), cpu(Target::None), ANSWER],
        has_floor: true,
    },
    Row {
        key: "ws16",
        name: "1,000 subscribers, 1 WebSocket publisher, 16 in flight",
        flags: "--via ws --in-flight 16 --max-behind 1000",
        figures: &[deliveries(AtLeast(5e6)), cpu(Target::None), ANSWER],
        has_floor: false,
    },
    Row {
        key: "rate20",
        name: "1,000 subscribers, 20 messages/s",
        flags: "--rate 20",
        figures: &[
            figure("arrival p50 ms", "/delivery_ms/p50", 2, TimesFloor(1.1)),
            figure("arrival p99 ms", "/delivery_ms/p99", 2, TimesFloor(1.1)),
            cpu(AtMost(4.0)),
        ],
        has_floor: true,
    },
    Row {
        key: "small-http8",
        name: "100 subscribers, 8 HTTP publishers",
        flags: "--subscribers 100 --publishers 8 --max-behind 1000",
        figures: &[deliveries(AtLeast(3e6)), cpu(Target::None), ANSWER],
        has_floor: true,
    },
    Row {
        key: "small-ws16",
        name: "100 subscribers, 1 WebSocket publisher, 16 in flight",
        flags: "--subscribers 100 --via ws --in-flight 16 --max-behind 1000",
        figures: &[deliveries(AtLeast(5e6)), cpu(Target::None), ANSWER],
        has_floor: false,
    },
    Row {
        key: "post1",
        name: "no subscriber, 1 HTTP publisher",
        flags: "--subscribers 0 --publishers 1",
        figures: &[posts(AtLeast(10_000.0)), CPU_PER_MESSAGE, ANSWER],
        has_floor: true,
    },
    Row {
        key: "post8",
        name: "no subscriber, 8 HTTP publishers",
        flags: "--subscribers 0 --publishers 8",
        figures: &[posts(AtLeast(45_000.0)), CPU_PER_MESSAGE, ANSWER],
        has_floor: true,
    },
    Row {
        key: "post8-alone",
        name: "the same, one commit per message",
        flags: "--subscribers 0 --publishers 8 -- --max-batch 1",
        figures: &[posts(Target::None), CPU_PER_MESSAGE, ANSWER],
        has_floor: false,
    },
    Row {
        key: "ws-none",
        name: "no subscriber, 1 WebSocket publisher, 16 in flight",
        flags: "--subscribers 0 --via ws --in-flight 16",
        figures: &[
            figure("messages/s", "/messages_per_second", 0, Target::None),
            CPU_PER_MESSAGE,
        ],
        has_floor: false,
    },
    Row {
        key: "idle",
        name: "1,000 idle subscribers",
        flags: "--idle-seconds 5",
        figures: &[figure(
            "KiB per subscriber",
            "/server/kib_per_subscriber",
            1,
            AtMost(12.0),
        )],
        has_floor: true,
    },
];

impl Figure {
    /// The number with its decimals.
    pub(crate) fn shown(&self, number: Option<f64>) -> String {
        shown(number, self.decimals)
    }

    /// The target in words, and whether it is reached by this number, which is so many times the
    /// floor's; empty when there is none.
    pub(crate) fn verdict(&self, number: Option<f64>, times_floor: Option<f64>) -> String {
        let (words, is_reached) = match self.target {
            Target::None => return String::new(),
            AtLeast(least) => (
                format!("at least {}", self.shown(Some(least))),
                number.map(|number| number >= least),
            ),
            AtMost(most) => (
                format!("at most {}", self.shown(Some(most))),
                number.map(|number| number <= most),
            ),
            TimesFloor(most) => (
                format!("at most × {most:.2} the floor's"),
                times_floor.map(|times| times <= most),
            ),
        };
        match is_reached {
            Some(true) => format!("{words}: yes"),
            Some(false) => format!("{words}: **no**"),
            None => words,
        }
    }
}
