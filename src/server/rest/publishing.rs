//! The routes that publish messages: an object, a line each, or the body as it is.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::call::Media;
use super::handlers::json_body;
use super::{Api, Call, idempotency};
use crate::access::{On, Peer, Scope};
use crate::error::Error;
use crate::http::{Problem, Reply};
use crate::journal::Committed;
use crate::protocol::{Channel, Draft, MessageId, draft, kind};
use crate::store::Claim;

pub(super) fn post_message(api: &Arc<Api>, call: Call) {
    publish(api, call, None);
}

pub(super) fn post_to_channel(api: &Arc<Api>, call: Call) {
    // /api/channels/{channel_id}/messages
    let channel = call.segment(3).and_then(|name| {
        name.parse().map_err(|detail| {
            Problem::field("channel_id", format!("`channel_id` in the path: {detail}"))
        })
    });
    match channel {
        Ok(channel) => publish(api, call, Some(&channel)),
        Err(problem) => call.reply(problem.into()),
    }
}

/// Publishes what the body has, on this channel if the path names one.
fn publish(api: &Api, mut call: Call, channel: Option<&Channel>) {
    let asked = read(&mut call, channel).and_then(|asked| {
        asked.check_scope(call.peer())?;
        api.check_room(call.peer(), asked.drafts.len())?;
        Ok(asked)
    });
    let Asked {
        drafts,
        lines,
        claim,
    } = match asked {
        Ok(asked) => asked,
        Err(problem) => return call.reply(problem.into()),
    };
    let answer = move |outcome: Result<&[Committed], &Error>| match outcome {
        Ok(committed) => {
            let reply = match lines {
                Some(_) => all_stored(committed),
                None => stored(&committed[0]),
            };
            call.reply(idempotency::mark(reply, committed[0].replayed));
        }
        Err(error) => call.reply(Problem::from(error).into()),
    };
    api.journal.submit_once(drafts, claim, Box::new(answer));
}

/// The messages of a request.
struct Asked {
    drafts: Vec<Draft>,
    /// Which line each comes from, if the body has lines.
    lines: Option<Vec<usize>>,
    /// By which key it is to be done once.
    claim: Option<Claim>,
}

impl Asked {
    fn one(draft: Draft) -> Self {
        Self {
            drafts: vec![draft],
            lines: None,
            claim: None,
        }
    }

    /// Whether this peer may publish all of them.
    ///
    /// # Errors
    /// 401 or 403, naming the line.
    fn check_scope(&self, peer: &Peer) -> Result<(), Problem> {
        for (at, draft) in self.drafts.iter().enumerate() {
            peer.may(Scope::Publish, On::Channel(&draft.channel_id))
                .map_err(|problem| match &self.lines {
                    Some(lines) => in_line(lines[at], problem),
                    None => problem,
                })?;
        }
        Ok(())
    }
}

/// What the body says, by its type.
fn read(call: &mut Call, channel: Option<&Channel>) -> Result<Asked, Problem> {
    let media = call.media();
    let body = match (media, channel) {
        (Media::JsonLines, _) | (_, Some(_)) => call.any_body()?,
        (_, None) => call.body(&[])?,
    };
    let claim = idempotency::claim(call, &body)?;
    let said = channel.map(|channel| said(channel, call.query()?));
    let said = said.transpose()?;
    let asked = match (media, said) {
        (Media::JsonLines, said) => lines(&body, said.as_ref())?,
        (Media::Untold | Media::Other, Some(said)) => Asked::one(content(said, body)?),
        // Without a channel no type at all counts as JSON.
        (_, said) => {
            // The error tells line and column.
            let value = serde_json::from_slice(&body)
                .map_err(|error| Problem::new(400, format!("the body is not JSON: {error}")))?;
            Asked::one(object(value, "the body", said.as_ref())?)
        }
    };
    Ok(Asked { claim, ..asked })
}

/// The fields of a message that path and query say; a body of JSON may say others of them.
fn said(channel: &Channel, query: Vec<(String, String)>) -> Result<Map<String, Value>, Problem> {
    let mut fields = Map::new();
    fields.insert("author".to_owned(), "unknown".into());
    for (name, value) in query {
        let value = match &name[..] {
            "author" | "lane" | "provider" => Value::from(value),
            "token_count" => {
                let number: Result<i64, _> = value.parse();
                number.map(Value::from).map_err(|_| {
                    let detail = format!("`{name}` must be an integer of 64 bits, not {value:?}");
                    Problem::field(&name, detail)
                })?
            }
            _ => continue,
        };
        fields.insert(name, value);
    }
    fields.insert("channel_id".to_owned(), channel.as_str().into());
    Ok(fields)
}

/// The body as a message's content, beside what path and query say.
fn content(mut said: Map<String, Value>, body: Vec<u8>) -> Result<Draft, Problem> {
    let body = String::from_utf8(body).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let detail = format!("the body, which is the `content`, is not UTF-8 at its byte {at}");
        Problem::field("content", detail)
    })?;
    said.insert("content".to_owned(), body.into());
    Ok(draft(said)?)
}

/// A message object for each line; empty lines are none.
fn lines(body: &[u8], said: Option<&Map<String, Value>>) -> Result<Asked, Problem> {
    let (mut drafts, mut numbers) = (Vec::new(), Vec::new());
    for (at, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let value = serde_json::from_slice(line).map_err(|error| {
            let what = error.to_string();
            // It counts lines, too, and always says 1.
            let what = what.split(" at line ").next().unwrap_or_default();
            let detail = format!("not JSON: {what} at column {}", error.column());
            in_line(at + 1, Problem::new(400, detail))
        })?;
        let draft = object(value, "it", said).map_err(|problem| in_line(at + 1, problem))?;
        drafts.push(draft);
        numbers.push(at + 1);
    }
    if drafts.is_empty() {
        let detail = "the body has no message: it must have a JSON object in each line";
        return Err(Problem::new(422, detail));
    }
    Ok(Asked {
        drafts,
        lines: Some(numbers),
        claim: None,
    })
}

/// A message object; without what path and query say, if it does not say otherwise. The
/// channel it can't.
fn object(value: Value, what: &str, said: Option<&Map<String, Value>>) -> Result<Draft, Problem> {
    let Value::Object(mut object) = value else {
        let detail = format!("{what} must be a JSON object, not {}", kind(&value));
        return Err(Problem::new(422, detail));
    };
    for (name, value) in said.into_iter().flatten() {
        let own = object.entry(name).or_insert(Value::Null);
        if own.is_null() {
            *own = value.clone();
        } else if name == "channel_id" && own != value {
            let detail = format!("`channel_id` is {own}, but the path says {value}");
            return Err(Problem::field("channel_id", detail));
        }
    }
    Ok(draft(object)?)
}

fn in_line(number: usize, mut problem: Problem) -> Problem {
    problem.detail = format!("line {number}: {}", problem.detail);
    problem
}

/// The answer's bytes, around the message that was encoded once for everybody.
fn stored(committed: &Committed) -> Reply {
    let mut body = br#"{"success":true,"message":"#.to_vec();
    body.extend_from_slice(committed.frame.message_json());
    body.extend_from_slice(format!(r#","subscribers":{}}}"#, committed.subscribers).as_bytes());
    Reply::json(body)
}

fn all_stored(committed: &[Committed]) -> Reply {
    Reply::json(json_body(&AllStored {
        success: true,
        messages: committed.len(),
        ids: committed.iter().map(|message| message.frame.id).collect(),
    }))
}

#[derive(Serialize)]
struct AllStored {
    success: bool,
    messages: usize,
    ids: Vec<MessageId>,
}
