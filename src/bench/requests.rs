//! The requests of one publisher: written once, only channel and stamp change from call to call.

use std::ops::Range;

use super::plan::{Channels, Plan, STAMP_DIGITS, filler, stamp};
use super::state;

/// Whole requests, sent in turn.
#[derive(Debug)]
pub(super) struct Requests {
    forms: Vec<Vec<u8>>,
    next: usize,
    /// Where the channel's name is, if it is in the body.
    channel: Option<Range<usize>>,
    /// Where the time of the call is, if the body has it.
    stamp: Option<Range<usize>>,
}

impl Requests {
    pub(super) fn messages(plan: &Plan) -> Self {
        let name = plan.channels.name(0);
        let before_channel = r#"{"channel_id":""#;
        let before_stamp = format!(r#"{before_channel}{name}","author":"bench","content":""#);
        let filler = filler(plan.content_bytes);
        let body = format!(r#"{before_stamp}{:0STAMP_DIGITS$}{filler}"}}"#, 0);
        let request = request(plan, "POST /api/messages", &body);
        let start = request.len() - body.len();
        let (channel, stamp) = (start + before_channel.len(), start + before_stamp.len());
        Self {
            forms: vec![request],
            next: 0,
            channel: Some(channel..channel + name.len()),
            stamp: Some(stamp..stamp + STAMP_DIGITS),
        }
    }

    /// States that differ from each other, and from those of all other publishers.
    pub(super) fn states(plan: &Plan, publisher: usize) -> Self {
        let body = state::text(publisher, plan.content_bytes);
        let request = put(plan, &body);
        let stamp = request.len() - body.len() + state::BEFORE_STAMP.len();
        Self {
            forms: vec![request],
            next: 0,
            channel: None,
            stamp: Some(stamp..stamp + STAMP_DIGITS),
        }
    }

    /// One state, every second time with its keys in another order. Every publisher begins
    /// with the same text, so that is the one that subscribers get.
    pub(super) fn equal_states(plan: &Plan) -> Self {
        let body = state::text(0, plan.content_bytes);
        Self {
            forms: vec![put(plan, &body), put(plan, &state::in_other_order(&body))],
            next: 0,
            channel: None,
            stamp: None,
        }
    }

    /// The request for a publish call now.
    pub(super) fn next(&mut self, channels: Channels, channel: usize, now: u64) -> &[u8] {
        let form = self.next;
        self.next = (form + 1) % self.forms.len();
        let request = &mut self.forms[form];
        if let Some(place) = self.channel.clone()
            && channels.count > 1
        {
            request[place].copy_from_slice(channels.name(channel).as_bytes());
        }
        if let Some(place) = self.stamp.clone() {
            stamp(&mut request[place], now);
        }
        request
    }
}

fn put(plan: &Plan, body: &str) -> Vec<u8> {
    let line = format!("PUT /api/state/{}", plan.channels.name(0));
    request(plan, &line, body)
}

fn request(plan: &Plan, line: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "{line} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        plan.address,
        body.len()
    );
    (head + body).into_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::plan::Load;
    use super::*;

    fn body(request: &[u8]) -> Value {
        let text = str::from_utf8(request).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(
            head.ends_with(&format!("Content-Length: {}", body.len())),
            "{head}"
        );
        serde_json::from_str(body).expect("JSON")
    }

    #[test]
    fn a_message_goes_to_its_channel_with_the_time_of_the_call() {
        let channels = Channels { count: 3 };
        let plan = Plan {
            channels,
            ..Plan::for_tests(Load::Messages)
        };
        let mut requests = Requests::messages(&plan);
        for (channel, now) in [(0, 5), (2, 6)] {
            let body = body(requests.next(channels, channel, now));
            assert_eq!(body["channel_id"], channels.name(channel));
            let content = body["content"].as_str().expect("a text");
            assert!(content.starts_with(&format!("{now:015}xxx")), "{content}");
            assert_eq!(content.len(), plan.content_bytes);
        }
    }

    #[test]
    fn states_of_the_same_moment_still_differ() {
        let plan = Plan::for_tests(Load::States);
        let [mut one, mut other] = [0, 1].map(|publisher| Requests::states(&plan, publisher));
        let first = body(one.next(plan.channels, 0, 5));
        assert_eq!(first["sent"], json!("000000000000005"));
        assert_ne!(first, body(one.next(plan.channels, 0, 6)));
        assert_ne!(first, body(other.next(plan.channels, 0, 5)));
    }

    #[test]
    fn equal_states_are_the_same_value_in_two_notations() {
        let plan = Plan::for_tests(Load::EqualStates);
        let mut requests = Requests::equal_states(&plan);
        let texts = [1, 2, 3].map(|now| requests.next(plan.channels, 0, now).to_vec());
        assert_ne!(texts[0], texts[1]);
        assert_eq!(body(&texts[0]), body(&texts[1]));
        assert_eq!(texts[0], texts[2]);
    }
}
