//! Under systemd: the socket that it makes first, and what it is told of the server.
//!
//! The stories: an audience got refused connections whenever the server was started anew, and
//! `systemctl reload` on a server without tokens ended it. A shell stands in for systemd: it
//! makes the listener descriptor 3 and says so in the environment, as sd_listen_fds(3) has it.

mod common;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use common::tokens::Tokens;
use common::{DEADLINE, Http, Program, eventually};
use rusqlite::Connection;
use rustix::process::Signal;

use tempfile::TempDir;

/// Says that descriptor 3 is for this very process.
const FOR_ME: &str = "export LISTEN_PID=$$ LISTEN_FDS=1;";

#[test]
fn connections_made_before_the_start_are_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (listener, address) = listener();
    let mut early = Http::connect(address);
    early.send("GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let program = start(listener, &dir, &[]);
    assert_eq!(program.address, address);
    assert_eq!(early.response(false).status, 200);
    assert_eq!(program.http().publish("lab", "hello"), 1);
}

#[test]
fn a_restart_refuses_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let (listener, address) = listener();
    let mut first = start(listener.try_clone().expect("a copy"), &dir, &[]);
    assert_eq!(first.http().publish("lab", "before"), 1);
    first.signal(Signal::TERM);
    assert!(first.wait().success());
    let mut between = Http::connect(address);
    between.send("GET /api/messages HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let _second = start(listener, &dir, &[]);
    assert_eq!(between.response(false).json()["head"], 1);
}

#[test]
fn the_address_of_the_socket_decides_who_is_let_in_not_the_flag() {
    let dir = tempfile::tempdir().expect("a directory");
    let (listener, _) = listener();
    // The flag alone would be refused, having no tokens, and would let this host in.
    let program = start(listener, &dir, &["--listen", "0.0.0.0:0"]);
    let request = "GET /api/messages HTTP/1.1\r\nHost: board.example\r\n\r\n";
    let mut http = program.http();
    http.send(request);
    assert_eq!(http.response(false).status, 403);

    let far = TcpListener::bind("0.0.0.0:0").expect("a port");
    let address = far.local_addr().expect("an address");
    let run = refused(FOR_ME, far.into(), 1);
    assert!(
        run.contains(&format!("{address} would let everybody")),
        "{run}"
    );
    assert!(run.contains("--tokens"), "{run}");
}

#[test]
fn what_cannot_be_served_is_refused_in_a_sentence_that_says_what_to_write() {
    let dir = tempfile::tempdir().expect("a directory");
    let tcp = || OwnedFd::from(listener().0);
    let unix = UnixListener::bind(dir.path().join("socket")).expect("a socket");
    let (accepting, address) = listener();
    let accepted = TcpStream::connect(address).expect("a connection");
    let two = "export LISTEN_PID=$$ LISTEN_FDS=2;";
    let many = "export LISTEN_PID=$$ LISTEN_FDS=many;";
    for (words, socket, culprits) in [
        (two, tcp(), ["2 sockets", "one ListenStream="]),
        (many, tcp(), ["LISTEN_FDS", "\"many\""]),
        (FOR_ME, unix.into(), ["not one of TCP", "ListenStream="]),
        (FOR_ME, accepted.into(), ["does not listen", "Accept=yes"]),
    ] {
        let said = refused(words, socket, 2);
        for culprit in culprits {
            assert!(said.contains(culprit), "{culprit} is not in: {said}");
        }
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    drop(accepting);
}

#[test]
fn a_socket_that_is_meant_for_another_process_or_not_there_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    for words in [
        "export LISTEN_PID=1 LISTEN_FDS=1;",
        "export LISTEN_PID= LISTEN_FDS=1;",
        "unset LISTEN_PID; export LISTEN_FDS=1;",
        "export LISTEN_PID=$$ LISTEN_FDS=0;",
    ] {
        let (listener, address) = listener();
        let command = passing(words, listener.into(), &dir, &["--listen", "127.0.0.1:0"]);
        let program = Program::start_command(command);
        assert_ne!(program.address, address, "{words}");
        assert_eq!(program.http().get("/api/health").status, 200, "{words}");
    }
}

