//! The loaded server: a child process or one that runs already, and what it uses.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, kill_process};

use super::{Args, connect};

/// The server under load; one of our own ends with this value.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// The process whose use is reported.
    pub(super) pid: Option<i32>,
    _own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    child: Child,
    /// Kept open: the server may print more than the line that is read here.
    _stdout: ChildStdout,
    _directory: Directory,
}

impl Server {
    /// Finds the server of `--url` or starts one.
    pub(super) fn new(args: &Args) -> Result<Self, String> {
        if let Some(url) = &args.url {
            return Ok(Self {
                address: connect::address(url)?,
                pid: args.pid,
                _own: None,
            });
        }
        let directory = Directory::create()?;
        let database = args
            .db
            .clone()
            .unwrap_or_else(|| directory.0.join("bench.db"));
        let mut child = start(args.server.as_deref(), &database, &args.server_flags)?;
        let stdout = child
            .stdout
            .take()
            .ok_or("the server's standard output is no pipe")?;
        let pid = Pid::from_child(&child).as_raw_nonzero().get();
        let mut own = Own {
            child,
            _stdout: stdout,
            _directory: directory,
        };
        let address = own.read_address()?;
        Ok(Self {
            address,
            pid: Some(pid),
            _own: Some(own),
        })
    }
}

fn start(program: Option<&Path>, database: &Path, flags: &[String]) -> Result<Child, String> {
    let program = match program {
        Some(program) => program.to_owned(),
        None => std::env::current_exe()
            .map_err(|error| format!("can't find this program's file: {error}"))?,
    };
    Command::new(&program)
        .args(["serve", "--listen", "127.0.0.1:0", "--db"])
        .arg(database)
        .args(flags)
        // It is measured in plain, whatever the environment says of other servers.
        .env_remove("THREADCAST_TLS_CERT")
        .env_remove("THREADCAST_TLS_KEY")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("can't start {}: {error}", program.display()))
}

impl Own {
    fn read_address(&mut self) -> Result<SocketAddr, String> {
        let mut pipe = [PollFd::new(&self._stdout, PollFlags::IN)];
        let patience = Timespec {
            tv_sec: connect::PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        let said = retry_on_intr(|| poll(&mut pipe, Some(&patience)));
        if !matches!(said, Ok(1)) {
            return Err(format!(
                "the server did not say where it listens within {:?}",
                connect::PATIENCE
            ));
        }
        let mut line = String::new();
        BufReader::new(&mut self._stdout)
            .read_line(&mut line)
            .map_err(|error| format!("can't read the server's first line: {error}"))?;
        listening_on(&line).ok_or_else(|| match self.child.try_wait() {
            _ if line.is_empty() => {
                "the server ended before it listened; see its message above".to_owned()
            }
            _ => format!("no `listening on http://ADDRESS,` in the server's first line: {line}"),
        })
    }
}

fn listening_on(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listening on http://")?;
    rest.split([',', ' ', '/', '\n']).next()?.parse().ok()
}

impl Drop for Own {
    /// Asks it to end, as SIGTERM does, and ends it for sure after [`connect::PATIENCE`].
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < connect::PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory of our own in the system's place for temporary files, removed at the end.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn create() -> Result<Self, String> {
        // A run that was killed has left its own, and its number is given to others again.
        let mut attempt = 0;
        loop {
            let name = format!("threadcast-bench-{}-{attempt}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                Err(error) => return Err(format!("can't create {}: {error}", path.display())),
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a process uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// User and system time since its start.
    pub(super) cpu: Duration,
    pub(super) resident_kib: u64,
    pub(super) threads: u64,
    /// Open files and sockets; `None` for a process of somebody else.
    pub(super) descriptors: Option<u64>,
}

impl Usage {
    pub(super) fn of(pid: i32) -> Result<Self, String> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path)
                .map_err(|error| format!("can't read {path} (has the process ended?): {error}"))
        };
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok();
        let usage = Self::parse(&read("stat")?, &read("status")?)
            .ok_or_else(|| format!("can't understand /proc/{pid}/stat"))?;
        Ok(Self {
            descriptors: open.map(|open| open.count() as u64),
            ..usage
        })
    }

    /// See proc_pid_stat(5): the fields after the command, which ends at the last parenthesis,
    /// start with the third; user time is the 14th, system time the 15th, threads the 20th.
    fn parse(stat: &str, status: &str) -> Option<Self> {
        /// Linux shows CPU time in hundredths of a second (`USER_HZ`) whatever its own tick is.
        const TICK: Duration = Duration::from_millis(10);
        let (_, fields) = stat.rsplit_once(')')?;
        let field = |number: usize| {
            fields
                .split_ascii_whitespace()
                .nth(number - 3)?
                .parse::<u32>()
                .ok()
        };
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(Self {
            cpu: TICK * (field(14)? + field(15)?),
            resident_kib: resident.trim().strip_suffix(" kB")?.parse().ok()?,
            threads: u64::from(field(20)?),
            descriptors: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_the_start_up_line() {
        let line = "threadcast 0.1.0 listening on http://127.0.0.1:40001, database /tmp/x.db\n";
        assert_eq!(
            listening_on(line),
            Some(SocketAddr::from(([127, 0, 0, 1], 40_001)))
        );
        assert_eq!(listening_on("threadcast: port in use\n"), None);
        assert_eq!(listening_on(""), None);
    }

    #[test]
    fn what_another_run_has_left_is_in_nobody_s_way() {
        let [one, two] = [(); 2].map(|()| Directory::create().expect("a directory"));
        assert_ne!(one.0, two.0);
        let path = one.0.clone();
        drop(one);
        assert!(!path.exists() && two.0.exists());
    }

    #[test]
    fn usage_is_read_whatever_the_command_is_called() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 900 0 0 0 250 150 0 0 20 0 12 0 100 1000 200";
        let usage =
            Usage::parse(stat, "Name:\ta\nVmRSS:\t    5120 kB\nThreads:\t12\n").expect("numbers");
        assert_eq!(usage.cpu, Duration::from_secs(4));
        assert_eq!((usage.resident_kib, usage.threads), (5120, 12));
    }

    #[test]
    fn this_process_uses_memory_and_a_thread() {
        let usage = Usage::of(std::process::id() as i32).expect("this process");
        assert!(usage.resident_kib > 100 && usage.threads >= 1);
        assert!(usage.descriptors >= Some(3));
    }
}
