//! The program as its user meets it: what it says, what it takes, how it fails and how it ends.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::system::own_address;
use common::{DEADLINE, Http, Program, eventually};
use rusqlite::Connection;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::Signal;
use serde_json::{Value, json};
use threadcast::config::Limits;
use tungstenite::Message;

/// Arguments for a program on a free port that leaves no file.
const IN_MEMORY: &str = "--listen 127.0.0.1:0 --db :memory:";

#[test]
fn it_says_where_it_listens_which_database_and_a_curl_line_that_works_as_pasted() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("said.db");
    let (program, said) = start(threadcast_on(&database));
    assert!(
        said.contains(&format!("listening on http://{}", program.address)),
        "{said}"
    );
    assert!(said.contains(text(&database)), "{said}");

    let curl = &said[said.find("curl ").expect("a curl line")..];
    let answer: Value = if Command::new("curl").arg("--version").output().is_ok() {
        let run = Command::new("sh")
            .args(["-c", curl])
            .output()
            .expect("a shell");
        assert!(run.status.success(), "{curl}: {run:?}");
        serde_json::from_slice(&run.stdout).expect("JSON")
    } else {
        by_hand(curl)
    };
    assert_eq!(answer["success"], true, "{answer}");
    let stored = program.http().get("/api/messages").json();
    assert_eq!(stored["messages"], json!([answer["message"]]));
}

#[test]
fn without_subcommand_and_database_it_serves_from_threadcast_db_right_here() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = threadcast("--listen 127.0.0.1:0");
    command.current_dir(dir.path());
    let (program, said) = start(command);
    assert!(said.contains("threadcast.db"), "{said}");
    program.http().publish("lab", "hello");
    assert_eq!(rows(&dir.path().join("threadcast.db")), ["hello"]);
}

#[test]
fn the_database_called_memory_is_in_memory() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = threadcast("serve --listen 127.0.0.1:0 --db :memory:");
    command.current_dir(dir.path());
    let (mut program, said) = start(command);
    assert!(said.contains("memory"), "{said}");
    let mut listener = program.subscribe("lab");
    let id = program.http().publish("lab", "hello");
    assert_eq!(listener.next_message()["id"], id);
    assert_eq!(program.http().get("/api/messages").json()["head"], id);
    drop(listener);
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(0));
    assert!(list(dir.path()).is_empty(), "it leaves a file");
}

#[test]
fn help_names_every_flag_and_its_environment_variable() {
    for args in ["--help", "serve --help"] {
        let run = run(threadcast(args));
        assert_eq!(run.status.code(), Some(0));
        let help = String::from_utf8(run.stdout).expect("text");
        for (flag, _) in flags() {
            for name in [variable(&flag), flag] {
                assert!(help.contains(&name), "{name} is missing in {args}:\n{help}");
            }
        }
        for word in [
            "127.0.0.1:8010",
            "threadcast.db",
            ":memory:",
            "normal",
            "full",
        ] {
            assert!(help.contains(word), "{word} is missing in {args}:\n{help}");
        }
    }
}

