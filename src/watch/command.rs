//! A watched command: run by the shell, in bounds of time and output, in a process group of
//! its own. Its children are in that group, unless they leave it (`setsid`).

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// How often a running command is looked at besides when it writes.
const TICK: Duration = Duration::from_millis(20);

/// Buffers read in one go. A pipe holds four of them, so this empties one.
const MAX_READS: usize = 8;

/// Bytes kept of what a command says on standard error.
const MAX_COMPLAINT: usize = 4 << 10;

/// Characters of that in an error.
const MAX_QUOTED: usize = 200;

/// What systemd says to the server alone (sd_listen_fds(3), sd_notify(3)).
const NOT_FOR_COMMANDS: [&str; 6] = [
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// What a command may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) time: Duration,
    /// On standard output.
    pub(super) bytes: usize,
}

/// Runs a command and returns what it printed. Blocks until it ends or is killed: at the end
/// of its time, beyond its output, or when `stopped` has lost its sender.
///
/// # Errors
/// Says how the command failed, with the last line that it printed on standard error.
pub(super) fn run(
    command: &str,
    bounds: Bounds,
    stopped: &Receiver<()>,
) -> Result<Vec<u8>, String> {
    let mut shell = Command::new("/bin/sh");
    for variable in NOT_FOR_COMMANDS {
        shell.env_remove(variable);
    }
    let child = shell
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("the command cannot be started: {error}"))?;
    let mut running = Running {
        child,
        finished: false,
    };
    let mut output = Pipe::new(running.child.stdout.take(), Keep::First(bounds.bytes + 1))?;
    let mut complaint = Pipe::new(running.child.stderr.take(), Keep::Last(MAX_COMPLAINT))?;
    let deadline = Instant::now().checked_add(bounds.time);
    loop {
        // Asked before the pipes are read: what it wrote before its end is then read as well.
        let ended = running
            .has_ended()
            .map_err(|error| format!("the command cannot be waited for: {error}"))?;
        output.read();
        complaint.read();
        if output.kept.len() > bounds.bytes {
            return Err(format!(
                "the command printed more than the {} bytes of --max-body-bytes and was killed",
                bounds.bytes
            ));
        }
        if ended {
            break;
        }
        let left = deadline.map_or(TICK, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        if left.is_zero() {
            return Err(format!(
                "the command did not end within {:?} and was killed{}",
                bounds.time,
                complaint.last_line()
            ));
        }
        if stopped.try_recv() == Err(TryRecvError::Disconnected) {
            return Err("the server is shutting down".to_owned());
        }
        wait(&output, &complaint, TICK.min(left));
    }
    match running.finish() {
        Ok(status) if status.success() => Ok(output.kept),
        Ok(status) => Err(format!(
            "the command failed ({status}){}",
            complaint.last_line()
        )),
        Err(error) => Err(format!("the command cannot be waited for: {error}")),
    }
}

/// A started command. Wherever this ends, what is left in its group ends.
struct Running {
    child: Child,
    finished: bool,
}

impl Running {
    /// Whether the command itself has ended, without taking its status: until that is taken
    /// nobody else gets its number, and the group can be killed.
    fn has_ended(&mut self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(Pid::from_child(&self.child)), options) {
            Ok(status) => Ok(status.is_some()),
            Err(Errno::INTR) => Ok(false),
            Err(error) => {
                // Somebody else takes the status of our children: the number may be another's.
                self.finished = true;
                Err(error.into())
            }
        }
    }

    fn finish(&mut self) -> io::Result<ExitStatus> {
        self.finished = true;
        // What it left running in its group goes with it; else there is nothing left to kill.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.finish();
        }
    }
}

/// One of its outputs, read as it comes and kept up to a bound.
struct Pipe<R> {
    /// `None` when the command has closed it.
    reader: Option<R>,
    kept: Vec<u8>,
    keep: Keep,
}

/// How many bytes of an output are kept.
#[derive(Debug, Clone, Copy)]
enum Keep {
    First(usize),
    /// So many, and up to as many before them.
    Last(usize),
}

impl<R: Read + AsFd> Pipe<R> {
    fn new(reader: Option<R>, keep: Keep) -> Result<Self, String> {
        if let Some(reader) = &reader {
            ioctl_fionbio(reader, true)
                .map_err(|error| format!("the command's output cannot be read: {error}"))?;
        }
        Ok(Self {
            reader,
            kept: Vec::new(),
            keep,
        })
    }

