//! Messages that a node of several never got, so that nobody is led over them silently.

use std::sync::{Arc, Mutex, PoisonError};

use crate::protocol::{Hole, MessageId};

/// Holes that are kept apart; of more the two oldest become one, with what is between them.
const MOST: usize = 1000;

/// The holes of a store, in ascending order, shared by its writer and readers.
#[derive(Debug, Clone, Default)]
pub(super) struct Holes {
    list: Arc<Mutex<Vec<Hole>>>,
}

impl Holes {
    pub(super) fn new(list: Vec<Hole>) -> Self {
        Self {
            list: Arc::new(Mutex::new(list)),
        }
    }

    /// Those that there are with this one.
    pub(super) fn with(&self, hole: Hole) -> Vec<Hole> {
        let mut list = self.locked(|list| list.clone());
        // It was there before if its commit has failed.
        list.retain(|known| known.first != hole.first);
        list.push(hole);
        if list.len() > MOST {
            let oldest = list.remove(0);
            list[0].first = oldest.first;
        }
        list
    }

    pub(super) fn is_empty(&self) -> bool {
        self.locked(|list| list.is_empty())
    }

    /// Takes over what [`Self::with`] gave.
    pub(super) fn replace(&self, list: Vec<Hole>) {
        self.locked(|place| *place = list);
    }

    /// How far after a cursor, up to `head`, there is no hole; and, when the cursor is just
    /// before one or in it, the id after that.
    pub(super) fn reach(
        &self,
        cursor: MessageId,
        head: MessageId,
    ) -> (MessageId, Option<MessageId>) {
        self.locked(|list| {
            let next = list.partition_point(|hole| hole.last <= cursor);
            match list.get(next) {
                Some(hole) if hole.first <= cursor.next() => {
                    let end = list
                        .get(next + 1)
                        .map_or(head, |after| after.first.previous());
                    (
                        end.min(head).max(hole.last.min(head)),
                        Some(hole.last.next()),
                    )
                }
                Some(hole) => (hole.first.previous().min(head), None),
                None => (head, None),
            }
        })
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Vec<Hole>) -> T) -> T {
        work(&mut self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hole(first: u64, last: u64) -> Hole {
        Hole {
            first: MessageId(first),
            last: MessageId(last),
        }
    }

    #[test]
    fn a_page_ends_before_a_hole_and_the_next_one_tells_of_it() {
        let holes = Holes::new(vec![hole(5, 9), hole(20, 20), hole(31, 30)]);
        for (cursor, head, end, after) in [
            (0, 30, 4, None),
            (0, 3, 3, None),
            (4, 30, 19, Some(10)),
            (6, 30, 19, Some(10)),
            (4, 9, 9, Some(10)),
            (8, 12, 12, Some(10)),
            (9, 30, 19, None),
            (19, 30, 30, Some(21)),
            (20, 30, 30, None),
            (20, 40, 30, None),
            (30, 40, 40, None),
        ] {
            let expected = (MessageId(end), after.map(MessageId));
            assert_eq!(
                holes.reach(MessageId(cursor), MessageId(head)),
                expected,
                "{cursor}"
            );
        }
    }

    #[test]
    fn too_many_become_one_that_has_all_of_them() {
        let holes = Holes::default();
        for at in 0..MOST as u64 + 5 {
            let list = holes.with(hole(10 * at + 1, 10 * at + 2));
            holes.replace(list);
        }
        assert_eq!(holes.locked(|list| list.len()), MOST);
        assert_eq!(
            holes.reach(MessageId(0), MessageId(60)).1,
            Some(MessageId(53))
        );
    }
}
