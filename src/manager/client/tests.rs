//! The outbox and its last word, over real sockets.

use std::io::Read;
use std::net::{TcpListener, TcpStream};

use super::writer::MAX_SLICES;
use super::*;
use crate::protocol::{Channel, Feed, Rev};

/// A channel's client and the other end of its socket.
fn pair(limits: OutboxLimits) -> (Arc<Client>, TcpStream) {
    let channel: Channel = "lab".parse().expect("a channel");
    pair_on(channel, limits)
}

/// A client on any topic.
fn pair_on(topic: impl Into<Topic>, limits: OutboxLimits) -> (Arc<Client>, TcpStream) {
    pair_of(Kind::WebSocket, topic, limits)
}

/// A client of any kind.
fn pair_of(kind: Kind, topic: impl Into<Topic>, limits: OutboxLimits) -> (Arc<Client>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let ours =
        TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (theirs, peer) = listener.accept().expect("a connection");
    ours.set_nonblocking(true).expect("non-blocking");
    let topic = topic.into();
    let accepted = Accepted {
        kind,
        answer: Chunk::raw(b"first ".to_vec()),
    };
    let client = Client::new(
        1,
        topic,
        peer.into(),
        Arc::new(ours.into()),
        accepted,
        limits,
    )
    .expect("a client");
    (client, theirs)
}

const LIMITS: OutboxLimits = OutboxLimits {
    chunks: 64,
    bytes: 256 << 20,
    replies: 4,
    recent: 0,
};

/// Offers large chunks until the socket is full and `waiting` of them wait.
fn congest(client: &Client, waiting: usize) -> usize {
    let chunk = Chunk::raw(vec![b'x'; 1 << 20]);
    let mut offered = 0;
    while client.queued_chunks.load(Ordering::Relaxed) < waiting {
        assert_eq!(client.offer(&chunk), Offer::Taken);
        offered += chunk.len();
    }
    assert!(client.is_congested());
    offered
}

#[test]
fn the_last_word_comes_behind_everything_that_waits() {
    let (client, mut theirs) = pair(LIMITS);
    // More than one write gathers.
    let offered = congest(&client, 2 * MAX_SLICES);
    client.finish_with(Chunk::raw(b" last".to_vec()));
    assert_eq!(
        client.offer(&Chunk::raw(b"too late".to_vec())),
        Offer::Taken
    );
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; 6 + offered + 5];
        theirs.read_exact(&mut bytes).expect("all that was offered");
        (bytes, theirs)
    });
    while client.end().is_none() {
        client.drain();
    }
    let (bytes, mut theirs) = reader.join().expect("the reader");
    assert_eq!(client.end(), Some(End::Said));
    assert!(bytes.starts_with(b"first x") && bytes.ends_with(b"x last"));
    drop(client);
    assert_eq!(theirs.read(&mut [0]).expect("the end"), 0);
}

#[test]
fn there_is_no_outbox_until_a_chunk_has_to_wait() {
    let (client, _theirs) = pair(LIMITS);
    client.queue_reply(Chunk::raw(vec![b'x']));
    client.drain();
    for _ in 0..100 {
        assert_eq!(client.offer(&Chunk::raw(vec![b'x'])), Offer::Taken);
        client.reply(Chunk::raw(vec![b'x']));
    }
    assert!(client.outbox.get().is_none());
    assert_eq!(client.queued_bytes(), 0);
    congest(&client, 1);
    assert!(client.outbox.get().is_some());
}

#[test]
fn each_thread_s_chunks_arrive_in_its_order_whoever_writes_them() {
    let (client, mut theirs) = pair(OutboxLimits {
        replies: 1 << 16,
        ..LIMITS
    });
    let (threads, chunks) = (4_u8, 4_000_u16);
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).expect("all that was sent");
        bytes
    });
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let client = &client;
            scope.spawn(move || {
                for number in 0..chunks {
                    let [high, low] = number.to_be_bytes();
                    client.reply(Chunk::raw(vec![thread, high, low]));
                }
            });
        }
    });
    client.finish_with(Chunk::raw(Vec::new()));
    while client.end().is_none() {
        client.drain();
    }
    drop(client);
    let bytes = reader.join().expect("the reader");
    let bytes = bytes.strip_prefix(b"first ").expect("the first");
    for thread in 0..threads {
        let numbers = bytes.chunks(3).filter(|chunk| chunk[0] == thread);
        let numbers = numbers.map(|chunk| u16::from_be_bytes([chunk[1], chunk[2]]));
        assert!(numbers.eq(0..chunks), "{thread}");
    }
}

