//! Who is connected, how far everybody is, and how it went.

use std::sync::atomic::Ordering;

use super::codes;
use super::exposition::{Exposition, Label};
use crate::metrics::Traffic;
use crate::server::rest::Api;

pub(super) fn subscribers(page: &mut Exposition, api: &Api) {
    let census = api.manager.census();
    let (channels, feeds) = (census.channels, census.feeds);
    let http = &api.usage.traffic.http_connections;
    page.gauges(
        "threadcast_connections",
        "Connections open, by what they speak; subscribers are websocket and sse. One that is being closed is none of them.",
        [
            (&[("kind", "http")][..], http.load(Ordering::Relaxed)),
            (&[("kind", "websocket")], channels.websockets + feeds.websockets),
            (&[("kind", "sse")], channels.event_streams + feeds.event_streams),
        ],
    );
    page.gauges(
        "threadcast_subscribers",
        "Subscribers connected, by what they speak and what they subscribed to.",
        [
            (
                &[("kind", "websocket"), ("topic", "channel")][..],
                channels.websockets,
            ),
            (
                &[("kind", "websocket"), ("topic", "feed")],
                feeds.websockets,
            ),
            (
                &[("kind", "sse"), ("topic", "channel")],
                channels.event_streams,
            ),
            (&[("kind", "sse"), ("topic", "feed")], feeds.event_streams),
        ],
    );
    page.gauge(
        "threadcast_channels",
        "Channels that have subscribers.",
        channels.topics,
    );
    page.gauge(
        "threadcast_feeds",
        "Feeds that have subscribers.",
        feeds.topics,
    );
    page.gauges(
        "threadcast_subscribers_behind",
        "Subscribers that are brought what they have missed, or were not sent their feed's newest state yet.",
        by_topic(channels.behind, feeds.behind),
    );
    page.gauges(
        "threadcast_subscribers_behind_ids",
        "How far these are behind, added up: ids of messages (of all channels) or revisions of feeds.",
        by_topic(channels.lag, feeds.lag),
    );
    page.gauges(
        "threadcast_subscribers_behind_max_ids",
        "How far the last of these is behind.",
        by_topic(channels.longest_lag, feeds.longest_lag),
    );
    page.gauges(
        "threadcast_outbox_bytes",
        "Bytes that wait in the outboxes of all subscribers.",
        by_topic(channels.queued_bytes, feeds.queued_bytes),
    );
    page.gauge(
        "threadcast_recent_bytes",
        "Bytes of what was broadcast last, kept for subscribers that fall behind.",
        census.recent_bytes,
    );
}

fn by_topic<V>(of_channels: V, of_feeds: V) -> [(&'static [Label], V); 2] {
    [
        (&[("topic", "channel")], of_channels),
        (&[("topic", "feed")], of_feeds),
    ]
}

pub(super) fn sessions(page: &mut Exposition, traffic: &Traffic) {
    page.counters(
        "threadcast_subscriptions_total",
        "Subscribers that came, by what they speak.",
        "kind",
        [
            ("websocket", traffic.joined_websocket.total()),
            ("sse", traffic.joined_sse.total()),
        ],
    );
    page.counters(
        "threadcast_resumes_total",
        "Subscriptions to channels that asked for what came before: since an id (Last-Event-ID, too), or the last so many.",
        "start",
        [("since", traffic.since.total()), ("last", traffic.last.total())],
    );
    page.counters(
        "threadcast_gaps_total",
        "Gaps that subscribers were told of, by reason.",
        "reason",
        [
            ("retention", traffic.gaps_retention.total()),
            ("unknown_id", traffic.gaps_unknown_id.total()),
        ],
    );
    page.counter(
        "threadcast_fall_behinds_total",
        "How often a channel's subscriber was too slow for its outbox, and went on from the store.",
        traffic.fell_behind.total(),
    );
    page.counters(
        "threadcast_disconnects_total",
        "Subscribers that went, by close code (1000 when their own close was answered, none when they just went).",
        "code",
        codes(&traffic.left, "none"),
    );
}
