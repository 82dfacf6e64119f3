//! HTTP answers: taken apart when they have arrived, read with a deadline.

use std::time::{Duration, Instant};

use httparse::Status;
use serde_json::Value;

use super::connection::Connection;
use super::{Failure, Retry, shown};

/// No head that the server sends is nearly as long, and no answer to a publisher.
const MAX_BYTES: usize = 1 << 20;

/// Most headers of an answer; proxies add some.
const MAX_HEADERS: usize = 64;

/// Characters of a refusal that are told.
const MAX_TOLD: usize = 300;

/// What comes before the body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Its own length.
    pub(crate) bytes: usize,
    /// `Sec-WebSocket-Accept`.
    pub(crate) accept: Option<String>,
    framing: Framing,
    retry_after: Option<Duration>,
}

#[derive(Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilEnd,
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    retry_after: Option<Duration>,
}

/// The head at the start of `bytes`; `None` when it is not complete.
pub(crate) fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let Status::Complete(length) = parsed.parse(bytes).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let header = |name: &str| {
        let mut all = parsed.headers.iter();
        let found = all.find(|header| header.name.eq_ignore_ascii_case(name))?;
        str::from_utf8(found.value).ok().map(str::trim)
    };
    let status = parsed.code.unwrap_or_default();
    let framing = if matches!(status, 100..200 | 204 | 304) {
        Framing::Length(0)
    } else if header("transfer-encoding").is_some() {
        Framing::Chunked
    } else {
        let length = header("content-length").and_then(|value| value.parse().ok());
        length.map_or(Framing::UntilEnd, Framing::Length)
    };
    Ok(Some(Head {
        status,
        bytes: length,
        accept: header("sec-websocket-accept").map(str::to_owned),
        framing,
        // A date instead of seconds is left to the backoff: clocks differ.
        retry_after: header("retry-after")
            .and_then(|value| value.parse().ok())
            .map(Duration::from_secs),
    }))
}

/// The answer that `bytes` are; `None` when more of it is to come. `ended` says that nothing
/// will.
pub(crate) fn answer(bytes: &[u8], ended: bool) -> Result<Option<Answer>, String> {
    let Some(head) = head(bytes)? else {
        return Ok(None);
    };
    let rest = &bytes[head.bytes..];
    let body = match head.framing {
        Framing::Chunked => chunked(rest)?,
        Framing::Length(length) if rest.len() > length => {
            return Err("more bytes than announced".to_owned());
        }
        Framing::Length(length) => (rest.len() == length).then(|| rest.to_vec()),
        Framing::UntilEnd => ended.then(|| rest.to_vec()),
    };
    Ok(body.map(|body| Answer {
        status: head.status,
        body,
        retry_after: head.retry_after,
    }))
}

/// The body in chunks that have all arrived (RFC 9112, 7.1, without trailers).
fn chunked(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    let mut body = Vec::new();
    loop {
        let Status::Complete((start, length)) =
            httparse::parse_chunk_size(bytes).map_err(|_| "invalid chunk size")?
        else {
            return Ok(None);
        };
        let end = usize::try_from(length)
            .ok()
            .and_then(|length| start.checked_add(length))
            .ok_or("a chunk of impossible length")?;
        let Some(chunk) = bytes.get(start..end) else {
            return Ok(None);
        };
        let Some((line_end, rest)) = bytes[end..].split_first_chunk() else {
            return Ok(None);
        };
        if line_end != b"\r\n" {
            return Err("no line end after a chunk");
        }
        if length == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(chunk);
        bytes = rest;
    }
}

