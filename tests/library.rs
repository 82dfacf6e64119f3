//! The crate inside somebody else's program: the manager alone, the server with its events,
//! and the examples as a reader would start them.

mod common;

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use common::{DEADLINE, TestServer, Ws, eventually};
use serde_json::{Value, json};
use threadcast::Server;
use threadcast::config::{Config, Database};
use threadcast::frame::Chunk;
use threadcast::manager::{Client, ConnectionManager, Event, EventKind};
use threadcast::protocol::{Channel, Draft, Feed, Rev, State, Topic};

/// A client of the manager and the reader at the other end of its socket.
fn connect(manager: &ConnectionManager, topic: impl Into<Topic>) -> (Arc<Client>, Ws) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let theirs =
        TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    theirs.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let (ours, peer) = listener.accept().expect("a connection");
    let nothing = Chunk::raw(Vec::new());
    let client = manager
        .connect(topic, peer, Arc::new(ours.into()), nothing)
        .expect("a client");
    client.drain();
    (client, Ws::from_stream(theirs))
}

fn lab() -> Channel {
    "lab".parse().expect("a channel")
}

fn board() -> Feed {
    "board".parse().expect("a feed")
}

fn state(value: Value) -> State {
    State::from(value)
}

/// What a handler for events of this kind hears.
fn heard(manager: &ConnectionManager, kind: EventKind) -> Receiver<Event> {
    let (sender, receiver) = channel();
    manager
        .subscribe(kind, move |event| {
            let _ = sender.send(event.clone());
            Ok::<_, Infallible>(())
        })
        .expect("a thread");
    receiver
}

fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(DEADLINE).expect("an event")
}

#[test]
fn a_server_starts_on_a_socket_that_listened_before_and_says_whether_it_works() {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    let early = TcpStream::connect(address).expect("the system accepts");
    early.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut config = Config::default();
    config.database = Database::Memory;
    let server = Server::start_on(socket, config).expect("it starts");
    assert_eq!(server.address(), address);
    let mut subscriber = Ws::over(early, "/api/ws/lab");
    let draft = Draft {
        channel_id: lab(),
        author: "the program".into(),
        content: "hello".into(),
        lane: None,
        provider: None,
        token_count: None,
    };
    server.publish(draft).expect("a store");
    assert_eq!(subscriber.next_message()["content"], "hello");
    let probe = server.probe();
    assert!(probe.is_answered());
    drop(subscriber);
    server.shutdown();
    assert!(!probe.is_answered());
}

#[test]
fn the_manager_alone_broadcasts_and_forgets_whoever_is_disconnected_once_or_twice() {
    let manager = ConnectionManager::default();
    let (one, mut first) = connect(&manager, lab());
    let (other, mut second) = connect(&manager, lab());
    let (_elsewhere, mut third) = connect(&manager, "other".parse::<Channel>().expect("a name"));
    assert_eq!(manager.active_connections(), 3);

    let update = json!({"type": "update", "data": "Your update here"});
    assert_eq!(manager.broadcast(&lab(), &Chunk::json(&update)), 2);
    assert_eq!((first.next(), second.next()), (update.clone(), update));

    assert!(manager.disconnect(&one));
    assert!(!manager.disconnect(&one), "as `discard`, no error");
    assert_eq!(manager.active_connections(), 2);
    let later = json!({"type": "later"});
    assert_eq!(manager.broadcast(&lab(), &Chunk::json(&later)), 1);
    assert_eq!(second.next(), later);
    drop(first);

    // A peer that is gone is no error either.
    drop(second);
    eventually("the broadcast finds that nobody is there", || {
        manager.broadcast(&lab(), &Chunk::json(&json!(1)));
        other.end().is_some()
    });
    assert!(manager.disconnect(&other));
    assert_eq!(manager.subscribers(&lab()), 0);
    let only = json!({"type": "only for the third"});
    let name = "other".parse().expect("a name");
    assert_eq!(manager.broadcast(&name, &Chunk::json(&only)), 1);
    assert_eq!(third.next(), only);
}

