//! The state that is published to a feed: a list of jobs, since a parser and a comparison take
//! longer for many small values than for one long text.

use serde_json::Value;

use super::plan::STAMP_DIGITS;

/// What a state begins with; the time of its publish call follows.
pub(super) const BEFORE_STAMP: &str = r#"{"sent":""#;
const BEFORE_PUBLISHER: &str = r#"","publisher":""#;
const PUBLISHER_DIGITS: usize = 6;
const BEFORE_JOBS: &str = r#"","jobs":["#;
const BEFORE_FILLER: &str = r#"],"filler":""#;
const END: &str = r#""}"#;

/// Length of a state without jobs and filler.
pub(super) const LEAST_BYTES: usize = BEFORE_STAMP.len()
    + STAMP_DIGITS
    + BEFORE_PUBLISHER.len()
    + PUBLISHER_DIGITS
    + BEFORE_JOBS.len()
    + BEFORE_FILLER.len()
    + END.len();

/// A state of exactly so many bytes, at least [`LEAST_BYTES`], with 0 for the time.
pub(super) fn text(publisher: usize, bytes: usize) -> String {
    let room = bytes - LEAST_BYTES;
    let mut jobs = String::new();
    for number in 0.. {
        let comma = if jobs.is_empty() { "" } else { "," };
        let progress = number % 10;
        let job = format!(
            r#"{comma}{{"id":"job-{number:06}","name":"nightly build","status":"running","progress":0.{progress}}}"#
        );
        if jobs.len() + job.len() > room {
            break;
        }
        jobs.push_str(&job);
    }
    let filler = "x".repeat(room - jobs.len());
    format!(
        "{BEFORE_STAMP}{:0STAMP_DIGITS$}{BEFORE_PUBLISHER}{publisher:0PUBLISHER_DIGITS$}{BEFORE_JOBS}{jobs}{BEFORE_FILLER}{filler}{END}",
        0
    )
}

/// The same value with its keys in alphabetical order.
pub(super) fn in_other_order(text: &str) -> String {
    let value: Value = serde_json::from_str(text).expect("a state is JSON");
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_an_object_of_exactly_the_length_asked_for() {
        for bytes in [LEAST_BYTES, LEAST_BYTES + 1, 200, 4096, 102_400, 3 << 20] {
            let text = text(7, bytes);
            assert_eq!(text.len(), bytes);
            let state: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(state["publisher"], "000007");
            let jobs = state["jobs"].as_array().expect("jobs").len();
            assert_eq!(jobs, (bytes - LEAST_BYTES + 1) / 77, "{bytes} bytes");
            assert_eq!(in_other_order(&text).len(), bytes);
        }
    }
}
