//! What a query of the history asks for: which page, and how long it may wait for one.

use std::time::Duration;

use crate::http::{Head, Problem, query_pairs};
use crate::protocol::MessageId;
use crate::store::Page;

/// Messages in a page when the client does not say.
const DEFAULT_LIMIT: usize = 200;

/// Messages in a page at most.
const MAX_LIMIT: usize = 1000;

/// Longest wait, in seconds: proxies give up on an answer after a minute (nginx'
/// `proxy_read_timeout`).
const MAX_WAIT_SECONDS: u64 = 60;

/// A page, and how long its answer may wait while there is nothing in it.
pub(super) struct Wanted {
    pub(super) page: Page,
    /// Zero for not at all.
    wait: Duration,
}

/// The page that a request waits for, and how long; `None` for every other request, and for
/// one that is wrong, which its handler tells.
pub(in crate::server) fn awaited(head: &Head) -> Option<(Page, Duration)> {
    if head.method != "GET" || head.path() != "/api/messages" {
        return None;
    }
    let query = query_pairs(head.query()).ok()?;
    // Only whether there is anything is asked.
    let Wanted { page, wait } = Wanted::read(&query, 1).ok()?;
    (!wait.is_zero()).then_some((Page { limit: 1, ..page }, wait))
}

impl Wanted {
    /// Reads a query. Names nobody knows are ignored.
    ///
    /// # Errors
    /// 422 with what would be right.
    pub(super) fn read(query: &[(String, String)], max_bytes: usize) -> Result<Self, Problem> {
        let mut page = Page {
            channel: None,
            since: None,
            before: None,
            limit: DEFAULT_LIMIT,
            max_bytes,
        };
        let mut wait = None;
        for (name, value) in query {
            match name.as_str() {
                "channel_id" => {
                    page.channel = Some(value.parse().map_err(|detail| {
                        Problem::field("channel_id", format!("`channel_id`: {detail}"))
                    })?);
                }
                "since" => page.since = Some(id("since", value)?),
                "before" => page.before = Some(id("before", value)?),
                "limit" => page.limit = number("limit", value, 1, MAX_LIMIT as u64)? as usize,
                "wait" => wait = Some(number("wait", value, 0, MAX_WAIT_SECONDS)?),
                _ => {}
            }
        }
        // What comes has greater ids than any, so a bound would be waited for in vain.
        if wait.is_some() && (page.since.is_none() || page.before.is_some()) {
            let detail = "`wait` needs `since`, and no `before`: it waits for greater ids";
            return Err(Problem::field("wait", detail));
        }
        let wait = Duration::from_secs(wait.unwrap_or(0));
        Ok(Self { page, wait })
    }
}

fn number(field: &str, value: &str, least: u64, most: u64) -> Result<u64, Problem> {
    let number = value.parse().ok();
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| {
        let detail = format!("`{field}` must be {least} to {most}, not {value:?}");
        Problem::field(field, detail)
    })
}

fn id(field: &str, value: &str) -> Result<MessageId, Problem> {
    value.parse().map(MessageId).map_err(|_| {
        Problem::field(
            field,
            format!("`{field}` must be a message id (0 or more), not {value:?}"),
        )
    })
}