#[test]
fn version_is_the_crates() {
    let run = run(threadcast("--version"));
    assert_eq!(run.status.code(), Some(0));
    assert_eq!(
        run.stdout,
        concat!("threadcast ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()
    );
}

#[test]
fn every_limit_has_a_flag_that_takes_its_default() {
    let mut command = threadcast(IN_MEMORY);
    for (flag, default) in flags() {
        command.args(default.map(|default| [flag, default]).into_iter().flatten());
    }
    let (program, _) = start(command);
    program.http().publish("lab", "hello");
}

#[test]
fn times_and_sizes_are_taken_with_their_units() {
    let units = "--ping-interval 150ms --idle-timeout 1s --body-timeout 2m \
                 --max-head-bytes 4096 --max-body-bytes 64KiB --max-page-bytes 4MiB";
    let (program, _) = start(threadcast(&format!("{IN_MEMORY} --sync full {units}")));
    assert_limits_are_kept(&program, 4096, 64 << 10);
    let start = Instant::now();
    let mut idle = program.http();
    assert_eq!(idle.get("/api/health").status, 200);
    assert!(idle.closed());
    assert!(start.elapsed() < DEADLINE / 2, "an idle connection stayed");
}

#[test]
fn every_setting_can_come_from_the_environment_and_a_flag_wins() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (log, database) = (dir.path().join("log"), dir.path().join("environment.db"));
    let mut command = threadcast("--max-body-bytes 2KiB");
    command.stderr(File::create(&log).expect("a file")).envs([
        ("THREADCAST_LISTEN", "127.0.0.1:0"),
        ("THREADCAST_DB", text(&database)),
        ("THREADCAST_SYNC", "full"),
        ("THREADCAST_LOG_LEVEL", "debug"),
        ("THREADCAST_DRAIN", "700ms"),
        ("THREADCAST_MAX_BODY_BYTES", "1KiB"),
        ("THREADCAST_MAX_HEAD_BYTES", "2048"),
        ("THREADCAST_PING_INTERVAL", "150ms"),
    ]);
    let (mut program, _) = start(command);
    assert_limits_are_kept(&program, 2048, 2 << 10);
    assert_eq!(rows(&database).len(), 1);
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(0));
    let log = fs::read_to_string(log).expect("the log");
    for part in ["DEBUG", "conn-"] {
        assert!(log.contains(part), "no {part} in the log: {log}");
    }
}

#[test]
fn a_log_level_of_error_says_nothing_while_all_is_well() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    let mut command = threadcast(&format!("{IN_MEMORY} --log-level error"));
    command.stderr(File::create(&log).expect("a file"));
    let (mut program, _) = start(command);
    let listener = program.subscribe("lab");
    program.http().publish("lab", "hello");
    drop(listener);
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(0));
    assert_eq!(fs::read_to_string(log).expect("the log"), "");
}

#[test]
fn a_wrong_flag_value_or_variable_is_named_in_a_sentence_and_exits_2() {
    const OUT_OF_RANGE: [&str; 3] = [
        "99999999999999999999999",
        "18446744073709551615GiB",
        "1e999s",
    ];
    let mut wrong = Vec::new();
    for word in ["--no-such-flag", "dance", "--db"] {
        wrong.push((threadcast(word), [word.to_owned(), word.to_owned()]));
    }
    for (flag, _) in flags().filter(|(flag, _)| flag != "--db") {
        let names = [flag.clone(), variable(&flag)];
        let mut command = threadcast("");
        command.env(variable(&flag), "nonsense");
        wrong.push((command, names.clone()));
        let out_of_range = OUT_OF_RANGE
            .into_iter()
            .filter(|_| flag == "--drain" || flag == "--max-body-bytes");
        for value in ["nonsense", "-1", "", "5parsecs"]
            .into_iter()
            .chain(out_of_range)
        {
            wrong.push((threadcast(&format!("{flag}={value}")), names.clone()));
        }
    }
    for (command, names) in wrong {
        let what = format!("{command:?}");
        let run = run(command);
        let said = String::from_utf8(run.stderr).expect("text");
        assert_eq!(run.status.code(), Some(2), "{what}: {said}");
        let sentence = said.lines().next().unwrap_or_default();
        assert!(
            names.iter().any(|name| sentence.contains(name)),
            "{what}: {said}"
        );
        assert_eq!(run.stdout, b"", "{what}");
    }
}

#[test]
fn a_port_in_use_is_named_in_one_sentence_and_exits_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    assert_refused(
        threadcast(&format!("--db :memory: --listen {address}")),
        &address,
    );
}

