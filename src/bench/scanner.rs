//! Reads what a server sends: unmasked frames (RFC 6455, 5.2), many in a read, cut anywhere.

/// One frame; the payload lies in the read buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    pub(super) payload: &'a [u8],
}

/// What a frame begins with.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Of the payload.
    pub(super) length: usize,
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
    let Some((Header { kind, length }, rest)) = header(bytes)? else {
        return Ok(None);
    };
    if rest.len() < length {
        return Ok(None);
    }
    let (payload, rest) = rest.split_at(length);
    Ok(Some((Frame { kind, payload }, rest)))
}

/// Takes a frame's header off `bytes` and returns it with what follows it; `None` when it is
/// not complete yet.
pub(super) fn header(bytes: &[u8]) -> Result<Option<(Header, &[u8])>, &'static str> {
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
    Ok(Some((Header { kind, length }, rest)))
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
}
