//! One token: what is known of its secret, and what whoever has it may do.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wildmatch::WildMatch;

use super::On;
use crate::http::Problem;

/// What every secret begins with, so that one in a log or a commit is found.
const PREFIX: &str = "tc_";

/// Random bytes of a secret: as many as of its hash, more than anybody can try.
const SECRET_BYTES: usize = 32;

/// Longest name of a token.
const MAX_NAME: usize = 64;

/// Hash of a secret. A secret is random, so a fast hash keeps it (no salt, no stretching).
pub(super) type Hash = [u8; 32];

/// What a token may be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Publish messages to its channels.
    Publish,
    /// Read and follow its channels and feeds.
    Subscribe,
    /// Publish the states of its feeds.
    State,
    /// See and end connections.
    Admin,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::State => "state",
            Self::Admin => "admin",
        })
    }
}

/// One line of the tokens file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// What logs and listings call it: 1 to 64 of `a-z`, `A-Z`, `0-9`, `_`, `.` and `-`.
    pub name: String,
    /// SHA-256 of the secret, in hexadecimal digits.
    pub sha256: String,
    /// What it is for.
    pub scopes: Vec<Scope>,
    /// Patterns of channel names: `*` stands for any characters, `?` for one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
    /// Patterns of feed names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub feeds: Vec<String>,
    /// When it ends (RFC 3339, like `2027-01-31T00:00:00Z`); never without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

impl Line {
    /// A new secret, and the line that lets whoever has it in. The secret is nowhere else.
    ///
    /// # Errors
    /// A sentence when the name is not one, or the system has no random bytes.
    pub fn new(
        name: &str,
        scopes: Vec<Scope>,
        channels: Vec<String>,
        feeds: Vec<String>,
        expires: Option<OffsetDateTime>,
    ) -> Result<(String, Self), String> {
        check_name(name)?;
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes)
            .map_err(|error| format!("the system has no random bytes: {error}"))?;
        let secret = format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes));
        let expires = expires
            .map(|time| time.format(&Rfc3339))
            .transpose()
            .map_err(|error| format!("this time cannot be written: {error}"))?;
        let line = Self {
            name: name.to_owned(),
            sha256: HEXLOWER.encode(&hash(&secret)),
            scopes,
            channels,
            feeds,
            expires,
        };
        Ok((secret, line))
    }

    /// What the line says, understood.
    pub(super) fn read(&self) -> Result<(Hash, Rights), String> {
        check_name(&self.name)?;
        let hash = HEXLOWER
            .decode(self.sha256.to_ascii_lowercase().as_bytes())
            .ok()
            .and_then(|bytes| Hash::try_from(bytes).ok());
        let hash = hash.ok_or_else(|| {
            "`sha256` must be 64 hexadecimal digits, as `threadcast token new` prints them"
                .to_owned()
        })?;
        if self.scopes.is_empty() {
            return Err("`scopes` is empty: the token would be good for nothing".to_owned());
        }
        let expires = self.expires.as_deref().map(|text| {
            OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
                format!("`expires` must be a time like 2027-01-31T00:00:00Z, not {text:?}")
            })
        });
        let patterns = |texts: &[String]| texts.iter().map(|text| WildMatch::new(text)).collect();
        let rights = Rights {
            scopes: self.scopes.clone(),
            channels: patterns(&self.channels),
            feeds: patterns(&self.feeds),
            expires: expires.transpose()?,
            revoked: false,
        };
        Ok((hash, rights))
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(is_allowed) {
        return Ok(());
    }
    Err(format!(
        "a token's name has 1 to {MAX_NAME} of a-z, A-Z, 0-9, `_`, `.` and `-`; {name:?} is not one"
    ))
}

/// What is kept of a secret.
pub(super) fn hash(secret: &str) -> Hash {
    Sha256::digest(secret.as_bytes()).into()
}

