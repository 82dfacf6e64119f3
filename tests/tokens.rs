//! Tokens as their user has them: the command that makes them, the file, what the program says
//! and never says.

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::tokens::{Tokens, bearer};
use common::{Program, Ws, eventually};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::{Value, json};
use threadcast::access::Scope::{Publish, Subscribe};

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
    command.args(args).stdin(Stdio::null());
    command.output().expect("the program runs")
}

fn said(run: &Output) -> String {
    String::from_utf8_lossy(&run.stderr).into_owned()
}

/// Starts that must fail: nothing listens, whatever the address.
fn refused(args: &[&str]) -> String {
    let run = run(&[&["serve", "--db", ":memory:"], args].concat());
    assert_eq!(run.status.code(), Some(1), "{args:?}: {}", said(&run));
    assert_eq!(run.stdout, b"", "{args:?}");
    said(&run)
}

#[test]
fn a_new_token_is_a_secret_shown_once_and_a_line_that_lets_it_in() {
    let tokens = Tokens::new();
    let made = run(&[
        "token",
        "new",
        "--name",
        "ci",
        "--scope",
        "publish,subscribe",
        "--channel",
        "lab-*",
        "--expires",
        "90d",
    ]);
    assert!(made.status.success(), "{}", said(&made));
    let line = String::from_utf8(made.stdout.clone()).expect("text");
    let parsed: Value = serde_json::from_str(&line).expect("one JSON line");
    assert_eq!(parsed["name"], "ci");
    assert_eq!(parsed["scopes"], json!(["publish", "subscribe"]));
    assert_eq!(parsed["channels"], json!(["lab-*"]));
    assert_eq!(parsed["feeds"], Value::Null);
    assert!(
        parsed["expires"]
            .as_str()
            .is_some_and(|it| it.ends_with('Z')),
        "{line}"
    );
    let said = said(&made);
    let secret = said
        .split_whitespace()
        .find(|word| word.starts_with("tc_"))
        .expect("a secret");
    assert_eq!(secret.len(), 3 + 43, "32 bytes in base64url");
    assert!(!line.contains(secret));

    tokens.append(&line);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = Program::start(
        &dir.path().join("test.db"),
        &["--tokens", path(&tokens.path)],
    );
    let mut ws = Ws::open(program.address, &format!("/api/ws/lab-1?token={secret}"));
    ws.send(&json!({"type":"message","author":"ci","content":"built"}));
    assert_eq!(ws.next_message()["content"], "built");
    let answer = program.http().get("/api/ws/lab-1");
    assert_eq!(answer.status, 401, "{}", answer.text());

    let again = run(&["token", "new", "--name", "ci", "--scope", "state"]);
    let line: Value = serde_json::from_slice(&again.stdout).expect("one JSON line");
    assert_eq!(
        (&line["channels"], &line["feeds"]),
        (&json!(["*"]), &json!(["*"]))
    );
    assert_ne!(line["sha256"], parsed["sha256"]);
}

#[test]
fn a_wrong_word_for_a_token_is_named() {
    for (args, named) in [
        (&["--name", "ci"][..], "--scope"),
        (&["--scope", "publish"], "--name"),
        (&["--name", "a b", "--scope", "publish"], "\"a b\""),
        (&["--name", "", "--scope", "publish"], "\"\""),
        (&["--name", "ci", "--scope", "write"], "write"),
        (
            &["--name", "ci", "--scope", "publish", "--expires", "soon"],
            "soon",
        ),
    ] {
        let run = run(&[&["token", "new"], args].concat());
        assert_eq!(run.status.code(), Some(2), "{args:?}");
        assert!(said(&run).contains(named), "{args:?}: {}", said(&run));
        assert!(!said(&run).contains("tc_"), "{args:?}");
    }
}

