//! `threadcast pub`: 0 means that every line is stored; anything else says what is not known.

mod common;

use std::net::TcpStream;
use std::thread;

use common::cli::{Client, Fake, threadcast};
use common::{Program, TestServer};
use rustix::process::Signal;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

/// The contents of a channel, in the order in which they are stored.
fn contents(server: &TestServer, channel: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut since = 0;
    loop {
        let target = format!("/api/messages?channel_id={channel}&limit=1000&since={since}");
        let page = server.http().get(&target).json()["messages"].clone();
        let page = page.as_array().expect("a list");
        let Some(last) = page.last() else { return all };
        since = last["id"].as_u64().expect("an id");
        all.extend(
            page.iter()
                .map(|it| it["content"].as_str().expect("a text").to_owned()),
        );
    }
}

/// The next frame that a publisher sent.
fn frame(socket: &mut WebSocket<TcpStream>) -> Value {
    let text = socket.read().expect("a frame").into_text().expect("text");
    serde_json::from_str(text.as_str()).expect("JSON")
}

fn answer(socket: &mut WebSocket<TcpStream>, answer: &Value) {
    socket
        .send(Message::text(answer.to_string()))
        .expect("a client");
}

#[test]
fn one_text_is_one_message_with_the_fields_that_the_flags_say() {
    let server = TestServer::start();
    let fields = "--author ada --lane llm --provider openai --token-count -3 --ids";
    let mut args = vec!["pub", "a/b ü", "two\nlines\u{7}"];
    args.extend(fields.split(' '));
    let client = Client::start(server.address, &args);
    let id: u64 = client.line().parse().expect("an id");
    assert_eq!(client.end(), (Some(0), vec![], vec![]));
    let stored = server.http().get("/api/messages").json()["messages"][0].clone();
    let expected = json!({
        "id": id, "channel_id": "a/b ü", "author": "ada", "content": "two\nlines\u{7}", "lane": "llm",
        "provider": "openai", "token_count": -3, "timestamp": stored["timestamp"],
    });
    assert_eq!(stored, expected);

    for (user, author) in [(Some("grace"), "grace"), (None, "threadcast")] {
        let mut command = threadcast(&["pub", "lab", "hi"]);
        command
            .env_remove("USER")
            .envs(user.map(|name| ("USER", name)));
        command.args(["--url", &format!("ws://{}/", server.address)]);
        let run = command.output().expect("a run");
        assert!(run.status.success() && run.stdout.is_empty(), "{run:?}");
        let messages = server.http().get("/api/messages?channel_id=lab").json()["messages"].clone();
        let last = messages.as_array().and_then(|all| all.last()).expect("one");
        assert_eq!(last["author"], author);
    }
}

#[test]
fn ten_thousand_lines_are_all_stored_in_their_order_and_nothing_is_said() {
    let server = TestServer::start();
    let mut client = Client::start(server.address, &["pub", "lab"]);
    let lines: Vec<String> = (0..10_000).map(|number| format!("line {number}")).collect();
    // The last without a line end.
    client.write(lines.join("\n"));
    assert_eq!(client.end(), (Some(0), vec![], vec![]));
    assert_eq!(contents(&server, "lab"), lines);

    let mut client = Client::start(server.address, &["pub", "den"]);
    client.write("a\r\n\nb\n");
    assert_eq!(client.end(), (Some(0), vec![], vec![]));
    assert_eq!(contents(&server, "den"), ["a", "", "b"]);
    // No line, no message.
    let client = Client::start(server.address, &["pub", "none"]);
    assert_eq!(client.end(), (Some(0), vec![], vec![]));
}

#[test]
fn a_line_is_published_when_it_is_there_and_not_when_the_input_ends() {
    let server = TestServer::start();
    let mut listener = server.subscribe("lab");
    let mut client = Client::start(server.address, &["pub", "lab", "--ids"]);
    for text in ["one", "two"] {
        client.write(format!("{text}\n"));
        let message = listener.next_message();
        assert_eq!(message["content"], text);
        assert_eq!(client.line(), message["id"].to_string());
    }
    client.signal(Signal::INT);
    let said = client.error();
    assert!(
        said.contains("interrupted; 2 messages were acknowledged, nothing after line 2"),
        "{said}"
    );
    assert_eq!(client.end(), (Some(1), vec![], vec![]));
}

