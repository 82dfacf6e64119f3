//! Request heads: found, checked and understood.
//!
//! Strict where two readers could disagree about where a request ends, because the bytes are
//! read once here and relayed to a second reader.

use super::{Framing, Problem, query_pairs};

/// Most header fields in one head.
const MAX_HEADERS: usize = 100;

/// Methods that are known, of which each path has some: the others are answered 405, what is not
/// known 501 (RFC 9110, sections 9.1 and 9.3). CONNECT is for proxies and has no path.
const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE",
];

/// Headers that handlers may see. All others stay at the door, tokens among them, so what a relay
/// says itself cannot be forged.
const HANDED_ON: [&str; 8] = [
    "accept",
    "access-control-request-headers",
    "access-control-request-method",
    "content-type",
    "host",
    "idempotency-key",
    "if-none-match",
    "origin",
];

/// A request head, well-formed and with its framing decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// One of the methods that are known.
    pub method: String,
    /// Path and query in ASCII, or `*`.
    pub target: String,
    /// Where the body ends.
    pub framing: Framing,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether the connection stays open after the answer.
    pub keep_alive: bool,
    /// Whether it is HTTP/1.0, whose clients must be told that the connection stays.
    pub is_1_0: bool,
    headers: Vec<(String, String)>,
}

impl Head {
    /// Where the head at the start of `bytes` ends; `None` when more bytes are needed.
    ///
    /// # Errors
    /// 400 for a first byte that no method has, or a line that does not end with CRLF, as soon
    /// as it is there.
    pub fn end(bytes: &[u8]) -> Result<Option<usize>, Problem> {
        if bytes
            .first()
            .is_some_and(|first| !first.is_ascii_graphic() && *first != b'\r')
        {
            return Err(Problem::new(
                400,
                "this is not HTTP; is it TLS? Connect with http:// or ws://",
            ));
        }
        let mut line = 0;
        while let Some(at) = bytes[line..].iter().position(|byte| *byte == b'\n') {
            let end = line + at;
            if end == line || bytes[end - 1] != b'\r' {
                return Err(Problem::new(
                    400,
                    "a line of the request head ends with LF alone; CRLF is required",
                ));
            }
            if end == line + 1 && line > 0 {
                return Ok(Some(end + 1));
            }
            line = end + 1;
        }
        Ok(None)
    }

