//! What is scaled: subscribers, channels, sizes; each at a fixed rate, for the cost, and flat out, for the throughput.

use crate::common::shown;

/// Loads that differ in one thing.
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) loads: Vec<Load>,
}

pub(crate) struct Load {
    pub(crate) name: String,
    pub(crate) subscribers: usize,
    /// For `threadcast bench`.
    pub(crate) flags: String,
    /// Whether it is to be seen beside the floor, what grows there as well.
    pub(crate) has_floor: bool,
}

/// Deliveries per second at which costs are compared: what these cores carry in every shape.
const RATE: usize = 20_000;
/// The same where each of them is a message of its own, or a long one.
const LOW_RATE: usize = 5_000;
/// Messages that subscribers may be behind flat out: so many, but on their way to all together a million.
const MOST_BEHIND: usize = 1000;
const MOST_UNDER_WAY: usize = 1_000_000;
const MOST_BYTES_BEHIND: usize = 4 << 20;

/// One channel, 200 bytes.
pub(crate) fn subscribers(most: usize) -> Section {
    let numbers = up_to(most, &[10, 100, 1000, 5000]);
    let mut loads = Vec::new();
    for &number in &numbers {
        let rate = RATE as f64 / number as f64;
        loads.push(beside_floor(load(
            number,
            "subscribers, 20,000 deliveries/s",
            &format!("--rate {rate}"),
        )));
    }
    for &number in &numbers {
        let behind = behind(number);
        loads.push(load(
            number,
            "subscribers, 1 WebSocket publisher, 16 in flight",
            &format!("--via ws --in-flight 16 --max-behind {behind}"),
        ));
    }
    Section {
        name: "subscribers",
        title: "one channel, 200 bytes",
        loads,
    }
}

/// As many subscribers on ever more channels, then ever more channels with one each.
pub(crate) fn channels(most: usize) -> Section {
    let mut loads = Vec::new();
    for channels in up_to(most, &[1, 100]) {
        let rate = LOW_RATE as f64 * channels as f64 / most as f64;
        loads.push(load(
            most,
            &format!("subscribers on {}, 5,000 deliveries/s", some(channels)),
            &format!("--channels {channels} --publishers 8 --rate {rate}"),
        ));
    }
    for channels in up_to(most, &[1, 100]) {
        let behind = (behind(most) * channels).min(MOST_BEHIND);
        loads.push(load(
            most,
            &format!("subscribers on {}, 8 HTTP publishers", some(channels)),
            &format!("--channels {channels} --publishers 8 --max-behind {behind}"),
        ));
    }
    for channels in up_to(most, &[1, 100, 1000]) {
        loads.push(load(
            channels,
            &format!("on {}, one each, 2,000 messages/s", some(channels)),
            &format!("--channels {channels} --publishers 8 --rate 2000"),
        ));
    }
    Section {
        name: "channels",
        title: "channels, 200 bytes",
        loads,
    }
}

/// 100 subscribers of one channel.
pub(crate) fn sizes() -> Section {
    const SUBSCRIBERS: usize = 100;
    let sizes = [100, 1 << 10, 4 << 10, 16 << 10, 64 << 10];
    let rate = LOW_RATE / SUBSCRIBERS;
    let mut loads = Vec::new();
    for size in sizes {
        loads.push(beside_floor(load(
            SUBSCRIBERS,
            &format!("subscribers, {} bytes, 5,000 deliveries/s", grouped(size)),
            &format!("--content-bytes {size} --rate {rate}"),
        )));
    }
    for size in sizes {
        let behind = (MOST_BYTES_BEHIND / size).min(MOST_BEHIND);
        loads.push(load(
            SUBSCRIBERS,
            &format!(
                "subscribers, {} bytes, 1 WebSocket publisher, 16 in flight",
                grouped(size)
            ),
            &format!("--content-bytes {size} --via ws --in-flight 16 --max-behind {behind}"),
        ));
    }
    Section {
        name: "sizes",
        title: "one channel",
        loads,
    }
}

fn load(subscribers: usize, what: &str, flags: &str) -> Load {
    Load {
        name: format!("{} {what}", grouped(subscribers)),
        subscribers,
        flags: format!("--subscribers {subscribers} {flags}"),
        has_floor: false,
    }
}

fn beside_floor(load: Load) -> Load {
    Load {
        has_floor: true,
        ..load
    }
}

fn behind(subscribers: usize) -> usize {
    (MOST_UNDER_WAY / subscribers).min(MOST_BEHIND)
}

/// Those below the greatest, and that.
fn up_to(most: usize, numbers: &[usize]) -> Vec<usize> {
    let below = numbers.iter().copied().filter(|number| *number < most);
    below.chain([most]).collect()
}

fn some(channels: usize) -> String {
    match channels {
        1 => "1 channel".to_owned(),
        _ => format!("{} channels", grouped(channels)),
    }
}

fn grouped(number: usize) -> String {
    shown(Some(number as f64), 0)
}
