//! Reads delivered states: of most only the two ends, some in full.

use serde_json::Value;

use super::arriving::Payload;
use super::message_reader::Delivery;
use super::plan::STAMP_DIGITS;
use super::scanner::{number, shortened};
use super::state;

/// What the server writes between the state and its rev.
const BEFORE_REV: &[u8] = br#","rev":"#;

/// Reads the states of one feed.
#[derive(Debug)]
pub(super) struct StateReader {
    frame_type: String,
    /// What the server writes before the state.
    before_state: Vec<u8>,
    state_bytes: usize,
    /// The state without what differs from one to the next.
    state: Value,
}

impl StateReader {
    pub(super) fn new(feed: &str, state_bytes: usize) -> Self {
        let frame_type = format!("{}_update", feed.replace('-', "_"));
        let state = state::text(0, state_bytes);
        Self {
            before_state: format!(r#"{{"type":"{frame_type}","data":"#).into_bytes(),
            frame_type,
            state_bytes,
            state: without_stamp(serde_json::from_str(&state).expect("a state is JSON")),
        }
    }

    /// Reads a state in the exact form Threadcast writes it; `None` is no verdict on a whole
    /// one: it may be another frame, or the same JSON written differently.
    pub(super) fn quick(&self, payload: Payload<'_>) -> Option<Delivery> {
        let stamp = payload
            .kept
            .strip_prefix(&self.before_state[..])?
            .strip_prefix(state::BEFORE_STAMP.as_bytes())?
            .get(..STAMP_DIGITS)?;
        let (sent, rest) = number(stamp);
        let end = payload.kept.strip_suffix(b"}")?;
        let digits = end.iter().rev().take_while(|byte| byte.is_ascii_digit());
        let (end, rev) = end.split_at(end.len() - digits.count());
        let (id, _) = number(rev);
        let around = self.before_state.len() + BEFORE_REV.len() + rev.len() + 1;
        let is_complete = end.strip_suffix(BEFORE_REV)?.ends_with(b"}")
            && payload.length == around + self.state_bytes;
        (rest.is_empty() && is_complete && !rev.is_empty()).then_some(Delivery { id, sent })
    }

    /// Reads a state with a JSON parser and compares all of it with what is published.
    pub(super) fn thorough(&self, text: &[u8]) -> Result<Delivery, String> {
        let (id, data) = self.parse(text)?;
        let sent = data["sent"]
            .as_str()
            .filter(|sent| sent.len() == STAMP_DIGITS);
        match sent.and_then(|digits| digits.parse().ok()) {
            Some(sent) if without_stamp(data) == self.state => Ok(Delivery { id, sent }),
            _ => Err(format!(
                "not a state that was published: {}",
                shortened(text)
            )),
        }
    }

    /// The rev of a feed's first frame, whatever its state is.
    pub(super) fn snapshot(&self, text: &[u8]) -> Result<u64, String> {
        self.parse(text).map(|(rev, _)| rev)
    }

    fn parse(&self, text: &[u8]) -> Result<(u64, Value), String> {
        let fault = |what: &str| format!("{what}: {}", shortened(text));
        let mut frame: Value =
            serde_json::from_slice(text).map_err(|error| fault(&error.to_string()))?;
        if frame["type"] != self.frame_type.as_str() {
            return Err(fault("not a state of this feed"));
        }
        let rev = frame["rev"].as_u64().ok_or_else(|| fault("no `rev`"))?;
        let data = frame.get_mut("data").ok_or_else(|| fault("no `data`"))?;
        Ok((rev, data.take()))
    }
}

fn without_stamp(mut state: Value) -> Value {
    if let Some(state) = state.as_object_mut() {
        state.remove("sent");
        state.remove("publisher");
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(state: &str, rev: u64) -> String {
        format!(r#"{{"type":"bench_7_000000_update","data":{state},"rev":{rev}}}"#)
    }

    fn reader(bytes: usize) -> StateReader {
        StateReader::new("bench-7-000000", bytes)
    }

    #[test]
    fn both_readers_find_rev_and_time_stamp() {
        for (rev, sent) in [(1, 0), (42, 123_456_789), (u64::MAX, 999_999_999_999_999)] {
            let state = state::text(3, 500).replacen(&"0".repeat(15), &format!("{sent:015}"), 1);
            let text = frame(&state, rev);
            let expected = Delivery { id: rev, sent };
            let payload = Payload::whole(text.as_bytes());
            assert_eq!(reader(500).quick(payload), Some(expected));
            assert_eq!(reader(500).thorough(text.as_bytes()), Ok(expected));
            let ends = [&text.as_bytes()[..256], &text.as_bytes()[text.len() - 32..]].concat();
            let cut = Payload {
                kept: &ends,
                length: text.len(),
            };
            assert_eq!(reader(500).quick(cut), Some(expected));
        }
    }

    #[test]
    fn json_in_another_order_is_read_thoroughly() {
        let text = frame(&state::in_other_order(&state::text(0, 200)), 3);
        assert_eq!(reader(200).quick(Payload::whole(text.as_bytes())), None);
        let expected = Delivery { id: 3, sent: 0 };
        assert_eq!(reader(200).thorough(text.as_bytes()), Ok(expected));
    }

    #[test]
    fn what_was_not_published_is_refused() {
        let state = state::text(0, 200);
        for text in [
            frame("null", 0),
            frame(&state::text(0, 201), 1),
            frame(&state, 1).replace("bench_7", "bench_8"),
            frame(&state, 1).replace(r#""rev":1"#, r#""rev":"#),
            frame(&state, 1).replace(r#""rev""#, r#""ref""#),
            frame(&state.replacen("0000", "000x", 1), 1),
            r#"{"type":"error","code":"read_only"}"#.to_owned(),
            String::from("{"),
        ] {
            assert_eq!(
                reader(200).quick(Payload::whole(text.as_bytes())),
                None,
                "{text}"
            );
            assert!(reader(200).thorough(text.as_bytes()).is_err(), "{text}");
        }
        let damaged = frame(&state.replace("running", "runninG"), 1);
        assert!(reader(200).thorough(damaged.as_bytes()).is_err());
    }

    #[test]
    fn a_snapshot_may_be_any_state_of_its_feed() {
        for (text, rev) in [(frame("null", 0), Some(0)), (frame("[1]", 9), Some(9))] {
            assert_eq!(reader(200).snapshot(text.as_bytes()).ok(), rev);
        }
        let without_data = frame("1", 0).replace("data", "date");
        for text in [frame("1", 0).replace("bench_7", "x"), without_data] {
            assert!(reader(200).snapshot(text.as_bytes()).is_err(), "{text}");
        }
    }
}
