//! Counts over all messages, kept up as messages come and go.
//!
//! Their size is bounded by the distinct channels, providers and lanes that are stored.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::protocol::{Channel, Message, MessageId};

/// Counts over all messages. Null and empty providers and lanes are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Messages stored.
    pub total_messages: u64,
    /// Sum of their token counts.
    pub total_tokens: i64,
    /// Messages per provider.
    pub by_provider: BTreeMap<String, u64>,
    /// Messages per lane.
    pub by_lane: BTreeMap<String, u64>,
}

/// One channel's counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChannelTotals {
    /// Its name.
    pub channel_id: Channel,
    /// Messages stored.
    pub messages: u64,
    /// The newest one's id.
    pub last_id: MessageId,
}

/// The running counts.
#[derive(Debug, Default)]
pub(super) struct Totals {
    summary: Summary,
    channels: BTreeMap<Channel, (u64, MessageId)>,
}

/// What counts of a message.
pub(super) struct Counted<'a> {
    pub(super) id: MessageId,
    pub(super) channel: &'a str,
    pub(super) lane: Option<&'a str>,
    pub(super) provider: Option<&'a str>,
    pub(super) token_count: Option<i64>,
}

impl<'a> From<&'a Message> for Counted<'a> {
    fn from(message: &'a Message) -> Self {
        Self {
            id: message.id,
            channel: message.channel_id.as_str(),
            lane: message.lane.as_deref(),
            provider: message.provider.as_deref(),
            token_count: message.token_count,
        }
    }
}

impl Totals {
    pub(super) fn add(&mut self, message: &Counted<'_>) {
        self.summary.total_messages += 1;
        self.summary.total_tokens = self
            .summary
            .total_tokens
            .saturating_add(message.token_count.unwrap_or(0));
        count(&mut self.summary.by_provider, message.provider);
        count(&mut self.summary.by_lane, message.lane);
        match self.channels.get_mut(message.channel) {
            Some((messages, last_id)) => {
                *messages += 1;
                *last_id = message.id;
            }
            None => {
                self.channels
                    .insert(Channel::stored(message.channel), (1, message.id));
            }
        }
    }

    /// Takes back what [`Self::add`] counted for a message that is gone.
    pub(super) fn remove(&mut self, message: &Counted<'_>) {
        // Another program may have brought messages that were never counted.
        self.summary.total_messages = self.summary.total_messages.saturating_sub(1);
        self.summary.total_tokens = self
            .summary
            .total_tokens
            .saturating_sub(message.token_count.unwrap_or(0));
        uncount(&mut self.summary.by_provider, message.provider);
        uncount(&mut self.summary.by_lane, message.lane);
        if let Some((messages, _)) = self.channels.get_mut(message.channel) {
            *messages = messages.saturating_sub(1);
            if *messages == 0 {
                self.channels.remove(message.channel);
            }
        }
    }

    pub(super) fn summary(&self) -> Summary {
        self.summary.clone()
    }

    pub(super) fn channels(&self) -> Vec<ChannelTotals> {
        self.channels
            .iter()
            .map(|(channel_id, &(messages, last_id))| ChannelTotals {
                channel_id: channel_id.clone(),
                messages,
                last_id,
            })
            .collect()
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: Option<&str>) {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return;
    };
    match counts.get_mut(name) {
        Some(number) => *number += 1,
        None => {
            counts.insert(name.to_owned(), 1);
        }
    }
}

fn uncount(counts: &mut BTreeMap<String, u64>, name: Option<&str>) {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return;
    };
    if let Some(number) = counts.get_mut(name) {
        *number = number.saturating_sub(1);
        if *number == 0 {
            counts.remove(name);
        }
    }
}