#[test]
fn a_file_that_is_no_database_of_ours_is_refused_by_name_and_left_as_it_was() {
    const REST: &str = "channel_id TEXT NOT NULL, author TEXT NOT NULL, content TEXT NOT NULL,
        timestamp TEXT NOT NULL, lane TEXT, provider TEXT, token_count INTEGER";
    const DATABASES: [(&str, &str); 10] = [
        (
            "newer",
            "CREATE TABLE messages (id INTEGER PRIMARY KEY, REST); PRAGMA user_version = 999",
        ),
        ("newer, empty", "PRAGMA user_version = 999"),
        (
            "newer, wal",
            "PRAGMA journal_mode = WAL; PRAGMA user_version = 999",
        ),
        (
            "foreign",
            "CREATE TABLE messages (id INTEGER PRIMARY KEY, subject TEXT)",
        ),
        (
            "lacking",
            "CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT, author, content)",
        ),
        (
            "view",
            "CREATE TABLE m (id INTEGER PRIMARY KEY, REST); CREATE VIEW messages AS SELECT * FROM m",
        ),
        (
            "text ids",
            "CREATE TABLE messages (id TEXT PRIMARY KEY, REST)",
        ),
        (
            "ids given twice",
            "CREATE TABLE messages (id INTEGER PRIMARY KEY, REST)",
        ),
        (
            "without rowid",
            "CREATE TABLE messages (id INTEGER PRIMARY KEY, REST) WITHOUT ROWID",
        ),
        (
            "more",
            "CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT, REST, kind TEXT NOT NULL)",
        ),
    ];
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("short text"), "no database").expect("a file");
    fs::write(dir.path().join("long text"), "no database, ".repeat(10_000)).expect("a file");
    for (name, sql) in DATABASES {
        let db = Connection::open(dir.path().join(name)).expect("a database");
        db.execute_batch(&sql.replace("REST", REST))
            .expect("a schema");
    }
    let missing = [
        dir.path().to_owned(),
        dir.path().join("no such directory/new.db"),
    ];
    for path in list(dir.path()).into_iter().chain(missing) {
        let before = fs::read(&path).ok();
        assert_refused(threadcast_on(&path), text(&path));
        assert!(
            fs::read(&path).ok() == before,
            "changed: {}",
            path.display()
        );
    }
    let files = list(dir.path());
    assert_eq!(
        files.len(),
        DATABASES.len() + 2,
        "files were left beside: {files:?}"
    );
}

#[test]
fn a_closed_standard_output_does_not_end_it() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    lives_and_ends_well("warn", |command| {
        command.stdout(writer).stderr(Stdio::null())
    });
}

/// `threadcast 2>&1 | head`: whoever has read enough leaves, and the next log line fails.
#[test]
fn a_closed_standard_error_does_not_end_it() {
    for level in ["info", "trace"] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        lives_and_ends_well(level, |command| {
            command.stdout(Stdio::null()).stderr(writer)
        });
    }
}

#[test]
fn sigterm_and_sigint_close_everybody_with_1001_and_exit_0_well_before_the_drain_is_over() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let database = dir.path().join("ended.db");
        let mut program = Program::start(&database, &["--drain", "60s"]);
        let subscribers = ["one", "two", "two"].map(|channel| program.subscribe(channel));
        let mut idle = program.http();
        idle.publish("one", "stored");
        let never_said_a_word = program.http();

        let start = Instant::now();
        program.signal(signal);
        for mut subscriber in subscribers {
            assert_eq!(subscriber.close_code(), Some(1001), "{signal:?}");
        }
        assert_eq!(program.wait().code(), Some(0), "{signal:?}");
        assert_less(start.elapsed(), DEADLINE);
        assert!(idle.closed());
        drop(never_said_a_word);
        assert_eq!(
            list(dir.path()),
            [database.as_path()],
            "all is checkpointed into one file"
        );
        assert_eq!(rows(&database), ["stored"]);
    }
}

