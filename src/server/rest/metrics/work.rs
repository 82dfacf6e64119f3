//! Messages and states, and how long they wait on their way.

use std::sync::atomic::Ordering;

use super::exposition::Exposition;
use crate::metrics::Traffic;
use crate::server::rest::Api;

/// Nanoseconds in a second.
const SECOND: f64 = 1e9;

pub(super) fn messages(page: &mut Exposition, traffic: &Traffic) {
    page.counter(
        "threadcast_messages_published_total",
        "Messages committed.",
        traffic.messages.total(),
    );
    page.counters(
        "threadcast_deliveries_total",
        "Messages put into the outboxes of subscribers, once for each: live from the broadcast, to those behind from recent memory or from the store.",
        "source",
        [
            ("live", traffic.delivered_live.total()),
            ("recent", traffic.delivered_recent.total()),
            ("store", traffic.delivered_store.total()),
        ],
    );
    page.counters(
        "threadcast_states_published_total",
        "States published to feeds, by whether they differ from the last one.",
        "changed",
        [
            (true, traffic.states_changed.total()),
            (false, traffic.states_unchanged.total()),
        ],
    );
    page.counter(
        "threadcast_state_deliveries_total",
        "States offered to the subscribers of feeds, once for each; several in a row count once, and a slow one may skip some.",
        traffic.states_delivered.total(),
    );
    page.counter(
        "threadcast_watch_looks_total",
        "Looks at watched files and commands that read or ran something.",
        traffic.watch_looks.total(),
    );
    page.counter(
        "threadcast_watch_errors_total",
        "Looks that failed, so that the feed keeps its last state.",
        traffic.watch_errors.total(),
    );
}

pub(super) fn queues(page: &mut Exposition, api: &Api) {
    let traffic = &api.usage.traffic;
    page.gauge(
        "threadcast_journal_queue_submissions",
        "Submissions of publishers that wait for the journal.",
        api.journal.queued_orders(),
    );
    page.gauge(
        "threadcast_journal_queue_bytes",
        "Bytes of messages and states that wait to be committed, those of the commit at hand included.",
        api.journal.queued_bytes(),
    );
    page.gauge(
        "threadcast_fanout_queue_bytes",
        "Bytes of committed frames that wait for their fan-out, those at hand included.",
        traffic.fanout_bytes.load(Ordering::Relaxed),
    );
    page.histogram(
        "threadcast_commit_duration_seconds",
        "How long commits took, failed ones too.",
        &traffic.commits,
        SECOND,
    );
    page.counter(
        "threadcast_commit_errors_total",
        "Commits that failed: their publishers got 503.",
        traffic.commit_errors.total(),
    );
    page.histogram(
        "threadcast_commit_batch_size",
        "Messages and states in one commit.",
        &traffic.batches,
        1.0,
    );
    page.histogram(
        "threadcast_fanout_duration_seconds",
        "How long it took to offer what was committed to all of its subscribers.",
        &traffic.fan_outs,
        SECOND,
    );
}
