//! The tokens file: a JSON object a line, read whole at the start and at a reload.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::OFlags;

use super::token::{Hash, Line, Rights, Token, hash};

/// Longest tokens file: tens of thousands of lines.
const MAX_BYTES: u64 = 16 << 20;

/// Permission bits of everybody but the file's owner.
const OTHERS: u32 = 0o077;

/// The tokens of a file, as they were when it was read last.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
    tokens: RwLock<Arc<Vec<Arc<Token>>>>,
}

impl TokenFile {
    /// Reads the file.
    ///
    /// # Errors
    /// A sentence that names the file, the line and what would be right.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let tokens = Self {
            path: path.to_owned(),
            tokens: RwLock::default(),
        };
        tokens.reload()?;
        Ok(tokens)
    }

    /// Reads the file anew. A token whose line is there with the same name and hash is the same
    /// token with the rights of now; one whose line is gone is revoked.
    ///
    /// # Errors
    /// As [`Self::open`]; the tokens are then what they were.
    pub(super) fn reload(&self) -> Result<usize, String> {
        let lines = read(&self.path)?;
        let before = self.tokens();
        let mut gone: HashMap<Hash, &Arc<Token>> =
            before.iter().map(|token| (*token.hash(), token)).collect();
        let mut tokens = Vec::with_capacity(lines.len());
        for (name, hash, rights) in lines {
            tokens.push(match gone.get(&hash) {
                Some(&token) if token.name() == name => {
                    gone.remove(&hash);
                    token.set_rights(rights);
                    Arc::clone(token)
                }
                _ => Arc::new(Token::new(name, hash, rights)),
            });
        }
        let number = tokens.len();
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
        for token in gone.into_values() {
            token.revoke();
        }
        Ok(number)
    }

    /// The token that has this secret. Every line is compared, each in constant time.
    pub(super) fn find(&self, secret: &str) -> Option<Arc<Token>> {
        let hash = hash(secret);
        let mut found = None;
        for token in self.tokens().iter() {
            if bool::from(token.has(&hash)) {
                found = Some(Arc::clone(token));
            }
        }
        found
    }

    fn tokens(&self) -> Arc<Vec<Arc<Token>>> {
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read(path: &Path) -> Result<Vec<(String, Hash, Rights)>, String> {
    let shown = path.display();
    let text = contents(path)?;
    let mut lines: Vec<(String, Hash, Rights)> = Vec::new();
    let mut first_at: HashMap<Vec<u8>, usize> = HashMap::new();
    for (at, text) in text.lines().enumerate() {
        let at = at + 1;
        if text.trim().is_empty() || text.trim_start().starts_with('#') {
            continue;
        }
        let wrong = |why: String| format!("{shown}, line {at}: {why}");
        let line: Line = serde_json::from_str(text)
            .map_err(|error| wrong(format!("{error}; `threadcast token new` prints such lines")))?;
        let (hash, rights) = line.read().map_err(wrong)?;
        for (key, what) in [(line.name.as_bytes(), "name"), (&hash[..], "secret")] {
            if let Some(first) = first_at.insert(key.to_vec(), at) {
                return Err(wrong(format!("the {what} of line {first} is here again")));
            }
        }
        lines.push((line.name, hash, rights));
    }
    Ok(lines)
}

fn contents(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let failed = |error: std::io::Error| format!("cannot read the tokens file {shown}: {error}");
    // A pipe that nobody writes to would make the opening wait, and the signals behind it.
    let at_once = OFlags::NONBLOCK.bits().cast_signed();
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(at_once)
        .open(path)
        .map_err(failed)?;
    // Of what was opened, not of what has the name by now.
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("the tokens file {shown} is not a regular file"));
    }
    let mode = metadata.mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(format!(
            "others than its owner have access to the tokens file {shown} (mode {mode:03o}); run: chmod 600 {shown}"
        ));
    }
    let mut text = String::new();
    let read = Read::by_ref(&mut file)
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text);
    match read.map_err(failed)? as u64 {
        0..=MAX_BYTES => Ok(text),
        _ => Err(format!(
            "the tokens file {shown} has more than {MAX_BYTES} bytes"
        )),
    }
}
