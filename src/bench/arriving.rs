//! A long frame that arrives in many reads: only what will be looked at is kept of it.

use super::scanner::{self, Header, Kind};

/// What is kept of both ends, more than what is read without a parser.
const HEAD: usize = 256;
const END: usize = 32;

/// The payload of a text frame, or its two ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payload<'a> {
    pub(super) kept: &'a [u8],
    pub(super) length: usize,
}

impl<'a> Payload<'a> {
    pub(super) fn whole(text: &'a [u8]) -> Self {
        Self {
            kept: text,
            length: text.len(),
        }
    }

    pub(super) fn is_whole(self) -> bool {
        self.kept.len() == self.length
    }
}

/// A text frame whose end has not been read.
#[derive(Debug)]
pub(super) struct Arriving {
    length: usize,
    arrived: usize,
    is_whole: bool,
    kept: Vec<u8>,
}

impl Arriving {
    /// Takes the beginning of a text frame; `None` when it is short enough to wait for in full.
    pub(super) fn begin(bytes: &[u8], is_whole: bool) -> Option<Self> {
        let Ok(Some((Header { kind, length }, beginning))) = scanner::header(bytes) else {
            return None;
        };
        if kind != Kind::Text || length <= HEAD + END || length <= beginning.len() {
            return None;
        }
        let mut arriving = Self {
            length,
            arrived: 0,
            is_whole,
            kept: Vec::with_capacity(if is_whole { length } else { HEAD + END }),
        };
        arriving.take(beginning);
        Some(arriving)
    }

    /// Takes what belongs to the frame and returns what follows it.
    pub(super) fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (own, following) = bytes.split_at(bytes.len().min(self.length - self.arrived));
        let (from, to) = (self.arrived, self.arrived + own.len());
        let end_of_head = if self.is_whole { self.length } else { HEAD };
        let start_of_end = end_of_head.max(self.length - END);
        for wanted in [0..end_of_head, start_of_end..self.length] {
            let (start, end) = (wanted.start.max(from), wanted.end.min(to));
            if start < end {
                self.kept.extend_from_slice(&own[start - from..end - from]);
            }
        }
        self.arrived = to;
        following
    }

    /// What was kept, when all has arrived.
    pub(super) fn payload(&self) -> Option<Payload<'_>> {
        (self.arrived == self.length).then_some(Payload {
            kept: &self.kept,
            length: self.length,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_kept_however_the_frame_is_cut() {
        for length in [HEAD + END + 1, 1000, 70_000] {
            let text: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut frame = vec![0x81];
            match u16::try_from(length) {
                Ok(length) => frame.extend([&[126][..], &length.to_be_bytes()].concat()),
                Err(_) => frame.extend([&[127][..], &(length as u64).to_be_bytes()].concat()),
            }
            frame.extend(&text);
            frame.extend(b"next");
            let ends = [&text[..HEAD], &text[length - END..]].concat();
            for (is_whole, expected) in [(false, &ends), (true, &text)] {
                for (first, step) in [(10, 1), (10, 7), (300, HEAD), (usize::MAX, 3), (20, length)]
                {
                    let first = first.min(length - 5);
                    let mut arriving =
                        Arriving::begin(&frame[..first], is_whole).expect("a long frame");
                    let mut rest = &frame[first..];
                    while arriving.payload().is_none() {
                        let now = &rest[..step.min(rest.len())];
                        let following = arriving.take(now).len();
                        rest = &rest[now.len() - following..];
                        assert!(following == 0 || arriving.payload().is_some());
                    }
                    let payload = arriving.payload().expect("all of it");
                    assert_eq!(
                        payload.kept, expected,
                        "{length} bytes, {first} then {step}"
                    );
                    assert_eq!((payload.length, payload.is_whole()), (length, is_whole));
                    assert_eq!(rest, b"next");
                }
            }
        }
    }

    #[test]
    fn what_is_short_or_complete_or_no_text_is_not_taken_apart() {
        let long = [&[0x81, 126, 2, 0][..], &[b'x'; 512]].concat();
        assert!(Arriving::begin(&long[..4], false).is_some());
        for bytes in [
            &long[..],
            &long[..3],
            &[0x81, 125, b'x'],
            &[0x81, 126, 1, 32],
            &[0x89, 126, 2, 0],
            &[0x00, 126, 2, 0],
        ] {
            assert!(Arriving::begin(bytes, false).is_none(), "{bytes:02x?}");
        }
    }
}
