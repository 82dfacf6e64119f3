//! Waiting for descriptors, and for the signals that end a client command.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long a command may take to end by itself: a connect or a write may hold it up.
const GRACE: Duration = Duration::from_secs(1);

/// SIGINT or SIGTERM, as a descriptor that becomes readable.
pub(super) struct Stop {
    end: UnixStream,
}

impl Stop {
    /// From now on the two signals no longer end the program at once, but with this code and
    /// at the latest a second later.
    pub(super) fn on_signals(code: i32) -> Result<Self, String> {
        let install = || -> io::Result<Self> {
            let (end, open) = UnixStream::pair()?;
            let mut signals = Signals::new([SIGINT, SIGTERM])?;
            thread::Builder::new()
                .name("signals".to_owned())
                .spawn(move || {
                    signals.forever().next();
                    // The other end sees it.
                    drop(open);
                    thread::sleep(GRACE);
                    process::exit(code);
                })?;
            Ok(Self { end })
        };
        install().map_err(|error| format!("cannot listen for signals: {error}"))
    }

    pub(super) fn has_come(&self) -> bool {
        let mut fds = [PollFd::new(&self.end, PollFlags::IN)];
        wait(&mut fds, Duration::ZERO);
        !fds[0].revents().is_empty()
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

/// Waits until one of the descriptors has something, or so long.
pub(super) fn wait(fds: &mut [PollFd<'_>], timeout: Duration) {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs().min(1 << 30).cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        // Anything but an interruption is left to the call that comes after the wait.
        if poll(fds, Some(&left)) != Err(Errno::INTR) {
            return;
        }
    }
}