#[test]
fn the_manager_alone_knows_the_last_state_and_tells_changes_only() {
    let manager = ConnectionManager::default();
    assert_eq!(manager.last_state(&board()).state(), "null");
    let (_client, mut subscriber) = connect(&manager, board());
    let frame = |data: Value, rev: u64| json!({"type": "board_update", "data": data, "rev": rev});
    assert_eq!(subscriber.next(), frame(Value::Null, 0));

    let first = manager.publish(&board(), &state(json!({"a": 1, "b": 2})));
    assert_eq!(
        (first.changed, first.rev, first.subscribers),
        (true, Rev(1), 1)
    );
    let same = State::parse(br#" {"b" : 2.0, "a":1}"#).expect("JSON");
    let second = manager.publish(&board(), &same);
    assert_eq!((second.changed, second.rev), (false, Rev(1)));
    let third = manager.publish(&board(), &state(json!([])));
    assert_eq!((third.changed, third.rev), (true, Rev(2)));

    assert_eq!(subscriber.next(), frame(json!({"a": 1, "b": 2}), 1));
    assert_eq!(subscriber.next(), frame(json!([]), 2));
    assert_eq!(manager.last_state(&board()).state(), "[]");
    let (_late, mut late) = connect(&manager, board());
    assert_eq!(late.next(), frame(json!([]), 2));
    let feeds: Vec<_> = manager
        .feeds()
        .into_iter()
        .map(|feed| (feed.feed.to_string(), feed.rev.0, feed.subscribers))
        .collect();
    let name = |name: &str| name.to_owned();
    assert_eq!(
        feeds,
        [
            (name("board"), 2, 2),
            (name("routes"), 0, 0),
            (name("workflow-history"), 0, 0),
            (name("workflows"), 0, 0),
        ]
    );
}

/// Without the server's one journal several threads publish at once.
#[test]
fn publishers_on_many_threads_never_leave_a_subscriber_with_an_old_state() {
    const THREADS: u64 = 4;
    const STATES: u64 = 500;
    let manager = ConnectionManager::default();
    let (_client, mut subscriber) = connect(&manager, board());
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (manager, start) = (&manager, &start);
            scope.spawn(move || {
                start.wait();
                for number in 0..STATES {
                    manager.publish(&board(), &state(json!([thread, number])));
                }
            });
        }
    });
    let last = manager.last_state(&board());
    assert_eq!(last.rev, Rev(THREADS * STATES), "every state was a change");
    let mut rev = None;
    while rev != Some(last.rev.0) {
        let frame = subscriber.next();
        let next = frame["rev"].as_u64();
        assert!(next > rev || rev.is_none(), "{next:?} after {rev:?}");
        rev = next;
    }
}

#[test]
fn handlers_hear_of_everything_of_their_kind_in_order() {
    let manager = ConnectionManager::default();
    let [connected, disconnected, messages, states] = [
        EventKind::Connected,
        EventKind::Disconnected,
        EventKind::Message,
        EventKind::State,
    ]
    .map(|kind| heard(&manager, kind));

    let (client, _socket) = connect(&manager, lab());
    match next(&connected) {
        Event::Connected {
            client: id, topic, ..
        } => assert_eq!((id, topic), (client.id, Topic::Channel(lab()))),
        other => panic!("{other:?}"),
    }
    manager.disconnect(&client);
    manager.disconnect(&client);
    assert!(
        matches!(next(&disconnected), Event::Disconnected { client: id, .. } if id == client.id)
    );

    for number in 0..100 {
        // Nobody is subscribed: handlers hear of it all the same.
        manager.broadcast(&lab(), &Chunk::text(&number.to_string()));
        manager.publish(&board(), &state(json!(number)));
        manager.publish(&board(), &state(json!(number)));
    }
    for number in 0..100 {
        match next(&messages) {
            Event::Message { channel, frames } => {
                assert_eq!(channel, lab());
                assert_eq!(frames.texts().collect::<Vec<_>>(), [number.to_string()]);
            }
            other => panic!("{other:?}"),
        }
        match next(&states) {
            Event::State { feed, state } => {
                assert_eq!((feed, state.rev), (board(), Rev(number + 1)));
            }
            other => panic!("{other:?}"),
        }
    }
    let silent = [&connected, &disconnected, &messages, &states];
    assert!(silent.iter().all(|events| events.try_recv().is_err()));
}

