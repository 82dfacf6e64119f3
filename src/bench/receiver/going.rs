//! Subscribers of a receiving thread that go, rest and come back.

use std::sync::atomic::Ordering;

use rustix::event::epoll;

use super::{ABNORMAL, NORMAL, Receiver, listen};
use crate::bench::churn::Going;
use crate::bench::connect::CLOSE;
use crate::bench::subscriber::Subscriber;

impl Receiver {
    /// Lets a subscriber connect again, with its last id.
    pub(super) fn call_back(&mut self, subscriber: &mut Subscriber, index: usize) {
        subscriber.is_coming_back = true;
        subscriber.live_since = u64::MAX;
        self.awaited += 1;
        self.received.gone.returns += 1;
        self.progress.due.fetch_add(1, Ordering::Relaxed);
        let path = self.plan.path(subscriber.channel);
        let since = subscriber.tally.last;
        self.returning
            .connect(index, format!("{path}?since={since}"));
    }

    /// Takes over the connections of those that come back, and returns how many could not.
    pub(super) fn welcome(&mut self, subscribers: &mut [Subscriber]) -> usize {
        let mut lost = 0;
        while let Some((index, connected)) = self.returning.connected() {
            self.awaited -= 1;
            let subscriber = &mut subscribers[index];
            let taken = connected.and_then(|(socket, early)| {
                socket
                    .set_nonblocking(true)
                    .and_then(|()| Ok(listen(&self.epoll, &socket, index)?))
                    .map_err(|error| format!("epoll: {error}"))?;
                subscriber.socket = Some(socket);
                self.take(subscriber, &early)
                    .map_err(|code| format!("closed with {code}"))
            });
            if let Err(fault) = taken {
                lost += 1;
                self.progress.open.fetch_sub(1, Ordering::Relaxed);
                subscriber.socket = None;
                subscriber.closed = Some(ABNORMAL);
                self.note(format!("subscriber {index} could not come back: {fault}"));
            }
        }
        lost
    }

    /// Lets subscribers go, fall asleep, come back and wake up, when it is their time.
    pub(super) fn go_and_rest(&mut self, subscribers: &mut [Subscriber]) -> rustix::io::Result<()> {
        let now = self.clock.now();
        while let Some(index) = self.churn.rested(now) {
            let subscriber = &mut subscribers[index];
            if let (true, Some(socket)) = (subscriber.is_stalled, &subscriber.socket) {
                listen(&self.epoll, socket, index)?;
                subscriber.is_stalled = false;
                subscriber.live_since = now;
            } else if subscriber.closed.is_none() {
                self.call_back(subscriber, index);
            }
        }
        while let Some((index, going)) = self.churn.next(now) {
            let subscriber = &mut subscribers[index];
            if subscriber.is_stalled || subscriber.is_coming_back {
                continue;
            }
            let Some(socket) = &subscriber.socket else {
                continue;
            };
            if going == Going::Stalls {
                epoll::delete(&self.epoll, socket)?;
                subscriber.is_stalled = true;
            } else {
                if going == Going::Leaves {
                    subscriber.send(CLOSE, &NORMAL.to_be_bytes());
                }
                subscriber.socket = None;
                subscriber.tail.clear();
            }
            self.received.gone.count(going);
            self.churn.rest(index, going, now);
        }
        Ok(())
    }
}
