//! Watchers: a feed's state from a file or a command, looked at while somebody subscribes.
//!
//! Each watched feed has a thread of its own. It sleeps until the feed's first subscriber
//! comes, looks at once, and then at every interval as long as there are subscribers. A
//! source that fails leaves the last state as it is.

mod command;
mod file;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::config::{Config, Source, Watch};
use crate::journal::Journal;
use crate::manager::ConnectionManager;
use crate::protocol::{Feed, State, WatchStatus};
use command::Bounds;
use file::WatchedFile;

/// Distinct errors that are logged once each; what comes beyond is shown, not logged.
const MAX_LOGGED: usize = 64;

/// The running watchers. Bounded by what the configuration names.
pub(crate) struct Watchers {
    /// Nothing is ever sent: the threads end when it is gone.
    stop: Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Watchers {
    /// Starts a thread for every watched feed.
    ///
    /// # Errors
    /// When the process may not have another thread; those that were started end.
    pub(crate) fn start(
        config: &Config,
        manager: &Arc<ConnectionManager>,
        journal: &Arc<Journal>,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let mut watchers = Self {
            stop,
            threads: Vec::new(),
        };
        for watch in &config.watches {
            let mut watcher = Watcher::new(watch, config, manager, journal, stopped.clone());
            let thread = thread::Builder::new()
                .name(format!("watch-{}", watch.feed))
                .spawn(move || watcher.run())?;
            watchers.threads.push(thread);
        }
        Ok(watchers)
    }

    /// Ends all watchers; a command that runs is killed. Blocks until that is done, and until
    /// a state that is being published is committed.
    pub(crate) fn stop(self) {
        drop(self.stop);
        for thread in self.threads {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

struct Watcher {
    feed: Feed,
    source: Looking,
    interval: Duration,
    bounds: Bounds,
    manager: Arc<ConnectionManager>,
    journal: Arc<Journal>,
    /// Says that the first subscriber came.
    woken: Receiver<()>,
    stopped: Receiver<()>,
    status: WatchStatus,
    logged: HashSet<String>,
}

/// Where it looks, and what it remembers of that.
enum Looking {
    File(WatchedFile),
    Exec(String),
}

impl Watcher {
    fn new(
        watch: &Watch,
        config: &Config,
        manager: &Arc<ConnectionManager>,
        journal: &Arc<Journal>,
        stopped: Receiver<()>,
    ) -> Self {
        let (source, name) = match &watch.source {
            Source::File(path) => (Looking::File(WatchedFile::new(path.clone())), "file"),
            Source::Exec(command) => (Looking::Exec(command.clone()), "exec"),
        };
        let status = WatchStatus {
            source: name,
            reads: 0,
            error: None,
        };
        let watcher = Self {
            feed: watch.feed.clone(),
            source,
            interval: config.watch_interval,
            bounds: Bounds {
                time: config.watch_timeout,
                bytes: config.limits.max_body_bytes,
            },
            manager: Arc::clone(manager),
            journal: Arc::clone(journal),
            woken: manager.first_subscribers(&watch.feed),
            stopped,
            status,
            logged: HashSet::new(),
        };
        watcher.show();
        watcher
    }

    fn run(&mut self) {
        loop {
            if self.manager.feed_subscribers(&self.feed) == 0 {
                select! {
                    recv(self.woken) -> _ => {}
                    recv(self.stopped) -> _ => return,
                }
                continue;
            }
            // Who has come before now is served by this look.
            let _ = self.woken.try_recv();
            self.look();
            select! {
                recv(self.woken) -> _ => {}
                recv(self.stopped) -> _ => return,
                default(self.interval) => {}
            }
        }
    }

    /// Looks at the source once and publishes what is new.
    fn look(&mut self) {
        let outcome = match &mut self.source {
            Looking::File(file) => match file.changed_content(self.bounds.bytes) {
                // As it was at the last look, with the outcome that this had.
                Ok(None) => return,
                Ok(Some(content)) => Ok(content),
                Err(error) => Err(error),
            },
            Looking::Exec(command) => command::run(command, self.bounds, &self.stopped),
        };
        self.status.reads += 1;
        let published = outcome.and_then(|json| {
            let state = State::parse(&json)
                .map_err(|error| format!("what {} is not JSON: {error}", self.source.gives()))?;
            self.journal
                .publish_and_wait(&self.feed, state)
                .map_err(|error| {
                    self.source.forget();
                    error.to_string()
                })
        });
        match published {
            Ok(_) => {
                if self.status.error.take().is_some() {
                    log::info!("the source of the feed {} works again", self.feed);
                }
            }
            Err(error) => self.fail(error),
        }
        self.show();
    }

    fn fail(&mut self, error: String) {
        if self.logged.len() < MAX_LOGGED && self.logged.insert(error.clone()) {
            log::warn!(
                "the source of the feed {} fails, its last state stays: {error}",
                self.feed
            );
        }
        self.status.error = Some(error);
    }

    /// Where `GET /api/state` finds it.
    fn show(&self) {
        self.manager.show_watch(&self.feed, self.status.clone());
    }
}

impl Looking {
    fn gives(&self) -> &'static str {
        match self {
            Self::File(_) => "the file holds",
            Self::Exec(_) => "the command prints",
        }
    }

    /// What was read could not be stored: it has to be read again.
    fn forget(&mut self) {
        if let Self::File(file) = self {
            file.forget();
        }
    }
}
