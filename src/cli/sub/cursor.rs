//! The place in a channel, kept in a file.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// At most so often is the file written while messages come.
const INTERVAL: Duration = Duration::from_millis(200);

/// No cursor is longer: a channel's name has up to 128 characters.
const MAX_BYTES: u64 = 4 << 10;

/// What the file says, on one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// What it is, for whoever finds it: the version of this form.
    threadcast_cursor: u32,
    channel: String,
    id: u64,
}

const VERSION: u32 = 1;

/// The last id printed, in a file that is replaced in one step: whatever happens, it says an
/// old place or the new one.
#[derive(Debug)]
pub(super) struct CursorFile {
    path: PathBuf,
    temporary: PathBuf,
    channel: String,
    saved: Option<u64>,
    /// Printed and not yet saved.
    pending: Option<u64>,
    written: Option<Instant>,
}

impl CursorFile {
    /// Reads the file if there is one.
    ///
    /// # Errors
    /// When it is no cursor, or one of another channel, or could not be written later.
    pub(super) fn open(path: PathBuf, channel: &str) -> Result<Self, String> {
        let refuse = |why: String| format!("--cursor-file {}: {why}", path.display());
        let saved = read(&path, channel).map_err(refuse)?;
        let name = path
            .file_name()
            .ok_or_else(|| refuse("it has no name".to_owned()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", process::id()));
        let temporary = path.with_file_name(hidden);
        // Now rather than at the first message.
        File::create(&temporary)
            .and_then(|_| fs::remove_file(&temporary))
            .map_err(|error| refuse(format!("it cannot be written: {error}")))?;
        Ok(Self {
            channel: channel.to_owned(),
            temporary,
            saved,
            pending: None,
            written: None,
            path,
        })
    }

    pub(super) fn saved(&self) -> Option<u64> {
        self.saved
    }

    /// Everything up to this id is printed.
    pub(super) fn advance(&mut self, id: u64) {
        self.pending = Some(id).filter(|id| self.saved != Some(*id));
    }

    /// How long until [`Self::save_if_due`] has something to do.
    pub(super) fn due(&self) -> Option<Duration> {
        self.pending?;
        let elapsed = self.written.map_or(INTERVAL, |written| written.elapsed());
        Some(INTERVAL.saturating_sub(elapsed))
    }

    pub(super) fn save_if_due(&mut self) -> Result<(), String> {
        if self.due().is_some_and(|wait| wait.is_zero()) {
            return self.save();
        }
        Ok(())
    }

    /// Writes what is not saved yet.
    pub(super) fn save(&mut self) -> Result<(), String> {
        let Some(id) = self.pending else {
            return Ok(());
        };
        let replace = || {
            let content = Content {
                threadcast_cursor: VERSION,
                channel: self.channel.clone(),
                id,
            };
            let mut file = File::create(&self.temporary)?;
            file.write_all(&serde_json::to_vec(&content)?)?;
            file.write_all(b"\n")?;
            // Else a power cut could leave the new name with nothing in it.
            file.sync_data()?;
            fs::rename(&self.temporary, &self.path)
        };
        replace().map_err(|error| {
            let _ = fs::remove_file(&self.temporary);
            format!(
                "cannot write the cursor file {}: {error}",
                self.path.display()
            )
        })?;
        self.saved = Some(id);
        self.pending = None;
        self.written = Some(Instant::now());
        Ok(())
    }
}

fn read(path: &Path, channel: &str) -> Result<Option<u64>, String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    // Opening a named pipe would wait for somebody to write to it.
    if !metadata.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mut text = String::new();
    let content = File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
        .map_err(|error| error.to_string())
        .and_then(|_| match text.ends_with('\n') {
            true => serde_json::from_str::<Content>(&text).map_err(|error| error.to_string()),
            false => Err("its line has no end".to_owned()),
        })
        .map_err(|error| {
            format!("it is no cursor that `threadcast sub` has written ({error}); name another file, or remove it to begin anew")
        })?;
    if content.threadcast_cursor != VERSION {
        let version = content.threadcast_cursor;
        return Err(format!(
            "its version is {version}, and this program knows {VERSION}"
        ));
    }
    if content.channel != channel {
        return Err(format!(
            "it is the cursor of the channel {:?}",
            content.channel
        ));
    }
    Ok(Some(content.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_there_at_the_next_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cursor");
        let open = || CursorFile::open(path.clone(), "a/\"b").expect("a cursor");
        let mut cursor = open();
        assert_eq!(cursor.saved(), None);
        assert_eq!(cursor.due(), None);
        cursor.advance(7);
        assert_eq!(cursor.due(), Some(Duration::ZERO));
        cursor.save_if_due().expect("a file");
        cursor.advance(8);
        // So soon after the last time it waits.
        assert!(cursor.due().is_some_and(|due| due <= INTERVAL));
        cursor.save().expect("a file");
        assert_eq!(open().saved(), Some(8));
        let names = fs::read_dir(dir.path()).expect("a directory").count();
        assert_eq!(names, 1, "a temporary file is left");
    }

    #[test]
    fn a_file_that_is_no_cursor_of_the_channel_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cursor");
        for (text, why) in [
            ("", "no end"),
            ("root:x:0:0\n", "no cursor"),
            (
                "{\"threadcast_cursor\":1,\"channel\":\"lab\",\"id\":4",
                "no end",
            ),
            (
                "{\"threadcast_cursor\":1,\"channel\":\"lab\",\"id\":-4}\n",
                "no cursor",
            ),
            (
                "{\"threadcast_cursor\":9,\"channel\":\"lab\",\"id\":4}\n",
                "version is 9",
            ),
            (
                "{\"threadcast_cursor\":1,\"channel\":\"den\",\"id\":4}\n",
                "\"den\"",
            ),
        ] {
            fs::write(&path, text).expect("a file");
            let error = CursorFile::open(path.clone(), "lab").expect_err(text);
            assert!(error.contains(why), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("a file"), text);
        }
        let error = CursorFile::open(dir.path().to_owned(), "lab").expect_err("a directory");
        assert!(error.contains("not a file"), "{error}");
        let nowhere = dir.path().join("no/cursor");
        let error = CursorFile::open(nowhere, "lab").expect_err("no directory");
        assert!(error.contains("cannot be written"), "{error}");
    }
}
