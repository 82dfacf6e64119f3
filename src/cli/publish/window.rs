//! Messages that wait for their acknowledgement, and the account of those that no longer do.

use std::collections::VecDeque;

/// So many wait at once; the server works on 32 of one publisher.
const WINDOW: usize = 64;

/// Their bytes, unless it is one that is longer.
const WINDOW_BYTES: usize = 256 << 10;

/// A message that a server might find too long is alone in the window: nothing behind it was
/// sent when it is refused.
const LONG: usize = 16 << 10;

/// A message on its way.
#[derive(Debug)]
pub(super) struct Sent {
    /// Of its line, which is its `ref`.
    pub(super) number: u64,
    pub(super) frame: String,
}

/// What was sent and neither acknowledged nor refused, in order.
#[derive(Debug, Default)]
pub(super) struct Window {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    acknowledged: u64,
    /// The number of the message sent last.
    last: u64,
    /// Refusals that do not say of what.
    unnamed: usize,
}

#[derive(Debug)]
struct Waiting {
    sent: Sent,
    /// The server could not take it now, and may later.
    is_put_off: bool,
}

impl Window {
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn has_room(&self, next: &Sent) -> bool {
        let Some(last) = self.waiting.back() else {
            return true;
        };
        let is_put_off = self.waiting.iter().any(|it| it.is_put_off);
        !is_put_off
            && self.waiting.len() < WINDOW
            && next.frame.len().max(last.sent.frame.len()) < LONG
            && self.bytes + next.frame.len() <= WINDOW_BYTES
    }

    pub(super) fn push(&mut self, sent: Sent) {
        self.last = sent.number;
        self.bytes += sent.frame.len();
        self.waiting.push_back(Waiting {
            sent,
            is_put_off: false,
        });
    }

    /// Whether it was one of these.
    pub(super) fn acknowledge(&mut self, number: Option<u64>) -> bool {
        let is_ours = self.remove(number).is_some();
        self.acknowledged += u64::from(is_ours);
        self.settle_unnamed();
        is_ours
    }

    /// Takes out what was refused and returns its number, if it is known.
    pub(super) fn refuse(&mut self, number: Option<u64>) -> Option<u64> {
        let number = self.remove(number);
        self.unnamed += usize::from(number.is_none());
        self.settle_unnamed();
        number
    }

    /// This one, or whichever it is, is to be sent again later.
    pub(super) fn put_off(&mut self, number: Option<u64>) {
        for it in &mut self.waiting {
            it.is_put_off |= number.is_none_or(|number| number == it.sent.number);
        }
    }

    /// Whether everything that waits is to be sent again: no answer is to come.
    pub(super) fn is_put_off(&self) -> bool {
        !self.is_empty() && self.waiting.iter().all(|it| it.is_put_off)
    }

    /// All that wait, for a new connection.
    pub(super) fn frames_again(&mut self) -> impl Iterator<Item = &str> {
        self.unnamed = 0;
        self.waiting.iter_mut().map(|it| {
            it.is_put_off = false;
            &*it.sent.frame
        })
    }

    fn remove(&mut self, number: Option<u64>) -> Option<u64> {
        let place = self
            .waiting
            .iter()
            .position(|it| Some(it.sent.number) == number)?;
        let Waiting { sent, .. } = self.waiting.remove(place)?;
        self.bytes -= sent.frame.len();
        Some(sent.number)
    }

    /// When only so many are left as were refused without a name, it is known which they are.
    fn settle_unnamed(&mut self) {
        if self.unnamed > 0 && self.unnamed >= self.waiting.len() {
            self.unnamed = 0;
            self.bytes = 0;
            self.waiting.clear();
        }
    }

    /// What became of all that was sent, behind the reason why that was not everything.
    pub(super) fn report(&self, why: &str) -> String {
        let acknowledged = match self.acknowledged {
            1 => "1 message was acknowledged".to_owned(),
            number => format!("{number} messages were acknowledged"),
        };
        let after = match self.last {
            0 => "nothing was sent".to_owned(),
            number => format!("nothing after line {number} was sent"),
        };
        let (Some(first), Some(last)) = (self.waiting.front(), self.waiting.back()) else {
            return format!("{why}; {acknowledged}, {after}");
        };
        let lines = match (first.sent.number, last.sent.number) {
            (first, last) if first == last => format!("line {first} is"),
            (first, last) => {
                let number = self.waiting.len();
                format!("{number} lines from {first} to {last} are")
            }
        };
        format!("{why}; {acknowledged}, {lines} unknown (stored or not), {after}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(number: u64, bytes: usize) -> Sent {
        Sent {
            number,
            frame: "x".repeat(bytes),
        }
    }

    fn with(count: u64) -> Window {
        let mut window = Window::default();
        (1..=count).for_each(|number| window.push(sent(number, 10)));
        window
    }

    #[test]
    fn it_is_bounded_by_number_and_bytes_and_a_long_message_is_alone() {
        assert!(with(63).has_room(&sent(64, 10)));
        assert!(!with(64).has_room(&sent(65, 10)));
        assert!(with(0).has_room(&sent(1, 10 * WINDOW_BYTES)));
        assert!(!with(1).has_room(&sent(2, LONG)));
        let mut window = with(0);
        window.push(sent(1, LONG));
        assert!(!window.has_room(&sent(2, 1)));
        assert!(window.acknowledge(Some(1)));
        (2..18).for_each(|number| window.push(sent(number, LONG - 1)));
        assert!(window.has_room(&sent(18, 16)));
        assert!(!window.has_room(&sent(18, 17)));
    }

    #[test]
    fn a_refusal_without_a_name_is_of_those_that_are_left() {
        let mut window = with(3);
        assert_eq!(window.refuse(None), None);
        assert!(window.acknowledge(Some(1)) && !window.acknowledge(Some(1)));
        assert!(!window.is_empty());
        assert!(window.acknowledge(Some(3)));
        assert!(window.is_empty());
        let report = window.report("why");
        assert_eq!(
            report,
            "why; 2 messages were acknowledged, nothing after line 3 was sent"
        );
    }

    #[test]
    fn what_is_put_off_is_sent_again_once_all_others_are_answered() {
        let mut window = with(3);
        window.put_off(Some(2));
        assert!(!window.is_put_off() && !window.has_room(&sent(4, 1)));
        window.acknowledge(Some(1));
        window.acknowledge(Some(3));
        assert!(window.is_put_off());
        assert_eq!(window.frames_again().count(), 1);
        assert!(!window.is_put_off() && window.has_room(&sent(4, 1)));
        // It does not say which.
        window.put_off(None);
        assert!(window.is_put_off());
    }
}
