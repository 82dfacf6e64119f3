//! A tokens file, and the secrets that are not in it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use threadcast::access::{Line, Scope};

/// A tokens file in a directory of its own, with the mode it must have.
pub struct Tokens {
    pub path: PathBuf,
    _dir: TempDir,
}

impl Tokens {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tokens");
        let tokens = Self { path, _dir: dir };
        tokens.append("# name, hash of the secret, and what it is for\n\n");
        tokens
    }

    /// Adds a token for these channels and feeds; returns its secret.
    pub fn add(&self, name: &str, scopes: &[Scope], channels: &[&str], feeds: &[&str]) -> String {
        self.add_line(name, scopes, channels, feeds, |_| {})
    }

    /// The same with the line changed before it is written.
    pub fn add_line(
        &self,
        name: &str,
        scopes: &[Scope],
        channels: &[&str],
        feeds: &[&str],
        change: impl FnOnce(&mut Line),
    ) -> String {
        let owned = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        let (secret, mut line) =
            Line::new(name, scopes.to_vec(), owned(channels), owned(feeds), None).expect("a token");
        change(&mut line);
        self.append(&(serde_json::to_string(&line).expect("JSON") + "\n"));
        secret
    }

    /// Takes the line of a token out, in one step: a server may be reading the file.
    pub fn remove(&self, name: &str) {
        let quoted = format!("\"name\":\"{name}\"");
        let text = fs::read_to_string(&self.path).expect("the file");
        let kept = text.lines().filter(|line| !line.contains(&quoted));
        let aside = self.path.with_extension("new");
        let kept: String = kept.map(|line| format!("{line}\n")).collect();
        append(&aside, &kept);
        fs::rename(aside, &self.path).expect("the file");
    }

    pub fn append(&self, text: &str) {
        append(&self.path, text);
    }
}

fn append(path: &Path, text: &str) {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .expect("the file");
}

/// The header that carries a token.
pub fn bearer(secret: &str) -> String {
    format!("Bearer {secret}")
}
