//! How a request may be refused, and the headers of answers.

use serde_json::{Map, Value, json};

use super::schemas::reference;

/// A status that is not 2xx, with a problem as its body.
struct Refusal {
    status: u16,
    /// Its name among the components.
    name: &'static str,
    when: &'static str,
    /// Headers that it always has.
    headers: &'static [&'static str],
    /// The door gives it to whatever route was meant.
    everywhere: bool,
}

const REFUSALS: &[Refusal] = &[
    Refusal {
        status: 400,
        name: "BadRequest",
        when: "The request is malformed, or its body is not JSON; line and column are told.",
        headers: &[],
        everywhere: true,
    },
    Refusal {
        status: 401,
        name: "Unauthorized",
        when: "A token is needed, or the one that came is not known, has expired or was revoked.",
        headers: &["WWW-Authenticate"],
        everywhere: true,
    },
    Refusal {
        status: 403,
        name: "Forbidden",
        when: "The token has not the scope, or not for this channel or feed; or the request comes from the page of a foreign origin.",
        headers: &[],
        everywhere: true,
    },
    Refusal {
        status: 404,
        name: "NotFound",
        when: "There is nothing at this path.",
        headers: &[],
        everywhere: false,
    },
    Refusal {
        status: 405,
        name: "MethodNotAllowed",
        when: "The path has other methods.",
        headers: &["Allow"],
        everywhere: true,
    },
    Refusal {
        status: 408,
        name: "RequestTimeout",
        when: "The request was not complete in time.",
        headers: &[],
        everywhere: true,
    },
    Refusal {
        status: 411,
        name: "LengthRequired",
        when: "The request has neither `Content-Length` nor `Transfer-Encoding: chunked`.",
        headers: &[],
        everywhere: false,
    },
    Refusal {
        status: 413,
        name: "ContentTooLarge",
        when: "The body is longer than the server takes.",
        headers: &[],
        everywhere: true,
    },
    Refusal {
        status: 415,
        name: "UnsupportedMediaType",
        when: "The body says that it is of another type.",
        headers: &["Accept"],
        everywhere: false,
    },
    Refusal {
        status: 417,
        name: "ExpectationFailed",
        when: "`Expect` has something else than `100-continue`.",
        headers: &[],
        everywhere: true,
    },
    Refusal {
        status: 422,
        name: "UnprocessableContent",
        when: "A field is missing or wrong; `field` names it.",
        headers: &[],
        everywhere: false,
    },
    Refusal {
        status: 426,
        name: "UpgradeRequired",
        when: "This is a WebSocket, and the request does not ask for one.",
        headers: &["Upgrade", "Sec-WebSocket-Version"],
        everywhere: false,
    },
    Refusal {
        status: 429,
        name: "TooManyRequests",
        when: "The address has too many connections, or the token or address publishes too fast.",
        headers: &["Retry-After"],
        everywhere: true,
    },
    Refusal {
        status: 431,
        name: "RequestHeaderFieldsTooLarge",
        when: "The request head is too long or has too many fields.",
        headers: &[],
        everywhere: true,
    },
    Refusal {
        status: 500,
        name: "InternalServerError",
        when: "A bug.",
        headers: &[],
        everywhere: true,
    },
    Refusal {
        status: 501,
        name: "NotImplemented",
        when: "The method or the transfer coding is not known.",
        headers: &[],
        everywhere: true,
    },
    Refusal {
        status: 503,
        name: "ServiceUnavailable",
        when: "The store cannot be used or has too much to do, or the server has as many clients as it takes.",
        headers: &["Retry-After"],
        everywhere: true,
    },
    Refusal {
        status: 505,
        name: "HttpVersionNotSupported",
        when: "The version is neither HTTP/1.0 nor HTTP/1.1.",
        headers: &[],
        everywhere: true,
    },
];

/// Headers by their names, each with what it says.
const HEADERS: &[(&str, &str)] = &[
    ("Accept", "The type that the body may have."),
    ("Allow", "The methods of the path."),
    ("Cache-Control", "What may be kept, and for how long."),
    ("Connection", "`Upgrade`."),
    ("ETag", "Changes with the body; for `If-None-Match`."),
    (
        "Idempotency-Replayed",
        "`true`: it was done before, and this is the answer of then.",
    ),
    ("Retry-After", "Seconds after which trying again is right."),
    ("Sec-WebSocket-Accept", "The answer to the client's key."),
    ("Sec-WebSocket-Version", "`13`."),
    ("Upgrade", "`websocket`."),
    (
        "Vary",
        "What else the answer depends on than on the address.",
    ),
    ("WWW-Authenticate", "How a token may be sent."),
    ("X-Accel-Buffering", "`no`: proxies are to pass events on."),
];

/// The statuses that every route may answer.
pub(super) fn everywhere() -> impl Iterator<Item = u16> {
    REFUSALS
        .iter()
        .filter(|refusal| refusal.everywhere)
        .map(|refusal| refusal.status)
}

/// The refusal of this status, which is in the table above.
pub(super) fn refusal(status: u16) -> Value {
    let refusal = REFUSALS.iter().find(|refusal| refusal.status == status);
    let name = refusal.expect("the table has every refusal").name;
    json!({"$ref": format!("#/components/responses/{name}")})
}

/// Every refusal, by name.
pub(super) fn refusals() -> Value {
    let described = |refusal: &Refusal| {
        let content = json!({"application/problem+json": {"schema": reference("Problem")}});
        let described = json!({"description": refusal.when, "content": content});
        (
            refusal.name.to_owned(),
            with_headers(described, refusal.headers),
        )
    };
    Value::Object(REFUSALS.iter().map(described).collect())
}

/// Every header, by name.
pub(super) fn headers() -> Value {
    let described = |(name, description): &(&str, &str)| {
        let schema = match *name {
            "Retry-After" => json!({"type": "integer", "minimum": 0}),
            _ => json!({"type": "string"}),
        };
        let is_always_there = *name != "Idempotency-Replayed";
        let header =
            json!({"description": description, "required": is_always_there, "schema": schema});
        ((*name).to_owned(), header)
    };
    Value::Object(HEADERS.iter().map(described).collect())
}

/// An answer that has these headers, too.
pub(super) fn with_headers(mut answer: Value, names: &[&str]) -> Value {
    if !names.is_empty() {
        let reference = |name: &&str| {
            let reference = json!({"$ref": format!("#/components/headers/{name}")});
            ((*name).to_owned(), reference)
        };
        let headers: Map<String, Value> = names.iter().map(reference).collect();
        answer["headers"] = headers.into();
    }
    answer
}
