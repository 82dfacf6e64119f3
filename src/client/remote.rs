//! The server and who we are to it.

use std::fmt;
#[cfg(feature = "tls")]
use std::path::Path;
use std::path::PathBuf;

use super::Url;

/// A server, the token that it wants, and by which certificates it is known.
#[derive(Debug)]
pub(crate) struct Remote {
    url: Url,
    token: Option<Token>,
    #[cfg_attr(
        not(feature = "tls"),
        expect(dead_code, reason = "only TLS knows servers by certificates")
    )]
    roots: Option<PathBuf>,
}

/// A secret: it goes into one header, and nowhere else.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    /// As of a variable that is there and says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Token {
    /// Anything: a refusal here would be printed with the value.
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Remote {
    /// `roots` is a file of certificates in PEM, in place of the system's.
    ///
    /// # Errors
    /// When the token cannot be in a header.
    pub(crate) fn new(
        url: Url,
        token: Option<Token>,
        roots: Option<PathBuf>,
    ) -> Result<Self, String> {
        if let Some(Token(text)) = &token
            && (text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(
                "the token is empty or has characters other than visible ASCII ones".to_owned(),
            );
        }
        Ok(Self { url, token, roots })
    }

    /// By which certificates the server is known, if not by the system's.
    #[cfg(feature = "tls")]
    pub(super) fn roots(&self) -> Option<&Path> {
        self.roots.as_deref()
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// A request's head up to the headers that are its own.
    pub(super) fn request(&self, method: &str, path: &str) -> String {
        let Url { prefix, .. } = &self.url;
        let authority = self.url.authority();
        let mut head = format!("{method} {prefix}{path} HTTP/1.1\r\nHost: {authority}\r\n");
        head.push_str(concat!(
            "User-Agent: threadcast/",
            env!("CARGO_PKG_VERSION"),
            "\r\n"
        ));
        if let Some(Token(token)) = &self.token {
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_in_the_request_and_in_nothing_else() {
        let url = Url::parse("http://h:1/p").expect("a URL");
        let remote =
            Remote::new(url.clone(), Some(Token("s3cret".to_owned())), None).expect("a token");
        assert!(!format!("{remote:?}").contains("s3cret"));
        let head = remote.request("PUT", "/x");
        assert!(
            head.starts_with("PUT /p/x HTTP/1.1\r\nHost: h:1\r\n"),
            "{head}"
        );
        assert!(
            head.ends_with("\r\nAuthorization: Bearer s3cret\r\n"),
            "{head}"
        );
        for wrong in ["", "a b", "a\r\nX: y", "ü"] {
            let error = Remote::new(url.clone(), Some(Token(wrong.to_owned())), None);
            let error = error.expect_err(wrong);
            assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
        }
    }
}