#[test]
fn a_tokens_file_that_is_not_as_it_should_be_is_refused_with_what_to_do() {
    let tokens = Tokens::new();
    tokens.add("ci", &[Publish], &["*"], &[]);
    let good = fs::read_to_string(&tokens.path).expect("the file");
    let line = good.lines().last().expect("a line");
    let file = path(&tokens.path);
    for mode in [0o640, 0o604, 0o602, 0o660, 0o777] {
        fs::set_permissions(&tokens.path, Permissions::from_mode(mode)).expect("a mode");
        let said = refused(&["--listen", "127.0.0.1:0", "--tokens", file]);
        assert!(
            said.contains(&format!("chmod 600 {file}")),
            "{mode:o}: {said}"
        );
    }
    fs::set_permissions(&tokens.path, Permissions::from_mode(0o600)).expect("a mode");
    let other = line.replace("\"ci\"", "\"other\"");
    let renamed = line.replace(
        &line[line.find("sha256").expect("a hash") + 9..][..8],
        "00000000",
    );
    for (added, named) in [
        ("nonsense", &["line 4", "token new"][..]),
        ("{\"name\":\"x\"}", &["line 4", "sha256"]),
        (
            &line.replace("publish", "write"),
            &["line 4", "write", "subscribe"],
        ),
        (&line.replace("\"ci\"", "\"a b\""), &["line 4", "a b"]),
        (&line.replace("channels", "chanels"), &["line 4", "chanels"]),
        (&line.replace("[\"publish\"]", "[]"), &["line 4", "scopes"]),
        (
            &line.replace('}', ",\"expires\":\"tomorrow\"}"),
            &["line 4", "tomorrow", "2027-"],
        ),
        (&renamed, &["line 4", "name of line 3"]),
        (&other, &["line 4", "secret of line 3"]),
    ] {
        fs::write(&tokens.path, format!("{good}{added}\n")).expect("the file");
        let said = refused(&["--listen", "127.0.0.1:0", "--tokens", file]);
        for part in [&[file], named].concat() {
            assert!(said.contains(part), "no {part} for {added}: {said}");
        }
    }
    let said = refused(&["--listen", "127.0.0.1:0", "--tokens", "/nonexistent/tokens"]);
    assert!(said.contains("/nonexistent/tokens"), "{said}");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let said = refused(&["--listen", "127.0.0.1:0", "--tokens", path(dir.path())]);
    assert!(said.contains("regular file"), "{said}");
}

#[test]
fn beyond_loopback_it_starts_with_tokens_or_when_told_to() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let said = refused(&["--listen", listen]);
        for part in ["--tokens", "--insecure", "127.0.0.1", listen] {
            assert!(said.contains(part), "no {part}: {said}");
        }
    }
    let tokens = Tokens::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    for (args, warns) in [
        (&["--insecure"][..], true),
        (&["--tokens", path(&tokens.path)], false),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
        command
            .args(["--listen", "0.0.0.0:0", "--db", ":memory:"])
            .args(args);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a file"))
            .spawn()
            .expect("the program starts");
        let mut first = [0; 10];
        let mut out = child.stdout.take().expect("a pipe");
        std::io::Read::read_exact(&mut out, &mut first).expect("a start-up line");
        child.kill().expect("a child");
        child.wait().expect("a child");
        let log = fs::read_to_string(&log).expect("the log");
        assert_eq!(
            log.contains("--insecure: everybody"),
            warns,
            "{args:?}: {log}"
        );
    }
}

/// At the most talkative level, over every way a secret can come, right and wrong.
#[test]
fn no_secret_is_ever_logged() {
    let tokens = Tokens::new();
    let secret = tokens.add("ci", &[Publish, Subscribe], &["lab"], &["board"]);
    let wrong = format!("{secret}x");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    let args = ["--tokens", path(&tokens.path), "--log-level", "trace"];
    let mut program = Program::start_logging(&dir.path().join("test.db"), &args, &log);
    let mut encoded = Vec::new();
    for secret in [&secret, &wrong] {
        let basic = BASE64.encode(format!("u:{secret}").as_bytes());
        let protocol = BASE64URL_NOPAD.encode(secret.as_bytes());
        for value in [
            bearer(secret),
            format!("Basic {basic}"),
            format!("Digest {secret}"),
        ] {
            let headers = [("Authorization", value.as_str())];
            program
                .http()
                .request("GET", "/api/messages?channel_id=lab", &headers, b"");
            program.http().request("GET", "/nope", &headers, b"");
        }
        for target in [
            format!("/api/messages?channel_id=lab&token={secret}"),
            format!("/api/ws/lab?token={secret}"),
            format!("/nope?token={secret}"),
            format!("/api/messages?channel_id=%zz&token={secret}"),
            format!("/api/messages?token=%zz{secret}"),
            format!("api/messages?token={secret}"),
            format!("ws://u:{secret}@localhost/api/ws/lab?token={secret}"),
            format!("http://u:{secret}@localhost/api/channels"),
        ] {
            program.http().get(&target);
        }
        let protocols = format!("threadcast, bearer.{protocol}");
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", protocols.as_str()),
        ];
        program.http().request("GET", "/api/ws/lab", &headers, b"");
        encoded.extend([basic, protocol]);
    }
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(0));
    let log = fs::read_to_string(&log).expect("the log");
    assert!(log.contains("refused"), "it logs what it refuses: {log}");
    for text in [&secret[3..], &wrong]
        .into_iter()
        .chain(encoded.iter().map(|it| &it[..]))
    {
        assert!(!log.contains(text), "{text} is in the log: {log}");
    }
}

