//! One request in the request loop, and its one answer.

use tiny_http::{Header, Request, Response};

use crate::access::Peer;
use crate::http::{Head, Problem, Reply, SERVER, percent_decode, query_pairs};

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

/// A request that wants an answer. Dropped without one, it is answered 500.
pub(super) struct Call {
    request: Source,
    peer: Peer,
    method: String,
    target: String,
}

/// Where a request came from, and where its answer goes.
enum Source {
    /// The relay, by way of tiny_http.
    Relay(Request),
    /// The thread of a publisher's connection.
    Publisher {
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
        answer: Answer,
    },
}

/// What is done with a publisher's answer. Whatever happens to it, it gets one.
struct Answer(Option<Box<dyn FnOnce(Reply) + Send>>);

impl Answer {
    fn give(mut self, reply: Reply) {
        if let Some(answer) = self.0.take() {
            answer(reply);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Problem::new(500, "a bug lost the answer").into());
        }
    }
}

impl Call {
    pub(super) fn relayed(request: Request, peer: Peer) -> Self {
        Self {
            method: request.method().as_str().to_owned(),
            target: request.url().to_owned(),
            peer,
            request: Source::Relay(request),
        }
    }

    /// `None` when it is answered already: 400 for a header that handlers see and cannot read.
    pub(super) fn published(
        head: &Head,
        body: Vec<u8>,
        peer: Peer,
        answer: impl FnOnce(Reply) + Send + 'static,
    ) -> Option<Self> {
        let headers = match head.handed_on() {
            Ok(headers) => headers,
            Err(problem) => {
                answer(problem.into());
                return None;
            }
        };
        Some(Self {
            method: head.method.clone(),
            target: head.target.clone(),
            peer,
            request: Source::Publisher {
                headers,
                body,
                answer: Answer(Some(Box::new(answer))),
            },
        })
    }

    pub(super) fn method(&self) -> &str {
        &self.method
    }

    /// The path, still percent-encoded.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Path and query as they came.
    pub(super) fn target(&self) -> &str {
        &self.target
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
        query_pairs(self.target.split_once('?').map_or("", |(_, query)| query))
    }

    /// The last segment of the path, decoded.
    pub(super) fn last_segment(&self) -> Result<String, Problem> {
        percent_decode(self.path().rsplit('/').next().unwrap_or_default())
    }

    /// A segment of the path by its number, decoded; the first is 1.
    pub(super) fn segment(&self, number: usize) -> Result<String, Problem> {
        percent_decode(self.path().split('/').nth(number).unwrap_or_default())
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

    /// The body, which is to be JSON; the second time it is empty. Waits for nobody.
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
        match &mut self.request {
            Source::Publisher { body, .. } => Ok(std::mem::take(body)),
            Source::Relay(request) => {
                let mut body = Vec::new();
                let read = request.as_reader().read_to_end(&mut body);
                read.map_err(|error| {
                    Problem::new(400, format!("the body cannot be read: {error}"))
                })?;
                Ok(body)
            }
        }
    }

    /// Answers. Never waits for the client: whoever asked on its behalf takes the whole answer.
    pub(super) fn reply(self, mut reply: Reply) {
        // The door has let it in.
        if let Some(origin) = self.header("Origin") {
            reply = reply.readable_by(origin);
        }
        let request = match self.request {
            Source::Relay(request) => request,
            Source::Publisher { answer, .. } => return answer.give(reply),
        };
        let length = reply.body.len();
        let mut response = Response::new(
            reply.status.into(),
            Vec::new(),
            &reply.body[..],
            Some(length),
            None,
        )
        .with_chunked_threshold(usize::MAX)
        .with_header(header("Server", SERVER));
        for (name, value) in &reply.headers {
            response.add_header(header(name, value));
        }
        if let Err(error) = request.respond(response) {
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
        match &self.request {
            Source::Relay(request) => request
                .headers()
                .iter()
                .find(|header| header.field.equiv(name))
                .map(|header| header.value.as_str()),
            Source::Publisher { headers, .. } => headers
                .iter()
                .find(|(known, _)| known.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.as_str()),
        }
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
