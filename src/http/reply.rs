//! A whole response, small enough to be in memory.

use time::OffsetDateTime;

use super::reason_phrase;

/// What answers call the program.
pub const SERVER: &str = concat!("threadcast/", env!("CARGO_PKG_VERSION"));

/// A status, headers and a body of known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Headers, beside `Content-Length` and `Connection`, which depend on who asked.
    pub headers: Vec<(&'static str, String)>,
    /// The body; empty with 204. With 304 it is not sent, its length is told.
    pub body: Vec<u8>,
}

impl Reply {
    /// A reply with a body of this media type.
    pub fn new(status: u16, content_type: &str, body: Vec<u8>) -> Self {
        Self {
            status,
            headers: vec![("Content-Type", content_type.to_owned())],
            body,
        }
    }

    /// 200 with JSON.
    pub fn json(body: Vec<u8>) -> Self {
        Self::new(200, "application/json", body)
    }

    /// 204.
    pub fn no_content() -> Self {
        Self {
            status: 204,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// 304: the client has what this would tell it (RFC 9110, section 15.4.5).
    pub fn not_modified(self) -> Self {
        Self {
            status: 304,
            ..self
        }
    }

    /// Adds a header.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Lets pages of this origin read it (fetch.spec.whatwg.org, CORS protocol).
    pub fn readable_by(self, origin: &str) -> Self {
        self.with_header("Access-Control-Allow-Origin", origin)
            .with_header(
                "Access-Control-Expose-Headers",
                "ETag, Idempotency-Replayed, Retry-After",
            )
            .with_header("Vary", "Origin")
    }

    /// The bytes for the client. `head_only` leaves the body out but not its length, as the
    /// answer to HEAD; an HTTP/1.0 client must be told that its connection stays.
    pub fn into_bytes(self, head_only: bool, is_1_0: bool, keep_alive: bool) -> Vec<u8> {
        let mut bytes = self.head(is_1_0, keep_alive);
        bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", self.body.len()).as_bytes());
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }

    /// The head of a response whose body follows and ends with the connection.
    pub fn into_endless_head(self) -> Vec<u8> {
        let mut bytes = self.head(false, false);
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    /// Status line and headers without the length.
    fn head(&self, is_1_0: bool, keep_alive: bool) -> Vec<u8> {
        let mut bytes = format!(
            "HTTP/1.1 {} {}\r\nDate: {}\r\nServer: {SERVER}\r\n",
            self.status,
            reason_phrase(self.status),
            date(OffsetDateTime::now_utc())
        )
        .into_bytes();
        match (keep_alive, is_1_0) {
            (false, _) => bytes.extend_from_slice(b"Connection: close\r\n"),
            (true, true) => bytes.extend_from_slice(b"Connection: keep-alive\r\n"),
            (true, false) => {}
        }
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes
    }

    /// The bytes for a connection that ends with this reply.
    pub fn into_last_bytes(self) -> Vec<u8> {
        self.into_bytes(false, false, false)
    }
}

/// A time in UTC as HTTP writes it (RFC 9110, section 5.6.7).
fn date(time: OffsetDateTime) -> String {
    format!(
        "{:.3}, {:02} {:.3} {:04} {:02}:{:02}:{:02} GMT",
        time.weekday().to_string(),
        time.day(),
        time.month().to_string(),
        time.year(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_that_of_the_standard() {
        let time = OffsetDateTime::from_unix_timestamp(784_111_777).expect("a time");
        assert_eq!(date(time), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
