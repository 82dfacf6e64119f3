//! The outbox and its last word, over real sockets.

use std::io::Read;
use std::net::TcpListener;

use super::*;

/// A client and the other end of its socket.
fn pair(limits: OutboxLimits) -> (Client, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let ours =
        TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (theirs, peer) = listener.accept().expect("a connection");
    ours.set_nonblocking(true).expect("non-blocking");
    let channel = "lab".parse().expect("a channel");
    let first = Chunk::raw(b"first ".to_vec());
    let client = Client::new(1, channel, peer, Arc::new(ours), first, limits).expect("a client");
    (client, theirs)
}

const LIMITS: OutboxLimits = OutboxLimits {
    chunks: 64,
    bytes: 256 << 20,
    replies: 4,
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
