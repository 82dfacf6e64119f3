//! HTTP as a client: a request out, its answer in.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use httparse::Status;

use super::connect;
use super::scanner::shortened;

/// A keep-alive connection, one request at a time.
pub(super) struct Connection {
    socket: TcpStream,
    /// What has arrived of the answer.
    buffer: Vec<u8>,
    chunk: Vec<u8>,
}

impl Connection {
    pub(super) fn connect(address: SocketAddr) -> Result<Self, String> {
        Ok(Self {
            socket: connect::tcp(address)?,
            buffer: Vec::with_capacity(4096),
            chunk: vec![0; 64 << 10],
        })
    }

    /// Sends a request and reads the whole answer: its status and body.
    pub(super) fn exchange(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>), String> {
        self.socket
            .write_all(request)
            .map_err(|error| format!("can't send a request: {error}"))?;
        self.buffer.clear();
        loop {
            match self.socket.read(&mut self.chunk) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(read) => self.buffer.extend_from_slice(&self.chunk[..read]),
                Err(error) => return Err(format!("no answer: {error}")),
            }
            if let Some(answer) = response(&self.buffer)? {
                return Ok(answer);
            }
        }
    }
}

/// Status and body of an answer; `None` when it is not complete.
fn response(bytes: &[u8]) -> Result<Option<(u16, Vec<u8>)>, String> {
    let fault = |error: &str| format!("no HTTP answer ({error}): {}", shortened(bytes));
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let Status::Complete(length) = head
        .parse(bytes)
        .map_err(|error| fault(&error.to_string()))?
    else {
        return Ok(None);
    };
    let header = |name: &str| {
        head.headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
    };
    let status = head.code.unwrap_or_default();
    let rest = &bytes[length..];
    if header("transfer-encoding").is_some() {
        let body = chunked(rest).map_err(fault)?;
        return Ok(body.map(|body| (status, body)));
    }
    let length = header("content-length")
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
        .ok_or_else(|| fault("no length"))?;
    match rest.len() {
        arrived if arrived < length => Ok(None),
        arrived if arrived == length => Ok(Some((status, rest.to_vec()))),
        _ => Err(fault("more bytes than announced")),
    }
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
        let end = start + usize::try_from(length).map_err(|_| "a chunk of impossible length")?;
        let Some(chunk) = bytes.get(start..end) else {
            return Ok(None);
        };
        let Some(line_end) = bytes.get(end..end + 2) else {
            return Ok(None);
        };
        if line_end != b"\r\n" {
            return Err("no line end after a chunk");
        }
        if length == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(chunk);
        bytes = &bytes[end + 2..];
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
                assert_eq!(response(&bytes[..end]), Ok(None), "after {end} bytes");
            }
            assert_eq!(response(&bytes), Ok(Some((200, body.to_vec()))));
        }
    }

    #[test]
    fn bytes_beyond_the_answer_and_answers_without_length_are_errors() {
        for bytes in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            "HTTP/1.1 200 OK\r\n\r\n",
            "SMTP\r\n",
        ] {
            assert!(response(bytes.as_bytes()).is_err(), "{bytes}");
        }
    }
}