#[test]
fn a_watched_command_has_neither_the_socket_nor_the_supervisor() {
    let dir = tempfile::tempdir().expect("a directory");
    let (supervisor, name) = supervisor(&dir);
    let (listener, _) = listener();
    let seen = dir.path().join("seen");
    let watch = format!(
        "seen=exec:(env; ls -l /proc/self/fd) > {}; echo '\"done\"'",
        seen.display()
    );
    let words = format!("{FOR_ME} export LISTEN_FDNAMES=public WATCHDOG_USEC=60000000;");
    let mut command = passing(&words, listener.into(), &dir, &["--watch", &watch]);
    command.env("NOTIFY_SOCKET", name).env("STAYS", "here");
    let program = Program::start_command(command);
    heard(&supervisor);
    let mut subscriber = program.subscribe_feed("seen");
    while subscriber.next()["data"] != "done" {}
    let seen = std::fs::read_to_string(seen).expect("what the command saw");
    assert!(seen.contains("STAYS=here"), "{seen}");
    for private in ["LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "socket:"] {
        assert!(!seen.contains(private), "{private} is in: {seen}");
    }
}

#[test]
fn a_supervisor_hears_of_the_start_of_each_reload_and_of_the_end_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let (supervisor, name) = supervisor(&dir);
    let tokens = Tokens::new();
    let file = tokens.path.to_str().expect("text");
    let mut program = supervised(&name, &dir, &["--tokens", file]);
    let ready = format!("READY=1\nSTATUS=listening on http://{}", program.address);
    assert_eq!(heard(&supervisor), ready);
    // It is true when it is said.
    assert_eq!(program.http().get("/api/health").status, 200);

    let before = monotonic_microseconds();
    program.signal(Signal::HUP);
    let reloading = heard(&supervisor);
    let since = reloading
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .unwrap_or_else(|| panic!("not a reload: {reloading}"));
    let since: i64 = since.parse().expect("a number");
    assert!((before..=monotonic_microseconds()).contains(&since));
    assert!(heard(&supervisor).starts_with("READY=1\n"));

    std::fs::write(&tokens.path, "no token").expect("a file");
    program.signal(Signal::HUP);
    assert!(heard(&supervisor).starts_with("RELOADING=1\n"));
    let failed = heard(&supervisor);
    assert!(
        failed.starts_with("READY=1\nSTATUS=not reloaded: "),
        "{failed}"
    );
    assert!(failed.contains("line 1"), "{failed}");

    program.signal(Signal::TERM);
    assert_eq!(heard(&supervisor), "STOPPING=1\nSTATUS=shutting down");
    assert!(program.wait().success());
}

#[test]
fn a_reload_of_a_server_with_nothing_to_reload_does_not_end_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (supervisor, name) = supervisor(&dir);
    let program = supervised(&name, &dir, &[]);
    assert!(heard(&supervisor).starts_with("READY=1\n"));
    program.signal(Signal::HUP);
    assert!(heard(&supervisor).starts_with("RELOADING=1\n"));
    assert!(heard(&supervisor).starts_with("READY=1\n"));
    assert_eq!(program.http().get("/api/health").status, 200);
}

