//! What Redis says of itself.

use super::{Connection, Failure};

/// As far as it may be asked.
#[derive(Debug, Default)]
pub(super) struct Info {
    /// As `7.0.15`.
    pub(super) version: String,
    /// Another one after every start, and on every replica: what was written in one run may not
    /// be there in the next.
    pub(super) run: String,
}

/// Asks; nothing is known of one that may not be asked.
pub(super) fn info(connection: &mut Connection) -> Result<Info, Failure> {
    let info = match connection.run("INFO", &[b"server"]) {
        Err(failure) if failure.is("NOPERM") => return Ok(Info::default()),
        info => info?,
    };
    let text = info.text().unwrap_or_default();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    Ok(Info {
        version: value("redis_version:"),
        run: value("run_id:"),
    })
}
