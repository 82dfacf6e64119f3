//! A WebSocket clock: the connection manager alone, in a program with a listener of its own.
//!
//! Whoever connects sees the time at once and then every second. There is no server, no
//! store and no HTTP beyond the handshake, which is tungstenite's here.
//!
//! ```sh
//! cargo run --example clock                      # on 127.0.0.1:8020
//! cargo run --example clock -- 127.0.0.1:0       # on a free port
//! ```

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use threadcast::ConnectionManager;
use threadcast::frame::{Chunk, CloseCode};
use threadcast::manager::Client;
use threadcast::protocol::{Feed, State};
use threadcast::stream::Stream;
use tungstenite::Message;
use tungstenite::protocol::{Role, WebSocketContext};

/// Longest time a client's socket may take no byte.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:8020"))?;
    let manager = Arc::new(ConnectionManager::default());
    let clock: Feed = "clock".parse()?;

    tell(&manager, &clock);
    println!("the time is at ws://{}/", listener.local_addr()?);
    let (ticking, feed) = (Arc::clone(&manager), clock.clone());
    thread::spawn(move || {
        loop {
            // More often than the time changes: only a change is told.
            thread::sleep(Duration::from_millis(50));
            tell(&ticking, &feed);
        }
    });
    for stream in listener.incoming() {
        let (manager, feed) = (Arc::clone(&manager), clock.clone());
        thread::spawn(move || {
            if let Err(error) = serve(&manager, feed, stream) {
                eprintln!("a client is gone: {error}");
            }
        });
    }
    Ok(())
}

/// Publishes the time.
fn tell(manager: &ConnectionManager, clock: &Feed) {
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    manager.publish(clock, &State::from(json!({"unix_seconds": time.as_secs()})));
}

/// Looks after one client, to its end.
fn serve(
    manager: &ConnectionManager,
    feed: Feed,
    stream: io::Result<TcpStream>,
) -> Result<(), Box<dyn Error>> {
    let stream = stream?;
    let peer = stream.peer_addr()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let handshake = tungstenite::accept(stream).map_err(|error| error.to_string())?;
    let stream = Arc::new(Stream::from(handshake.get_ref().try_clone()?));
    // The handshake has been answered: nothing has to go out before the first state.
    let client = manager.connect(feed, peer, stream, Chunk::raw(Vec::new()))?;
    client.drain();
    let mut context = WebSocketContext::new(Role::Server, None);
    while client.end().is_none() && client.stalled_for() < PATIENCE {
        if client.wait(!client.is_finishing(), PATIENCE) && !listen(&client, &mut context) {
            break;
        }
    }
    manager.disconnect(&client);
    Ok(())
}

/// Reads what a client has sent; `false` when it is gone.
fn listen(client: &Client, context: &mut WebSocketContext) -> bool {
    match context.read(&mut Inbound(client.stream())) {
        Ok(Message::Ping(payload)) => client.reply(Chunk::pong(&payload)),
        Ok(Message::Close(_)) => client.finish(CloseCode::Normal, ""),
        // A clock has nothing to answer.
        Ok(_) => {}
        Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => return false,
    }
    true
}

/// The reading side of a client's socket. Answers go through the client, which alone writes,
/// so what tungstenite would say by itself ends here.
struct Inbound<'a>(&'a Stream);

impl Read for Inbound<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Inbound<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
