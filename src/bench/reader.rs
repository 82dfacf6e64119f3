//! Reads what is delivered on one channel or on the feed, as fast as the check allows.

use super::arriving::Payload;
use super::message_reader::{Delivery, MessageReader};
use super::plan::{Load, Plan};
use super::scanner::shortened;
use super::state_reader::StateReader;

/// The reader of one topic.
pub(super) enum Reader {
    Messages(MessageReader),
    States(StateReader),
}

impl Reader {
    pub(super) fn new(plan: &Plan, index: usize) -> Self {
        let name = plan.channels.name(index);
        match plan.load {
            Load::Messages => Self::Messages(MessageReader::new(&name, plan.content_bytes)),
            Load::States | Load::EqualStates => {
                Self::States(StateReader::new(&name, plan.content_bytes))
            }
        }
    }

    /// Reads quickly if that will do, and thoroughly if it must or is asked to.
    pub(super) fn read(&self, payload: Payload<'_>, is_checked: bool) -> Result<Delivery, String> {
        let text = payload.kept;
        let quick = match self {
            Self::Messages(reader) => reader.quick(text),
            Self::States(reader) => reader.quick(payload),
        };
        if let Some(delivery) = quick
            && !is_checked
        {
            return Ok(delivery);
        }
        if !payload.is_whole() {
            return Err(format!("not a published state: {}", shortened(text)));
        }
        let thorough = match self {
            Self::Messages(reader) => reader.thorough(text),
            Self::States(reader) => reader.thorough(text),
        }?;
        if quick.is_some_and(|quick| quick != thorough) {
            return Err(format!(
                "read differently by a JSON parser: {}",
                shortened(text)
            ));
        }
        Ok(thorough)
    }
}
