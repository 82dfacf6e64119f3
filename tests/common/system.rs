//! What the system knows of a running program and allows it: descriptors, threads, memory.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use rustix::process::{Pid, Resource, Rlimit, geteuid, getrlimit, prlimit, setrlimit};

use super::Program;

/// A user whom every limit binds.
const NOBODY: u32 = 65_534;

impl Program {
    /// Its descriptors (`fd`) or threads (`task`), as /proc shows them.
    pub fn entries(&self, what: &str) -> impl Iterator<Item = PathBuf> {
        let path = format!("/proc/{}/{what}", self.child.id());
        let entries = fs::read_dir(path).expect("a running program");
        entries.map(|entry| entry.expect("an entry").path())
    }

    /// Threads, and descriptors that are no files: the store opens one more whenever it likes.
    pub fn threads_and_sockets(&self) -> (usize, usize) {
        let is_no_file = |fd: &PathBuf| fs::read_link(fd).is_ok_and(|link| link.is_relative());
        let sockets = self.entries("fd").filter(is_no_file).count();
        (self.entries("task").count(), sockets)
    }

    /// How much the most memory it ever had has grown, in bytes, since it was `before`.
    ///
    /// The kernel takes that maximum now and then, from counters of each processor that it does
    /// not add up exactly: a later one may be some pages smaller.
    pub fn peak_growth(&self, before: u64) -> u64 {
        self.peak_memory().saturating_sub(before)
    }

    /// The most memory it ever had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("a running program");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.expect("a number of kB") << 10
    }

    /// Sets a limit while the program runs, the one it may not raise left alone; returns what
    /// it was.
    pub fn limit(&self, resource: Resource, current: Option<u64>) -> Option<u64> {
        let pid = Some(Pid::from_child(&self.child));
        let maximum = getrlimit(resource).maximum;
        let limit = Rlimit { current, maximum };
        prlimit(pid, resource, limit)
            .expect("a child's limit can be set")
            .current
    }
}

impl Program {
    /// Why [`Self::start_bound`] may not be possible.
    pub const NOT_BOUND: &str =
        "no `prlimit`, or root, whom no limit of threads binds, may not become somebody else";

    /// A program that [`Self::limit_threads`] binds, with the database `test.db` in this
    /// directory; `None` for the reason of [`Self::NOT_BOUND`].
    pub fn start_bound(dir: &Path, args: &[&str]) -> Option<Self> {
        let probe = ordinary("prlimit").output();
        if !probe.is_ok_and(|run| run.status.success()) {
            return None;
        }
        // Where the other user may read it, too.
        let program = dir.join("threadcast");
        let built = env!("CARGO_BIN_EXE_threadcast");
        fs::hard_link(built, &program)
            .or_else(|_| fs::copy(built, &program).map(drop))
            .expect("a copy");
        if geteuid().is_root() {
            chown(dir, Some(NOBODY), Some(NOBODY)).expect("an owner");
        }
        let mut command = ordinary(program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--db"]);
        command.arg(dir.join("test.db")).args(args);
        Some(Self::start_command(command))
    }

    /// How many threads its user may have from now on; `None` for as many as there may be.
    pub fn limit_threads(&self, number: Option<u64>) {
        let number = number.or(getrlimit(Resource::Nproc).maximum);
        let number = number.map_or("unlimited".to_owned(), |number| number.to_string());
        let pid = self.child.id().to_string();
        let mut prlimit = ordinary("prlimit");
        prlimit.args(["--pid", &pid, &format!("--nproc={number}:")]);
        assert!(prlimit.status().expect("prlimit").success());
    }
}

/// Lets the test itself have as many descriptors as it may.
pub fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).expect("a limit up to the maximum");
}

/// An address of this machine that nobody else uses: a port that was free there is so still. On
/// 127.0.0.1 the other tests' servers take ports all the time, and one of them would be taken
/// for what was to start.
pub fn own_address() -> Ipv4Addr {
    static USED: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(
        127,
        64 | high & 63,
        low,
        USED.fetch_add(1, Ordering::Relaxed),
    )
}

/// Says why a test does not test here, past the harness, which would keep it to itself.
///
/// Panics where `THREADCAST_TEST_ALL` is set: there the gate must not pass without it.
pub fn skipped(why: &str) {
    let name = thread::current().name().unwrap_or_default().to_owned();
    let must_test = std::env::var_os("THREADCAST_TEST_ALL").is_some();
    assert!(!must_test, "{name} cannot test here: {why}");
    let _ = writeln!(io::stderr(), "SKIPPED {name}: {why}");
}

/// A command for a user other than root: bound by every limit, and able to set those of its own.
fn ordinary(command: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(command);
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// A clock of the program's own, by a library that is loaded before the system's.
pub struct FakeClock {
    library: PathBuf,
    seconds: PathBuf,
}

impl FakeClock {
    const SOURCE: &str = r#"
        #include <fcntl.h>
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>

        int clock_gettime(clockid_t id, struct timespec *now) {
            int failed = syscall(SYS_clock_gettime, id, now);
            if (failed || id != CLOCK_REALTIME) return failed;
            char seconds[32] = "";
            int file = open(getenv("FAKE_CLOCK"), O_RDONLY | O_CLOEXEC);
            if (file >= 0 && read(file, seconds, sizeof seconds - 1) > 0)
                now->tv_sec += atol(seconds);
            close(file);
            return 0;
        }
    "#;

    /// `None` without a C compiler.
    pub fn new(dir: &Path) -> Option<Self> {
        let [source, library, seconds] = ["clock.c", "clock.so", "ahead"].map(|it| dir.join(it));
        fs::write(&source, Self::SOURCE).expect("a file");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o"]);
        let built = cc.arg(&library).arg(source).output();
        let clock = Self { library, seconds };
        clock.set_ahead(0);
        built.is_ok_and(|run| run.status.success()).then_some(clock)
    }

    pub fn start(&self, database: &Path, args: &[&str]) -> Program {
        let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--db"]);
        command.arg(database).args(args);
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKE_CLOCK", &self.seconds);
        Program::start_command(command)
    }

    /// How far it goes ahead of the machine's from now on; negative for behind.
    pub fn set_ahead(&self, seconds: i64) {
        // In one step: the program reads it at any moment.
        let new = self.seconds.with_extension("new");
        fs::write(&new, seconds.to_string()).expect("a file");
        fs::rename(new, &self.seconds).expect("a file");
    }
}
