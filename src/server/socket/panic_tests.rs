//! A bug in a session. No client can bring one about, so the store plays it: it panics when a
//! subscriber is brought what it has missed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::*;
use crate::access::Access;
use crate::config::{Config, Database};
use crate::error::Result;
use crate::manager::ConnectionManager;
use crate::protocol::{Channel, Draft, LogMark, Message, MessageId};
use crate::store::{self, ChannelTotals, Missed, MissedPage, Page, Reader, StoredState, Summary};

const DEADLINE: Duration = Duration::from_secs(20);

struct Panics;

impl Reader for Panics {
    fn missed(&self, _: &Missed<'_>) -> Result<MissedPage> {
        panic!("a bug, wanted by this test")
    }

    fn head(&self) -> Result<MessageId> {
        unreachable!()
    }

    fn page(&self, _: &Page) -> Result<Vec<Message>> {
        unreachable!()
    }

    fn oldest(&self) -> Result<MessageId> {
        unreachable!()
    }

    fn nth_newest(&self, _: &Channel, _: MessageId, _: usize) -> Result<Option<MessageId>> {
        unreachable!()
    }

    fn channels(&self) -> Result<Vec<ChannelTotals>> {
        unreachable!()
    }

    fn summary(&self) -> Result<Summary> {
        unreachable!()
    }

    fn states(&self) -> Result<Vec<StoredState>> {
        unreachable!()
    }

    fn mark(&self) -> Result<LogMark> {
        unreachable!()
    }
}

fn draft() -> Draft {
    Draft {
        channel_id: "lab".parse().expect("a channel"),
        author: "a".to_owned(),
        content: "hello".to_owned(),
        lane: None,
        provider: None,
        token_count: None,
    }
}

/// Everything behind the door, with a store that can be written and not be read.
fn sockets() -> Sockets {
    let config = Config {
        database: Database::Memory,
        ..Config::default()
    };
    let (writer, _) = store::open(&config).expect("a store");
    let manager = Arc::new(ConnectionManager::new(Default::default()));
    let there = Arc::clone(&manager);
    let usage = Arc::default();
    let journal = Journal::start(
        writer,
        MessageId(0),
        None,
        there,
        Arc::clone(&usage),
        &config,
    )
    .expect("threads");
    Sockets {
        subscribers: Subscribers {
            access: Arc::new(Access::new(&config).expect("loopback needs no tokens")),
            usage,
            manager,
            reader: Arc::new(Panics),
            limits: config.limits,
            link: None,
        },
        journal: Arc::new(journal),
    }
}

/// Serves one subscriber on a thread of its own, as the listener does; returns its end.
fn subscribe(sockets: &Arc<Sockets>, query: &str) -> (TcpStream, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let theirs =
        TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    theirs.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let (ours, peer) = listener.accept().expect("a connection");
    let request = format!(
        "GET /api/ws/lab{query} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let head = Box::new(Head::parse(request.as_bytes()).expect("a head"));
    let topic = Channel::stored("lab").into();
    let sockets = Arc::clone(sockets);
    let session = thread::spawn(move || {
        let stream = Arc::new(ours.into());
        let session = sockets.begin(head, topic, peer.into(), &stream, Vec::new());
        session.expect("a handshake").serve();
    });
    (theirs, session)
}

fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < DEADLINE, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_panic_in_a_session_ends_that_session_with_1011_and_leaves_nothing_of_it() {
    let sockets = Arc::new(sockets());
    let head = sockets.journal.submit_and_wait(draft()).expect("a message");
    eventually("it is offered", || {
        sockets.subscribers.manager.offered_head() == head
    });
    let (mut other, others_session) = subscribe(&sockets, "");
    eventually("the other is there", || {
        sockets.subscribers.manager.active_connections() == 1
    });

    let (mut unlucky, session) = subscribe(&sockets, "?since=0");
    let mut bytes = Vec::new();
    unlucky
        .read_to_end(&mut bytes)
        .expect("the connection ends");
    assert!(session.join().is_err(), "it panicked");
    let close = [&[0x88, 2 + 19], &1011_u16.to_be_bytes()[..]].concat();
    let last = bytes.len().saturating_sub(2 + 2 + 19);
    assert!(bytes[last..].starts_with(&close), "{:?}", &bytes[last..]);
    assert_eq!(sockets.subscribers.manager.active_connections(), 1);

    // The other is served as before, up to its own end.
    let lab: Channel = "lab".parse().expect("a channel");
    assert_eq!(sockets.subscribers.manager.subscribers(&lab), 1);
    sockets.journal.submit_and_wait(draft()).expect("a message");
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("\"id\":2") {
        let mut room = [0; 1024];
        let n = other.read(&mut room).expect("a message in time");
        heard.extend_from_slice(&room[..n]);
    }
    // A close frame without a code, masked with zeros.
    other.write_all(&[0x88, 0x80, 0, 0, 0, 0]).expect("a close");
    drop(other);
    others_session.join().expect("it did not panic");
    assert_eq!(sockets.subscribers.manager.active_connections(), 0);
    sockets.journal.stop();
}