/// SIGHUP again and again while everybody publishes: nothing of those who stay is lost, whoever
/// is revoked is closed.
#[test]
fn sighup_under_load_ends_the_revoked_and_loses_nothing_of_the_others() {
    let tokens = Tokens::new();
    let stays = tokens.add("stays", &[Publish, Subscribe], &["lab"], &[]);
    let goes = tokens.add("goes", &[Publish, Subscribe], &["lab"], &[]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    let args = ["--tokens", path(&tokens.path)];
    let program = Program::start_logging(&dir.path().join("test.db"), &args, &log);
    let address = program.address;
    let open = move |secret: &str| Ws::open(address, &format!("/api/ws/lab?token={secret}"));
    let mut staying = open(&stays);
    let mut going: Vec<Ws> = (0..5).map(|_| open(&goes)).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut ws = open(&stays);
            let mut last = 0;
            while !done.load(Ordering::SeqCst) {
                ws.send(&json!({"type":"message","author":"a","content":"x","ref":1}));
                last = loop {
                    let frame = ws.next();
                    if frame["type"] == "ack" {
                        break frame["id"].as_u64().expect("an id");
                    }
                };
            }
            last
        });
        for _ in 0..20 {
            let heard = staying.next_message()["id"].as_u64();
            program.signal(Signal::HUP);
            assert!(heard.is_some());
        }
        tokens.remove("goes");
        program.signal(Signal::HUP);
        for ws in &mut going {
            assert_eq!(until_closed(ws), Some(1008));
        }
        done.store(true, Ordering::SeqCst);
        let last = publisher.join().expect("the publisher");
        let mut id = 20;
        while id < last {
            id += 1;
            assert_eq!(staying.next_message()["id"], id);
        }
    });
    // One that is broken is said to be, and the tokens stay what they were.
    tokens.append("nonsense\n");
    program.signal(Signal::HUP);
    eventually("the log tells of the broken line", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("stays as it was"))
    });
    let mut after = open(&stays);
    after.send(&json!({"type":"message","author":"a","content":"after"}));
    assert_eq!(after.next_message()["content"], "after");
}

/// Opening a pipe waits for whoever writes to it: the signals behind it were never heard.
#[test]
fn a_pipe_in_place_of_the_tokens_file_holds_nothing_up() {
    let tokens = Tokens::new();
    let secret = tokens.add("ci", &[Subscribe], &["*"], &[]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    let args = ["--tokens", path(&tokens.path)];
    let mut program = Program::start_logging(&dir.path().join("test.db"), &args, &log);
    fs::remove_file(&tokens.path).expect("the file");
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, &tokens.path, FileType::Fifo, mode, 0).expect("a pipe");
    program.signal(Signal::HUP);
    eventually("the log tells that it is no file", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("not a regular file"))
    });
    let answer = program.http().get(&format!("/api/channels?token={secret}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(0));
    refused(&["--listen", "127.0.0.1:0", "--tokens", path(&tokens.path)]);
}

/// The code of the close frame behind whatever messages come before it.
fn until_closed(ws: &mut Ws) -> Option<u16> {
    loop {
        match ws.read().expect("a close frame before the end") {
            tungstenite::Message::Close(frame) => return frame.map(|frame| frame.code.into()),
            _ => continue,
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