    /// Reads a complete head.
    ///
    /// # Errors
    /// 400, 417, 431, 501 or 505, each with what was found.
    #[inline(never)]
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        // Not on the stack: a thread keeps every page of that which was ever touched.
        let mut headers = vec![httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => {
                return Err(Problem::new(400, "the request head is incomplete"));
            }
            Err(error) => return Err(malformed(error, bytes)),
        }
        let method = request.method.unwrap_or_default();
        let is_1_0 = request.version == Some(0);
        let target = target(method, request.path.unwrap_or_default())?;
        let headers: Vec<(String, String)> = request
            .headers
            .iter()
            .map(|header| {
                (
                    header.name.to_ascii_lowercase(),
                    String::from_utf8_lossy(header.value).trim().to_owned(),
                )
            })
            .collect();
        let mut head = Self {
            method: method.to_owned(),
            target,
            framing: Framing::None,
            expects_continue: false,
            keep_alive: !is_1_0,
            is_1_0,
            headers,
        };
        head.check_host()?;
        head.framing = head.read_framing()?;
        head.expects_continue = head.read_expectation()?;
        if head.lists("connection", "close") {
            head.keep_alive = false;
        } else if head.lists("connection", "keep-alive") {
            head.keep_alive = true;
        }
        if !METHODS.contains(&method) {
            return Err(Problem::new(
                501,
                format!(
                    "the method {method} is not implemented; {} are",
                    METHODS.join(", ")
                ),
            ));
        }
        Ok(head)
    }

    /// The path, still percent-encoded.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// What comes behind the path's question mark, still percent-encoded.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// Takes every parameter of this name out of the query: the last one's value, decoded.
    ///
    /// `None` when there is none.
    ///
    /// # Errors
    /// 400 when that value is not percent-encoded text.
    pub fn take_from_query(&mut self, name: &str) -> Option<Result<String, Problem>> {
        let (path, query) = self.target.split_once('?')?;
        let is_wanted = |pair: &&str| {
            let key = pair.split('=').next().unwrap_or_default();
            query_pairs(key).is_ok_and(|pairs| pairs.iter().any(|(key, _)| key == name))
        };
        let taken = query.split('&').rfind(is_wanted)?;
        let value =
            query_pairs(taken).map(|pairs| pairs.into_iter().map(|(_, value)| value).collect());
        let rest: Vec<&str> = query.split('&').filter(|pair| !is_wanted(pair)).collect();
        self.target = if rest.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{}", rest.join("&"))
        };
        Some(value)
    }

    /// All headers of this name, which is given in lower case, as one list (RFC 9110, section 5.3).
    pub fn joined(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self.all(name).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// The headers that handlers may see, each once.
    ///
    /// # Errors
    /// 400 when one has characters that no text of ASCII has.
    pub fn handed_on(&self) -> Result<Vec<(&'static str, String)>, Problem> {
        let mut headers = Vec::new();
        for name in HANDED_ON {
            let Some(value) = self.joined(name) else {
                continue;
            };
            if !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
                let detail = format!("the header `{name}` has characters other than ASCII");
                return Err(Problem::new(400, detail));
            }
            headers.push((name, value));
        }
        Ok(headers)
    }

    /// Whether a comma-separated header has this member, whatever its case.
    pub fn lists(&self, name: &str, member: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(member))
    }

    /// Whether there is a header of this name, as one list, that passes.
    pub fn is(&self, name: &str, passes: impl FnOnce(&str) -> bool) -> bool {
        self.joined(name).is_some_and(|value| passes(&value))
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// RFC 9112, section 3.2: a request without exactly one `Host` is answered 400.
    fn check_host(&self) -> Result<(), Problem> {
        let hosts: Vec<&str> = self.all("host").collect();
        match hosts[..] {
            [host] if host.bytes().all(is_host) => Ok(()),
            [host] => Err(Problem::new(
                400,
                format!("the `Host` header {host:?} is not a host and port"),
            )),
            [] if self.is_1_0 => Ok(()),
            [] => Err(Problem::new(400, "the `Host` header is missing")),
            _ => Err(Problem::new(
                400,
                format!(
                    "there are {} `Host` headers; exactly one is required",
                    hosts.len()
                ),
            )),
        }
    }

    /// RFC 9112, section 6.3. Whatever two readers could take differently is refused.
    fn read_framing(&self) -> Result<Framing, Problem> {
        let lengths: Vec<&str> = self.all("content-length").collect();
        if let Some(coding) = self.joined("transfer-encoding") {
            if !lengths.is_empty() {
                return Err(Problem::new(
                    400,
                    "`Content-Length` and `Transfer-Encoding` are both there; only one may be",
                ));
            }
            if self.is_1_0 {
                return Err(Problem::new(
                    400,
                    "`Transfer-Encoding` does not exist in HTTP/1.0",
                ));
            }
            if !coding.eq_ignore_ascii_case("chunked") {
                return Err(Problem::new(
                    501,
                    format!("the transfer coding {coding:?} is not implemented; `chunked` is"),
                ));
            }
            return Ok(Framing::Chunked);
        }
        match lengths[..] {
            [] => Ok(Framing::None),
            [length] if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
                // A length beyond the machine's word is beyond every limit too.
                Ok(Framing::Length(length.parse().unwrap_or(usize::MAX)))
            }
            [length] => Err(Problem::new(
                400,
                format!("`Content-Length` must be a number, not {length:?}"),
            )),
            _ => Err(Problem::new(
                400,
                format!(
                    "there are {} `Content-Length` headers; only one may be",
                    lengths.len()
                ),
            )),
        }
    }

    fn read_expectation(&self) -> Result<bool, Problem> {
        match self.joined("expect") {
            None => Ok(false),
            // RFC 9110, section 10.1.1: an HTTP/1.0 client does not know 100.
            Some(value) if value.eq_ignore_ascii_case("100-continue") => {
                Ok(!self.is_1_0 && self.framing != Framing::None)
            }
            Some(value) => Err(Problem::new(
                417,
                format!("the expectation {value:?} is not known; `100-continue` is"),
            )),
        }
    }
}