/// A token that a line of the file stands for, or stood for: whoever holds one sees what became
/// of it.
#[derive(Debug)]
pub struct Token {
    name: String,
    hash: Hash,
    rights: RwLock<Arc<Rights>>,
}

/// What a token is good for at the moment.
#[derive(Debug)]
pub(super) struct Rights {
    scopes: Vec<Scope>,
    channels: Vec<WildMatch>,
    feeds: Vec<WildMatch>,
    expires: Option<OffsetDateTime>,
    revoked: bool,
}

impl Token {
    pub(super) fn new(name: String, hash: Hash, rights: Rights) -> Self {
        Self {
            name,
            hash,
            rights: RwLock::new(Arc::new(rights)),
        }
    }

    /// What logs and listings call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is the hash of its secret; takes as long whatever the answer is.
    pub(super) fn has(&self, hash: &Hash) -> subtle::Choice {
        self.hash.ct_eq(hash)
    }

    pub(super) fn hash(&self) -> &Hash {
        &self.hash
    }

    pub(super) fn set_rights(&self, rights: Rights) {
        *self.rights.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rights);
    }

    /// Its line is gone.
    pub(super) fn revoke(&self) {
        self.set_rights(Rights {
            scopes: Vec::new(),
            channels: Vec::new(),
            feeds: Vec::new(),
            expires: None,
            revoked: true,
        });
    }

    fn rights(&self) -> Arc<Rights> {
        Arc::clone(&self.rights.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// When it ends, if it does.
    pub(super) fn expires(&self) -> Option<OffsetDateTime> {
        self.rights().expires
    }

    /// Whether it is good for this now.
    ///
    /// # Errors
    /// 401 when it was revoked or has expired; 403 when it has not the scope, or not for this
    /// channel or feed. What the answer says depends on the token alone, never on what exists.
    pub(super) fn may(&self, scope: Scope, on: On<'_>) -> Result<(), Problem> {
        let rights = self.rights();
        self.check_valid(&rights)?;
        if !rights.scopes.contains(&scope) {
            let has: Vec<String> = rights.scopes.iter().map(Scope::to_string).collect();
            let has = has.join(", ");
            return Err(Problem::new(
                403,
                format!(
                    "the token `{}` has not the scope `{scope}`; it has {has}",
                    self.name
                ),
            ));
        }
        if rights.covers(on) {
            return Ok(());
        }
        let detail = match on {
            On::Anything => return Ok(()),
            On::Everything => format!(
                "the token `{}` is for some channels only; name one with `channel_id`",
                self.name
            ),
            On::Channel(_) => format!("the token `{}` is not for this channel", self.name),
            On::Feed(_) => format!("the token `{}` is not for this feed", self.name),
        };
        Err(Problem::new(403, detail))
    }

    fn check_valid(&self, rights: &Rights) -> Result<(), Problem> {
        if rights.revoked {
            return Err(unauthorized(format!(
                "the token `{}` was revoked",
                self.name
            )));
        }
        match rights.expires {
            Some(expires) if expires <= OffsetDateTime::now_utc() => Err(unauthorized(format!(
                "the token `{}` has expired",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// Whether it is neither revoked nor expired.
    ///
    /// # Errors
    /// 401 otherwise.
    pub(super) fn is_valid(&self) -> Result<(), Problem> {
        self.check_valid(&self.rights())
    }
}

impl Rights {
    fn covers(&self, on: On<'_>) -> bool {
        let any = |patterns: &[WildMatch], name| patterns.iter().any(|one| one.matches(name));
        match on {
            On::Anything => true,
            On::Everything => self.channels.iter().any(|one| one.pattern() == "*"),
            On::Channel(channel) => any(&self.channels, channel.as_str()),
            On::Feed(feed) => any(&self.feeds, feed.as_str()),
        }
    }
}

/// 401, with the way to do it right (RFC 6750, section 3).
pub(super) fn unauthorized(detail: impl Into<String>) -> Problem {
    Problem::new(401, detail).with_header("WWW-Authenticate", "Bearer realm=\"threadcast\"")
}
