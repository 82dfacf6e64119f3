//! REST: tiny_http's request loop, one route table, one handler per route.
//!
//! This is the only room that knows tiny_http. It sees nothing but whole, well-formed
//! requests from the relay. The `rest` thread waits for nobody: reading history happens on the
//! `query` threads, and the relay takes whole answers at once.
//!
//! What publishes is the exception, because everything depends on how fast that is: its handlers
//! run on the thread of the publisher's connection ([`Publishing`]), and the journal's callback
//! answers the client. That wakes three threads less for a message, and half of its time were those.

mod admin;
mod call;
mod console;
mod directory;
mod handlers;
mod health;
mod idempotency;
mod metrics;
mod openapi;
mod page;
mod publishing;
mod routes;
mod states;

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Sender, unbounded};

use crate::access::{Access, Callers, Peer};
use crate::config::Limits;
use crate::error::{Error, Result};
use crate::http::{Head, Problem, Reply};
use crate::journal::Journal;
use crate::manager::ConnectionManager;
use crate::store::Reader;
use crate::usage::Usage;
use call::Call;
use console::Console;
use directory::PrivateDirectory;
use openapi::Document;
pub(super) use page::awaited;
pub(super) use routes::route_table;
pub use routes::{ROUTES, Route};

/// Threads that read history; each may have one answer of [`Limits::max_page_bytes`] in hand.
const QUERY_THREADS: usize = 2;

/// What the handlers work with.
pub(super) struct Api {
    pub(super) journal: Arc<Journal>,
    pub(super) manager: Arc<ConnectionManager>,
    pub(super) reader: Arc<dyn Reader>,
    pub(super) access: Arc<Access>,
    pub(super) usage: Arc<Usage>,
    pub(super) limits: Limits,
    pub(super) started: Instant,
    console: Console,
    openapi: Document,
    queries: Sender<Option<Query>>,
}

/// Work for a `query` thread; `None` ends one.
type Query = Box<dyn FnOnce() + Send>;

impl Api {
    /// Whether a publisher may hand so many messages or states to the journal now.
    ///
    /// # Errors
    /// 429 when it is too fast, 503 when too much waits to be stored; counted.
    pub(super) fn check_room(&self, peer: &Peer, number: usize) -> Result<(), Problem> {
        self.access.publish(peer, number).map_err(|too_fast| {
            self.usage.refused.rate.add();
            Problem::from(too_fast)
        })?;
        if self.journal.has_room() {
            return Ok(());
        }
        self.usage.refused.queued_bytes.add();
        let detail = format!(
            "{} bytes wait to be stored, which is the limit (--max-queued-bytes)",
            self.limits.max_queued_bytes
        );
        Err(Problem::unavailable(detail, handlers::RETRY_AFTER))
    }

    /// Runs work that reads the store on a `query` thread. Never blocks.
    pub(super) fn query(&self, work: impl FnOnce() + Send + 'static) {
        // Bounded by the requests in hand, one per connection to the relay.
        let _ = self.queries.send(Some(Box::new(work)));
    }
}

/// The handlers of what publishes, for the threads of connections.
#[derive(Clone)]
pub(super) struct Publishing(Arc<Api>);

impl Publishing {
    /// The route of a request that publishes.
    pub(super) fn route(head: &Head) -> Option<&'static Route> {
        if !matches!(&head.method[..], "POST" | "PUT") {
            return None;
        }
        match routes::find(&head.method, head.path()) {
            routes::Found::Route(route) => route.publishes().then_some(route),
            _ => None,
        }
    }

    /// Runs its handler, which hands what it publishes to the journal; `answer` is called once,
    /// here or by the journal at the commit, and must not block.
    #[inline(never)]
    pub(super) fn serve(
        &self,
        route: &Route,
        head: &Head,
        body: Vec<u8>,
        peer: &Peer,
        answer: impl FnOnce(Reply) + Send + 'static,
    ) {
        if let Some(call) = Call::published(head, body, peer.clone(), answer) {
            // What panics drops the call, which answers it.
            let _ = catch_unwind(AssertUnwindSafe(|| route.answer(&self.0, call)));
        }
    }
}

/// The running request loop.
pub(super) struct Rest {
    publishing: Publishing,
    http: Arc<tiny_http::Server>,
    threads: Vec<JoinHandle<()>>,
    directory: PrivateDirectory,
}

