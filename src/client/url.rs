//! Where the server is, and whether it speaks TLS.

use std::fmt::Write;

/// A server's URL, taken apart. `http` and `ws` are the same here: the path decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// `https` or `wss`.
    pub(crate) tls: bool,
    /// A name or an address; without the brackets of IPv6.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// What comes before every path, without a slash at its end.
    pub(crate) prefix: String,
}

impl Url {
    /// Reads `[http://]HOST[:PORT][/PREFIX]`; `ws://` is taken, too, and in a build with TLS
    /// `https://` and `wss://`.
    ///
    /// # Errors
    /// Says what is wrong, without repeating what may be a password.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => false,
            "https" | "wss" if cfg!(feature = "tls") => true,
            "https" | "wss" => {
                return Err(format!(
                    "{scheme}:// needs TLS, which this build has not: `cargo build --release --features tls` makes one that has"
                ));
            }
            _ => return Err(expected("the scheme is none of http, https, ws and wss")),
        };
        if rest.contains(['?', '#']) {
            return Err(expected("it has a query or a fragment"));
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("a URL with a user's name is not taken; use --token".to_owned());
        }
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(expected("it has characters that must be percent-encoded"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest
                .split_once(']')
                .ok_or_else(|| expected("its address has no `]`"))?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        if host.is_empty() {
            return Err(expected("it has no host"));
        }
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => default_port(tls),
            digits => digits
                .and_then(|digits| digits.parse().ok())
                .filter(|port| *port > 0)
                .ok_or_else(|| expected("its port is no number from 1 to 65535"))?,
        };
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            prefix: path.trim_end_matches('/').to_owned(),
        })
    }

    /// As the `Host` header has it (RFC 9110, 7.2).
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == default_port(self.tls) {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

/// That of `https` and `wss`, or of `http` and `ws`.
fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

fn expected(found: &str) -> String {
    format!("{found}; expected something like http://127.0.0.1:8010")
}

/// One segment of a path: everything but unreserved characters is encoded (RFC 3986, 2.3).
pub(crate) fn percent_encode(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("a String takes every text");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        for (text, host, port, prefix, authority) in [
            (
                "http://127.0.0.1:8010",
                "127.0.0.1",
                8010,
                "",
                "127.0.0.1:8010",
            ),
            ("ws://[::1]:1/", "::1", 1, "", "[::1]:1"),
            ("HTTP://host/a/b/", "host", 80, "/a/b", "host"),
            ("localhost:8010", "localhost", 8010, "", "localhost:8010"),
        ] {
            let url = Url::parse(text).expect(text);
            let found = (&*url.host, url.port, &*url.prefix);
            assert_eq!(found, (host, port, prefix), "{text}");
            assert_eq!(url.authority(), authority);
        }
    }

    #[test]
    fn tls_is_for_builds_that_have_it() {
        for text in ["https://h/p", "WSS://h/p"] {
            match Url::parse(text) {
                Ok(url) => {
                    assert!(cfg!(feature = "tls") && url.tls);
                    assert_eq!((url.port, url.authority()), (443, "h".to_owned()));
                }
                Err(sentence) => {
                    assert!(
                        !cfg!(feature = "tls") && sentence.contains("TLS"),
                        "{sentence}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused_with_a_reason() {
        for (text, why) in [
            ("", "no host"),
            ("ftp://h", "scheme"),
            ("http://h:0", "port"),
            ("http://h:70000", "port"),
            ("http://h:", "port"),
            ("http://[::1", "`]`"),
            ("http://[::1]x", "port"),
            ("http://h/?a=1", "query"),
            ("http://h /", "percent-encoded"),
            ("http://h/\r\nX: y", "percent-encoded"),
            ("http://ada:secret@h", "--token"),
        ] {
            let error = Url::parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_name_becomes_one_segment() {
        assert_eq!(percent_encode("a/b ü?~"), "a%2Fb%20%C3%BC%3F~");
    }
}