#[test]
fn a_handler_that_fails_panics_or_hangs_disturbs_nobody() {
    let manager = ConnectionManager::default();
    let (_client, mut subscriber) = connect(&manager, board());
    subscriber.next();
    let (called, calls) = channel();
    let (release, released) = channel::<()>();
    let kind = EventKind::State;
    let failing = called.clone();
    manager
        .subscribe(kind, move |_| {
            let _ = failing.send("failing");
            Err("it fails every time")
        })
        .expect("a thread");
    manager
        .subscribe(kind, move |_| -> Result<(), Infallible> {
            let _ = called.send("panicking");
            panic!("a handler of a test panics, which is all right");
        })
        .expect("a thread");
    let ((begun, begins), (reported, missed)) = (channel(), channel());
    manager
        .subscribe(kind, move |event| {
            match event {
                Event::Missed { count } => drop(reported.send(*count)),
                _ => {
                    let _ = begun.send(());
                    // Until the test lets it go.
                    let _ = released.recv();
                }
            }
            Ok::<_, Infallible>(())
        })
        .expect("a thread");
    let well = heard(&manager, kind);

    const STATES: u64 = 3000;
    for number in 0..STATES {
        manager.publish(&board(), &state(json!(number)));
        // The handlers that are called keep up with this.
        assert!(matches!(next(&well), Event::State { .. }));
        for _ in 0..2 {
            calls.recv_timeout(DEADLINE).expect("both are called again");
        }
        if number == 0 {
            begins.recv_timeout(DEADLINE).expect("it hangs from now on");
        }
    }
    while subscriber.next()["rev"] != STATES {}

    drop(release);
    // One was in its hands, 1,024 waited.
    let missed = missed.recv_timeout(DEADLINE).expect("a report");
    assert_eq!(missed, STATES - 1 - 1024);
}

#[test]
fn an_ended_subscription_hears_nothing_more() {
    let manager = ConnectionManager::default();
    let (sender, events) = channel();
    let subscription = manager
        .subscribe(EventKind::State, move |event| {
            let _ = sender.send(event.clone());
            Ok::<_, Infallible>(())
        })
        .expect("a thread");
    manager.publish(&board(), &state(json!(1)));
    assert!(manager.unsubscribe(subscription));
    assert!(!manager.unsubscribe(subscription));
    manager.publish(&board(), &state(json!(2)));
    // What had happened before still comes; then the handler is dropped, and its sender.
    assert!(matches!(next(&events), Event::State { state, .. } if state.rev == Rev(1)));
    assert!(events.recv_timeout(DEADLINE).is_err());
}

#[test]
fn a_program_publishes_to_its_own_server_and_hears_what_happens_there() {
    let mut server = TestServer::start();
    let (sender, events) = channel();
    for kind in [EventKind::Message, EventKind::State] {
        let sender = sender.clone();
        let handler = move |event: &Event| {
            let _ = sender.send(match event {
                Event::Message { frames, .. } => frames.texts().map(str::to_owned).collect(),
                Event::State { state, .. } => {
                    vec![String::from_utf8(state.json().to_vec()).expect("text")]
                }
                other => panic!("{other:?}"),
            });
            Ok::<_, Infallible>(())
        };
        server.server().subscribe(kind, handler).expect("a thread");
    }
    let hear = || -> Value {
        let texts: Vec<String> = events.recv_timeout(DEADLINE).expect("an event");
        assert_eq!(texts.len(), 1);
        serde_json::from_str(&texts[0]).expect("JSON")
    };

    let mut on_channel = server.subscribe("lab");
    let mut on_feed = Ws::open(server.address, "/ws/board");
    on_feed.next();
    let draft = Draft {
        channel_id: lab(),
        author: "the program".into(),
        content: "hello".into(),
        lane: None,
        provider: None,
        token_count: None,
    };
    let id = server.server().publish(draft).expect("a store");
    assert_eq!(on_channel.next_message()["id"], id.0);
    assert_eq!(hear()["data"]["content"], "hello");

    let published = server
        .server()
        .publish_state(&board(), state(json!({"up": true})))
        .expect("a store");
    assert_eq!((published.changed, published.subscribers), (true, 1));
    let frame = json!({"type": "board_update", "data": {"up": true}, "rev": 1});
    assert_eq!(on_feed.next(), frame);
    assert_eq!(hear(), frame);
    assert_eq!(server.server().active_connections(), 2);
    assert_eq!(server.server().last_state(&board()).rev, Rev(1));

    // What others publish is heard as well, whether somebody is subscribed or not.
    server.publish("elsewhere", "from outside");
    assert_eq!(hear()["data"]["content"], "from outside");
    server.shutdown();
}

