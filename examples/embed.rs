//! A program with Threadcast inside: it updates a feed once a second, hears who comes and
//! goes, and ends in good order.
//!
//! ```sh
//! cargo run --example embed          # until Ctrl-C
//! cargo run --example embed -- 3     # three updates
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use threadcast::manager::EventKind;
use threadcast::protocol::{Feed, State};
use threadcast::{Config, Database, Server};

fn main() -> Result<(), Box<dyn Error>> {
    let updates = match std::env::args().nth(1) {
        Some(number) => number.parse()?,
        None => u64::MAX,
    };
    let mut config = Config::default();
    config.listen = "127.0.0.1:0".parse()?;
    // Nothing of this is worth a file.
    config.database = Database::Memory;
    let server = Server::start(config)?;
    for kind in [EventKind::Connected, EventKind::Disconnected] {
        server.subscribe(kind, |event| {
            println!("{event:?}");
            Ok::<_, Infallible>(())
        })?;
    }
    println!(
        "the state of this program is at ws://{0}/ws/machine and http://{0}/api/state/machine",
        server.address()
    );

    let machine: Feed = "machine".parse()?;
    let start = Instant::now();
    for update in 1..=updates {
        let state = State::from(json!({
            "up_seconds": start.elapsed().as_secs(),
            "audience": server.active_connections(),
        }));
        let published = server.publish_state(&machine, state)?;
        println!("revision {}", published.rev);
        if update < updates {
            thread::sleep(Duration::from_secs(1));
        }
    }
    server.shutdown();
    Ok(())
}
