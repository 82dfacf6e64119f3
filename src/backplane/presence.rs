//! Who is there, with how many subscribers.
pub(crate) struct Presence;