#[test]
fn a_full_outbox_refuses_and_keeps_its_count() {
    let (client, _theirs) = pair(LIMITS);
    congest(&client, LIMITS.chunks);
    let before = client.queued_bytes.load(Ordering::Relaxed);
    assert_eq!(client.offer(&Chunk::raw(vec![b'x'])), Offer::Full);
    assert_eq!(client.queued_bytes.load(Ordering::Relaxed), before);
    assert!(client.stalled_for() > Duration::ZERO);
}

#[test]
fn a_chunk_beyond_the_bytes_goes_to_a_client_that_waits_for_nothing() {
    let (client, _theirs) = pair(OutboxLimits {
        bytes: 10,
        ..LIMITS
    });
    client.drain();
    assert_eq!(client.offer(&Chunk::raw(vec![b'x'; 1000])), Offer::Taken);
    assert_eq!(client.queued_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn a_peer_that_is_gone_ends_the_client() {
    let (client, theirs) = pair(LIMITS);
    drop(theirs);
    let chunk = Chunk::raw(vec![b'x'; 1000]);
    while client.end().is_none() {
        assert_eq!(client.offer(&chunk), Offer::Taken);
    }
    assert_eq!(client.end(), Some(End::Lost));
}

#[test]
fn an_event_stream_is_counted_in_its_own_form() {
    let channel: Channel = "lab".parse().expect("a channel");
    let chunk = Chunk::text(&"x".repeat(1 << 20));
    let length = chunk.as_events().len();
    assert_ne!(length, chunk.len());
    let limits = OutboxLimits {
        bytes: 2 * length,
        ..LIMITS
    };
    let (client, mut theirs) = pair_of(Kind::EventStream, channel, limits);
    let mut offered = 0;
    while client.offer(&chunk) == Offer::Taken {
        offered += 1;
    }
    assert!(client.is_congested());
    let queued = client.queued_bytes.load(Ordering::Relaxed);
    assert!((length..=2 * length).contains(&queued), "{queued}");
    // What says nothing to an event stream takes no place.
    client.reply(Chunk::pong(b""));
    assert_eq!(client.replies_waiting(), 0);
    client.reply(Chunk::ping(b""));
    client.finish(CloseCode::GoingAway, "bye");
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; 6 + offered * length + ":\n\n: 1001 bye\n\n".len()];
        theirs.read_exact(&mut bytes).expect("all that was offered");
        bytes
    });
    while client.end().is_none() {
        client.drain();
    }
    let bytes = reader.join().expect("the reader");
    assert!(bytes.starts_with(b"first data: x") && bytes.ends_with(b"x\n\n:\n\n: 1001 bye\n\n"));
    assert_eq!(client.queued_bytes.load(Ordering::Relaxed), 0);
}

/// States `from..=to`, each of about this length, as one update.
fn update(feed: &Feed, from: u64, to: u64, bytes: usize) -> Update {
    let state = format!("{:?}", "x".repeat(bytes));
    let states: Vec<StateFrame> = (from..=to)
        .map(|rev| StateFrame::new(feed, &state, Rev(rev)))
        .collect();
    Update::new(&states).expect("some states")
}

