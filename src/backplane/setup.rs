//! Whether a Redis is set up for a log: it takes what is written, lets this node do all it has to,
//! and keeps what it has.

use std::sync::atomic::Ordering;

use super::join::Refusal;
use super::server::Info;
use super::{Backplane, Connection, Failure, eval};

const RIGHTS: &[u8] = include_bytes!("rights.lua");

const REPLICA: &str = "it is a replica, which takes no messages; name its master";

const PASSWORD: &str = "the password is wrong or missing; write --backplane redis://USER:PASSWORD@HOST:PORT \
     (THREADCAST_BACKPLANE keeps it off the command line)";

const ALLOW: &str = "the README has the line that allows it (ACL SETUSER)";

/// How Redis 6 and 7.0 begin when it is a command in a script that the user may not run.
const MAY_NOT: &str = "The user executing the script can't";

impl Backplane {
    /// Says what will not work, before it is found out with messages.
    pub(super) fn check_setup(
        &self,
        connection: &mut Connection,
        info: &Info,
    ) -> Result<(), Refusal> {
        // Reading would go well, and every message be refused.
        if info.is_replica() {
            return Err(Refusal::Unusable(REPLICA.to_owned()));
        }
        self.check_rights(connection)?;
        if let Some(policy) = info.evicts_by()
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            log::warn!(
                "the backplane {} may evict the log when its memory is full (maxmemory-policy {policy}); \
                 set maxmemory-policy to noeviction",
                self.address()
            );
        }
        Ok(())
    }

    /// Redis says it of one command at a time, when it comes, and does not say which key.
    fn check_rights(&self, connection: &mut Connection) -> Result<(), Refusal> {
        let keys = &self.keys;
        let other = format!("{}batch:{}", keys.prefix, self.node);
        let keys = [&keys.stream, &keys.log, &keys.feeds, &other];
        let keys = keys.map(|key| key.as_bytes().to_vec());
        let missing = eval(connection, RIGHTS, &[], &keys)?;
        match missing.text().map(str::trim) {
            None | Some("") => Ok(()),
            Some(missing) => Err(Refusal::Unusable(format!(
                "its user may not run {missing:?}; {ALLOW}"
            ))),
        }
    }
}

/// What is wrong with the setup, if that is why it failed.
pub(super) fn fault(failure: &Failure) -> Option<String> {
    match failure {
        Failure::Unusable(reason) | Failure::Distrust(reason) => Some(reason.clone()),
        Failure::Password => Some(PASSWORD.to_owned()),
        Failure::Refused { code, .. } if code == "READONLY" => Some(REPLICA.to_owned()),
        Failure::Refused { code, reason } if code == "NOPERM" || reason.contains(MAY_NOT) => Some(
            format!("its user may not do all that is needed, it answers {reason:?}; {ALLOW}"),
        ),
        _ => None,
    }
}
