//! The page that `GET /` is for browsers: channels, messages and states as they come.
//!
//! One document with its style and script inside: nothing else is asked for, so it works where
//! there is no internet, and its policy can forbid everything that is not in it.

use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};
use sha2::{Digest, Sha256};

use super::states::{CACHE_CONTROL, lists};
use super::{Api, Call};
use crate::http::Reply;

macro_rules! style {
    () => {
        include_str!("console/style.css")
    };
}

/// The parts share one scope, that of a module; what they declare is not the window's.
macro_rules! script {
    () => {
        concat!(
            include_str!("console/core.js"),
            include_str!("console/link.js"),
            include_str!("console/log.js"),
            include_str!("console/channel.js"),
            include_str!("console/feed.js"),
            include_str!("console/chart.js"),
            include_str!("console/lists.js"),
            include_str!("console/main.js"),
        )
    };
}

const PAGE: &str = concat!(
    include_str!("console/head.html"),
    "<style>",
    style!(),
    "</style>\n",
    include_str!("console/body.html"),
    "<script type=\"module\">",
    script!(),
    "</script>\n</body>\n</html>\n",
);

/// What is told of the page with every answer, computed once.
pub(super) struct Console {
    etag: String,
    /// The policy but for the page's own address.
    policy: String,
}

impl Console {
    pub(super) fn new() -> Self {
        let hash = |text: &str| BASE64.encode(&Sha256::digest(text));
        Self {
            etag: format!("\"{}\"", &HEXLOWER.encode(&Sha256::digest(PAGE))[..32]),
            policy: format!(
                "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; \
                 base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                 require-trusted-types-for 'script'; trusted-types 'none'; connect-src 'self'",
                hash(script!()),
                hash(style!()),
            ),
        }
    }

    /// The policy of a page at this host. Not every browser takes `'self'` for WebSockets, too
    /// (it does since CSP 3), so they are named.
    fn policy(&self, host: &str) -> String {
        let is_plain = host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".:-_[]".contains(&byte));
        if is_plain {
            format!("{} ws://{host} wss://{host}", self.policy)
        } else {
            self.policy.clone()
        }
    }
}

/// Whether whoever asks is a browser that wants to show something: every browser says so, and
/// no `curl`.
pub(super) fn is_wanted(call: &Call) -> bool {
    call.header("Accept").is_some_and(|accept| {
        accept.split(',').any(|range| {
            let media_type = range.split(';').next().unwrap_or_default();
            media_type.trim().eq_ignore_ascii_case("text/html")
        })
    })
}

pub(super) fn page(api: &Arc<Api>, call: Call) {
    let console = &api.console;
    let is_known = call
        .header("If-None-Match")
        .is_some_and(|known| lists(known, &console.etag));
    let reply = Reply::new(200, "text/html; charset=utf-8", PAGE.into())
        .with_header("Content-Security-Policy", console.policy(call.host()))
        .with_header("X-Content-Type-Options", "nosniff")
        .with_header("Referrer-Policy", "no-referrer")
        .with_header("Cache-Control", CACHE_CONTROL)
        .with_header("Vary", "Accept")
        .with_header("ETag", console.etag.clone());
    call.reply(if is_known {
        reply.not_modified()
    } else {
        reply
    });
}