/// Path and query of the request target, in ASCII (RFC 9112, section 3.2).
fn target(method: &str, target: &str) -> Result<String, Problem> {
    let origin_form = match target.split_once("://") {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
        {
            // Absolute form, as proxies send it: the host was chosen by connecting here.
            let path = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
            if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            }
        }
        _ => target.to_owned(),
    };
    let asks_about_server = method == "OPTIONS" && origin_form == "*";
    if !origin_form.starts_with('/') && !asks_about_server {
        return Err(Problem::new(
            400,
            // Not quoted: there may be a token in it.
            "the request target does not start with `/`",
        ));
    }
    let mut ascii = String::with_capacity(origin_form.len());
    for byte in origin_form.bytes() {
        if byte.is_ascii_graphic() {
            ascii.push(char::from(byte));
        } else {
            ascii.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(ascii)
}

fn malformed(error: httparse::Error, head: &[u8]) -> Problem {
    match error {
        httparse::Error::TooManyHeaders => Problem::new(
            431,
            format!("the request has more than {MAX_HEADERS} headers"),
        ),
        // Also what httparse says of a target with a space in it.
        httparse::Error::Version if has_version(head) => Problem::new(
            505,
            "the HTTP version is not supported; HTTP/1.0 and HTTP/1.1 are",
        ),
        httparse::Error::Token | httparse::Error::Version => Problem::new(
            400,
            "the request line is malformed: a method, a target without spaces and a version",
        ),
        httparse::Error::HeaderName => Problem::new(
            400,
            "a header is malformed: a name, a colon without space before it, a value on the same line",
        ),
        httparse::Error::HeaderValue => {
            Problem::new(400, "a header's value has a control character")
        }
        other => Problem::new(400, format!("the request head is malformed: {other}")),
    }
}

/// Whether the request line has three parts, the last of which is some HTTP version.
fn has_version(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    matches!(parts[..], [_, _, version] if version.starts_with(b"HTTP/"))
}

/// The characters of a host and port (RFC 3986, section 3.2.2).
fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_only_behind_a_blank_line() {
        assert_eq!(
            Head::end(b"GET / HTTP/1.1\r\nHost: a\r\n").expect("no fault"),
            None
        );
        assert_eq!(
            Head::end(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest").expect("no fault"),
            Some(27)
        );
        assert_eq!(
            Head::end(b"GET / HTTP/1.1\nHost: a\r\n")
                .expect_err("bare LF")
                .status,
            400
        );
        assert_eq!(Head::end(b"\n").expect_err("bare LF").status, 400);
    }

    #[test]
    fn a_parameter_is_taken_out_of_the_query_however_it_is_written() {
        for (target, value, rest) in [
            ("/a", None, "/a"),
            ("/a?tokens=1&xtoken=2", None, "/a?tokens=1&xtoken=2"),
            ("/a?token=x", Some("x"), "/a"),
            ("/a?b=1&token=x%20y&c", Some("x y"), "/a?b=1&c"),
            ("/a?%74oken=1&b&token=2", Some("2"), "/a?b"),
            ("/a?token", Some(""), "/a"),
            ("/a?token=a=b", Some("a=b"), "/a"),
        ] {
            let bytes = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
            let mut head = Head::parse(bytes.as_bytes()).expect(target);
            let taken = head.take_from_query("token");
            assert_eq!(
                taken.map(|value| value.expect("text")).as_deref(),
                value,
                "{target}"
            );
            assert_eq!(head.target, rest);
        }
        let mut head = Head::parse(b"GET /?token=%zz HTTP/1.1\r\nHost: a\r\n\r\n").expect("a head");
        assert!(
            head.take_from_query("token")
                .is_some_and(|value| value.is_err())
        );
        assert_eq!(head.target, "/");
    }

    #[test]
    fn targets_become_paths_in_ascii() {
        for (given, path) in [
            ("/a?b", "/a?b"),
            ("http://host:1/a", "/a"),
            ("http://host", "/"),
            ("http://host?x", "/?x"),
            ("/ü", "/%C3%BC"),
        ] {
            assert_eq!(target("GET", given).expect(given), path);
        }
        assert!(target("GET", "*").is_err());
        assert!(target("GET", "a").is_err());
        assert_eq!(target("OPTIONS", "*").expect("the server itself"), "*");
    }
}