/// A closed terminal sends SIGHUP; `nohup` has it ignored.
#[test]
fn with_nothing_to_reload_sighup_ends_it_like_sigterm_unless_it_was_started_with_nohup() {
    for nohup in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = dir.path().join("log");
        let mut command = Command::new("sh");
        let run = match nohup {
            true => "trap '' HUP; exec",
            // The tests themselves may have been started with nohup.
            false if ignores_hangup() => "exec env --default-signal=HUP",
            false => "exec",
        };
        command
            .args(["-c", &format!("{run} \"$@\""), "sh"])
            .arg(env!("CARGO_BIN_EXE_threadcast"))
            .args(IN_MEMORY.split_whitespace())
            .stderr(File::create(&log).expect("a file"));
        let (mut program, _) = start(command);
        let mut subscriber = program.subscribe("lab");
        program.signal(Signal::HUP);
        if nohup {
            subscriber.is_quiet();
            program.signal(Signal::TERM);
        }
        assert_eq!(subscriber.close_code(), Some(1001));
        assert_eq!(program.wait().code(), Some(0));
        let log = fs::read_to_string(log).expect("the log");
        assert_eq!(log.contains("SIGHUP"), !nohup, "{log}");
        assert_eq!(log.contains("SIGTERM"), nohup, "{log}");
    }
}

/// Whether this process, and so its children, ignores SIGHUP.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 != 0)
}

#[test]
fn half_a_pair_of_tls_files_is_refused_with_the_flag_that_is_missing() {
    for (given, missing) in [("--tls-cert", "--tls-key"), ("--tls-key", "--tls-cert")] {
        let run = run(threadcast(&format!("{given} file.pem")));
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("needs {missing}")), "{said}");
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_says_how_to_make_one_that_has_it() {
    assert_refused(
        threadcast(&format!(
            "{IN_MEMORY} --tls-cert cert.pem --tls-key key.pem"
        )),
        "cargo build --release --features tls",
    );
}

#[test]
fn a_request_in_flight_is_stored_heard_and_answered_before_the_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("in flight.db");
    let mut program = Program::start(&database, &["--drain", "10s"]);
    let mut listener = program.subscribe("lab");
    let (mut in_flight, lock) = hold_a_request_in_flight(&program, &database);
    program.signal(Signal::TERM);
    await_the_end_of_the_listener(&program);
    lock.execute_batch("ROLLBACK").expect("an unlock");

    let response = in_flight.response(false);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(listener.next_message(), response.json()["message"]);
    assert_eq!(listener.close_code(), Some(1001));
    drop((listener, lock));
    assert_eq!(program.wait().code(), Some(0));
    assert_eq!(rows(&database), ["in flight"]);
}

#[test]
fn stalled_clients_do_not_hold_up_the_end_past_the_drain() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("stalled.db");
    let mut program = Program::start(&database, &["--drain", "1s"]);
    let never_answers = program.subscribe("quiet");
    let never_reads = program.subscribe("lab");
    set_socket_recv_buffer_size(never_reads.socket.get_ref(), 4096).expect("a buffer");
    let mut half_a_head = program.http();
    half_a_head.send("POST /api/messages HTTP/1.1\r\nHost:");
    let mut half_a_body = program.http();
    let head = "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n";
    half_a_body.send(format!("{head}{{"));
    let mut http = program.http();
    for _ in 0..40 {
        http.publish("lab", &"x".repeat(100_000));
    }
    let mut unread_answer = program.http();
    set_socket_recv_buffer_size(&unread_answer.stream, 4096).expect("a buffer");
    unread_answer.send("GET /api/messages HTTP/1.1\r\nHost: localhost\r\n\r\n");
    unread_answer
        .stream
        .read_exact(&mut [0])
        .expect("the answer begins");

    let start = Instant::now();
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(0));
    // Less than the 10 s that a head and a write have.
    assert_less(start.elapsed(), Duration::from_secs(8));
    assert_eq!(rows(&database).len(), 40);
    drop((
        never_answers,
        never_reads,
        half_a_head,
        half_a_body,
        unread_answer,
    ));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("impatient.db");
    let mut program = Program::start(&database, &["--drain", "60s"]);
    let never_reads = program.subscribe("lab");
    let (in_flight, lock) = hold_a_request_in_flight(&program, &database);
    program.signal(Signal::TERM);
    await_the_end_of_the_listener(&program);
    let ended = program.child.try_wait().expect("a child");
    assert_eq!(ended, None, "it waits for the request in flight");

    let start = Instant::now();
    program.signal(Signal::TERM);
    program.wait();
    assert_less(start.elapsed(), DEADLINE);
    drop((never_reads, in_flight, lock));
}

