//! One function per route.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::page::Wanted;
use super::{Api, Call, console};
use crate::access::{On, Scope};
use crate::error::Error;
use crate::http::{Problem, Reply};
use crate::protocol::{Channel, FieldError, Message, MessageId};
use crate::store::ChannelTotals;

/// What a client should wait before it tries a store again that failed, in seconds.
pub(super) const RETRY_AFTER: u32 = 1;

const INDEX: &str = concat!(
    "threadcast ",
    env!("CARGO_PKG_VERSION"),
    "\n\
     \n\
     Subscribe, in a browser's console:\n\
     \n\
     \x20 ws = new WebSocket(\"ws://HOST/api/ws/lab\");\n\
     \x20 ws.onmessage = (e) => console.log(JSON.parse(e.data));\n\
     \n\
     or in a terminal:\n\
     \n\
     \x20 curl -N http://HOST/api/sse/lab\n\
     \n\
     Publish:\n\
     \n\
     \x20 curl -d hello http://HOST/api/channels/lab/messages?author=me\n\
     \x20 curl -X POST http://HOST/api/messages \\\n\
     \x20   -H 'Content-Type: application/json' \\\n\
     \x20   -d '{\"channel_id\":\"lab\",\"author\":\"me\",\"content\":\"hello\"}'\n\
     \n\
     Publish a state, and subscribe to it: ws://HOST/ws/board or\n\
     curl -N http://HOST/sse/board\n\
     \n\
     \x20 curl -X PUT http://HOST/api/state/board -d '{\"temperature\":21.5}'\n\
     \n\
     Look:\n\
     \n\
     \x20 curl 'http://HOST/api/messages?channel_id=lab&limit=10'\n\
     \x20 curl 'http://HOST/api/messages?channel_id=lab&since=0&wait=30'\n\
     \x20 curl http://HOST/api/channels\n\
     \x20 curl http://HOST/api/state\n\
     \x20 curl http://HOST/api/summary\n\
     \x20 curl http://HOST/api/health\n\
     \x20 curl http://HOST/api/openapi.json\n",
);

/// The console for browsers, text for everybody else.
pub(super) fn index(api: &Arc<Api>, call: Call) {
    if console::is_wanted(&call) {
        return console::page(api, call);
    }
    let text = INDEX.replace("HOST", call.host()).into_bytes();
    call.reply(Reply::new(200, "text/plain; charset=utf-8", text).with_header("Vary", "Accept"));
}

pub(super) fn get_messages(api: &Arc<Api>, call: Call) {
    let page = match call
        .query()
        .and_then(|query| Wanted::read(&query, api.limits.max_page_bytes))
        .and_then(|Wanted { page, .. }| {
            let on = page.channel.as_ref().map_or(On::Everything, On::Channel);
            call.peer().may(Scope::Subscribe, on).map(|()| page)
        }) {
        Ok(page) => page,
        Err(problem) => return call.reply(problem.into()),
    };
    answer_from_store(api, call, move |api| {
        let messages = api.reader.page(&page)?;
        Ok(json_body(&History {
            messages,
            head: api.journal.head(),
        }))
    });
}

#[derive(Serialize)]
struct History {
    messages: Vec<Message>,
    head: MessageId,
}

pub(super) fn get_channels(api: &Arc<Api>, call: Call) {
    let peer = call.peer().clone();
    let of_all = match call.query().and_then(|query| asks_for_all(api, &query)) {
        Ok(of_all) => of_all,
        Err(problem) => return call.reply(problem.into()),
    };
    answer_from_store(api, call, move |api| {
        let others = match api.journal.presence() {
            Some(presence) if of_all => Some(presence.others()?),
            _ => None,
        };
        let is_for_it = |name: &Channel| peer.may(Scope::Subscribe, On::Channel(name)).is_ok();
        let stored = api
            .reader
            .channels()?
            .into_iter()
            .filter(|totals| is_for_it(&totals.channel_id))
            .map(|totals| (totals.channel_id.clone(), ChannelDetails::from(totals)));
        let mut known: BTreeMap<Channel, ChannelDetails> = stored.collect();
        // A channel that nobody has published to yet is known by its subscribers.
        let subscribed = api.manager.subscribers_by_channel().into_iter();
        for (channel_id, subscribers) in subscribed.filter(|(name, _)| is_for_it(name)) {
            let details = known.entry(channel_id.clone()).or_insert(ChannelDetails {
                channel_id,
                messages: 0,
                last_id: MessageId(0),
                subscribers,
            });
            details.subscribers = subscribers;
        }
        for (name, subscribers) in others.iter().flat_map(|others| &others.subscribers) {
            let channel_id = Channel::stored(name);
            if is_for_it(&channel_id) {
                let details = known.entry(channel_id.clone()).or_insert(ChannelDetails {
                    channel_id,
                    messages: 0,
                    last_id: MessageId(0),
                    subscribers: 0,
                });
                details.subscribers += subscribers;
            }
        }
        let (channels, details) = known.into_iter().unzip();
        let nodes = of_all.then(|| 1 + others.map_or(0, |others| others.nodes));
        Ok(json_body(&Channels {
            channels,
            details,
            nodes,
        }))
    });
}