#[test]
fn a_start_that_fails_is_never_said_to_be_ready() {
    let dir = tempfile::tempdir().expect("a directory");
    let (supervisor, name) = supervisor(&dir);
    let mut command = program(&dir, &["--tokens", "/nonexistent/tokens"]);
    let run = command
        .env("NOTIFY_SOCKET", name)
        .output()
        .expect("it runs");
    assert_eq!(run.status.code(), Some(1));
    supervisor.set_nonblocking(true).expect("a mode");
    let error = supervisor.recv(&mut [0; 64]).expect_err("silence");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[test]
#[cfg(target_os = "linux")]
fn a_supervisor_may_have_a_name_without_a_file() {
    use std::os::linux::net::SocketAddrExt;
    let dir = tempfile::tempdir().expect("a directory");
    let name = format!("threadcast-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let supervisor = UnixDatagram::bind_addr(&address).expect("a socket");
    supervisor
        .set_read_timeout(Some(DEADLINE))
        .expect("a timeout");
    let _program = supervised(&format!("@{name}"), &dir, &[]);
    assert!(heard(&supervisor).starts_with("READY=1\n"));
}

#[test]
fn a_supervisor_that_cannot_be_reached_costs_a_warning_not_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["/nonexistent/notify", "vsock:2:1234"] {
        let program = supervised(name, &dir, &[]);
        assert_eq!(program.http().get("/api/health").status, 200, "{name}");
    }
}

#[test]
fn the_watchdog_hears_nothing_while_the_journal_hangs() {
    let dir = tempfile::tempdir().expect("a directory");
    let (supervisor, name) = supervisor(&dir);
    let mut command = program(&dir, &[]);
    command
        .env("NOTIFY_SOCKET", name)
        .env("WATCHDOG_USEC", "60000");
    let program = Program::start_command(command);
    assert!(heard(&supervisor).starts_with("READY=1\n"));
    for _ in 0..3 {
        assert_eq!(heard(&supervisor), "WATCHDOG=1");
    }

    // Somebody else holds the file, and a commit waits for it.
    let lock = Connection::open(dir.path().join("test.db")).expect("the database");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let address = program.address;
    let publisher = thread::spawn(move || Http::connect(address).publish("lab", "hello"));
    let mut http = program.http();
    eventually("the commit waits", || {
        let health = http.get("/api/health").json();
        health["limits"]["queued_bytes"]["used"] != 0
    });
    // Those that were sent before; one more may be on its way.
    supervisor.set_nonblocking(true).expect("a mode");
    while supervisor.recv(&mut [0; 64]).is_ok() {}
    // Ten times as long as between two of them, and shorter than the commit waits.
    thread::sleep(Duration::from_millis(200));
    let mut said = 0;
    while supervisor.recv(&mut [0; 64]).is_ok() {
        said += 1;
    }
    assert!(!publisher.is_finished(), "the commit did not wait");
    assert!(said <= 1, "{said} times, while nothing could be stored");

    lock.execute_batch("ROLLBACK").expect("the lock");
    assert_eq!(publisher.join().expect("an answer"), 1);
    supervisor.set_nonblocking(false).expect("a mode");
    assert_eq!(heard(&supervisor), "WATCHDOG=1");
}

#[test]
fn a_watchdog_of_another_process_is_not_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (supervisor, name) = supervisor(&dir);
    let mut command = program(&dir, &[]);
    command.env("NOTIFY_SOCKET", name);
    command
        .env("WATCHDOG_USEC", "3000")
        .env("WATCHDOG_PID", "1");
    let mut program = Program::start_command(command);
    assert!(heard(&supervisor).starts_with("READY=1\n"));
    // Time enough for a few words.
    for _ in 0..20 {
        assert_eq!(program.http().get("/api/health").status, 200);
    }
    program.signal(Signal::TERM);
    assert!(program.wait().success());
    assert!(heard(&supervisor).starts_with("STOPPING=1\n"));
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

fn start(listener: TcpListener, dir: &TempDir, args: &[&str]) -> Program {
    Program::start_command(passing(FOR_ME, listener.into(), dir, args))
}

/// The program with this descriptor as its third, started with these words of the shell.
fn passing(words: &str, socket: OwnedFd, dir: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(format!("exec 3<&0 </dev/null; {words} exec \"$@\""))
        .args(["sh", env!("CARGO_BIN_EXE_threadcast"), "serve", "--db"])
        .arg(dir.path().join("test.db"))
        .args(args)
        .stdin(socket);
    command
}

/// What it says, in vain started with this.
fn refused(words: &str, socket: OwnedFd, code: i32) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let run: Output = passing(words, socket, &dir, &[]).output().expect("it runs");
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(code), "{said}");
    assert_eq!(run.stdout, b"");
    said
}

fn program(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--db"]);
    command.arg(dir.path().join("test.db")).args(args);
    command
}

fn supervised(name: &str, dir: &TempDir, args: &[&str]) -> Program {
    let mut command = program(dir, args);
    command.env("NOTIFY_SOCKET", name);
    Program::start_command(command)
}

/// Where a supervisor listens, and its name.
fn supervisor(dir: &TempDir) -> (UnixDatagram, String) {
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    (socket, path.to_str().expect("text").to_owned())
}

fn heard(supervisor: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    loop {
        match supervisor.recv(&mut bytes) {
            Ok(length) => return String::from_utf8_lossy(&bytes[..length]).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("the supervisor hears nothing: {error}"),
        }
    }
}

fn monotonic_microseconds() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}