impl Rest {
    /// Starts the request loop behind a private socket.
    ///
    /// # Errors
    /// When the private socket can't be made, or the process may not have another thread.
    pub(super) fn start(
        journal: Arc<Journal>,
        manager: Arc<ConnectionManager>,
        reader: Arc<dyn Reader>,
        access: Arc<Access>,
        callers: Arc<Callers>,
        usage: Arc<Usage>,
        limits: &Limits,
    ) -> Result<Self> {
        let directory = PrivateDirectory::new().map_err(Error::system(
            "make a private directory for the REST socket",
        ))?;
        let http =
            tiny_http::Server::http_unix(&directory.socket()).map_err(|error| Error::System {
                doing: "listen on the REST socket".to_owned(),
                source: io::Error::other(error),
            })?;
        let http = Arc::new(http);
        let (queries, work) = unbounded::<Option<Query>>();
        let openapi = Document::new(access.has_tokens());
        let api = Arc::new(Api {
            journal,
            manager,
            reader,
            access,
            usage,
            limits: limits.clone(),
            started: Instant::now(),
            console: Console::new(),
            openapi,
            queries,
        });
        let publishing = Publishing(Arc::clone(&api));
        let mut threads = Vec::new();
        for number in 0..QUERY_THREADS {
            let work = work.clone();
            threads.push(spawn(format!("query-{number}"), move || {
                while let Ok(Some(query)) = work.recv() {
                    // The request in it is then dropped, and tiny_http answers 500.
                    let _ = catch_unwind(AssertUnwindSafe(query));
                }
            })?);
        }
        let requests = Arc::clone(&http);
        threads.push(spawn("rest".to_owned(), move || {
            // Ends with the first `unblock`: the relay's connections are made before the first
            // request, so tiny_http has nothing more to accept and no error to report.
            while let Ok(request) = requests.recv() {
                let _ = catch_unwind(AssertUnwindSafe(|| dispatch(&api, &callers, request)));
            }
        })?);
        Ok(Self {
            publishing,
            http,
            threads,
            directory,
        })
    }

    /// What answers those who publish.
    pub(super) fn publishing(&self) -> Publishing {
        self.publishing.clone()
    }

    /// Where the relay connects to.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.socket()
    }

    /// Ends the loop. Blocks until the handlers in hand are through.
    pub(super) fn stop(self) {
        self.http.unblock();
        for thread in self.threads.into_iter().rev() {
            let _ = self.publishing.0.queries.send(None);
            // A panic was reported when it happened.
            let _ = thread.join();
        }
        drop(self.http);
    }
}

/// Finds the route and runs its handler, if the caller may have it run.
fn dispatch(api: &Arc<Api>, callers: &Callers, request: tiny_http::Request) {
    let caller = caller(callers, &request);
    // Only the relay itself asks for nobody, on new connections and for a probe: `OPTIONS *`.
    let nobody = || Peer::from(SocketAddr::from(([0, 0, 0, 0], 0)));
    let is_known = caller.is_some();
    let call = Call::relayed(request, caller.unwrap_or_else(nobody));
    match routes::find(call.method(), call.path()) {
        routes::Found::Route(_) if !is_known => {
            call.reply(Problem::new(500, "nobody knows who asks").into());
        }
        routes::Found::Route(route) => route.answer(api, call),
        routes::Found::Options(allow) => call.reply_options(&allow),
        routes::Found::OtherMethods(allow) => {
            let problem = Problem::method_not_allowed(call.method(), call.path(), &allow);
            call.reply(problem.into());
        }
        routes::Found::Nothing => {
            let problem = Problem::new(
                404,
                format!(
                    "there is nothing at {}; GET / tells what there is",
                    call.path()
                ),
            );
            call.reply(problem.into());
        }
    }
}

/// Whose request it is, by the connection that it came on.
fn caller(callers: &Callers, request: &tiny_http::Request) -> Option<Peer> {
    let is_caller = |header: &&tiny_http::Header| header.field.equiv(Callers::HEADER);
    let header = request.headers().iter().find(is_caller)?;
    callers.get(header.value.as_str().parse().ok()?)
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name)
        .spawn(work)
        .map_err(Error::system("start a thread"))
}
