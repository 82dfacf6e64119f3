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
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select};

use crate::config::{Config, Source, Watch};
use crate::journal::Journal;
use crate::manager::ConnectionManager;
use crate::protocol::{Feed, State, WatchStatus};
use crate::usage::Usage;
use command::Bounds;
use file::WatchedFile;

/// Two looks are at least so far apart, however often the audience comes and goes.
const MIN_PAUSE: Duration = Duration::from_millis(200);

/// Distinct errors that are logged once each; what comes beyond is shown, not logged.
const MAX_LOGGED: usize = 64;

/// The running watchers, bounded by what the configuration names. They run on when this is
/// dropped; [`Self::stop`] ends them.
pub(crate) struct Watchers {
    /// Nothing is ever sent: the threads end when it is gone.
    stop: Option<Sender<()>>,
    /// Nothing is ever sent here either: it is over when the last thread has ended.
    running: Receiver<()>,
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
        usage: &Arc<Usage>,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let (alive, running) = bounded(0);
        for watch in &config.watches {
            let stopped = stopped.clone();
            let mut watcher = Watcher::new(watch, config, manager, journal, usage, stopped);
            let alive = alive.clone();
            thread::Builder::new()
                .name(format!("watch-{}", watch.feed))
                .spawn(move || {
                    watcher.run();
                    drop(alive);
                })?;
        }
        Ok(Self {
            stop: Some(stop),
            running,
        })
    }

    /// Ends all watchers: none looks again, a command that runs is killed.
    pub(crate) fn stop(&mut self) {
        self.stop = None;
    }

    /// Waits until all have ended, after [`Self::stop`]; `false` at the deadline, when one
    /// still waits for the disk.
    pub(crate) fn wait(&self, deadline: Instant) -> bool {
        // Nobody sends: it returns when the last sender is gone, or in the end.
        let _ = self.running.recv_deadline(deadline);
        self.running.try_recv() == Err(TryRecvError::Disconnected)
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        // A server that is dropped runs on, and so do its watchers.
        std::mem::forget(self.stop.take());
    }
}

struct Watcher {
    feed: Feed,
    source: Looking,
    interval: Duration,
    bounds: Bounds,
    manager: Arc<ConnectionManager>,
    journal: Arc<Journal>,
    usage: Arc<Usage>,
    /// Says that the first subscriber came.
    woken: Receiver<()>,
    stopped: Receiver<()>,
    status: WatchStatus,
    logged: HashSet<String>,
    /// Its failing was logged, so its recovery is, too.
    is_news: bool,
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
        usage: &Arc<Usage>,
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
            usage: Arc::clone(usage),
            woken: manager.first_subscribers(&watch.feed),
            stopped,
            status,
            logged: HashSet::new(),
            is_news: false,
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
            let pause = MIN_PAUSE.min(self.interval);
            select! {
                recv(self.stopped) -> _ => return,
                default(pause) => {}
            }
            select! {
                recv(self.woken) -> _ => {}
                recv(self.stopped) -> _ => return,
                default(self.interval - pause) => {}
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
        self.usage.traffic.watch_looks.add();
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
                if self.status.error.take().is_some() && std::mem::take(&mut self.is_news) {
                    log::info!("the source of the feed {} works again", self.feed);
                }
            }
            // Cut short, by us: no failure of the source.
            Err(_) if self.is_stopped() => return,
            Err(error) => self.fail(error),
        }
        self.show();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.try_recv() == Err(TryRecvError::Disconnected)
    }

    fn fail(&mut self, error: String) {
        self.usage.traffic.watch_errors.add();
        if self.logged.len() < MAX_LOGGED && self.logged.insert(error.clone()) {
            self.is_news = true;
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
