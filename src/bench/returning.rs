//! A thread that connects the subscribers that come back, while the others are received for.

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};

use super::connect::{self, HANDSHAKES, Open};

/// Both queues are bounded by the number of subscribers: each waits for one connection at most.
pub(super) struct Returning {
    wanted: Sender<(usize, String)>,
    connected: Receiver<(usize, Result<Open, String>)>,
}

impl Returning {
    /// Starts the thread; it ends with this value.
    pub(super) fn start(address: SocketAddr) -> std::io::Result<Self> {
        let (wanted, orders) = mpsc::channel::<(usize, String)>();
        let (done, connected) = mpsc::channel();
        let connect = move || {
            while let Ok(first) = orders.recv() {
                let batch = std::iter::once(first).chain(orders.try_iter());
                let (indices, paths): (Vec<_>, Vec<_>) = batch.take(HANDSHAKES).unzip();
                let opened = connect::handshakes(address, paths.into_iter());
                for each in indices.into_iter().zip(opened) {
                    if done.send(each).is_err() {
                        return;
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("returning".to_owned())
            .spawn(connect)?;
        Ok(Self { wanted, connected })
    }

    pub(super) fn connect(&self, index: usize, path: String) {
        // A thread that is gone connects nobody, and that is found at the end.
        let _ = self.wanted.send((index, path));
    }

    /// The next one that is connected, or could not be.
    pub(super) fn connected(&self) -> Option<(usize, Result<Open, String>)> {
        self.connected.try_recv().ok()
    }
}
