//! What the program and systemd say to each other: the socket that is passed
//! (sd_listen_fds(3)), and how the server is (sd_notify(3)). Any supervisor may speak it.

use std::env;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use rustix::time::{ClockId, clock_gettime};
use threadcast::server::Probe;

/// Longest time that a supervisor who does not read holds the server up.
const PATIENCE: Duration = Duration::from_secs(1);

/// The socket that whoever started the program made for it, if there is one. Takes what said
/// so out of the environment: call it before there is another thread.
///
/// # Errors
/// A sentence that says what was passed and what would be right.
pub(super) fn passed_socket() -> Result<Option<TcpListener>, String> {
    if !is_for_this_process("LISTEN_PID") {
        return Ok(None);
    }
    let number = env::var("LISTEN_FDS").unwrap_or_default();
    match number.parse::<u32>() {
        Ok(0) => return Ok(None),
        Ok(1) => {}
        Ok(number) => {
            return Err(format!(
                "{number} sockets were passed (LISTEN_FDS), and the server listens on one: leave one ListenStream= in the .socket unit"
            ));
        }
        Err(_) => {
            return Err(format!(
                "LISTEN_FDS is {number:?}; it must be the number of sockets that are passed"
            ));
        }
    }
    let wrong = |found: &str| {
        format!(
            "the socket that was passed {found}: the .socket unit needs ListenStream= with a port, or an address and a port, and no Accept=yes"
        )
    };
    let socket = ListenFd::from_env()
        .take_tcp_listener(0)
        .map_err(|_| wrong("is not one of TCP"))?;
    if let Some(socket) = &socket
        && !socket_acceptconn(socket).unwrap_or(false)
    {
        return Err(wrong("does not listen"));
    }
    Ok(socket)
}

/// Whoever is told how the server is; nobody, unless `NOTIFY_SOCKET` names one.
pub(super) struct Supervisor {
    listening: Option<(UnixDatagram, SocketAddr)>,
}

impl Supervisor {
    /// As the environment says. One that cannot be reached is logged.
    pub(super) fn of_this_process() -> Self {
        let Ok(name) = env::var("NOTIFY_SOCKET") else {
            return Self { listening: None };
        };
        let connected = address(&name).and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok((socket, address))
        });
        Self {
            listening: connected
                .inspect_err(|error| {
                    log::warn!("nobody is told of the start: NOTIFY_SOCKET is {name:?}: {error}")
                })
                .ok(),
        }
    }

    /// Whether there is anybody.
    pub(super) fn is_there(&self) -> bool {
        self.listening.is_some()
    }

    /// The server serves, from the start or again.
    pub(super) fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={}", status.replace('\n', " ")));
    }

    /// It reads its files anew; [`Self::ready`] follows. The time is what tells systemd that this
    /// answers its SIGHUP (systemd.service(5), `Type=notify-reload`).
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// It shuts down.
    pub(super) fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=shutting down");
    }

    /// Says that the server works, as long as it answers; ends when what comes back is dropped.
    /// `None` when nobody has asked for that (sd_watchdog_enabled(3)).
    pub(super) fn watch(&self, probe: Probe) -> Option<Sender<()>> {
        let (socket, address) = self.listening.as_ref()?;
        let limit = watchdog_limit()?;
        let supervisor = Self {
            listening: Some((socket.try_clone().ok()?, address.clone())),
        };
        let (stop, stopped) = bounded(0);
        let work = move || {
            while stopped.recv_timeout(limit / 3) == Err(RecvTimeoutError::Timeout) {
                // Asked in vain, it never says anything any more.
                if probe.is_answered() {
                    supervisor.say("WATCHDOG=1");
                }
            }
        };
        let started = thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(work);
        started
            .inspect_err(|error| log::error!("the watchdog cannot be told anything: {error}"))
            .ok()?;
        Some(stop)
    }

    fn say(&self, sentence: &str) {
        let Some((socket, address)) = &self.listening else {
            return;
        };
        if let Err(error) = socket.send_to_addr(sentence.as_bytes(), address) {
            log::warn!("the supervisor was not told {sentence:?}: {error}");
        }
    }
}

/// A path, or a name of Linux' own that begins with `@`.
fn address(name: &str) -> io::Result<SocketAddr> {
    if name.starts_with('/') {
        return SocketAddr::from_pathname(name);
    }
    #[cfg(target_os = "linux")]
    if let Some(name) = name.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt;
        return SocketAddr::from_abstract_name(name);
    }
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "it must be a path, or a name that begins with @",
    ))
}

/// How long the supervisor waits for a word.
fn watchdog_limit() -> Option<Duration> {
    if env::var_os("WATCHDOG_PID").is_some() && !is_for_this_process("WATCHDOG_PID") {
        return None;
    }
    let microseconds = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some(Duration::from_micros(microseconds)).filter(|limit| !limit.is_zero())
}

/// A child has its parent's environment, but not its number.
fn is_for_this_process(variable: &str) -> bool {
    env::var(variable).is_ok_and(|number| number == std::process::id().to_string())
}
