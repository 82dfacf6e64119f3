//! Reading the database: pages of history, what subscribers have missed, counts, states.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::pages::Pages;
use super::pool::Pool;
use super::rows::{counted, id, integer, message, rowid, text, view};
use super::shared;
use crate::error::Result;
use crate::frame::MessageFrames;
use crate::protocol::{Channel, LogMark, Message, MessageId, MessageView, Rev, State};
use crate::store::holes::Holes;
use crate::store::totals::Totals;
use crate::store::{
    ChannelTotals, FileBytes, Missed, MissedPage, Page, PageBudget, Reader, StoredState, Summary,
};

const COLUMNS: &str = "id, channel_id, author, content, timestamp, lane, provider, token_count";

/// Read-only connections, in two pools so that neither kind of reader waits for the other.
pub(in crate::store) struct SqliteReader {
    /// The database file.
    pub(super) path: PathBuf,
    pub(super) serving: Pool,
    pub(super) replaying: Pool,
    /// What several of those who replay want, read once.
    pub(super) pages: Pages,
    /// Counts of all messages up to an id; only newer ones are read when somebody asks.
    pub(super) totals: Mutex<(MessageId, Totals)>,
    /// What is missing, in a node of several.
    pub(super) holes: Holes,
}

impl SqliteReader {
    /// The counts, brought up to date. The first call reads the whole table.
    fn totals<T>(&self, take: impl FnOnce(&Totals) -> T) -> Result<T> {
        let mut locked = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let (through, totals) = &mut *locked;
        self.serving.read(|connection| {
            let mut newer = connection
                .prepare_cached("SELECT id, channel_id, lane, provider, token_count FROM messages WHERE id > ?1 ORDER BY id")?;
            let mut rows = newer.query([rowid(*through)])?;
            while let Some(row) = rows.next()? {
                let counted = counted(row)?;
                totals.add(&counted.as_counted());
                *through = counted.id;
            }
            Ok(())
        })?;
        Ok(take(totals))
    }
}

impl Reader for SqliteReader {
    fn head(&self) -> Result<MessageId> {
        // The sequence remembers ids whose messages are gone.
        self.serving.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'messages'), 0),
                                coalesce((SELECT max(id) FROM messages), 0))",
                )?
                .query_row([], |row| row.get(0).map(id))
        })
    }

    fn page(&self, page: &Page) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        self.serving
            .read(|connection| read_page(connection, page, |view| messages.push(message(view))))?;
        if page.since.is_none() {
            messages.reverse();
        }
        Ok(messages)
    }

    fn missed(&self, missed: &Missed<'_>) -> Result<MissedPage> {
        let asking = self.pages.ask(missed);
        if let Some(page) = asking.find() {
            return Ok(page);
        }
        self.replaying.read(|connection| {
            // Whoever had the connection before may have read the same.
            if let Some(page) = asking.find() {
                return Ok(page);
            }
            // One snapshot: what is deleted between the two is either in both or in neither.
            let snapshot = connection.unchecked_transaction()?;
            let mut frames = MessageFrames::default();
            let (until, after_hole) = self.holes.reach(missed.cursor, missed.head);
            let until = asking.end(until);
            let wanted = missed.up_to(until).page();
            let complete = read_page(&snapshot, &wanted, |view| frames.push(&view))?;
            let oldest = oldest(&snapshot)?.max(after_hole.unwrap_or_default());
            let page = MissedPage::new(frames, complete, until, oldest);
            asking.keep(&page);
            Ok(page)
        })
    }

    fn oldest(&self) -> Result<MessageId> {
        self.replaying.read(oldest)
    }

    fn nth_newest(
        &self,
        channel: &Channel,
        head: MessageId,
        n: usize,
    ) -> Result<Option<MessageId>> {
        let offset = i64::try_from(n).unwrap_or(i64::MAX).saturating_sub(1);
        self.replaying.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id FROM messages WHERE channel_id = ?1 AND id <= ?2
                     ORDER BY id DESC LIMIT 1 OFFSET ?3",
                )?
                .query_row(params![channel.as_str(), rowid(head), offset], |row| {
                    row.get(0).map(id)
                })
                .optional()
        })
    }

    fn channels(&self) -> Result<Vec<ChannelTotals>> {
        self.totals(Totals::channels)
    }

    fn summary(&self) -> Result<Summary> {
        self.totals(Totals::summary)
    }

    fn states(&self) -> Result<Vec<StoredState>> {
        let rows: Vec<_> = self.serving.read(|connection| {
            connection
                .prepare("SELECT feed, rev, state, own FROM threadcast_feeds ORDER BY feed")?
                .query_map([], |row| {
                    Ok((
                        text(row, 0)?.unwrap_or_default().into_owned(),
                        integer(row, 1)?.unwrap_or_default(),
                        text(row, 2)?.unwrap_or_default().into_owned(),
                        integer(row, 3)? == Some(1),
                    ))
                })?
                .collect()
        })?;
        let mut states = Vec::with_capacity(rows.len());
        for (name, rev, state, own) in rows {
            match stored_state(&name, rev, &state, own) {
                Ok(state) => states.push(state),
                // Another program wrote it; the others must not suffer from that.
                Err(why) => log::error!("the stored feed {name:?} is left out: {why}"),
            }
        }
        Ok(states)
    }

    fn mark(&self) -> Result<LogMark> {
        self.serving.read(shared::mark)
    }

    fn file_bytes(&self) -> Option<FileBytes> {
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        // A file that is not there takes no space.
        let size = |file: PathBuf| fs::metadata(file).map_or(0, |metadata| metadata.len());
        Some(FileBytes {
            main: size(self.path.clone()),
            wal: size(log.into()),
        })
    }
}