#[derive(Serialize)]
struct Channels {
    channels: Vec<Channel>,
    details: Vec<ChannelDetails>,
    /// How many were asked, when all were.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<usize>,
}

/// Whether the subscribers of all nodes are to be counted.
///
/// # Errors
/// 422 when it says neither, 503 when the others cannot be asked now.
fn asks_for_all(api: &Api, query: &[(String, String)]) -> Result<bool, Problem> {
    let Some((_, value)) = query.iter().rev().find(|(name, _)| name == "cluster") else {
        return Ok(false);
    };
    match (&value[..], api.journal.link()) {
        ("0", _) => Ok(false),
        ("1", Some(link)) => {
            let why_not = match link.status().away {
                Some((reason, _)) => format!("the other nodes cannot be asked now: {reason}"),
                None => match link.unheard() {
                    Some(reason) => {
                        format!("the subscribers of all nodes cannot be counted now: {reason}")
                    }
                    None => return Ok(true),
                },
            };
            Err(Problem::unavailable(why_not, RETRY_AFTER))
        }
        // A server by itself is all there are.
        ("1", None) => Ok(true),
        _ => {
            let detail = format!("`cluster` must be 0 or 1, not {value:?}");
            Err(Problem::field("cluster", detail))
        }
    }
}

#[derive(Serialize)]
struct ChannelDetails {
    channel_id: Channel,
    messages: u64,
    last_id: MessageId,
    subscribers: usize,
}

impl From<ChannelTotals> for ChannelDetails {
    fn from(totals: ChannelTotals) -> Self {
        Self {
            channel_id: totals.channel_id,
            messages: totals.messages,
            last_id: totals.last_id,
            subscribers: 0,
        }
    }
}

pub(super) fn get_summary(api: &Arc<Api>, call: Call) {
    if let Err(problem) = call.peer().may(Scope::Subscribe, On::Everything) {
        return call.reply(problem.into());
    }
    answer_from_store(api, call, |api| {
        Ok(json_body(&json!({"summary": api.reader.summary()?})))
    });
}

/// A WebSocket path that came without an upgrade (RFC 9110, section 15.5.22).
/// Whether the caller may have it is asked when it comes with one.
pub(super) fn upgrade_required(_: &Arc<Api>, call: Call) {
    let problem = Problem::new(426, "this is a WebSocket; connect with ws://, not http://")
        .with_header("Upgrade", "websocket")
        .with_header("Sec-WebSocket-Version", "13");
    call.reply(problem.into());
}

/// An event stream, which the connection's own thread serves and never asks for here.
pub(super) fn event_stream(_: &Arc<Api>, call: Call) {
    let problem = Problem::new(500, "an event stream came where there are none");
    call.reply(problem.into());
}

/// Reads on a `query` thread and answers from there.
fn answer_from_store(
    api: &Arc<Api>,
    call: Call,
    read: impl FnOnce(&Api) -> Result<Vec<u8>, Error> + Send + 'static,
) {
    let shared = Arc::clone(api);
    api.query(move || match read(&shared) {
        Ok(body) => call.reply(Reply::json(body)),
        Err(error) => call.reply(Problem::from(&error).into()),
    });
}

pub(super) fn json_body(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers always have a JSON form")
}

impl From<FieldError> for Problem {
    fn from(error: FieldError) -> Self {
        Self::field(error.field, error.detail)
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        match error {
            Error::KeyReused => Self::field("Idempotency-Key", error.to_string()),
            _ => Self::unavailable(error.to_string(), RETRY_AFTER),
        }
    }
}
