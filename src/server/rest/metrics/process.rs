//! What the system knows of this process, by the names that Prometheus' client libraries give it.
//!
//! Linux tells in files; what is not there is left out.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::exposition::Exposition;

/// Clock ticks a second in `/proc`, on every architecture (proc(5), USER_HZ).
const TICKS: f64 = 100.0;

pub(super) fn process(page: &mut Exposition) {
    let process = Process::now();
    if let Some(seconds) = process.cpu_seconds {
        page.counter(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            seconds,
        );
    }
    for (name, help, value) in [
        (
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            process.resident_bytes,
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            process.virtual_bytes,
        ),
        (
            "process_threads",
            "Number of OS threads in the process.",
            process.threads,
        ),
        (
            "process_open_fds",
            "Number of open file descriptors.",
            process.open_fds,
        ),
        (
            "process_max_fds",
            "Maximum number of open file descriptors.",
            process.max_fds,
        ),
    ] {
        page.known_gauge(name, help, value);
    }
    page.known_gauge(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        process.start_time,
    );
}

/// The process as it is now.
#[derive(Debug, Default)]
struct Process {
    /// Seconds on the processors, in user and system.
    cpu_seconds: Option<f64>,
    /// When it was started, in seconds since 1970.
    start_time: Option<f64>,
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    threads: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

impl Process {
    fn now() -> Self {
        let mut process = Self {
            open_fds: open_fds(),
            max_fds: getrlimit(Resource::Nofile).current,
            ..Self::default()
        };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        process.resident_bytes = field("VmRSS:").map(|kib| kib << 10);
        process.virtual_bytes = field("VmSize:").map(|kib| kib << 10);
        process.threads = field("Threads:");
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        process.cpu_seconds = ticks(&stat, 14).zip(ticks(&stat, 15)).map(|(a, b)| a + b);
        process.start_time = ticks(&stat, 22)
            .zip(boot_time())
            .map(|(since, boot)| boot + since);
        process
    }
}

/// A field of `/proc/self/stat` in seconds, by its number in proc_pid_stat(5).
fn ticks(stat: &str, number: usize) -> Option<f64> {
    // The second one is a name, which may have anything in it; it ends with the last `)`.
    let (_, fields) = stat.rsplit_once(')')?;
    let field = fields.split_whitespace().nth(number - 3)?;
    Some(field.parse::<f64>().ok()? / TICKS)
}

/// When the machine started, in seconds since 1970 (proc_stat(5)).
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

/// Since Linux 6.2 the directory's size is their number; to list them takes a while when there
/// are tens of thousands.
fn open_fds() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    let size = fs::metadata(DIRECTORY).ok()?.len();
    if size > 0 {
        return Some(size);
    }
    // Without the one that the list itself takes.
    Some((fs::read_dir(DIRECTORY).ok()?.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_moves_no_field() {
        let fields: Vec<String> = (4..=22).map(|number| (number * 100).to_string()).collect();
        let stat = format!("7 (a) b) S {}", fields.join(" "));
        assert_eq!(ticks(&stat, 14), Some(14.0));
        assert_eq!(ticks(&stat, 22), Some(22.0));
        assert_eq!(ticks("", 14), None);
    }
}
