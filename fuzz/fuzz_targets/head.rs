//! Requests as they come through the public door: a pipeline of heads and bodies.
//!
//! Whatever comes, the server understands it the same way however it is cut into reads: the
//! same heads, the same bodies, the same refusal at the same place. Two readers that disagree
//! about where a request ends are how requests are smuggled.
#![no_main]

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rustix::io::ioctl_fionread;
use threadcast::http::{Framing, Head, Incoming, Received, percent_decode, query_pairs};
use threadcast::stream::Stream;

const MAX_HEAD: usize = 4 << 10;
const MAX_BODY: usize = 4 << 10;

/// Longer than any read waits when all is well.
const PATIENCE: Duration = Duration::from_secs(10);

thread_local! {
    static LISTENER: TcpListener = TcpListener::bind("127.0.0.1:0").expect("a port");
}

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let end = Head::end(bytes);
    if let Ok(Some(end)) = &end {
        the_end_is_the_first(bytes, *end);
        understood(&bytes[..*end]);
    }
    // The sockets of a run cost more than all the rest.
    if bytes.len() > 2 * (MAX_HEAD + MAX_BODY) || !matches!(end, Ok(Some(_))) {
        return;
    }
    let cut = usize::from(cut) % (bytes.len() + 1);
    let whole = requests(&[bytes]);
    let pieces = requests(&[&bytes[..cut], &bytes[cut..]]);
    assert_eq!(whole, pieces, "cut at {cut}");
});

/// Fewer bytes are no head yet, more bytes don't change where it ends.
fn the_end_is_the_first(bytes: &[u8], end: usize) {
    assert_eq!(Head::end(&bytes[..end]).expect("no fault"), Some(end));
    for cut in 0..end {
        assert_eq!(Head::end(&bytes[..cut]).expect("no fault"), None);
    }
}

fn understood(bytes: &[u8]) {
    let Ok(head) = Head::parse(bytes) else { return };
    assert!(head.target.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(head.target.starts_with('/') || head.target == "*");
    assert!(!(head.is_1_0 && head.framing == Framing::Chunked));
    assert!(!(head.expects_continue && head.framing == Framing::None));
    let _ = (percent_decode(head.path()), query_pairs(head.query()));
}

/// What the server makes of these reads: each request's head and body, or why it ends.
fn requests(reads: &[&[u8]]) -> Vec<String> {
    let (mut client, server) = LISTENER.with(|listener| {
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).expect("a connection");
        let (server, _) = listener.accept().expect("a connection");
        (client, Stream::from(server))
    });
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for read in reads {
                // It fails when the server wants no more.
                let _ = client.write_all(read);
                while !ended.load(Ordering::Relaxed) && waits(&server) {
                    thread::yield_now();
                }
            }
            let _ = client.shutdown(Shutdown::Write);
        });
        let told = read_all(&server);
        ended.store(true, Ordering::Relaxed);
        told
    })
}

/// Whether bytes have arrived that the server has not read: the next ones would join them.
fn waits(server: &Stream) -> bool {
    ioctl_fionread(server).is_ok_and(|bytes| bytes > 0)
}

fn read_all(server: &Stream) -> Vec<String> {
    let mut incoming = Incoming::default();
    let mut told = Vec::new();
    loop {
        let head = match incoming.head(server, PATIENCE, PATIENCE, MAX_HEAD) {
            Ok(Received::Head(head)) => head,
            Ok(Received::Nothing) => return told,
            Err(problem) => {
                told.push(format!("{problem:?}"));
                return told;
            }
        };
        let body = incoming.body(server, head.framing, PATIENCE, MAX_BODY);
        if let (Framing::Length(length), Ok(Some(body))) = (head.framing, &body) {
            assert_eq!(body.len(), length);
        }
        told.push(format!("{head:?} {body:?}"));
        if !matches!(body, Ok(Some(_))) {
            return told;
        }
    }
}