#[test]
fn at_a_line_that_cannot_be_sent_it_ends_with_all_before_it_acknowledged() {
    let server = TestServer::start();
    let mut client = Client::start(server.address, &["pub", "lab"]);
    client.write(b"one\ntwo\nthr\xffee\nfour\n");
    let (code, _, said) = client.end();
    assert_eq!(code, Some(1));
    let expected = "threadcast: line 3 is not UTF-8 (byte 4); 2 messages were acknowledged, nothing after line 2 was sent";
    assert_eq!(said, [expected]);
    assert_eq!(contents(&server, "lab"), ["one", "two"]);
}

#[test]
fn a_line_that_the_server_finds_too_long_is_named_and_nothing_after_it_is_sent() {
    let server = TestServer::start();
    for (bytes, expected) in [
        (300_000, "line 2 was refused (too_large: "),
        (900_000, "with 1009: "),
    ] {
        let channel = format!("c{bytes}");
        let mut client = Client::start(server.address, &["pub", &channel, "--retry"]);
        client.write(format!("one\n{}\nthree\n", "x".repeat(bytes)));
        let (code, _, said) = client.end();
        assert_eq!(code, Some(1), "{said:?}");
        assert!(said[0].contains(expected), "{said:?}");
        assert!(said[0].contains("1 message was acknowledged"), "{said:?}");
        assert!(
            said[0].ends_with("nothing after line 2 was sent"),
            "{said:?}"
        );
        assert_eq!(contents(&server, &channel), ["one"]);
    }
}

#[test]
fn after_a_lost_connection_it_says_which_lines_are_acknowledged_and_which_are_unknown() {
    let fake = Fake::new();
    let mut client = Client::start(fake.address, &["pub", "lab", "--ids"]);
    client.write("one\ntwo\nthree\n");
    let (mut socket, target) = fake.accept();
    assert_eq!(target, "/api/ws/lab");
    for (number, content) in [(1, "one"), (2, "two"), (3, "three")] {
        let sent = frame(&mut socket);
        assert_eq!(
            (&sent["ref"], &sent["content"]),
            (&json!(number), &json!(content))
        );
    }
    answer(&mut socket, &json!({"type": "ack", "ref": 1, "id": 70}));
    assert_eq!(client.line(), "70");
    drop(socket);
    let said = client.error();
    let expected = "1 message was acknowledged, 2 lines from 2 to 3 are unknown (stored or not)";
    assert!(said.contains(expected), "{said}");
    assert_eq!(client.end(), (Some(1), vec![], vec![]));
}

#[test]
fn with_retry_it_sends_again_what_is_not_acknowledged_and_nothing_else() {
    let fake = Fake::new();
    let mut client = Client::start(fake.address, &["pub", "lab", "--retry", "--ids"]);
    client.write("one\ntwo\nthree\n");
    let (mut socket, _) = fake.accept();
    (1..=3).for_each(|number| assert_eq!(frame(&mut socket)["ref"], number));
    answer(&mut socket, &json!({"type": "ack", "ref": 2, "id": 70}));
    assert_eq!(client.line(), "70");
    drop(socket);
    // A server that cannot take them now is asked again, too.
    let (mut socket, _) = fake.accept();
    for number in [1, 3] {
        assert_eq!(frame(&mut socket)["ref"], number);
        let busy =
            json!({"type": "error", "code": "store_unavailable", "detail": "full", "ref": number});
        answer(&mut socket, &busy);
    }
    let (mut socket, _) = fake.accept();
    for number in [1, 3] {
        assert_eq!(frame(&mut socket)["ref"], number);
        answer(
            &mut socket,
            &json!({"type": "ack", "ref": number, "id": 70 + number}),
        );
    }
    let (code, lines, said) = client.end();
    assert_eq!(
        (code, lines),
        (Some(0), vec!["71".to_owned(), "73".to_owned()])
    );
    assert_eq!(said.len(), 2, "{said:?}");
}

