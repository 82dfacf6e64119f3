//! Answers that are not 2xx: `application/problem+json` (RFC 9457).

use std::fmt;

use serde::Serialize;

use super::Reply;

/// Why a request was refused. Nothing was stored, nothing was broadcast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    r#type: &'static str,
    title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What was found and what would be right.
    pub detail: String,
    /// The field that was missing or wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    #[serde(skip)]
    headers: Vec<(&'static str, String)>,
}

impl Problem {
    /// A problem of this status.
    pub fn new(status: u16, detail: impl Into<String>) -> Self {
        let title = reason_phrase(status);
        Self {
            r#type: "about:blank",
            title,
            status,
            detail: detail.into(),
            field: None,
            headers: Vec::new(),
        }
    }

    /// 422: a field is missing or wrong.
    pub fn field(field: &str, detail: impl Into<String>) -> Self {
        Self {
            field: Some(field.to_owned()),
            ..Self::new(422, detail)
        }
    }

    /// 405: the route knows other methods, which `Allow` lists.
    pub fn method_not_allowed(method: &str, path: &str, allow: &str) -> Self {
        Self::new(
            405,
            format!("{method} is not allowed on {path}; {allow} are"),
        )
        .with_header("Allow", allow)
    }

    /// 503: trying again is right, after this many seconds.
    pub fn unavailable(detail: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(503, detail).with_header("Retry-After", retry_after_seconds.to_string())
    }

    /// Adds a header to the answer.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl From<Problem> for Reply {
    fn from(mut problem: Problem) -> Self {
        let headers = std::mem::take(&mut problem.headers);
        let body =
            serde_json::to_vec(&problem).expect("strings and numbers always have a JSON form");
        headers.into_iter().fold(
            Self::new(problem.status, "application/problem+json", body),
            |reply, (name, value)| reply.with_header(name, value),
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status, self.title, self.detail)
    }
}

/// The reason phrase of a status (RFC 9110, section 15), for those this server sends.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}
