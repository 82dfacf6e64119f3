//! Which log it is: `NODE/DATABASE/KEY`, the node that began it and where. Logs of older versions
//! have only the node.

use super::entry::Entry;
use super::join::{Own, Refusal};
use super::{Backplane, Connection, Failure, Reply};
use crate::protocol::LogMark;

/// What a log's entries and keys are like; a log of a later version is left alone.
const VERSION: u32 = 1;

/// Entries by which it is seen whose a stream is.
const SAMPLE: &str = "16";

impl Backplane {
    /// Which log is there, if one is.
    pub(super) fn look(
        &self,
        connection: &mut Connection,
        own: &Own<'_>,
    ) -> Result<Option<String>, Refusal> {
        let keys = &self.keys;
        let mut kind = |key: &str| -> Result<String, Refusal> {
            let kind = connection.run("TYPE", &[key.as_bytes()])?;
            Ok(kind.text().unwrap_or_default().to_owned())
        };
        let stream = kind(&keys.stream)?;
        let log = kind(&keys.log)?;
        for (key, found, wanted) in [(&keys.stream, &stream, "stream"), (&keys.log, &log, "hash")] {
            if found != "none" && found != wanted {
                return Err(self.fatal(&format!(
                    "its key {key:?} has a {found} of another program, not a {wanted}; \
                     choose another one with --backplane-key"
                )));
            }
        }
        if log == "none" && stream != "none" {
            if self.is_own(connection)? {
                return Err(self.fatal(&self.how_to_go_on(own.mark)));
            }
            return Err(self.fatal(&format!(
                "its stream {:?} has entries of another program; choose another key with --backplane-key",
                keys.stream
            )));
        }
        if log == "none" {
            return Ok(None);
        }
        let found = connection.run("HMGET", &[keys.log.as_bytes(), b"id", b"version"])?;
        let found = found.into_list().unwrap_or_default();
        let field = |at: usize| found.get(at).and_then(Reply::text);
        match (field(0), field(1)) {
            (Some(_), Some(version)) if version.parse().is_ok_and(|it: u32| it > VERSION) => {
                Err(self.fatal(&format!(
                    "its log is of version {version}, this program knows up to {VERSION}; \
                     use a newer threadcast"
                )))
            }
            (Some(identity), _) => Ok(Some(identity.to_owned())),
            (None, _) => Err(self.fatal(&format!(
                "its key {:?} has a hash of another program; choose another key with --backplane-key",
                keys.log
            ))),
        }
    }

    /// Whether there are entries of a log in the stream.
    fn is_own(&self, connection: &mut Connection) -> Result<bool, Failure> {
        let stream = self.keys.stream.as_bytes();
        let arguments: [&[u8]; 5] = [stream, b"-", b"+", b"COUNT", SAMPLE.as_bytes()];
        let found = connection.run("XRANGE", &arguments)?;
        let mut found = found.into_list().unwrap_or_default().into_iter();
        Ok(found.any(|reply| Entry::read(reply).is_some_and(|entry| entry.after.is_some())))
    }

    /// With the entries of a log of which nobody can say any more which one it is.
    fn how_to_go_on(&self, mark: &LogMark) -> String {
        let (stream, log) = (&self.keys.stream, &self.keys.log);
        let restore = match mark.has_joined() {
            true => format!(
                "if it is the log that this database was in, restore it: HSET {log:?} id {:?} version {VERSION}",
                mark.identity
            ),
            false => "a server whose database was in it says how to restore it".to_owned(),
        };
        format!(
            "its stream {stream:?} has the entries of a log, but the hash {log:?}, which says which log \
             it is, is gone (evicted or deleted); {restore}; or begin anew: DEL {stream:?} {log:?}"
        )
    }

    /// Of a log that this node begins.
    pub(super) fn own_identity(&self, mark: &LogMark) -> String {
        match mark.intended() {
            None => self.identity_by(&self.node),
            Some(intended) => match begun(intended) {
                // It may have been asked to begin it elsewhere since.
                Some((node, ..)) => self.identity_by(node),
                None => intended.to_owned(),
            },
        }
    }

    /// Of a log that this node begins here.
    pub(super) fn identity_by(&self, node: &str) -> String {
        format!("{node}/{}/{}", self.remote.database(), self.keys.stream)
    }

    /// A typing error is not to begin a second log beside the one that this node was in.
    pub(super) fn check_place(&self, identity: &str) -> Result<(), Refusal> {
        let (number, key) = (self.remote.database(), &self.keys.stream);
        match begun(identity) {
            Some((_, there, under)) if (there, under) != (number, key.as_str()) => {
                Err(self.fatal(&format!(
                    "this database was in the log under the key {under:?} of database {there}, and there is \
                     none under {key:?} of database {number}; name that one with --backplane-key and \
                     the number behind the address in --backplane, or take a new database with --db"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Where a log was begun, if its identity says so: by which node, in which database, under which
/// key.
fn begun(identity: &str) -> Option<(&str, i64, &str)> {
    let mut parts = identity.splitn(3, '/');
    Some((parts.next()?, parts.next()?.parse().ok()?, parts.next()?))
}