/// The watchers once ended with the value that the documentation allows to be dropped.
#[test]
fn a_server_that_is_dropped_runs_on_with_its_watchers() {
    let mut config = Config::default();
    config.listen = "127.0.0.1:0".parse().expect("an address");
    config.database = Database::Memory;
    config.watches = vec!["clock=exec:date +%s%N".parse().expect("a watch")];
    config.watch_interval = Duration::from_millis(10);
    let server = Server::start(config).expect("the server starts");
    let address = server.address();
    drop(server);
    let mut subscriber = Ws::open(address, "/ws/clock");
    let revs: Vec<u64> = (0..4)
        .map(|_| subscriber.next()["rev"].as_u64().expect("a rev"))
        .collect();
    assert!(revs.is_sorted(), "{revs:?}");
}

#[test]
fn the_embed_example_serves_its_feed_and_ends() {
    let mut example = Example::start("embed", &["10"]);
    let (_, address) = example.read_address();
    let mut subscriber = Ws::open(address, "/ws/machine");
    let frame = subscriber.next();
    assert_eq!(frame["type"], "machine_update");
    assert!(
        frame["rev"].as_u64().is_some_and(|rev| rev <= 10),
        "{frame}"
    );
    let rest: Vec<String> = example.lines.by_ref().map_while(Result::ok).collect();
    let revisions: Vec<_> = rest.iter().filter(|line| line.starts_with("rev")).collect();
    assert_eq!(revisions.len(), 10, "{rest:?}");
    assert!(
        rest.iter().any(|line| line.starts_with("Connected")),
        "{rest:?}"
    );
    assert!(example.child.wait().expect("a child").success());
    assert_eq!(subscriber.close_code(), Some(1001));
}

#[test]
fn the_clock_example_tells_the_time_without_a_server() {
    let mut example = Example::start("clock", &["127.0.0.1:0"]);
    let (_, address) = example.read_address();
    let mut clients = [Ws::open(address, "/"), Ws::open(address, "/any/path")];
    for client in &mut clients {
        let mut times = (0..2).map(|_| {
            let frame = client.next();
            assert_eq!(frame["type"], "clock_update");
            frame["data"]["unix_seconds"].as_u64().expect("a time")
        });
        let (first, second) = (times.next(), times.next());
        assert!(first < second, "{first:?} {second:?}");
    }
    let [mut leaving, mut staying] = clients;
    leaving.socket.close(None).expect("a close frame");
    assert_eq!(leaving.close_code(), Some(1000));
    staying.next();
}

/// An example, started as the README has it.
struct Example {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Example {
    fn start(name: &str, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO"))
            .args(["run", "--quiet", "--locked", "--example", name, "--"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo runs");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    /// The address in the first line, with that line.
    fn read_address(&mut self) -> (String, SocketAddr) {
        let line = self.lines.next().expect("a line").expect("text");
        let address = line
            .split("ws://")
            .nth(1)
            .and_then(|rest| rest.split('/').next())
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("no address in {line}"));
        (line, address)
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // `cargo run` starts the example as its own child on some systems: it ends with its
        // standard output or by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
