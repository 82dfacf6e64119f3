//! Reads delivered messages: what most of them need without a JSON parser, some in full.

use serde_json::Value;

use super::plan::STAMP_DIGITS;
use super::scanner::{number, shortened};

/// What the generator reads in a delivered message or state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    /// The message's id or the state's rev.
    pub(super) id: u64,
    /// When it was published, on the run's clock.
    pub(super) sent: u64,
}

const BEFORE_ID: &[u8] = br#"{"type":"message","data":{"id":"#;

/// Reads the messages of one channel.
#[derive(Debug)]
pub(super) struct MessageReader {
    channel: String,
    content_bytes: usize,
    /// What the server writes between the id and the content's first byte.
    before_stamp: Vec<u8>,
}

impl MessageReader {
    pub(super) fn new(channel: &str, content_bytes: usize) -> Self {
        let before_stamp = format!(r#","channel_id":"{channel}","author":"bench","content":""#);
        Self {
            channel: channel.to_owned(),
            content_bytes,
            before_stamp: before_stamp.into_bytes(),
        }
    }

    /// Reads a message in the exact form Threadcast writes it; `None` is no verdict: it may
    /// be another frame, or the same JSON written differently.
    pub(super) fn quick(&self, payload: &[u8]) -> Option<Delivery> {
        let (id, rest) = number(payload.strip_prefix(BEFORE_ID)?);
        let stamp = rest
            .strip_prefix(&self.before_stamp[..])?
            .get(..STAMP_DIGITS)?;
        let (sent, rest) = number(stamp);
        rest.is_empty().then_some(Delivery { id, sent })
    }

    /// Reads a message with a JSON parser and checks every field the contract promises.
    pub(super) fn thorough(&self, payload: &[u8]) -> Result<Delivery, String> {
        let fault = |what: &str| format!("{what}: {}", shortened(payload));
        let frame: Value =
            serde_json::from_slice(payload).map_err(|error| fault(&error.to_string()))?;
        if frame["type"] != "message" {
            return Err(fault("a frame that is no message"));
        }
        let data = &frame["data"];
        if data["channel_id"] != self.channel.as_str() || data["author"] != "bench" {
            return Err(fault("a message of somebody else"));
        }
        for field in ["timestamp", "lane", "provider", "token_count"] {
            data.get(field)
                .ok_or_else(|| fault(&format!("no `{field}`")))?;
        }
        let content = data["content"].as_str().unwrap_or_default();
        let stamp = content
            .get(..STAMP_DIGITS)
            .and_then(|digits| digits.parse().ok());
        match (data["id"].as_u64(), stamp) {
            (Some(id), Some(sent)) if content.len() == self.content_bytes => {
                Ok(Delivery { id, sent })
            }
            _ => Err(fault("not a message that was published")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: u64, channel: &str, content: &str) -> String {
        format!(
            r#"{{"type":"message","data":{{"id":{id},"channel_id":"{channel}","author":"bench","content":"{content}","timestamp":"2026-01-05T12:34:56.789012+00:00","lane":null,"provider":null,"token_count":null}}}}"#
        )
    }

    #[test]
    fn both_readers_find_id_and_time_stamp() {
        let reader = MessageReader::new("bench-7-00001", 20);
        for (id, stamp) in [
            (1, 0),
            (42, 123_456_789),
            (u64::from(u32::MAX) + 7, 999_999_999_999_999),
        ] {
            let payload = message(id, "bench-7-00001", &format!("{stamp:015}xxxxx"));
            let expected = Delivery { id, sent: stamp };
            assert_eq!(reader.quick(payload.as_bytes()), Some(expected));
            assert_eq!(reader.thorough(payload.as_bytes()), Ok(expected));
        }
    }

    #[test]
    fn json_in_another_order_is_read_thoroughly() {
        let payload = br#"{"data":{"content":"000000000000005","id":3,"author":"bench","channel_id":"c","timestamp":"","lane":null,"provider":null,"token_count":null},"type":"message"}"#;
        let reader = MessageReader::new("c", 15);
        assert_eq!(reader.quick(payload), None);
        assert_eq!(reader.thorough(payload), Ok(Delivery { id: 3, sent: 5 }));
    }

    #[test]
    fn what_was_not_published_is_refused() {
        let reader = MessageReader::new("c", 15);
        for payload in [
            r#"{"type":"gap","since":1,"oldest":2,"head":3,"reason":"retention"}"#.to_owned(),
            message(1, "d", "000000000000005"),
            message(1, "c", "00000000000000x"),
            message(1, "c", "short"),
            message(1, "c", ""),
            String::from("{"),
        ] {
            assert_eq!(reader.quick(payload.as_bytes()), None, "{payload}");
            assert!(reader.thorough(payload.as_bytes()).is_err(), "{payload}");
        }
        let longer = message(1, "c", "000000000000005x");
        assert!(
            reader.thorough(longer.as_bytes()).is_err(),
            "content of another length"
        );
    }
}
