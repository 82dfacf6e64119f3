//! The private directory of the REST socket.

use std::fs::{self, DirBuilder, DirEntry};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, geteuid, test_kill_process};

/// The socket's name in its directory.
const SOCKET: &str = "rest";

/// A fresh directory that nobody else may enter, for one socket. Gone when this is dropped.
pub(super) struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    /// Makes it among the temporary files, and removes those of servers that were killed.
    pub(super) fn new() -> io::Result<Self> {
        let parent = std::env::temp_dir();
        remove_abandoned(&parent);
        let mut attempt = 0;
        loop {
            let path = parent.join(format!("threadcast-{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {
                    attempt += 1;
                }
                result => return result.map(|()| Self(path)),
            }
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.0.join(SOCKET)
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten().filter(is_abandoned) {
        remove(&entry.path());
    }
}

/// Whether it is a directory of ours whose process is gone.
fn is_abandoned(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let pid = name
        .to_str()
        .and_then(|name| name.strip_prefix("threadcast-"))
        .and_then(|rest| rest.split_once('-'))
        .and_then(|(pid, attempt)| attempt.parse::<u32>().and(pid.parse()).ok())
        .and_then(Pid::from_raw);
    // The metadata is the entry's own: a link planted here is no directory.
    let is_ours = entry
        .metadata()
        .is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == geteuid().as_raw());
    is_ours && pid.is_some_and(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// Nothing else is ever in it, so nothing else can be removed with it.
fn remove(directory: &Path) {
    let _ = fs::remove_file(directory.join(SOCKET));
    if let Err(error) = fs::remove_dir(directory) {
        log::debug!("{} stays behind: {error}", directory.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_server_left_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().expect("a directory");
        // No process has this id: the kernel's highest is 2^22.
        let dead = parent.path().join("threadcast-4194304-0");
        let alive = parent
            .path()
            .join(format!("threadcast-{}-0", std::process::id()));
        let foreign = parent.path().join("threadcast-backup-1");
        for directory in [&dead, &alive, &foreign] {
            fs::create_dir(directory).expect("a directory");
            fs::write(directory.join(SOCKET), "").expect("a file");
        }
        remove_abandoned(parent.path());
        assert!(!dead.exists());
        assert!(alive.join(SOCKET).exists() && foreign.join(SOCKET).exists());
    }
}