/// Starts a program that may not be able to say where it listens, and sees it work and end.
fn lives_and_ends_well(log_level: &str, streams: impl FnOnce(&mut Command) -> &mut Command) {
    let port = TcpListener::bind((own_address(), 0)).expect("a port");
    let address = port.local_addr().expect("an address");
    drop(port);
    let args = format!("--listen {address} --db :memory: --log-level {log_level}");
    let child = streams(&mut threadcast(&args)).spawn();
    let child = child.expect("the program starts");
    let mut program = Program { child, address };

    eventually("it listens", || {
        let ended = program.child.try_wait().expect("a child");
        assert_eq!(ended, None, "it ended at log level {log_level}");
        TcpStream::connect(address).is_ok()
    });
    let mut listener = program.subscribe("lab");
    let id = program.http().publish("lab", "hello");
    assert_eq!(listener.next_message()["id"], id);
    program.signal(Signal::TERM);
    assert_eq!(listener.close_code(), Some(1001));
    drop(listener);
    assert_eq!(program.wait().code(), Some(0));
}

/// A POST to `lab` that the program has begun to read, and that can't be committed before the lock is given back.
fn hold_a_request_in_flight(program: &Program, database: &Path) -> (Http, Connection) {
    let lock = Connection::open(database).expect("a database");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let body = json!({"channel_id": "lab", "author": "a", "content": "in flight"}).to_string();
    let mut http = program.http();
    let head =
        "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length";
    http.send(format!("{head}: {}\r\n\r\n", body.len()));
    assert_eq!(http.response(false).status, 100);
    http.send(body);
    (http, lock)
}

fn await_the_end_of_the_listener(program: &Program) {
    let refused = || TcpStream::connect(program.address).is_err();
    eventually("it accepts nobody any more", refused);
}

/// The program with these words as arguments, and nothing of the caller's environment that it would read.
fn threadcast(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("THREADCAST_")) {
        command.env_remove(name);
    }
    command.args(args.split_whitespace());
    command
}

