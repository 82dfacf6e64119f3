//! What Redis says of itself.

use super::{Connection, Failure};

/// What it answers to `INFO`; nothing where it may not be asked.
#[derive(Debug, Default)]
pub(super) struct Info(String);

impl Info {
    pub(super) fn of(connection: &mut Connection) -> Result<Self, Failure> {
        Self::ask(connection, &[])
    }

    /// Only the version and which run it is.
    pub(super) fn in_short(connection: &mut Connection) -> Result<Self, Failure> {
        Self::ask(connection, &[b"server"])
    }

    fn ask(connection: &mut Connection, sections: &[&[u8]]) -> Result<Self, Failure> {
        match connection.run("INFO", sections) {
            Err(failure) if failure.is("NOPERM") => Ok(Self::default()),
            info => Ok(Self(info?.text().unwrap_or_default().to_owned())),
        }
    }

    /// As `7.0.15`.
    pub(super) fn version(&self) -> &str {
        self.field("redis_version")
    }

    /// Another one after every start, and on every replica: what was written in one run may not
    /// be there in the next.
    pub(super) fn run(&self) -> &str {
        self.field("run_id")
    }

    /// It takes nothing that is written.
    pub(super) fn is_replica(&self) -> bool {
        self.field("slave_read_only") == "1"
    }

    /// By which policy it drops keys when its memory is full, if it does.
    pub(super) fn evicts_by(&self) -> Option<&str> {
        let policy = self.field("maxmemory_policy");
        let has_limit = !["", "0"].contains(&self.field("maxmemory"));
        (has_limit && policy != "noeviction").then_some(policy)
    }

    fn field(&self, name: &str) -> &str {
        let mut fields = self.0.lines().filter_map(|line| line.split_once(':'));
        let found = fields.find(|(found, _)| *found == name);
        found.map_or("", |(_, value)| value.trim())
    }
}
