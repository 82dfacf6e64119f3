//! What a session promises whoever writes to it, over real sockets.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) type Tunnel = StreamOwned<ClientConnection, TcpStream>;

/// A session after its handshake, non-blocking, and its client.
pub(crate) fn pair() -> (Stream, Tunnel) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()])
        .and_then(|params| params.self_signed(&key))
        .expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("a root");
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions that there are")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let secret = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions that there are")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], secret)
        .expect("a certificate with its key");

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let theirs =
        TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    theirs.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let (ours, _) = listener.accept().expect("a connection");
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(client), name).expect("a client");
    let mut tunnel = StreamOwned::new(connection, theirs);
    let tunnel = thread::spawn(move || {
        tunnel
            .conn
            .complete_io(&mut tunnel.sock)
            .expect("a handshake");
        tunnel
    });
    let stream = Stream::from(ours);
    let session = Session::new(Arc::new(server), &stream.socket).expect("a session");
    session
        .handshake(&stream.socket, Instant::now() + DEADLINE)
        .expect("a handshake");
    session.set_nonblocking(true);
    stream.session.set(Box::new(session)).expect("the first");
    (stream, tunnel.join().expect("a client"))
}

fn would_block<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn a_write_takes_64_kib_at_most_and_nothing_while_some_of_that_waits() {
    let (stream, mut tunnel) = pair();
    let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 7) as u8).collect();
    let mut taken: Vec<u8> = Vec::new();
    loop {
        match (&stream).write_vectored(&[IoSlice::new(&bytes[..9]), IoSlice::new(&bytes)]) {
            Ok(count) => {
                assert!(count <= 64 << 10);
                taken.extend(bytes[..9].iter().chain(&bytes).take(count));
            }
            error => {
                assert!(would_block(error));
                break;
            }
        }
    }
    assert!(stream.has_unsent());
    assert!(would_block((&stream).write(b"more")));
    assert!(would_block(stream.push()));
    let expected = taken.len();
    let reader = thread::spawn(move || {
        let mut read = vec![0; expected];
        tunnel.read_exact(&mut read).expect("all that was taken");
        // With the end, an error without `close_notify`.
        assert_eq!(tunnel.read(&mut [0]).expect("the end"), 0);
        read
    });
    let start = Instant::now();
    while would_block((&stream).flush()) {
        assert!(start.elapsed() < DEADLINE, "the reader takes everything");
        thread::yield_now();
    }
    assert_eq!(stream.push().expect("nothing waits"), 0);
    drop(stream);
    assert!(reader.join().expect("a reader") == taken);
}

#[test]
fn a_read_that_leaves_something_decrypted_says_so() {
    let (stream, mut tunnel) = pair();
    tunnel.write_all(b"hello").expect("the socket takes it");
    stream.set_nonblocking(false).expect("a session");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time");
    assert_eq!((&stream).read(&mut [0; 2]).expect("bytes"), 2);
    assert!(stream.has_unread());
    let mut rest = [0; 10];
    assert_eq!((&stream).read(&mut rest).expect("bytes"), 3);
    assert_eq!(&rest[..3], b"llo");
    assert!(!stream.has_unread());
    stream.set_nonblocking(true).expect("a session");
    assert!(would_block((&stream).read(&mut rest)));
    assert!(stream.set_read_timeout(Some(Duration::ZERO)).is_err());
}
