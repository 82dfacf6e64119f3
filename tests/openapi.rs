//! The OpenAPI document says what the server does, and the server does what it says.
//!
//! The story: a client was generated from a document that somebody had written by hand; it knew
//! neither the newest route nor the 429, and took the one for a bug and the other for a success.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::tokens::{Tokens, bearer};
use common::{Http, Response, TestServer, eventually};
#[cfg(feature = "redis")]
use common::{
    cluster::{Node, try_publish},
    redis::Redis,
};
use serde_json::{Value, json};
use threadcast::access::Scope;
use threadcast::server::ROUTES;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// The document, with what it is asked for.
struct Document(Value);

impl Document {
    fn of(server: &TestServer) -> Self {
        let response = server.http().get("/api/openapi.json");
        assert_eq!(response.status, 200, "{}", response.text());
        Self(response.json())
    }

    /// The value itself, or what it refers to.
    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value.get("$ref") else {
            return value;
        };
        let pointer = reference.as_str().and_then(|text| text.strip_prefix('#'));
        let pointer = pointer.unwrap_or_else(|| panic!("{reference} is not of this document"));
        let found = self.0.pointer(pointer);
        self.resolved(found.unwrap_or_else(|| panic!("there is nothing at {reference}")))
    }

    fn operation(&self, method: &str, path: &str) -> &Value {
        let operation = &self.0["paths"][path][method.to_lowercase()];
        assert!(operation.is_object(), "no operation {method} {path}");
        operation
    }

    /// Fails unless this is one of the answers that the operation may give.
    fn check(&self, (method, path): (&str, &str), response: &Response) {
        let what = format!("{method} {path}: {} {}", response.status, response.text());
        let answers = &self.operation(method, path)["responses"];
        let answer = answers.get(response.status.to_string());
        let answer = self.resolved(answer.unwrap_or_else(|| panic!("undocumented: {what}")));
        for (name, header) in answer["headers"].as_object().into_iter().flatten() {
            let is_always_there = self.resolved(header)["required"] == true;
            let is_there = response.header(name).is_some();
            assert!(is_there || !is_always_there, "no {name}: {what}");
        }
        if matches!(response.status, 101 | 304) {
            assert!(answer.get("content").is_none(), "{what}");
            return;
        }
        let media_type = response.header("Content-Type").expect("a media type");
        let essence = media_type.split(';').next().expect("a first part");
        let content = &answer["content"][essence];
        assert!(content.is_object(), "undocumented {essence}: {what}");
        let body = match essence {
            "application/json" | "application/problem+json" => response.json(),
            _ => response.text().into(),
        };
        if let Err(wrong) = self.validate(&content["schema"], &body) {
            panic!("{wrong}: {what}");
        }
    }

    /// Whether a value is what a schema says: JSON Schema 2020-12, as far as the document uses
    /// it. Patterns are left to tools that know regular expressions.
    fn validate(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let members = schema.as_object().expect("schemas are objects");
        for (keyword, rule) in members {
            let holds = match keyword.as_str() {
                "$ref" => {
                    self.validate(self.resolved(schema), value)?;
                    true
                }
                "type" => match rule {
                    Value::Array(types) => types.iter().any(|one| is_of(one, value)),
                    one => is_of(one, value),
                },
                "const" => rule == value,
                "enum" => rule.as_array().expect("a list").contains(value),
                "minimum" => value.as_f64() >= rule.as_f64() || !value.is_number(),
                "maximum" => value.as_f64() <= rule.as_f64() || !value.is_number(),
                "minLength" => characters(value).is_none_or(|found| found >= rule.as_u64()),
                "maxLength" => characters(value).is_none_or(|found| found <= rule.as_u64()),
                "required" => {
                    let mut names = rule.as_array().expect("a list").iter();
                    names.all(|name| value.get(name.as_str().expect("a name")).is_some())
                }
                "properties" => {
                    for (name, schema) in rule.as_object().expect("an object") {
                        let member = value.get(name);
                        member.map_or(Ok(()), |member| self.validate(schema, member))?;
                    }
                    true
                }
                "additionalProperties" => {
                    assert!(schema.get("properties").is_none(), "not in this subset");
                    let mut others = value.as_object().into_iter().flatten();
                    others.try_for_each(|(_, member)| self.validate(rule, member))?;
                    true
                }
                "items" => {
                    let mut items = value.as_array().into_iter().flatten();
                    items.try_for_each(|item| self.validate(rule, item))?;
                    true
                }
                "oneOf" => {
                    let choices = rule.as_array().expect("a list").iter();
                    choices
                        .filter(|one| self.validate(one, value).is_ok())
                        .count()
                        == 1
                }
                "not" => self.validate(rule, value).is_err(),
                "pattern" | "format" | "description" | "examples" | "default" => true,
                other => panic!("the validator does not know {other:?} yet"),
            };
            if !holds {
                return Err(format!("{value} breaks {keyword}: {rule}"));
            }
        }
        Ok(())
    }
}

