//! For administrators: who is connected, and how to end somebody.

use std::sync::Arc;

use serde::Serialize;

use super::handlers::json_body;
use super::{Api, Call};
use crate::frame::CloseCode;
use crate::http::{Problem, Reply};
use crate::manager::ConnectionStatus;

/// Answers from memory. A `query` thread writes the list, which may be long.
pub(super) fn get_connections(api: &Arc<Api>, call: Call) {
    let shared = Arc::clone(api);
    api.query(move || {
        let connections = shared.manager.connections();
        call.reply(Reply::json(json_body(&Connections { connections })));
    });
}

#[derive(Serialize)]
struct Connections {
    connections: Vec<ConnectionStatus>,
}

pub(super) fn delete_connection(api: &Arc<Api>, call: Call) {
    let id = match call.last_segment() {
        Ok(id) => id,
        Err(problem) => return call.reply(problem.into()),
    };
    let client = id.parse().ok().and_then(|id| api.manager.find(id));
    let Some(client) = client else {
        let problem = Problem::new(
            404,
            format!("no subscriber has the id {id:?}; GET /api/connections lists them"),
        );
        return call.reply(problem.into());
    };
    log::info!(
        "client {} from {} is ended by {}",
        client.id,
        client.peer,
        call.peer().token().unwrap_or("a client of this machine")
    );
    client.finish(CloseCode::Policy, "ended by an administrator");
    call.reply(Reply::json(json_body(&Ended {
        success: true,
        id: client.id,
    })));
}

#[derive(Serialize)]
struct Ended {
    success: bool,
    id: u64,
}
