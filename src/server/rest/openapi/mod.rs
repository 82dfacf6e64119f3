//! `GET /api/openapi.json`: what the server does, for programs that make clients and tests of it
//! (OpenAPI 3.1, <https://spec.openapis.org/oas/v3.1.1>).
//!
//! Paths, methods, names and words are those of [`ROUTES`], so that no route can be missing;
//! [`operations`] adds what each takes and answers, [`responses`] how requests are refused,
//! [`schemas`] the JSON in both.

mod operations;
mod responses;
mod schemas;

use std::sync::Arc;

use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::handlers::json_body;
use super::routes::{Needs, ROUTES, Route};
use super::states::{CACHE_CONTROL, lists};
use super::{Api, Call};
use crate::http::Reply;

/// How a token may come, each a security scheme of this name.
const SCHEMES: [&str; 3] = ["bearer", "basic", "query"];

/// The document, made once at the start.
pub(super) struct Document {
    json: Vec<u8>,
    etag: String,
}

impl Document {
    /// That of a server with tokens, or without: then nothing needs one.
    pub(super) fn new(with_tokens: bool) -> Self {
        let json = json_body(&document(with_tokens));
        Self {
            etag: format!("\"{}\"", &HEXLOWER.encode(&Sha256::digest(&json))[..32]),
            json,
        }
    }
}

pub(super) fn get_openapi(api: &Arc<Api>, call: Call) {
    let document = &api.openapi;
    let is_known = call
        .header("If-None-Match")
        .is_some_and(|known| lists(known, &document.etag));
    let reply = Reply::json(document.json.clone())
        .with_header("ETag", document.etag.clone())
        .with_header("Cache-Control", CACHE_CONTROL);
    call.reply(if is_known {
        reply.not_modified()
    } else {
        reply
    });
}

fn document(with_tokens: bool) -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_ascii_lowercase()] = operation(route, with_tokens);
    }
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Threadcast",
            "summary": "A real-time broadcast server",
            "description": "POST a message, and every subscriber of its channel has it, stored, in one order. \
                Every path with GET answers HEAD, too, and every path answers OPTIONS. \
                WebSocket paths are described up to the handshake; README.md has the frames.",
            "license": {"name": "MIT", "identifier": "MIT"},
            "version": env!("CARGO_PKG_VERSION"),
        },
        "servers": [{"url": "/"}],
        "tags": tags(),
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "responses": responses::refusals(),
            "headers": responses::headers(),
            "securitySchemes": security_schemes(),
        },
    })
}

/// What the route table says of a route, and what [`operations`] does.
fn operation(route: &Route, with_tokens: bool) -> Value {
    let operation = operations::find(route.name).unwrap_or_default();
    let mut responses = Map::new();
    for status in responses::everywhere().chain(operation.refusals.iter().copied()) {
        responses.insert(status.to_string(), responses::refusal(status));
    }
    for (status, answer) in operation.answers {
        responses.insert(status.to_string(), answer);
    }
    let mut described = json!({
        "operationId": route.name,
        "summary": route.summary,
        "description": route.description,
        "tags": route.tags,
        "security": security(route.needs, with_tokens),
        "responses": responses,
    });
    if !operation.parameters.is_empty() {
        described["parameters"] = operation.parameters.into();
    }
    if let Some(body) = operation.body {
        described["requestBody"] = body;
    }
    described
}

/// The alternatives, each with the scope that the token must have.
fn security(needs: Needs, with_tokens: bool) -> Value {
    let scopes = match needs {
        Needs::Scope(scope) => vec![scope.to_string()],
        Needs::Nothing | Needs::Token => Vec::new(),
    };
    let nothing = (!with_tokens || matches!(needs, Needs::Nothing)).then(|| json!({}));
    let tokens = SCHEMES.iter().map(|scheme| json!({*scheme: scopes}));
    nothing.into_iter().chain(tokens).collect()
}

fn security_schemes() -> Value {
    let [bearer, basic, query] = SCHEMES;
    json!({
        bearer: {
            "type": "http",
            "scheme": "bearer",
            "description": "A token of the server's tokens file. A WebSocket in a browser sends it as the subprotocol `bearer.` and the token in base64url, beside the subprotocol `threadcast`.",
        },
        basic: {
            "type": "http",
            "scheme": "basic",
            "description": "The token as the password, with any user name.",
        },
        query: {
            "type": "apiKey",
            "in": "query",
            "name": "token",
            "description": "For clients that can send no header, such as `EventSource`.",
        },
    })
}

fn tags() -> Value {
    json!([
        {"name": "messages", "description": "Channels: streams of stored messages."},
        {"name": "feeds", "description": "Named latest values."},
        {"name": "websocket", "description": "Answered 101; then frames."},
        {"name": "sse", "description": "Server-Sent Events: answers without an end."},
        {"name": "server", "description": "The server itself."},
        {"name": "admin", "description": "For those who look after the server."},
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_an_operation_and_every_operation_a_route() {
        for route in ROUTES {
            assert!(
                operations::find(route.name).is_some(),
                "the route `{0}` has no operation: write `fn {0}() -> Operation` in \
                 src/server/rest/openapi/operations.rs and add (\"{0}\", {0}) to OPERATIONS there; \
                 its JSON goes to schemas.rs",
                route.name
            );
        }
        for name in operations::names() {
            assert!(
                ROUTES.iter().any(|route| route.name == name),
                "the operation `{name}` is of no route: take it out of OPERATIONS in \
                 src/server/rest/openapi/operations.rs"
            );
        }
    }

    #[test]
    fn every_tag_is_explained() {
        let tags = tags();
        let tags: Vec<&Value> = tags.as_array().expect("a list").iter().collect();
        for tag in ROUTES.iter().flat_map(|route| route.tags) {
            assert!(
                tags.iter().any(|known| known["name"] == *tag),
                "add the tag {tag:?} to `tags` in src/server/rest/openapi/mod.rs"
            );
        }
    }

    #[test]
    fn the_document_is_always_the_same() {
        for with_tokens in [false, true] {
            let [one, other] = [(); 2].map(|()| Document::new(with_tokens));
            assert_eq!((one.json, one.etag), (other.json, other.etag));
        }
    }
}
