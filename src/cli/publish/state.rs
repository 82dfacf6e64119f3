//! `pub --state`: one `PUT`.

use std::io::{self, Read, Write};
use std::thread;

use serde::Deserialize;
use threadcast::protocol::Feed;

use super::super::note;
use super::super::terms::Form;
use crate::client::{Backoff, Remote, Retry, put};

/// Longer states are refused here; common servers take much less.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Deserialize)]
struct Done {
    changed: bool,
    rev: u64,
    subscribers: Option<u64>,
}

/// Publishes the text, or standard input as a whole, and prints what became of it.
///
/// # Errors
/// The sentence for the user; the server's own where it refused.
pub(super) fn publish(
    remote: &Remote,
    feed: &Feed,
    text: Option<String>,
    retry: bool,
    form: Form,
) -> Result<(), String> {
    let state = match text {
        Some(text) => text.into_bytes(),
        None => standard_input()?,
    };
    let path = format!("/api/state/{feed}");
    let mut backoff = Backoff::default();
    let answer = loop {
        match put(remote, &path, &state) {
            Ok(answer) => break answer,
            // The same state once more changes nothing.
            Err(failure) if retry && failure.retry != Retry::Never => {
                note(&format!("{}; trying again", failure.sentence));
                thread::sleep(backoff.pause(failure.retry, None));
            }
            Err(failure) => return Err(failure.sentence),
        }
    };
    let done: Done = serde_json::from_slice(&answer).map_err(|error| {
        format!("the server's answer is not that of a Threadcast server: {error}")
    })?;
    let line = if form.is_human() {
        let what = if done.changed { "changed" } else { "unchanged" };
        let to = done
            .subscribers
            .map(|number| format!(", {number} subscribers"));
        format!("{feed} rev {}: {what}{}", done.rev, to.unwrap_or_default())
    } else {
        String::from_utf8_lossy(&answer).trim().to_owned()
    };
    // A closed pipe is not an error: the state is published.
    let _ = writeln!(io::stdout(), "{line}");
    Ok(())
}

fn standard_input() -> Result<Vec<u8>, String> {
    let mut state = Vec::new();
    io::stdin()
        .take(MAX_BYTES + 1)
        .read_to_end(&mut state)
        .map_err(|error| format!("cannot read standard input: {error}"))?;
    if state.len() as u64 > MAX_BYTES {
        return Err(format!("the state has more than {MAX_BYTES} bytes"));
    }
    Ok(state)
}