fn is_of(name: &Value, value: &Value) -> bool {
    match name.as_str().expect("a type's name") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    }
}

/// The length of a string, for comparison with a rule.
fn characters(value: &Value) -> Option<Option<u64>> {
    let length = value.as_str()?.chars().count();
    Some(u64::try_from(length).ok())
}

/// Calls `look` on a value and everything in it.
fn walk(value: &Value, look: &mut impl FnMut(&Value)) {
    look(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, look)),
        Value::Object(members) => members.values().for_each(|member| walk(member, look)),
        _ => {}
    }
}

#[test]
fn the_document_has_exactly_the_routes_of_the_table() {
    let document = Document::of(&TestServer::start());
    assert_eq!(document.0["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut described = BTreeSet::new();
    for (path, methods) in document.0["paths"].as_object().expect("an object") {
        for (method, operation) in methods.as_object().expect("an object") {
            let name = operation["operationId"].as_str().expect("a name");
            described.insert((path.clone(), method.to_uppercase(), name.to_owned()));
        }
    }
    let route = |route: &threadcast::server::Route| {
        [route.path, route.method, route.name]
            .map(str::to_owned)
            .into()
    };
    let table: BTreeSet<(String, String, String)> = ROUTES.iter().map(route).collect();
    assert_eq!(described, table);
}

#[test]
fn every_route_says_what_it_answers_and_names_every_segment_that_varies() {
    let document = Document::of(&TestServer::start());
    for route in ROUTES {
        let operation = document.operation(route.method, route.path);
        let answers = operation["responses"].as_object().expect("an object");
        assert!(
            answers.keys().any(|status| status < &"300".to_owned()),
            "{0} says only how it refuses: add what it answers to `fn {0}` in src/server/rest/openapi/operations.rs",
            route.name
        );
        let parameters = operation["parameters"].as_array();
        let named: BTreeSet<&str> = parameters
            .into_iter()
            .flatten()
            .filter(|parameter| parameter["in"] == "path")
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        let of_path = route.path.split('/');
        let varying: BTreeSet<&str> = of_path
            .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
            .collect();
        assert_eq!(named, varying, "{}", route.name);
        let has_body = matches!(route.method, "POST" | "PUT" | "PATCH");
        assert_eq!(
            operation.get("requestBody").is_some(),
            has_body,
            "{}",
            route.name
        );
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_component_is_used() {
    let document = Document::of(&TestServer::start());
    let mut used = BTreeSet::new();
    walk(&document.0, &mut |value| {
        if let Some(reference) = value.get("$ref") {
            document.resolved(value);
            used.insert(reference.as_str().expect("a string").to_owned());
        }
    });
    let mut there = BTreeSet::new();
    for kind in ["schemas", "responses", "headers"] {
        let components = document.0["components"][kind].as_object();
        let names = components.expect("an object").keys();
        there.extend(names.map(|name| format!("#/components/{kind}/{name}")));
    }
    assert_eq!(used, there);
}

#[test]
fn every_example_is_what_its_schema_says() {
    let document = Document::of(&TestServer::start());
    let mut examples = 0;
    walk(&document.0["components"]["schemas"], &mut |schema| {
        for example in schema
            .get("examples")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            examples += 1;
            document.validate(schema, example).expect("a good example");
        }
    });
    assert!(examples > 5, "{examples} examples were looked at");
}

#[test]
fn the_validator_sees_what_is_wrong() {
    let document = Document::of(&TestServer::start());
    let schema = json!({"$ref": "#/components/schemas/MessageInput"});
    let fine = json!({"channel_id": "lab", "author": "ada", "content": ""});
    assert_eq!(document.validate(&schema, &fine), Ok(()));
    for (field, wrong) in [
        ("channel_id", json!("")),
        ("channel_id", json!("x".repeat(129))),
        ("author", json!(null)),
        ("lane", json!(1)),
        ("token_count", json!("1")),
        ("token_count", json!(1.5)),
        ("token_count", json!(1e19)),
    ] {
        let mut body = fine.clone();
        body[field] = wrong;
        assert!(document.validate(&schema, &body).is_err(), "{body}");
    }
    let incomplete = json!({"channel_id": "lab", "author": "ada"});
    assert!(document.validate(&schema, &incomplete).is_err());
}

type Headers<'a> = &'a [(&'a str, &'a str)];

#[test]
fn what_is_answered_is_what_the_document_says() {
    let server = TestServer::start();
    let document = Document::of(&server);
    let mut http = server.http();
    let _subscriber = server.subscribe("lab");
    let _reader = server.subscribe_feed("board");
    let message = br#"{"channel_id":"lab","author":"ada","content":"hi","provider":"p"}"#;
    let etag = http.get("/api/openapi.json");
    let etag = etag.header("ETag").expect("a tag").to_owned();
    let known: Headers<'_> = &[("If-None-Match", &etag)];
    let any: Headers<'_> = &[("If-None-Match", "*")];
    let browser: Headers<'_> = &[("Accept", "text/html")];
    let none: Headers<'_> = &[];
    const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");
    const KEY: (&str, &str) = ("Idempotency-Key", "k");
    #[rustfmt::skip]
    let rows: [(&str, &str, Headers<'_>, &[u8], u16); 44] = [
        ("POST /api/messages", "", &[JSON], message, 200),
        ("POST /api/messages", "", &[JSON], b"[", 400),
        ("POST /api/messages", "", &[JSON], b"[]", 422),
        ("POST /api/messages", "", &[JSON], b"{}", 422),
        ("POST /api/messages", "", none, b"", 411),
        ("POST /api/messages", "", &[("Content-Type", "text/plain")], message, 415),
        ("POST /api/messages", "", &[JSON, ("Expect", "miracles")], message, 417),
        ("POST /api/messages", "", &[NDJSON], message, 200),
        ("POST /api/messages", "", &[NDJSON], b"{}", 422),
        ("POST /api/messages", "", &[JSON, KEY], message, 200),
        ("POST /api/messages", "", &[JSON, KEY], message, 200),
        ("POST /api/messages", "", &[JSON, KEY], b"{}", 422),
        ("POST /api/channels/{channel_id}/messages", "/api/channels/lab/messages", none, b"hi", 200),
        ("POST /api/channels/{channel_id}/messages", "/api/channels/lab/messages", &[JSON], b"{}", 422),
        ("POST /api/channels/{channel_id}/messages", "/api/channels/lab/messages?token_count=x", none, b"hi", 422),
        ("GET /api/messages", "?since=0&wait=1", none, b"", 200),
        ("GET /api/messages", "?limit=1", none, b"", 200),
        ("GET /api/messages", "?limit=0", none, b"", 422),
        ("GET /api/messages", "?channel_id=%", none, b"", 400),
        ("GET /api/channels", "", none, b"", 200),
        ("GET /api/summary", "", none, b"", 200),
        ("GET /api/health", "", none, b"", 200),
        ("GET /api/health", "", &[("Origin", "http://evil.example")], b"", 403),
        ("GET /", "", none, b"", 200),
        ("GET /", "", browser, b"", 200),
        ("GET /", "", &[browser[0], any[0]], b"", 304),
        ("GET /api/openapi.json", "", none, b"", 200),
        ("GET /api/openapi.json", "", known, b"", 304),
        ("GET /api/openapi.json", "", &[("If-None-Match", "\"other\"")], b"", 200),
        ("PUT /api/state/{feed}", "/api/state/board", &[JSON], b"[1]", 200),
        ("PUT /api/state/{feed}", "/api/state/board", &[JSON], b"[1", 400),
        ("PUT /api/state/{feed}", "/api/state/Board", &[JSON], b"[1]", 422),
        ("GET /api/state/{feed}", "/api/state/board", none, b"", 200),
        ("GET /api/state/{feed}", "/api/state/board", any, b"", 304),
        ("GET /api/state/{feed}", "/api/state/routes", none, b"", 200),
        ("GET /api/state/{feed}", "/api/state/", none, b"", 404),
        ("GET /api/state", "", none, b"", 200),
        ("GET /api/connections", "", none, b"", 200),
        ("GET /metrics", "", none, b"", 200),
        ("DELETE /api/connections/{id}", "/api/connections/1000", none, b"", 404),
        ("GET /api/ws/{channel_id}", "/api/ws/lab", none, b"", 426),
        ("GET /ws/{feed}", "/ws/board", none, b"", 426),
        ("GET /api/ws/{channel_id}", "/api/ws/lab?since=x", &UPGRADE, b"", 422),
        ("GET /api/sse/{channel_id}", "/api/sse/lab?last=x", none, b"", 422),
    ];
    for (operation, target, headers, body, status) in rows {
        let (method, path) = operation.split_once(' ').expect("a method and a path");
        let target = match target {
            "" => path.to_owned(),
            query if query.starts_with('?') => format!("{path}{query}"),
            whole => whole.to_owned(),
        };
        let response = http.request(method, &target, headers, body);
        assert_eq!(
            response.status,
            status,
            "{method} {target}: {}",
            response.text()
        );
        document.check((method, path), &response);
        if response.header("Connection") == Some("close") {
            http = server.http();
        }
    }
    let connections = http.get("/api/connections").json();
    let id = connections["connections"][0]["id"].as_u64().expect("an id");
    let response = http.request("DELETE", &format!("/api/connections/{id}"), &[], b"");
    assert_eq!(response.status, 200, "{}", response.text());
    document.check(("DELETE", "/api/connections/{id}"), &response);
}

/// Of one of several, in all that it may say.
#[cfg(feature = "redis")]
#[test]
fn the_health_of_a_node_is_what_the_document_says() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = Node::start(dir.path().join("a.db"), &redis, &["--drain-delay", "1h"]);
    node.await_connected();
    let document = Document(node.http().get("/api/openapi.json").json());
    let health = |wanted: (u16, &str)| {
        let response = node.http().get("/api/health");
        document.check(("GET", "/api/health"), &response);
        let health = response.json();
        assert_eq!(
            (response.status, health["status"].as_str()),
            (wanted.0, Some(wanted.1))
        );
        health["backplane"].clone()
    };
    health((200, "ok"));
    redis.call(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(try_publish(&mut node.http(), "refused").status, 503);
    assert!(health((200, "ok"))["refuses"].is_string());
    redis.call(&["CONFIG", "SET", "maxmemory", "0"]);
    redis.call(&["HSET", "{threadcast}:log", "id", "another"]);
    assert_eq!(try_publish(&mut node.http(), "refused").status, 503);
    eventually("it has found another log", || {
        node.http().get("/api/health").status == 503
    });
    assert!(health((503, "stranded"))["reason"].is_string());
    let counted = node.http().get("/api/channels?cluster=1");
    assert_eq!(counted.status, 503);
    document.check(("GET", "/api/channels"), &counted);
    node.program.signal(rustix::process::Signal::TERM);
    eventually("it is draining", || node.health()["status"] == "draining");
    health((503, "draining"));
}

#[test]
fn what_begins_a_stream_is_what_the_document_says() {
    let server = TestServer::start();
    let document = Document::of(&server);
    for (path, target) in [
        ("/api/ws/{channel_id}", "/api/ws/lab?last=3"),
        ("/ws/{feed}", "/ws/board"),
        ("/api/v1/ws/{feed}", "/api/v1/ws/board"),
    ] {
        let mut http = server.http();
        let mut request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n");
        for (name, value) in UPGRADE {
            request += &format!("{name}: {value}\r\n");
        }
        http.send(request + "\r\n");
        let response = http.response(true);
        assert_eq!(response.status, 101, "{target}");
        document.check(("GET", path), &response);
    }
    for (path, target) in [
        ("/api/sse/{channel_id}", "/api/sse/lab"),
        ("/sse/{feed}", "/sse/board"),
    ] {
        let response = server.http().request("HEAD", target, &[], b"");
        assert_eq!(response.status, 200, "{target}");
        document.check(("GET", path), &response);
    }
}

#[test]
fn what_the_door_refuses_is_refused_as_the_document_says() {
    let tokens = Tokens::new();
    let all = [Scope::Publish, Scope::Subscribe, Scope::State, Scope::Admin];
    let secret = bearer(&tokens.add("all", &all, &["*"], &["*"]));
    let reader = bearer(&tokens.add("reader", &[Scope::Subscribe], &["lab"], &[]));
    let server = TestServer::start_with(|config| {
        config.tokens = Some(tokens.path.clone());
        config.limits.max_body_bytes = 1000;
        config.limits.max_head_bytes = 2000;
        config.publish_rate = Some(1);
        config.publish_burst = 1;
        config.limits.head_timeout = Duration::from_secs(4);
    });
    let document = Document::of(&server);
    let get = "GET /api/messages HTTP/1.1\r\nHost: localhost\r\n";
    let post =
        format!("POST /api/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: {secret}\r\n");
    let length = |body: &str| format!("{post}Content-Length: {}\r\n\r\n{body}", body.len());
    let message = length(r#"{"channel_id":"lab","author":"ada","content":"hi"}"#);
    for (status, request) in [
        (401, format!("{get}\r\n")),
        (401, format!("{get}Authorization: Bearer wrong\r\n\r\n")),
        (403, format!("{get}Authorization: {reader}\r\n\r\n")),
        (200, format!("{get}Authorization: {secret}\r\n\r\n")),
        (400, "GET /api/messages HTTP/1.1\r\n\r\n".to_owned()),
        (408, get.to_owned()),
        (413, format!("{post}Content-Length: 1001\r\n\r\n")),
        (431, format!("{get}X: {}\r\n\r\n", "x".repeat(2000))),
        (501, format!("{get}Transfer-Encoding: gzip\r\n\r\n")),
        (505, get.replace("1.1", "3.0") + "\r\n"),
        (405, get.replace("GET", "TRACE") + "\r\n"),
        (200, message.clone()),
        (429, message),
    ] {
        let mut http = server.http();
        http.send(&request);
        let mut response = http.response(false);
        if status == 429 {
            // It was free again if a second had passed.
            eventually("it is too much", || {
                let is_taken = response.status == 200;
                if is_taken {
                    http.send(&request);
                    response = http.response(false);
                }
                !is_taken
            });
        }
        assert_eq!(response.status, status, "{request}: {}", response.text());
        let method = if request.starts_with("POST") {
            "POST"
        } else {
            "GET"
        };
        document.check((method, "/api/messages"), &response);
    }
}

#[test]
fn the_document_is_for_everybody_and_says_where_a_token_is_needed() {
    let tokens = Tokens::new();
    tokens.add("ci", &[Scope::Publish], &["*"], &["*"]);
    let open = TestServer::start();
    let closed = TestServer::start_with(|config| config.tokens = Some(tokens.path.clone()));
    let [free, bound] = [&open, &closed].map(Document::of);
    let security = |document: &Document, method, path| {
        let security = document.operation(method, path)["security"].clone();
        let Value::Array(ways) = security else {
            panic!("no list: {security}");
        };
        ways
    };
    let nothing = json!({});
    for route in ROUTES {
        let (method, path) = (route.method, route.path);
        assert!(security(&free, method, path).contains(&nothing), "{path}");
        let is_public = matches!(path, "/" | "/api/health" | "/api/openapi.json");
        let is_free = security(&bound, method, path).contains(&nothing);
        assert_eq!(is_free, is_public, "{path}");
        // What it says is so.
        if route
            .tags
            .iter()
            .all(|tag| !matches!(*tag, "websocket" | "sse"))
        {
            let target = path.replace("{feed}", "board").replace("{id}", "1");
            let target = target.replace("{channel_id}", "lab");
            let body: &[u8] = if matches!(method, "POST" | "PUT") {
                b"{}"
            } else {
                b""
            };
            let response = closed.http().request(method, &target, &[JSON], body);
            assert_eq!(response.status != 401, is_free, "{path}");
        }
    }
    let ways = security(&bound, "POST", "/api/messages");
    assert_eq!(
        ways,
        [
            json!({"bearer": ["publish"]}),
            json!({"basic": ["publish"]}),
            json!({"query": ["publish"]}),
        ]
    );
    let schemes = bound.0["components"]["securitySchemes"].as_object();
    let schemes: Vec<_> = schemes.expect("an object").keys().collect();
    assert_eq!(schemes, ["basic", "bearer", "query"]);
}

#[test]
fn a_document_that_is_known_is_not_sent_again_and_another_start_makes_the_same() {
    let [one, other] = [(); 2].map(|()| {
        let server = TestServer::start();
        let first = server.http().get("/api/openapi.json");
        assert_eq!(first.header("Cache-Control"), Some("no-cache"));
        let etag = first.header("ETag").expect("a tag").to_owned();
        let mut http: Http = server.http();
        let again = http.request("GET", "/api/openapi.json", &[("If-None-Match", &etag)], b"");
        assert_eq!((again.status, again.body.len()), (304, 0));
        assert_eq!(again.header("ETag"), Some(&etag[..]));
        (etag, first.body)
    });
    assert_eq!(one, other);
}