/// Reads until `bytes` are what `complete` looks for. Blocks up to the deadline; holds at most
/// a megabyte.
pub(super) fn read<T>(
    connection: &mut Connection,
    bytes: &mut Vec<u8>,
    deadline: Instant,
    complete: impl Fn(&[u8], bool) -> Result<Option<T>, String>,
) -> Result<T, Failure> {
    let mut chunk = vec![0; 16 << 10];
    loop {
        let count = connection
            .receive(&mut chunk, deadline)
            .map_err(|error| Failure::passing(format!("no answer: {error}")))?;
        bytes.extend_from_slice(&chunk[..count]);
        let found = complete(bytes, count == 0).map_err(|error| {
            Failure::passing(format!("the server does not speak HTTP: {error}"))
        })?;
        match found {
            Some(found) => return Ok(found),
            None if count == 0 => {
                return Err(Failure::passing(
                    "the server closed the connection without an answer",
                ));
            }
            None if bytes.len() > MAX_BYTES => {
                return Err(Failure::passing("the server's answer has no end"));
            }
            None => {}
        }
    }
}

impl Head {
    pub(super) fn without_body(&self) -> Answer {
        Answer {
            status: self.status,
            body: Vec::new(),
            retry_after: self.retry_after,
        }
    }
}

impl Answer {
    /// What is told of an answer that is not what was asked for.
    pub(super) fn refusal(&self) -> Failure {
        let told = self.told();
        let (status, separator) = (self.status, if told.is_empty() { "" } else { ": " });
        let sentence = match status {
            100..400 => format!("the server answered {status}, as no Threadcast server does"),
            _ => format!("the server refused with {status}{separator}{told}"),
        };
        let retry = match (status, self.retry_after) {
            (408 | 429 | 500.., Some(wait)) => Retry::After(wait),
            (408 | 429 | 500.., None) => Retry::Soon,
            _ => Retry::Never,
        };
        Failure { sentence, retry }
    }

    /// The `detail` of a problem (RFC 9457), or the beginning of what else there is.
    fn told(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let told = problem["detail"].as_str().unwrap_or(line);
        shown(told.trim()).chars().take(MAX_TOLD).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_its_last_byte_has_arrived() {
        let body = br#"{"success":true,"message":{"id":42}}"#;
        let whole = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 36\r\nX: y\r\n\r\n",
            &body[..],
        ]
        .concat();
        let (first, second) = body.split_at(10);
        let chunked = [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n",
            first,
            b"\r\n1A\r\n",
            second,
            b"\r\n0\r\n\r\n",
        ]
        .concat();
        for bytes in [whole, chunked] {
            for end in 0..bytes.len() {
                assert_eq!(answer(&bytes[..end], true), Ok(None), "after {end} bytes");
            }
            let answer = answer(&bytes, false).expect("HTTP").expect("whole");
            assert_eq!((answer.status, answer.body), (200, body.to_vec()));
        }
    }

    #[test]
    fn a_body_without_length_lasts_until_the_end() {
        let bytes = b"HTTP/1.1 502 Bad Gateway\r\n\r\nno upstream\nx";
        assert_eq!(answer(bytes, false), Ok(None));
        let failure = answer(bytes, true).expect("HTTP").expect("whole").refusal();
        assert_eq!(failure.sentence, "the server refused with 502: no upstream");
        assert_eq!(failure.retry, Retry::Soon);
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for bytes in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            "SMTP\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        ] {
            assert!(answer(bytes.as_bytes(), true).is_err(), "{bytes}");
        }
    }

    #[test]
    fn the_status_says_whether_trying_again_may_help() {
        for (head, retry) in [
            ("403 Forbidden", Retry::Never),
            ("301 Moved Permanently", Retry::Never),
            ("408 Request Timeout", Retry::Soon),
            (
                "429 Too Many Requests\r\nRetry-After: 7",
                Retry::After(Duration::from_secs(7)),
            ),
            (
                "503 Service Unavailable\r\nRetry-After: 1",
                Retry::After(Duration::from_secs(1)),
            ),
            (
                "503 X\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT",
                Retry::Soon,
            ),
        ] {
            let bytes =
                format!("HTTP/1.1 {head}\r\nContent-Length: 19\r\n\r\n{{\"detail\":\"\\u001b\"}}");
            let failure = answer(bytes.as_bytes(), false)
                .expect("HTTP")
                .expect("whole")
                .refusal();
            assert_eq!(failure.retry, retry, "{head}");
            assert!(
                !failure.sentence.contains('\u{1b}'),
                "{:?}",
                failure.sentence
            );
        }
    }
}
