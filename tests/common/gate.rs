//! The way between nodes and their Redis, which can be closed, lose an answer, or lead elsewhere.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Passes bytes on in both directions, on as many connections as there are.
pub struct Gate {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Where new connections go.
    redis: Option<SocketAddr>,
    closed: bool,
    /// Of the request that has this in it, the answer is lost.
    losing: Option<String>,
    /// Nothing passes after that.
    closing: bool,
    /// How often that was done.
    lost: usize,
}

impl Gate {
    /// Threads end with the test's process.
    pub fn before(redis: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for node in listener.incoming().map_while(Result::ok) {
                let redis = shared.inner.lock().expect("a state").redis;
                // Redis may be gone: so is then the connection.
                if let Ok(redis) = TcpStream::connect(redis.expect("an address")) {
                    connect(node, redis, &shared);
                }
            }
        });
        let gate = Self { address, state };
        gate.turn_to(redis);
        gate
    }

    /// New connections are to this one from now on.
    pub fn turn_to(&self, redis: SocketAddr) {
        self.change(|inner| inner.redis = Some(redis));
    }

    /// What is on its way waits from now on; connections stay, and new ones are accepted.
    pub fn close(&self) {
        self.change(|inner| inner.closed = true);
    }

    /// Everything that has waited goes on.
    pub fn open(&self) {
        self.change(|inner| (inner.closed, inner.closing) = (false, false));
    }

    /// Once a request with this text in it has been passed on, and answered, its connection ends
    /// in place of the answer.
    pub fn lose_answer_to(&self, text: &str) {
        self.change(|inner| inner.losing = Some(text.to_owned()));
    }

    /// The same, and the gate is closed then.
    pub fn close_instead_of_answering(&self, text: &str) {
        self.change(|inner| {
            inner.losing = Some(text.to_owned());
            inner.closing = true;
        });
    }

    /// How many answers were lost.
    pub fn lost(&self) -> usize {
        self.state.inner.lock().expect("a state").lost
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.state.inner.lock().expect("a state"));
        self.state.changed.notify_all();
    }
}

impl State {
    /// Waits until the gate is open.
    fn pass(&self) -> std::sync::MutexGuard<'_, Inner> {
        let inner = self.inner.lock().expect("a state");
        let open = self.changed.wait_while(inner, |inner| inner.closed);
        open.expect("a state")
    }
}

fn connect(node: TcpStream, redis: TcpStream, state: &Arc<State>) {
    // Whether the next answer on this connection is to be lost.
    let doomed = Arc::new(Mutex::new(false));
    for stream in [&node, &redis] {
        stream.set_nodelay(true).expect("nodelay");
    }
    let copy = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    let (requests, to_redis) = (copy(&node), copy(&redis));
    let (shared, doom) = (Arc::clone(state), Arc::clone(&doomed));
    thread::spawn(move || {
        pump(requests, to_redis, |bytes| {
            let mut inner = shared.pass();
            let text = inner.losing.take_if(|text| contains(bytes, text));
            *doom.lock().expect("a flag") |= text.is_some();
            true
        })
    });
    let shared = Arc::clone(state);
    thread::spawn(move || {
        pump(redis, node, |_| {
            let mut inner = shared.pass();
            let doomed = *doomed.lock().expect("a flag");
            inner.lost += usize::from(doomed);
            inner.closed |= doomed && inner.closing;
            !doomed
        })
    });
}

fn contains(bytes: &[u8], text: &str) -> bool {
    let mut windows = bytes.windows(text.len());
    windows.any(|window| window == text.as_bytes())
}

/// Ends both streams when one ends, or `passes` says so.
fn pump(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut bytes = vec![0; 65536];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if !passes(&bytes[..read]) || to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