/// The program on a free port, with this database.
fn threadcast_on(database: &Path) -> Command {
    let mut command = threadcast("--listen 127.0.0.1:0 --db");
    command.arg(database);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// The files of a directory, sorted.
fn list(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

/// Every flag; one for a field of [`Limits`] with its default as that is printed: `10000`, `75s`.
fn flags() -> impl Iterator<Item = (String, Option<String>)> {
    let limits = format!("{:?}", Limits::default());
    let limits = limits
        .trim_start_matches("Limits { ")
        .trim_end_matches(" }")
        .split(", ");
    let limits: Vec<_> = limits
        .map(|field| field.split_once(": ").expect("name: value"))
        .map(|(name, value)| {
            (
                format!("--{}", name.replace('_', "-")),
                Some(value.to_owned()),
            )
        })
        .collect();
    assert!(limits.contains(&("--ping-interval".to_owned(), Some("25s".to_owned()))));
    #[rustfmt::skip]
    let others = ["--listen", "--db", "--sync", "--tls-cert", "--tls-key", "--log-level", "--drain"];
    others
        .into_iter()
        .map(|flag| (flag.to_owned(), None))
        .chain(limits)
}

/// `THREADCAST_PING_INTERVAL` for `--ping-interval`.
fn variable(flag: &str) -> String {
    flag.replacen("--", "THREADCAST_", 1)
        .replace('-', "_")
        .to_uppercase()
}

/// Runs a command that must end by itself.
fn run(mut command: Command) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > DEADLINE {
            child.kill().expect("a child");
            panic!("it did not end: {command:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("its output")
}

/// Starts a command and reads what it says on standard output, up to the end of its curl line.
fn start(mut command: Command) -> (Program, String) {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || lines.for_each(|line| drop(sender.send(line.expect("text")))));
    let mut program = Program {
        child,
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
    };
    let mut said = String::new();
    while !said.contains("curl ") || said.ends_with("\\\n") {
        match receiver.recv_timeout(DEADLINE) {
            Ok(line) => said = said + &line + "\n",
            Err(_) => panic!("no curl line: {said}"),
        }
    }
    let address = said
        .split("listening on http://")
        .nth(1)
        .unwrap_or_default();
    let end = address.find(|c: char| !c.is_ascii_digit() && !"[:].".contains(c));
    let address = address[..end.unwrap_or_default()]
        .trim_end_matches('.')
        .parse();
    program.address = address.unwrap_or_else(|error| panic!("{error}: {said}"));
    (program, said)
}

/// Does what a curl line says where there is no curl.
fn by_hand(curl: &str) -> Value {
    // A function of that name shows the words as the shell understands them.
    let show = format!("curl() {{ printf '%s\\n' \"$@\"; }}\n{curl}");
    let run = Command::new("sh")
        .args(["-c", &show])
        .output()
        .expect("a shell");
    let words = String::from_utf8(run.stdout).expect("text");
    let words: Vec<&str> = words.lines().collect();
    let url = words
        .iter()
        .find_map(|word| word.strip_prefix("http://"))
        .expect("a URL");
    let (address, target) = url.split_once('/').expect("a path");
    let body = words
        .iter()
        .find(|word| word.starts_with('{'))
        .expect("a body");
    let body = serde_json::from_str(body).expect("JSON");
    let mut http = Http::connect(address.parse().expect("an address"));
    http.post_json(&format!("/{target}"), &body).json()
}

/// The contents of all messages, read from the file.
fn rows(database: &Path) -> Vec<String> {
    let db = Connection::open(database).expect("a database");
    let mut select = db
        .prepare("SELECT content FROM messages ORDER BY id")
        .expect("a statement");
    let rows = select.query_map((), |row| row.get(0)).expect("rows");
    rows.map(|row| row.expect("text")).collect()
}

/// `--max-head-bytes` and `--max-body-bytes` are these, and `--ping-interval` is well below a second.
fn assert_limits_are_kept(program: &Program, max_head: usize, max_body: usize) {
    let status_with = |head: String| {
        let mut http = program.http();
        http.send(head);
        http.response(false).status
    };
    let with_header = |length: usize| {
        let head = "GET /api/health HTTP/1.1\r\nHost: localhost\r\nX: ";
        format!("{head}{}\r\n\r\n", "x".repeat(length - head.len() - 4))
    };
    assert_eq!(status_with(with_header(max_head)), 200);
    assert_eq!(status_with(with_header(max_head + 1)), 431);

    let body = json!({"channel_id": "limits", "author": "a", "content": ""}).to_string();
    let body = body.replace(
        r#""content":"""#,
        &format!(r#""content":"{}""#, "x".repeat(max_body - body.len())),
    );
    let with_length = |length: usize| {
        format!(
            "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    assert_eq!(status_with(with_length(max_body) + &body), 200);
    assert_eq!(status_with(with_length(max_body + 1)), 413);

    let start = Instant::now();
    let mut silent = program.subscribe("silent");
    let first = loop {
        match silent.socket.read() {
            // A signal to this process, such as the end of another test's child.
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
            other => break other.expect("a frame before the deadline"),
        }
    };
    assert!(matches!(first, Message::Ping(_)), "{first:?}");
    assert_less(start.elapsed(), DEADLINE);
}

fn assert_less(took: Duration, limit: Duration) {
    assert!(took < limit, "it took {took:?}");
}

/// A program that can't start ends with code 1 and one sentence, which names the culprit.
fn assert_refused(command: Command, culprit: &str) {
    let run = run(command);
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{culprit}: {said}");
    assert_eq!(
        said.trim_end().lines().count(),
        1,
        "not one sentence: {said}"
    );
    assert!(said.contains(culprit), "{culprit}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(run.stdout, b"", "{culprit}");
}
