//! What the server says to a subscriber, and how it is printed.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::client::shown;

/// Any frame of the server. What is not a frame's own is missing in it.
#[derive(Debug, Deserialize)]
pub(super) struct Frame<'a> {
    #[serde(rename = "type")]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) data: Option<&'a RawValue>,
    pub(super) rev: Option<u64>,
    pub(super) head: Option<u64>,
    pub(super) since: Option<u64>,
    pub(super) oldest: Option<u64>,
    pub(super) reason: Option<String>,
    pub(super) detail: Option<String>,
}

/// The fields of a message that are shown.
#[derive(Debug, Deserialize)]
pub(super) struct Shown<'a> {
    pub(super) id: u64,
    #[serde(borrow, default)]
    author: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Cow<'a, str>,
    #[serde(borrow, default)]
    timestamp: Cow<'a, str>,
    lane: Option<Cow<'a, str>>,
}

impl Shown<'_> {
    /// `2026-01-05 12:34:56 ada [llm]: hi`, all on one line.
    pub(super) fn line(&self) -> String {
        let time = time(&self.timestamp);
        let (author, content) = (shown(&self.author), shown(&self.content));
        match self.lane.as_deref().filter(|lane| !lane.is_empty()) {
            None => format!("{time} {author}: {content}"),
            Some(lane) => format!("{time} {author} [{}]: {content}", shown(lane)),
        }
    }
}

/// Date and time up to the second; what is no timestamp of the protocol stays what it is.
fn time(timestamp: &str) -> Cow<'_, str> {
    match timestamp.split_at_checked(19) {
        Some((seconds, _)) if seconds.as_bytes()[10] == b'T' => {
            Cow::Owned(shown(seconds).replacen('T', " ", 1))
        }
        _ => shown(timestamp),
    }
}

/// `workflows rev 7: {…}`
pub(super) fn state_line(feed: &str, rev: u64, state: &str) -> String {
    format!("{feed} rev {rev}: {}", shown(&one_line(state)))
}

/// JSON as it came, unless it has line ends between its tokens.
pub(super) fn one_line(json: &str) -> Cow<'_, str> {
    if !json.contains(['\n', '\r']) {
        return Cow::Borrowed(json);
    }
    match serde_json::from_str::<Value>(json) {
        Ok(value) => Cow::Owned(value.to_string()),
        // It was read as JSON before, so only its depth can be too much for the reader.
        Err(_) => Cow::Owned(json.replace(['\n', '\r'], " ")),
    }
}

/// What a `gap` says to people.
pub(super) fn gap_sentence(frame: &Frame<'_>) -> String {
    let (since, oldest) = (frame.since.unwrap_or(0), frame.oldest.unwrap_or(0));
    let head = frame.head.unwrap_or(0);
    match frame.reason.as_deref() {
        Some("unknown_id") => format!(
            "gap: the server has no message {since}, its newest is {head}; going on with what is new"
        ),
        _ => format!(
            "gap: what came after message {since} is no longer kept; going on with message {oldest}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_without_control_characters() {
        for (json, expected) in [
            (
                r#"{"id":1,"author":"ada","content":"hi","timestamp":"2026-01-05T12:34:56.789012+00:00","lane":"llm"}"#,
                "2026-01-05 12:34:56 ada [llm]: hi",
            ),
            (
                r#"{"id":1,"author":"a\u001b[31m","content":"x\ny\u0000","timestamp":"2026-01-05T12:34:56Z","lane":null}"#,
                "2026-01-05 12:34:56 a\\u{1b}[31m: x\\ny\\u{0}",
            ),
            (
                r#"{"id":1,"timestamp":"\u001b2026-01-0é5T12:34"}"#,
                "\\u{1b}2026-01-0é5T12:34 : ",
            ),
        ] {
            let message: Shown<'_> = serde_json::from_str(json).expect("a message");
            assert_eq!(message.line(), expected);
        }
    }

    #[test]
    fn json_stays_as_it_was_written_on_one_line() {
        assert_eq!(one_line("{\"b\": 1.0, \"a\":2}"), "{\"b\": 1.0, \"a\":2}");
        assert_eq!(one_line("[1,\n 2]"), "[1,2]");
        assert_eq!(state_line("f", 3, "\"\u{9b}\""), "f rev 3: \"\\u{9b}\"");
    }
}
