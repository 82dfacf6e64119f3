//! `GET /metrics`: what the server does and holds, for Prometheus.
//!
//! No label has a name of a channel, feed or client: there are as many series as are written
//! here, however many come.

mod audience;
mod exposition;
mod process;
mod work;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Api, Call};
use crate::http::Reply;
use crate::metrics::ByCode;
use crate::usage::Refused;
use exposition::{CONTENT_TYPE, Exposition};

/// A `query` thread writes the page: it looks at every subscriber, at the store and at `/proc`.
pub(super) fn get_metrics(api: &Arc<Api>, call: Call) {
    let shared = Arc::clone(api);
    api.query(move || {
        let page = page(&shared).into_bytes();
        call.reply(Reply::new(200, CONTENT_TYPE, page).with_header("Cache-Control", "no-store"));
    });
}

fn page(api: &Api) -> Exposition {
    let mut page = Exposition::default();
    let traffic = &api.usage.traffic;
    server(&mut page, api);
    audience::subscribers(&mut page, api);
    audience::sessions(&mut page, traffic);
    work::messages(&mut page, traffic);
    work::queues(&mut page, api);
    backplane(&mut page, api);
    refusals(&mut page, &api.usage.refused);
    store(&mut page, api);
    process::process(&mut page);
    page
}

fn server(page: &mut Exposition, api: &Api) {
    let traffic = &api.usage.traffic;
    page.gauges(
        "threadcast_build_info",
        "Always 1, with the version of the program.",
        [(&[("version", env!("CARGO_PKG_VERSION"))][..], 1)],
    );
    page.gauge(
        "threadcast_draining",
        "Whether the server is about to end, and GET /api/health answers 503.",
        u8::from(traffic.is_draining()),
    );
    page.counters(
        "threadcast_http_requests_total",
        "HTTP requests answered, refusals included, by status; without those that became subscribers.",
        "code",
        codes(&traffic.answers, "other"),
    );
    page.gauge(
        "threadcast_rest_requests",
        "REST requests in hand: connections of the relay in use.",
        traffic.rest_requests.load(Ordering::Relaxed),
    );
}

/// Nothing for a server by itself.
fn backplane(page: &mut Exposition, api: &Api) {
    let Some(status) = api.journal.link().map(|link| link.status()) else {
        return;
    };
    page.gauge(
        "threadcast_backplane_connected",
        "Whether this node is in the log that several nodes share, and reads it; publishing is answered 503 if not.",
        u8::from(status.away.is_none()),
    );
    page.gauge(
        "threadcast_backplane_writable",
        "Whether Redis takes what is appended to this log, as far as the last append or heartbeat tells; publishing is answered 503 if not.",
        u8::from(status.refusal.is_none()),
    );
    page.gauge(
        "threadcast_backplane_stranded",
        "Whether this node is out of this log until somebody does something about it, and GET /api/health answers 503.",
        u8::from(status.is_stranded),
    );
    page.gauge(
        "threadcast_backplane_behind_messages",
        "Messages that are known to be in the shared log and are not stored here yet.",
        status.behind,
    );
    page.counter(
        "threadcast_backplane_reconnects_total",
        "How often the connection to the shared log was made again.",
        status.reconnects,
    );
    page.histogram(
        "threadcast_backplane_append_duration_seconds",
        "How long it took until a batch was in the shared log, or was known not to be.",
        &api.usage.traffic.appends,
        1e9,
    );
}

fn refusals(page: &mut Exposition, refused: &Refused) {
    page.counters(
        "threadcast_refusals_total",
        "What each limit has refused, by its name in GET /api/health.",
        "limit",
        [
            ("connections", refused.connections.total()),
            ("per_address", refused.per_address.total()),
            ("subscribers", refused.subscribers.total()),
            ("queued_bytes", refused.queued_bytes.total()),
            ("message_bytes", refused.message_bytes.total()),
            ("feeds", refused.feeds.total()),
            ("publish_rate", refused.rate.total()),
            ("credentials", refused.credentials.total()),
        ],
    );
}

fn store(page: &mut Exposition, api: &Api) {
    page.gauge(
        "threadcast_newest_message_id",
        "The newest id that is committed, 0 before the first.",
        api.journal.head(),
    );
    page.known_gauge(
        "threadcast_oldest_message_id",
        "The id of the oldest message that is kept, one more than the newest if none is; left out when the store cannot be read.",
        api.reader.oldest().ok(),
    );
    let Some(files) = api.reader.file_bytes() else {
        return;
    };
    page.gauges(
        "threadcast_database_bytes",
        "Size of the database file, and of the write-ahead log beside it.",
        [
            (&[("file", "main")][..], files.main),
            (&[("file", "wal")], files.wal),
        ],
    );
}

fn codes<'a>(codes: &'a ByCode, without: &'a str) -> impl Iterator<Item = (String, u64)> + use<'a> {
    codes.totals().map(move |(code, total)| {
        let code = code.map_or_else(|| without.to_owned(), |code| code.to_string());
        (code, total)
    })
}