#[test]
fn a_feed_s_client_that_does_not_read_has_one_state_waiting_and_then_gets_the_newest() {
    let feed: Feed = "board".parse().expect("a feed");
    let (client, mut theirs) = pair_on(feed.clone(), LIMITS);
    client.start_with(&StateFrame::new(&feed, "null", Rev(0)));
    client.drain();
    let size = 1 << 20;
    let mut rev = 0;
    while !client.is_congested() {
        rev += 1;
        client.offer_states(&update(&feed, rev, rev, size));
    }
    let last = rev + 100;
    for rev in rev + 1..=last {
        client.offer_states(&update(&feed, rev, rev, size));
        // What is partly in the socket, and nothing of the others.
        assert!(client.queued_bytes.load(Ordering::Relaxed) <= size + 100);
    }
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).expect("all that was sent");
        bytes
    });
    client.finish_with(Chunk::raw(Vec::new()));
    while client.end().is_none() {
        client.drain();
    }
    drop(client);
    let bytes = reader.join().expect("the reader");
    let revs = revs(&bytes);
    assert!(revs.is_sorted(), "{revs:?}");
    assert!(revs.len() as u64 <= rev + 2, "{revs:?}");
    assert_eq!(revs.last(), Some(&last));
}

#[test]
fn states_that_a_client_has_are_left_out_and_a_free_one_gets_every_other() {
    let feed: Feed = "board".parse().expect("a feed");
    let (client, mut theirs) = pair_on(feed.clone(), LIMITS);
    client.start_with(&StateFrame::new(&feed, "5", Rev(5)));
    for (from, to) in [(4, 5), (5, 6), (7, 9), (8, 9), (1, 2), (10, 10)] {
        client.offer_states(&update(&feed, from, to, 3));
    }
    client.finish_with(Chunk::raw(Vec::new()));
    drop(client);
    let mut bytes = Vec::new();
    theirs.read_to_end(&mut bytes).expect("all that was sent");
    // The first update holds nothing new, the second one new state of two.
    assert_eq!(revs(&bytes), [6, 7, 8, 9, 10]);
}

/// The revisions in what a client was sent, behind the handshake's answer.
fn revs(bytes: &[u8]) -> Vec<u64> {
    let frames = Chunk::raw(bytes.strip_prefix(b"first ").expect("the first").to_vec());
    frames
        .texts()
        .map(|text| {
            let frame: serde_json::Value = serde_json::from_str(text).expect("JSON");
            frame["rev"].as_u64().expect("a rev")
        })
        .collect()
}

/// The end of a frame lay encrypted beside a full socket, and nobody waited for that.
#[cfg(feature = "tls")]
#[test]
fn over_tls_a_client_is_congested_until_all_is_in_the_socket_and_only_then_has_said_its_last_word()
{
    let (stream, mut theirs) = crate::stream::tests::pair();
    let peer = stream.peer_addr().expect("an address");
    let channel: Channel = "lab".parse().expect("a channel");
    let accepted = Accepted {
        kind: Kind::WebSocket,
        answer: Chunk::raw(Vec::new()),
    };
    let stream = Arc::new(stream);
    let client =
        Client::new(1, channel.into(), peer.into(), stream, accepted, LIMITS).expect("a client");
    let chunk = Chunk::raw(vec![b'x'; 10_000]);
    let mut offered = 0;
    while !client.stream().has_unsent() {
        assert!(!client.is_congested());
        assert_eq!(client.offer(&chunk), Offer::Taken);
        offered += chunk.len();
    }
    assert!(client.is_congested());
    assert!(client.stalled_for() > Duration::ZERO);
    client.finish_with(Chunk::raw(b"last".to_vec()));
    client.drain();
    assert_eq!(client.end(), None);
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; offered + 4];
        theirs.read_exact(&mut bytes).expect("all that was offered");
        bytes
    });
    while client.end().is_none() {
        client.wait(false, Duration::from_secs(20));
    }
    assert_eq!(client.end(), Some(End::Said));
    assert!(!client.stream().has_unsent());
    assert_eq!(client.stalled_for(), Duration::ZERO);
    assert!(reader.join().expect("the reader").ends_with(b"xlast"));
}

#[test]
fn what_a_delivery_looks_at_lies_side_by_side() {
    assert!(std::mem::offset_of!(Client, id) <= 128);
}
