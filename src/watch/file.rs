//! A watched file: read when it may have changed.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A file that was written within this time may be written again without another time to
/// show for it: the coarsest time stamps (FAT) have two seconds.
const SETTLED: Duration = Duration::from_secs(2);

/// A file, and what it was like when it was read.
pub(super) struct WatchedFile {
    path: PathBuf,
    seen: Option<Stamp>,
}

/// What changes when a file does. A file put in its place is another inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    inode: (u64, u64),
}

impl WatchedFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// The content, unless size and time are those of the content that was returned last.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub(super) fn changed_content(&mut self, max_bytes: usize) -> Result<Option<Vec<u8>>, String> {
        let result = self.look(max_bytes);
        if result.is_err() {
            self.forget();
        }
        result.map_err(|why| format!("{}: {why}", self.path.display()))
    }

    /// The next look reads it, whatever its size and time.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    fn look(&mut self, max_bytes: usize) -> Result<Option<Vec<u8>>, String> {
        let metadata = self.path.metadata().map_err(|error| error.to_string())?;
        if self.seen == Some(Stamp::of(&metadata)) {
            return Ok(None);
        }
        let file = self.open()?;
        // Of the file that is read: another may have taken its place meanwhile.
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        if !metadata.is_file() {
            return Err("it is not a file".to_owned());
        }
        let mut content = Vec::new();
        file.take(max_bytes as u64 + 1)
            .read_to_end(&mut content)
            .map_err(|error| error.to_string())?;
        if content.len() > max_bytes {
            return Err(format!(
                "it has more than the {max_bytes} bytes of --max-body-bytes"
            ));
        }
        let is_settled = metadata
            .modified()
            .and_then(|time| {
                SystemTime::now()
                    .duration_since(time)
                    .map_err(std::io::Error::other)
            })
            .is_ok_and(|age| age > SETTLED);
        self.seen = is_settled.then(|| Stamp::of(&metadata));
        Ok(Some(content))
    }

    /// Without waiting: opening a named pipe would last until somebody writes to it.
    fn open(&self) -> Result<File, String> {
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits();
        OpenOptions::new()
            .read(true)
            .custom_flags(nonblocking.cast_signed())
            .open(&self.path)
            .map_err(|error| error.to_string())
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: (metadata.dev(), metadata.ino()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn age(path: &PathBuf, seconds: u64) {
        let time = SystemTime::now() - Duration::from_secs(seconds);
        let file = File::options().write(true).open(path).expect("the file");
        file.set_modified(time).expect("a time");
    }

    #[test]
    fn a_settled_file_is_read_once_and_again_when_size_or_time_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        let mut file = WatchedFile::new(path.clone());
        let read = |file: &mut WatchedFile| file.changed_content(100);

        fs::write(&path, "1").expect("a file");
        // Just written: it may be written again within the same time stamp.
        assert_eq!(read(&mut file), Ok(Some(b"1".to_vec())));
        assert_eq!(read(&mut file), Ok(Some(b"1".to_vec())));
        age(&path, 60);
        assert_eq!(read(&mut file), Ok(Some(b"1".to_vec())));
        assert_eq!(read(&mut file), Ok(None));

        age(&path, 30);
        assert_eq!(read(&mut file), Ok(Some(b"1".to_vec())));
        assert_eq!(read(&mut file), Ok(None));
        fs::write(&path, "12").expect("a file");
        age(&path, 30);
        assert_eq!(read(&mut file), Ok(Some(b"12".to_vec())));
        assert_eq!(read(&mut file), Ok(None));
        file.forget();
        assert_eq!(read(&mut file), Ok(Some(b"12".to_vec())));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        let error = |path: PathBuf| {
            let error = WatchedFile::new(path).changed_content(3);
            error.expect_err("an error")
        };
        assert!(error(path.clone()).contains("state.json: No such file"));
        assert!(error(dir.path().to_owned()).contains("not a file"));
        fs::write(&path, "1234").expect("a file");
        assert!(error(path).contains("more than the 3 bytes"));
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)
            .expect("a pipe");
        assert!(error(pipe).contains("not a file"));
    }
}
