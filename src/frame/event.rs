//! The second form of frames: the text of an event stream (HTML standard, section 9.2.5).
//!
//! Every text is an event, with an `id:` where there is a place to go on from: a browser's
//! `EventSource` that comes back names the last one it saw. Pings and closes, which an event
//! stream has not, are comments.

use serde::Deserialize;

use super::{BEFORE_MESSAGE, CLOSE, PING, TEXT, split};

/// The events of frames, in order.
pub(super) fn encode(frames: &[u8]) -> Vec<u8> {
    let mut events = Vec::with_capacity(frames.len() + 64);
    let mut rest = frames;
    while let Some((opcode, payload, after)) = split(rest) {
        rest = after;
        match opcode {
            TEXT => push_event(&mut events, payload),
            PING => events.extend_from_slice(b":\n\n"),
            CLOSE => push_goodbye(&mut events, payload),
            _ => {}
        }
    }
    // It may stay in memory as long as the frames.
    events.shrink_to_fit();
    events
}

fn push_event(events: &mut Vec<u8>, text: &[u8]) {
    if let Some(id) = cursor(text) {
        events.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    // JSON of this server is one line; an embedding program's texts may be several.
    let mut rest = text;
    loop {
        let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let line = &rest[..end.unwrap_or(rest.len())];
        events.extend_from_slice(b"data: ");
        events.extend_from_slice(line);
        events.push(b'\n');
        let Some(end) = end else { break };
        let is_crlf = rest[end..].starts_with(b"\r\n");
        rest = &rest[end + 1 + usize::from(is_crlf)..];
    }
    events.push(b'\n');
}

/// A close frame's code and reason, for whoever looks at the stream.
fn push_goodbye(events: &mut Vec<u8>, payload: &[u8]) {
    events.push(b':');
    if let Some((code, reason)) = payload.split_first_chunk() {
        let code = u16::from_be_bytes(*code);
        let reason = String::from_utf8_lossy(reason).replace(char::is_control, " ");
        events.extend_from_slice(format!(" {code} {reason}").as_bytes());
    }
    events.extend_from_slice(b"\n\n");
}

/// Where whoever was given this text goes on: a message's id, a state's rev, the place up to
/// which `caught_up` and `gap` say that nothing more comes. `None` for other texts.
///
/// The shapes are those that this server writes, so that no JSON of a client is parsed again.
fn cursor(text: &[u8]) -> Option<u64> {
    if let Some(message) = text.strip_prefix(BEFORE_MESSAGE) {
        return leading_number(message.strip_prefix(br#"{"id":"#)?);
    }
    if let Some(head) = text.strip_prefix(br#"{"type":"caught_up","head":"#) {
        return leading_number(head);
    }
    if text.starts_with(br#"{"type":"gap","#) {
        let gap: Gap = serde_json::from_slice(text).ok()?;
        return Some(match &gap.reason[..] {
            "unknown_id" => gap.head,
            _ => gap.oldest.saturating_sub(1),
        });
    }
    rev(text)
}

#[derive(Deserialize)]
struct Gap {
    oldest: u64,
    head: u64,
    reason: String,
}

/// The revision at the end of a feed's frame, behind whatever the state says.
fn rev(text: &[u8]) -> Option<u64> {
    let rest = text.strip_prefix(br#"{"type":""#)?;
    let name = rest.split(|byte| *byte == b'"').next()?;
    let rest = rest[name.len()..].strip_prefix(br#"","data":"#)?;
    if !name.ends_with(b"_update") {
        return None;
    }
    let digits = rest.strip_suffix(b"}")?;
    let start = digits.iter().rposition(|byte| !byte.is_ascii_digit())? + 1;
    let (before, digits) = digits.split_at(start);
    before.ends_with(br#","rev":"#).then_some(())?;
    str::from_utf8(digits).ok()?.parse().ok()
}

fn leading_number(text: &[u8]) -> Option<u64> {
    let digits = text.split(|byte| !byte.is_ascii_digit()).next()?;
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::{Chunk, MessageFrame, StateFrame};
    use crate::protocol::{GapReason, Message, MessageId, Rev, ServerFrame};

    fn events(frames: &[Chunk]) -> String {
        let events = Chunk::concat(frames).as_events();
        String::from_utf8(events.bytes().to_vec()).expect("text")
    }

    fn message(id: u64, content: &str) -> Chunk {
        let message = Message {
            id: MessageId(id),
            channel_id: "lab".parse().expect("a channel"),
            author: "ada".into(),
            content: content.into(),
            timestamp: "2026-01-05T12:34:56.789012+00:00".into(),
            lane: None,
            provider: None,
            token_count: None,
        };
        MessageFrame::new(&message).chunk().clone()
    }

    #[test]
    fn every_text_is_an_event_with_the_id_to_go_on_from() {
        // What a client writes is no id, whatever it looks like.
        let frames = [
            message(7, r#"{"type":"x_update","data":1,"rev":9}"#),
            message(u64::MAX, "\r\nid: 5\n\n"),
        ];
        let texts: Vec<&str> = frames.iter().flat_map(Chunk::texts).collect();
        let expected = format!(
            "id: 7\ndata: {}\n\nid: {}\ndata: {}\n\n",
            texts[0],
            u64::MAX,
            texts[1]
        );
        assert_eq!(events(&frames), expected);
    }

    #[test]
    fn a_state_s_id_is_its_rev_and_nothing_that_the_state_says() {
        for (feed, state) in [
            ("workflow-history", "[]"),
            ("message", r#"{"id":4,"rev":5}"#),
            ("gap", r#"",\"rev\":5}""#),
            ("x", &format!("{:?}", "y".repeat(70_000))),
        ] {
            let feed = feed.parse().expect("a feed");
            let frame = StateFrame::new(&feed, state, Rev(31));
            let text = str::from_utf8(frame.json()).expect("text");
            let expected = format!("id: 31\ndata: {text}\n\n");
            assert_eq!(events(&[frame.chunk().clone()]), expected);
        }
    }

    #[test]
    fn caught_up_and_gap_say_where_to_go_on() {
        let gap = |reason| ServerFrame::Gap {
            since: MessageId(3),
            oldest: MessageId(10),
            head: MessageId(20),
            reason,
        };
        for (frame, id) in [
            (ServerFrame::CaughtUp { head: MessageId(8) }, 8),
            (gap(GapReason::Retention), 9),
            (gap(GapReason::UnknownId), 20),
        ] {
            let chunk = Chunk::json(&frame);
            let text = chunk.texts().next().expect("a text").to_owned();
            assert_eq!(events(&[chunk]), format!("id: {id}\ndata: {text}\n\n"));
        }
    }

    #[test]
    fn texts_of_another_kind_have_no_id_and_lines_stay_lines() {
        for (text, lines) in [
            ("", "data: \n\n"),
            (
                "a\nb\r\nc\rd\n",
                "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n",
            ),
            (
                r#"{"type":"update","data":1,"rev":2}"#,
                "data: {\"type\":\"update\",\"data\":1,\"rev\":2}\n\n",
            ),
            (
                r#"{"type":"x_update","data":1,"rev":x}"#,
                "data: {\"type\":\"x_update\",\"data\":1,\"rev\":x}\n\n",
            ),
            (
                r#"{"type":"x_update","data":1,"rev":}"#,
                "data: {\"type\":\"x_update\",\"data\":1,\"rev\":}\n\n",
            ),
            ("\u{2028}", "data: \u{2028}\n\n"),
        ] {
            assert_eq!(events(&[Chunk::text(text)]), lines);
        }
    }

    #[test]
    fn pings_and_closes_are_comments_and_pongs_nothing() {
        assert_eq!(events(&[Chunk::ping(b"x"), Chunk::pong(b"y")]), ":\n\n");
        assert_eq!(
            events(&[Chunk::close(Some(1001), "good\nbye")]),
            ": 1001 good bye\n\n"
        );
        assert_eq!(events(&[Chunk::close(None, "")]), ":\n\n");
        assert!(Chunk::raw(Vec::new()).as_events().is_empty());
    }
}
