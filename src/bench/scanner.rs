//! Reads what a server sends: unmasked frames (RFC 6455, 5.2), many in a read, cut anywhere.

use serde_json::Value;

use super::plan::STAMP_DIGITS;

/// One frame; the payload lies in the read buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    pub(super) payload: &'a [u8],
}

/// The opcode of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Close,
    Ping,
    Pong,
}

/// Takes the first frame off `bytes` and returns it with what follows it; `None` when it is
/// not complete yet.
///
/// A server sends each frame whole and unmasked: fragments, masks, reserved bits and
/// binary frames are errors.
pub(super) fn split(bytes: &[u8]) -> Result<Option<(Frame<'_>, &[u8])>, &'static str> {
    let &[first, second, ref rest @ ..] = bytes else {
        return Ok(None);
    };
    let kind = match first {
        0x81 => Kind::Text,
        0x88 => Kind::Close,
        0x89 => Kind::Ping,
        0x8a => Kind::Pong,
        _ => return Err("a frame that is neither a whole text frame nor a control frame"),
    };
    let (length, rest) = match second {
        0..126 => (usize::from(second), rest),
        126 => {
            let Some((length, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let Some((length, rest)) = rest.split_first_chunk() else {
                return Ok(None);
            };
            (
                usize::try_from(u64::from_be_bytes(*length))
                    .map_err(|_| "a frame of impossible length")?,
                rest,
            )
        }
        128.. => return Err("a masked frame"),
    };
    if rest.len() < length {
        return Ok(None);
    }
    let (payload, rest) = rest.split_at(length);
    Ok(Some((Frame { kind, payload }, rest)))
}

/// What the generator reads in a delivered message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) id: u64,
    /// When it was published, on the run's clock.
    pub(super) sent: u64,
}

const BEFORE_ID: &[u8] = br#"{"type":"message","data":{"id":"#;

/// Reads the messages of one channel.
#[derive(Debug)]
pub(super) struct Reader {
    channel: String,
    content_bytes: usize,
    /// What the server writes between the id and the content's first byte.
    before_stamp: Vec<u8>,
}

impl Reader {
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

/// The number that `text` starts with and what follows it.
pub(super) fn number(text: &[u8]) -> (u64, &[u8]) {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(digits);
    let value = digits.iter().fold(0_u64, |value, digit| {
        value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'))
    });
    (value, rest)
}

/// The beginning of a text, for an error message.
pub(super) fn shortened(text: &[u8]) -> String {
    let end = text.len().min(160);
    format!(
        "`{}`{}",
        String::from_utf8_lossy(&text[..end]),
        if end < text.len() { "…" } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(length as u8),
            length @ 126..65_536 => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(payload);
        frame
    }

    #[test]
    fn frames_of_every_header_length_are_found_wherever_the_bytes_are_cut() {
        let payloads = [0, 1, 125, 126, 127, 65_535, 65_536].map(|length| vec![b'x'; length]);
        for payload in payloads {
            for (first, kind) in [
                (0x81, Kind::Text),
                (0x88, Kind::Close),
                (0x89, Kind::Ping),
                (0x8a, Kind::Pong),
            ] {
                let mut bytes = encoded(first, &payload);
                let length = bytes.len();
                bytes.extend([0x81, 0x01]);
                for cut in (0..length.min(20)).chain(length - length.min(5)..length) {
                    assert_eq!(
                        split(&bytes[..cut]),
                        Ok(None),
                        "cut after {cut} of {length}"
                    );
                }
                for end in length..=bytes.len() {
                    let expected = Frame {
                        kind,
                        payload: &payload,
                    };
                    assert_eq!(
                        split(&bytes[..end]),
                        Ok(Some((expected, &bytes[length..end])))
                    );
                }
            }
        }
    }

    #[test]
    fn what_no_server_may_send_is_an_error() {
        for bytes in [
            [0x81, 0x80],
            [0x01, 0x00],
            [0x80, 0x00],
            [0x82, 0x00],
            [0xc1, 0x00],
            [0x83, 0x00],
        ] {
            assert!(split(&bytes).is_err(), "{bytes:02x?}");
        }
    }

    fn message(id: u64, channel: &str, content: &str) -> String {
        format!(
            r#"{{"type":"message","data":{{"id":{id},"channel_id":"{channel}","author":"bench","content":"{content}","timestamp":"2026-01-05T12:34:56.789012+00:00","lane":null,"provider":null,"token_count":null}}}}"#
        )
    }

    #[test]
    fn both_readers_find_id_and_time_stamp() {
        let reader = Reader::new("bench-7-00001", 20);
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
        let reader = Reader::new("c", 15);
        assert_eq!(reader.quick(payload), None);
        assert_eq!(reader.thorough(payload), Ok(Delivery { id: 3, sent: 5 }));
    }

    #[test]
    fn what_was_not_published_is_refused() {
        let reader = Reader::new("c", 15);
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
