//! Where the machine ends: the limits that it tells, and the one that is met first.

use std::fs;
use std::process::{Command, Output};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::common::{PROGRAM, shown};

/// Descriptors that are asked for; the hard limit of most systems, or above.
const WANTED_DESCRIPTORS: u64 = 1 << 16;
/// Connections beside the subscribers: publishers, and those that are about to end.
const OTHERS: usize = 32;

/// Raises the descriptor limit as far as this user may, and tells it and others that bound connections.
pub(crate) fn limits() -> String {
    let wanted = Some(WANTED_DESCRIPTORS);
    let raised = Rlimit {
        current: wanted,
        maximum: wanted,
    };
    let before = getrlimit(Resource::Nofile);
    // None is no limit.
    let is_low = before.maximum.is_some_and(|most| most < WANTED_DESCRIPTORS);
    let note = match is_low.then(|| setrlimit(Resource::Nofile, raised)) {
        Some(Err(error)) => format!(" (could not be raised to {WANTED_DESCRIPTORS}: {error})"),
        _ => String::new(),
    };
    let number = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |most| most.to_string());
    let file = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let words: Vec<_> = text.split_whitespace().collect();
        if words.is_empty() {
            "unknown".to_owned()
        } else {
            words.join(" – ")
        }
    };
    let memory = |field: &str| {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap_or("unknown").trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    [
        format!("cores {cores}"),
        format!(
            "memory {}, available {}",
            memory("MemTotal:"),
            memory("MemAvailable:")
        ),
        format!(
            "descriptors of a process {}{note}",
            number(getrlimit(Resource::Nofile).maximum)
        ),
        format!(
            "processes and threads of the user {}",
            number(getrlimit(Resource::Nproc).current)
        ),
        format!(
            "kernel.threads-max {}",
            file("/proc/sys/kernel/threads-max")
        ),
        format!("kernel.pid_max {}", file("/proc/sys/kernel/pid_max")),
        format!("vm.max_map_count {}", file("/proc/sys/vm/max_map_count")),
        format!(
            "net.ipv4.ip_local_port_range {}",
            file("/proc/sys/net/ipv4/ip_local_port_range")
        ),
        format!(
            "net.ipv4.tcp_mem pages {}",
            file("/proc/sys/net/ipv4/tcp_mem")
        ),
    ]
    .join("; ")
}

/// So many subscribers, or as many as the server says that it has room for.
pub(crate) fn fitting(wanted: usize) -> usize {
    match capacity(&said(&connect(1, wanted + OTHERS))) {
        Some(most) if most < wanted + OTHERS => most.saturating_sub(OTHERS),
        _ => wanted,
    }
}

/// Connects ever more idle subscribers until they do not fit, and prints how that ends.
pub(crate) fn search(most: usize) {
    println!("| idle WebSockets | |");
    println!("|---:|---|");
    let steps = [most / 6, most / 3, most / 2, most * 2 / 3, most];
    for number in steps {
        let output = connect(number, number + OTHERS);
        let said = said(&output);
        // A lower one than was asked for.
        let limit = said
            .lines()
            .find(|line| line.contains("connections at most, not"));
        let limit = limit
            .and_then(|line| line.split_once("] "))
            .map(|(_, text)| text);
        let end = match (output.status.success(), said.lines().last()) {
            (true, _) => "all connected",
            (false, last) => last.unwrap_or("ended without a word"),
        };
        let details = [Some(end), limit].into_iter().flatten();
        println!(
            "| {} | {} |",
            shown(Some(number as f64), 0),
            details.collect::<Vec<_>>().join("; ")
        );
        if !output.status.success() {
            break;
        }
    }
    println!();
}

fn connect(subscribers: usize, room: usize) -> Output {
    let command = Command::new(PROGRAM)
        .args([
            "bench",
            "--json",
            "--idle-seconds",
            "0.2",
            "--warmup-seconds",
            "0",
        ])
        .args(["--subscribers", &subscribers.to_string()])
        .args(["--", "--max-connections", &room.to_string()])
        .args(["--max-subscribers", &room.to_string()])
        .output();
    command.expect("the program of this build can be started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The number in `N connections at most`, if the server says so.
fn capacity(said: &str) -> Option<usize> {
    let (before, _) = said.split_once(" connections at most")?;
    before.rsplit(' ').next()?.parse().ok()
}