/// A state that cannot be read is null, so that its feed goes on with its revision.
fn stored_state(name: &str, rev: i64, state: &str, own: bool) -> Result<StoredState, String> {
    let state = State::parse(state.as_bytes()).unwrap_or_else(|error| {
        log::error!("the stored state of the feed {name:?} is not JSON, it is null now: {error}");
        State::from(serde_json::Value::Null)
    });
    Ok(StoredState {
        feed: name.parse()?,
        rev: Rev(u64::try_from(rev).map_err(|_| format!("its revision is {rev}"))?),
        state: state.into_text(),
        own,
    })
}

/// Takes the messages of a page, the newest first if it has no beginning; whether nothing was
/// left out at its end.
fn read_page(
    connection: &Connection,
    page: &Page,
    mut take: impl FnMut(MessageView<'_>),
) -> rusqlite::Result<bool> {
    let since = page.since.map_or(-1, rowid);
    let before = page.before.map_or(i64::MAX, rowid);
    // One more than wanted tells whether there is more.
    let limit = i64::try_from(page.limit)
        .unwrap_or(i64::MAX)
        .saturating_add(1);
    let mut select = connection.prepare_cached(&page_sql(page))?;
    let mut rows = match &page.channel {
        Some(channel) => select.query(
            named_params! {":channel": channel.as_str(), ":since": since, ":before": before, ":limit": limit},
        )?,
        None => select.query(named_params! {":since": since, ":before": before, ":limit": limit})?,
    };
    let mut budget = PageBudget::new(page);
    while let Some(row) = rows.next()? {
        let view = view(row)?;
        if !budget.takes(view.size()) {
            break;
        }
        take(view);
    }
    Ok(!budget.exceeded)
}

/// Without a scan: the first entry of the table's tree, or the sequence.
fn oldest(connection: &Connection) -> rusqlite::Result<MessageId> {
    connection
        .prepare_cached(
            "SELECT coalesce((SELECT min(id) FROM messages),
                             (SELECT seq FROM sqlite_sequence WHERE name = 'messages') + 1,
                             1)",
        )?
        .query_row([], |row| row.get(0).map(id))
}

/// One seek, then as many steps as the page is long: an index of a channel ends with the id.
fn page_sql(page: &Page) -> String {
    let channel = if page.channel.is_some() {
        "channel_id = :channel AND "
    } else {
        ""
    };
    let order = if page.since.is_some() { "ASC" } else { "DESC" };
    format!(
        "SELECT {COLUMNS} FROM messages WHERE {channel}id > :since AND id < :before ORDER BY id {order} LIMIT :limit"
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Sync, open};
    use super::*;

    /// The promise that history costs the same however much of it there is.
    #[test]
    fn a_page_of_a_channel_is_one_index_seek() {
        let dir = tempfile::tempdir().expect("a directory");
        let (writer, _) =
            open(&dir.path().join("plan.db"), Sync::Normal, None).expect("a database");
        for (since, before) in [
            (Some(5), None),
            (None, Some(9)),
            (None, None),
            (Some(5), Some(9)),
        ] {
            let page = Page {
                channel: Some("lab".parse().expect("a channel")),
                since: since.map(MessageId),
                before: before.map(MessageId),
                limit: 10,
                max_bytes: 1 << 20,
            };
            let plan: Vec<String> = writer
                .connection
                .prepare(&format!("EXPLAIN QUERY PLAN {}", page_sql(&page)))
                .and_then(|mut explain| {
                    explain
                        .query_map(named_params! {":channel": "lab", ":since": 5, ":before": 9, ":limit": 10}, |row| row.get(3))?
                        .collect()
                })
                .expect("a plan");
            let [step] = &plan[..] else {
                panic!("more than one step: {plan:?}")
            };
            assert!(step.contains("SEARCH messages USING INDEX idx_messages_channel_id (channel_id=? AND rowid>? AND rowid<?)"), "{step}");
        }
    }
}
