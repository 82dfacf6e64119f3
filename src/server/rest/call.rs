//! One request in the request loop, and its one answer.

use tiny_http::{Header, Request, Response};

use crate::access::Peer;
use crate::http::{Problem, Reply, percent_decode, query_pairs};

/// Types of bodies that have a JSON value in each line: nobody registered one, and three are used.
const JSON_LINES: [&str; 4] = [
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
];

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Media {
    Json,
    JsonLines,
    Other,
    Untold,
}

/// A request that wants an answer. Dropped without one, tiny_http answers 500.
pub(super) struct Call {
    request: Request,
    peer: Peer,
    method: String,
    path: String,
    query: String,
}

impl Call {
    pub(super) fn new(request: Request, peer: Peer) -> Self {
        let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
        let (path, query) = (path.to_owned(), query.to_owned());
        Self {
            method: request.method().as_str().to_owned(),
            path,
            query,
            peer,
            request,
        }
    }

    pub(super) fn method(&self) -> &str {
        &self.method
    }

    /// The path, still percent-encoded.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Path and query as they came.
    pub(super) fn target(&self) -> &str {
        self.request.url()
    }

    /// Who asks.
    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Where the client thinks it is.
    pub(super) fn host(&self) -> &str {
        self.header("Host").unwrap_or("127.0.0.1:8010")
    }

    /// The query's names and values; the last of a name counts.
    pub(super) fn query(&self) -> Result<Vec<(String, String)>, Problem> {
        query_pairs(&self.query)
    }

    /// The last segment of the path, decoded.
    pub(super) fn last_segment(&self) -> Result<String, Problem> {
        percent_decode(self.path.rsplit('/').next().unwrap_or_default())
    }

    /// A segment of the path by its number, decoded; the first is 1.
    pub(super) fn segment(&self, number: usize) -> Result<String, Problem> {
        percent_decode(self.path.split('/').nth(number).unwrap_or_default())
    }

    /// What the client says that the body is.
    pub(super) fn media(&self) -> Media {
        let Some(found) = self.header("Content-Type") else {
            return Media::Untold;
        };
        let essence = essence(found);
        if is_json(&essence) {
            Media::Json
        } else if JSON_LINES.contains(&&essence[..]) {
            Media::JsonLines
        } else {
            Media::Other
        }
    }

    /// Bytes of the body.
    pub(super) fn body_length(&self) -> usize {
        self.request.body_length().unwrap_or(0)
    }

    /// The body, which is to be JSON. The relay has sent all of it, so this waits for nobody.
    ///
    /// # Errors
    /// 415 when its type is neither JSON nor one of `others`.
    pub(super) fn body(&mut self, others: &[&str]) -> Result<Vec<u8>, Problem> {
        if let Some(found) = self.header("Content-Type") {
            let essence = essence(found);
            if !is_json(&essence) && !others.contains(&&essence[..]) {
                let problem = Problem::new(
                    415,
                    format!("the body's type is {found:?}; it must be application/json"),
                );
                return Err(problem.with_header("Accept", "application/json"));
            }
        }
        self.any_body()
    }

    /// The body, whatever its type.
    ///
    /// # Errors
    /// 400, which would be a bug: the relay has sent all of it.
    pub(super) fn any_body(&mut self) -> Result<Vec<u8>, Problem> {
        let mut body = Vec::new();
        self.request
            .as_reader()
            .read_to_end(&mut body)
            .map_err(|error| Problem::new(400, format!("the body cannot be read: {error}")))?;
        Ok(body)
    }

    /// Answers. Never waits for the client: the relay takes the whole answer.
    pub(super) fn reply(self, mut reply: Reply) {
        // The door has let it in.
        if let Some(origin) = self.header("Origin") {
            reply = reply.readable_by(origin);
        }
        let length = reply.body.len();
        let mut response = Response::new(
            reply.status.into(),
            Vec::new(),
            &reply.body[..],
            Some(length),
            None,
        )
        .with_chunked_threshold(usize::MAX)
        .with_header(header(
            "Server",
            concat!("threadcast/", env!("CARGO_PKG_VERSION")),
        ));
        for (name, value) in &reply.headers {
            response.add_header(header(name, value));
        }
        if let Err(error) = self.request.respond(response) {
            log::debug!("an answer found its connection closed: {error}");
        }
    }

    /// Answers OPTIONS, a browser's preflight included (fetch.spec.whatwg.org, CORS protocol).
    pub(super) fn reply_options(self, allow: &str) {
        let mut reply = Reply::no_content().with_header("Allow", allow);
        if self.header("Access-Control-Request-Method").is_some() && self.header("Origin").is_some()
        {
            let headers = self
                .header("Access-Control-Request-Headers")
                .unwrap_or("Content-Type")
                .to_owned();
            reply = reply
                .with_header("Access-Control-Allow-Methods", allow)
                .with_header("Access-Control-Allow-Headers", headers)
                .with_header("Access-Control-Max-Age", "600");
        }
        self.reply(reply);
    }

    pub(super) fn header(&self, name: &'static str) -> Option<&str> {
        self.request
            .headers()
            .iter()
            .find(|header| header.field.equiv(name))
            .map(|header| header.value.as_str())
    }
}

/// A media type without its parameters.
fn essence(media_type: &str) -> String {
    let essence = media_type.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

/// Whether a media type is JSON (RFC 6839 for the suffix).
fn is_json(essence: &str) -> bool {
    essence == "application/json"
        || essence == "text/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn header(name: &str, value: &str) -> Header {
    // Values may quote what the client sent; anything but visible ASCII would break the head.
    let visible: String = value
        .chars()
        .map(|character| {
            if (' '..='~').contains(&character) {
                character
            } else {
                '?'
            }
        })
        .collect();
    Header::from_bytes(name.as_bytes(), visible.as_bytes())
        .expect("names are ours and values visible ASCII")
}