    /// Reads what is there, though no more than a few buffers of it: a command that never
    /// stops writing must not keep its clock from being looked at.
    fn read(&mut self) {
        let mut buffer = [0; 16 << 10];
        for _ in 0..MAX_READS {
            let Some(reader) = &mut self.reader else {
                return;
            };
            match reader.read(&mut buffer) {
                Ok(0) => self.reader = None,
                Ok(count) => self.keep(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.reader = None,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        match self.keep {
            Keep::First(most) => {
                let room = most.saturating_sub(self.kept.len());
                self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Keep::Last(most) => {
                self.kept.extend_from_slice(bytes);
                if self.kept.len() > 2 * most {
                    self.kept.drain(..self.kept.len() - most);
                }
            }
        }
    }

    /// The end of an error's sentence.
    fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!(": {}", line.chars().take(MAX_QUOTED).collect::<String>()),
            None => String::new(),
        }
    }
}

/// Waits until one of the pipes has something, or so long.
fn wait<A: AsFd, B: AsFd>(one: &Pipe<A>, other: &Pipe<B>, timeout: Duration) {
    let mut open = Vec::with_capacity(2);
    open.extend(one.reader.as_ref().map(|it| PollFd::new(it, PollFlags::IN)));
    open.extend(
        other
            .reader
            .as_ref()
            .map(|it| PollFd::new(it, PollFlags::IN)),
    );
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // Interrupted: the caller looks at everything again.
    let _ = poll(&mut open, Some(&timeout));
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        time: Duration::from_secs(20),
        bytes: 100_000,
    };

    fn run_it(command: &str, bounds: Bounds) -> Result<String, String> {
        let (_sender, stopped) = bounded(0);
        run(command, bounds, &stopped).map(|output| String::from_utf8(output).expect("text"))
    }

    #[test]
    fn all_of_the_output_is_returned_and_a_child_left_behind_is_not_waited_for() {
        assert_eq!(
            run_it("printf 12; printf 3 >&2", BOUNDS),
            Ok("12".to_owned())
        );
        let long = run_it("head -c 100000 /dev/zero | tr '\\0' x", BOUNDS);
        assert_eq!(long.map(|output| output.len()), Ok(100_000));
        let start = Instant::now();
        assert_eq!(run_it("sleep 60 & printf 1", BOUNDS), Ok("1".to_owned()));
        assert!(start.elapsed() < BOUNDS.time);
    }

    #[test]
    fn failures_say_how_and_what_the_command_said() {
        for (command, expected) in [
            (
                "echo first >&2; echo 'it broke' >&2; exit 3",
                "exit status: 3): it broke",
            ),
            ("kill -9 $$", "signal: 9"),
            ("no-such-command-here", "exit status: 127): "),
            ("yes", "more than the 100000 bytes"),
            (
                "yes x | head -n 100000 >&2; echo 'real cause' >&2; exit 1",
                "exit status: 1): real cause",
            ),
        ] {
            let error = run_it(command, BOUNDS).expect_err(command);
            assert!(error.contains(expected), "{error}");
        }
    }

    /// A command that was refused for its output had ended by itself, and its status was taken
    /// before its group was killed: what it had left running stayed, at every look.
    #[test]
    fn what_a_refused_command_left_running_is_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let pid = dir.path().join("pid");
        let command = format!(
            "sleep 300 & echo $! >{}; printf %0300d 1; exit 0",
            pid.display()
        );
        let bounds = Bounds {
            bytes: 200,
            ..BOUNDS
        };
        // Many times: it has to be found ended in the same look as its output.
        for _ in 0..20 {
            run_it(&command, bounds).expect_err("too much");
            assert_gone(std::fs::read_to_string(&pid).expect("a pid").trim());
        }
    }

    #[test]
    fn at_the_deadline_the_command_is_killed_with_its_children() {
        let dir = tempfile::tempdir().expect("a directory");
        let pids = dir.path().join("pids");
        // The child ignores the signals that it may ignore, and writes without end.
        let command = format!(
            "trap '' TERM HUP; (trap '' TERM HUP; echo $$ >{0}; exec sleep 300) & echo $! >>{0}; yes >&2",
            pids.display()
        );
        let bounds = Bounds {
            time: Duration::from_secs(3),
            ..BOUNDS
        };
        let error = run_it(&command, bounds).expect_err("a deadline");
        assert!(error.contains("did not end within 3s"), "{error}");
        let pids = std::fs::read_to_string(pids).expect("two pids");
        pids.lines().for_each(assert_gone);
    }

    #[test]
    fn it_is_killed_when_the_server_stops() {
        let (sender, stopped) = bounded(0);
        drop(sender);
        let start = Instant::now();
        assert!(run("sleep 60", BOUNDS, &stopped).is_err());
        assert!(start.elapsed() < BOUNDS.time);
    }

    /// A killed child is gone once init has taken its status.
    fn assert_gone(pid: &str) {
        let start = Instant::now();
        let stat = format!("/proc/{pid}/stat");
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(start.elapsed() < BOUNDS.time, "{pid} still runs");
            std::thread::sleep(TICK);
        }
    }
}
