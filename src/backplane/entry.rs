//! Entries of the stream as bytes, and what they say.
//!
//! An entry has two fields. `h` is its header: the id of the entry before it, when it was
//! appended in microseconds since 1970, and its batch, `NODE:NUMBER`. The other one is `m` for a
//! message (its fields as a JSON list), `s` for a state (feed, revision, 1 if the server made it
//! itself, and the state), `k` for a mark of the log itself.

use std::borrow::Cow;

use super::Reply;
use crate::protocol::{Channel, Draft, Feed, Position, Rev, StoredState};

/// An entry of the log.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where it is.
    pub(crate) position: Position,
    /// Where the one before it is; `None` when somebody else wrote it.
    pub(crate) after: Option<Position>,
    /// When it was appended, by Redis' clock, in microseconds since 1970.
    pub(crate) micros: u64,
    /// Which batch it came with.
    pub(crate) batch: String,
    /// Bytes that it had on its way.
    pub(crate) bytes: usize,
    /// What it says.
    pub(crate) content: Content,
}

/// What an entry says.
#[derive(Debug)]
pub(crate) enum Content {
    /// A message.
    Message(Draft),
    /// A feed's state.
    State(StoredState),
    /// Nothing for subscribers: the log began or went on here.
    Mark,
    /// Somebody else's.
    Foreign,
}

impl Entry {
    /// Reads an element of what XREAD and XRANGE answer: its id and its fields.
    pub(super) fn read(reply: Reply) -> Option<Self> {
        let bytes = reply.size();
        let mut parts = reply.into_list()?.into_iter();
        let position = parts.next()?.text()?.parse().ok()?;
        let fields: Vec<Vec<u8>> = parts
            .next()
            .and_then(Reply::into_list)
            .unwrap_or_default()
            .into_iter()
            .filter_map(Reply::into_bytes)
            .collect();
        Some(Self::parse(position, bytes, fields).unwrap_or(Self {
            position,
            after: None,
            micros: 0,
            batch: String::new(),
            bytes,
            content: Content::Foreign,
        }))
    }

    fn parse(position: Position, bytes: usize, fields: Vec<Vec<u8>>) -> Option<Self> {
        let [h, header, kind, payload]: [Vec<u8>; 4] = fields.try_into().ok()?;
        if h != b"h" {
            return None;
        }
        let mut header = std::str::from_utf8(&header).ok()?.split(' ');
        let after = header.next()?.parse().ok()?;
        let micros = header.next()?.parse().ok()?;
        let batch = header.next()?.to_owned();
        let content = match &kind[..] {
            b"m" => Content::Message(message(&payload)?),
            b"s" => Content::State(state(&payload)?),
            b"k" => Content::Mark,
            _ => return None,
        };
        Some(Self {
            position,
            after: Some(after),
            micros,
            batch,
            bytes,
            content,
        })
    }
}

/// The fields of a message, in their order in an entry.
type Fields<'a> = (
    Cow<'a, str>,
    Cow<'a, str>,
    Cow<'a, str>,
    Option<Cow<'a, str>>,
    Option<Cow<'a, str>>,
    Option<i64>,
);

/// A message's payload.
pub(super) fn encode_message(draft: &Draft) -> Vec<u8> {
    let fields: Fields<'_> = (
        draft.channel_id.as_str().into(),
        draft.author.as_str().into(),
        draft.content.as_str().into(),
        draft.lane.as_deref().map(Cow::Borrowed),
        draft.provider.as_deref().map(Cow::Borrowed),
        draft.token_count,
    );
    serde_json::to_vec(&fields).expect("strings and numbers always have a JSON form")
}

fn message(payload: &[u8]) -> Option<Draft> {
    let (channel, author, content, lane, provider, token_count): Fields<'_> =
        serde_json::from_slice(payload).ok()?;
    Some(Draft {
        channel_id: Channel::stored(&channel),
        author: author.into_owned(),
        content: content.into_owned(),
        lane: lane.map(Cow::into_owned),
        provider: provider.map(Cow::into_owned),
        token_count,
    })
}

/// A state's payload.
pub(super) fn encode_state(stored: &StoredState) -> Vec<u8> {
    let StoredState {
        feed,
        rev,
        state,
        own,
    } = stored;
    format!("{} {rev} {} {state}", feed.as_str(), u8::from(*own)).into_bytes()
}

/// A state from its payload.
pub(super) fn state(payload: &[u8]) -> Option<StoredState> {
    let mut parts = std::str::from_utf8(payload).ok()?.splitn(4, ' ');
    let feed: Feed = parts.next()?.parse().ok()?;
    let rev = Rev(parts.next()?.parse().ok()?);
    let own = parts.next()? == "1";
    Some(StoredState {
        feed,
        rev,
        state: parts.next()?.to_owned(),
        own,
    })
}

/// The header of an entry that marks the log itself.
pub(super) fn mark_header(after: &str, micros: u64) -> String {
    format!("{after} {micros} log:0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::MessageId;

    fn entry(fields: &[&[u8]]) -> Entry {
        let fields = fields.iter().map(|field| Reply::Bytes(field.to_vec()));
        let id = Reply::Bytes(b"7-0".to_vec());
        Entry::read(Reply::List(vec![id, Reply::List(fields.collect())])).expect("an entry")
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let draft = Draft {
            channel_id: "ü 1".parse().expect("a channel"),
            author: "a \"b\"".into(),
            content: "x\u{0}\ny".into(),
            lane: None,
            provider: Some(String::new()),
            token_count: Some(-3),
        };
        let read = entry(&[
            b"h",
            b"6-2 1767616496000012 ab:9",
            b"m",
            &encode_message(&draft),
        ]);
        assert_eq!(read.position, Position::of(MessageId(7)));
        assert_eq!(
            read.after.map(|after| after.to_string()).as_deref(),
            Some("6-2")
        );
        assert_eq!(
            (read.micros, &read.batch[..]),
            (1_767_616_496_000_012, "ab:9")
        );
        assert!(matches!(read.content, Content::Message(found) if found == draft));
        let stored = StoredState {
            feed: "board".parse().expect("a feed"),
            rev: Rev(3),
            state: "{\"a b\": [1, 2]}".into(),
            own: true,
        };
        let read = entry(&[b"h", b"6-2 1 ab:9", b"s", &encode_state(&stored)]);
        assert!(matches!(read.content, Content::State(found) if found == stored));
    }

    #[test]
    fn whatever_else_is_there_is_foreign() {
        let shapes: [&[&[u8]]; 7] = [
            &[],
            &[b"temperature", b"21"],
            &[b"h", b"x", b"m", b"[]"],
            &[b"h", b"6-0 1 a:1", b"m", b"[]"],
            &[b"h", b"6-0 1 a:1", b"z", b""],
            &[b"h", b"6-0 1 a:1", b"s", b"BOARD 1 0 {}"],
            &[b"h", b"6-0 1", b"k", b"log"],
        ];
        for fields in shapes {
            assert!(matches!(entry(fields).content, Content::Foreign));
        }
    }
}