#[test]
fn with_retry_every_line_gets_over_a_server_that_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let database = dir.path().join("test.db");
    let mut server = Program::start(&database, &[]);
    let mut client = Client::start(server.address, &["pub", "lab", "--retry", "--ids"]);
    client.write("first\n");
    client.line();
    let mut stdin = client.stdin.take().expect("a pipe");
    let writer = thread::spawn(move || {
        use std::io::Write;
        let lines: String = (0..20_000).map(|number| format!("{number}\n")).collect();
        stdin.write_all(lines.as_bytes()).expect("it reads");
    });
    client.line();
    server.restart(&database);
    writer.join().expect("all is written");
    assert_eq!(client.end().0, Some(0));
    let mut found = vec![false; 20_000];
    let mut since = 0;
    loop {
        let target = format!("/api/messages?limit=1000&since={since}");
        let page = server.http().get(&target).json()["messages"].clone();
        for message in page.as_array().expect("a list") {
            since = message["id"].as_u64().expect("an id");
            if let Ok(number) = message["content"]
                .as_str()
                .expect("a text")
                .parse::<usize>()
            {
                found[number] = true;
            }
        }
        if page.as_array().is_some_and(Vec::is_empty) {
            break;
        }
    }
    assert!(found.iter().all(|found| *found), "a line is missing");
}

#[test]
fn a_state_comes_from_the_flags_or_from_the_whole_of_the_input() {
    let server = TestServer::start();
    let client = Client::start(server.address, &["pub", "--state", "jobs", "{\"a\":1}"]);
    assert_eq!(
        client.json(),
        json!({"success": true, "changed": true, "rev": 1, "subscribers": 0})
    );
    assert_eq!(client.end(), (Some(0), vec![], vec![]));

    let _listener = server.subscribe_feed("jobs");
    let mut client = Client::start(server.address, &["pub", "--state", "jobs", "--human"]);
    client.write("[1,\n 2]\n");
    let (code, lines, said) = client.end();
    assert_eq!((code, said), (Some(0), vec![]));
    assert_eq!(lines, ["jobs rev 2: changed, 1 subscribers"]);
    assert_eq!(server.http().state("jobs")["data"], json!([1, 2]));
    let client = Client::start(server.address, &["pub", "--state", "jobs", "[1,2]"]);
    assert_eq!(client.json()["changed"], false);
}

#[test]
fn what_is_no_state_is_refused_with_the_server_s_sentence() {
    let server = TestServer::start();
    let mut client = Client::start(server.address, &["pub", "--state", "jobs"]);
    client.write("{\"a\":1\n");
    let said = client_end_error(client);
    assert!(
        said.contains("refused with 400: ") && said.contains("line 2 column 0"),
        "{said}"
    );

    let mut client = Client::start(server.address, &["pub", "--state", "jobs"]);
    client.write(format!("\"{}\"", "x".repeat(400_000)));
    let said = client_end_error(client);
    assert!(said.contains("refused with 413: "), "{said}");
    assert_eq!(server.http().state("jobs")["rev"], 0);
}

/// The one sentence of a command that fails.
fn client_end_error(client: Client) -> String {
    let (code, lines, said) = client.end();
    assert_eq!((code, lines, said.len()), (Some(1), vec![], 1), "{said:?}");
    said.concat()
}

#[test]
fn a_server_that_is_not_there_or_refuses_is_an_error_with_its_reason() {
    let address = Fake::new().address;
    for args in [&["pub", "lab", "hi"][..], &["pub", "--state", "jobs", "1"]] {
        let said = client_end_error(Client::start(address, args));
        assert!(
            said.contains(&format!("cannot connect to {address}: ")),
            "{said}"
        );
        let fake = Fake::new();
        let client = Client::start(fake.address, args);
        let body = r#"{"detail":"may not publish"}"#;
        fake.answer(&format!(
            "HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        let said = client_end_error(client);
        assert!(
            said.contains("the server refused with 403: may not publish"),
            "{said}"
        );
    }
    for (args, expected) in [
        (&["pub"][..], "CHANNEL"),
        (&["pub", "", "hi"], "this one is empty"),
        (&["pub", "--state", "Jobs", "1"], "a-z"),
        (&["pub", "lab", "hi", "--token-count", "x"], "--token-count"),
    ] {
        let run = threadcast(args).output().expect("a run");
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}
