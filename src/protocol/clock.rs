//! Times, as clients see them.

use std::time::Duration;

use time::OffsetDateTime;

/// Now, in UTC with microseconds: `2026-01-05T12:34:56.789012+00:00`.
///
/// It may go backwards with the system's clock: the order is that of the ids.
pub(crate) fn now() -> String {
    format(OffsetDateTime::now_utc())
}

/// So many microseconds after the beginning of 1970; 1970 itself when that is no year of ours.
pub(crate) fn at(micros: u64) -> String {
    let nanos = i128::from(micros).saturating_mul(1000);
    format(OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// So long ago; what is older is less as a text, too.
pub(crate) fn before(age: Duration) -> String {
    let now = OffsetDateTime::now_utc();
    let age = time::Duration::try_from(age).unwrap_or(time::Duration::MAX);
    format(now.checked_sub(age).unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// A time in UTC, in the same form.
pub(crate) fn format(time: OffsetDateTime) -> String {
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}+00:00",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.microsecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_its_fixed_width() {
        let time =
            OffsetDateTime::from_unix_timestamp_nanos(1_767_616_496_000_012_999).expect("a time");
        assert_eq!(format(time), "2026-01-05T12:34:56.000012+00:00");
    }
}
