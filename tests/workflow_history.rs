//! The feed `workflow-history`: what appeared, changed and went in `workflows`, shown to whoever
//! subscribes and kept in the database, once each, over restarts too.

mod common;

use std::path::Path;
use std::thread;

use common::{Http, Program, TestServer, both_stores};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::{Value, json};

#[test]
fn what_appears_changes_or_goes_is_told_newest_first_with_its_time() {
    #[rustfmt::skip]
    let steps = [
        (json!([{"id": "a", "status": "running"}, {"adw_id": "b", "phase": "plan"}]),
            vec![("a", "appeared"), ("b", "appeared")]),
        (json!([{"id": "a", "status": "done"}, {"adw_id": "b", "phase": "plan"}]),
            vec![("a", "changed")]),
        (json!([{"adw_id": "b", "phase": "build"}, {"workflow_id": "c"}]),
            vec![("a", "went"), ("b", "changed"), ("c", "appeared")]),
        (json!([]), vec![("b", "went"), ("c", "went")]),
        (json!([{"id": "a", "status": "again"}]), vec![("a", "appeared")]),
    ];
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let mut listener = server.subscribe_feed("workflow-history");
        assert_eq!(listener.next()["rev"], 0);
        let mut expected: Vec<(&str, &str)> = Vec::new();
        for ((workflows, changes), rev) in steps.iter().zip(1..) {
            let before = now(&mut http);
            http.put_state("workflows", &workflows.to_string());
            let after = now(&mut http);
            let frame = listener.next();
            assert_eq!(frame["type"], "workflow_history_update");
            assert_eq!(frame["rev"], rev, "one change, one frame");
            assert_eq!(http.state("workflow-history"), frame);
            for change in changes {
                expected.insert(0, *change);
            }
            let shown = frame["data"]["workflows"].as_array().expect("a list");
            let told: Vec<_> = shown.iter().map(id_and_change).collect();
            assert_eq!(told, expected, "{workflows}");
            assert_eq!(frame["data"]["total_count"], expected.len());
            for entry in &shown[..changes.len()] {
                let at = entry["history"]["at"].as_str().expect("a time");
                assert!(*before <= *at && *at <= *after, "{before} {at} {after}");
            }
        }
        let last = http.state("workflow-history")["data"]["workflows"][0].take();
        let mut whole = json!({"id": "a", "status": "again", "history": {"change": "appeared"}});
        whole["history"]["at"] = last["history"]["at"].clone();
        assert_eq!(last, whole, "the workflow with all that it said");
    }
}

#[test]
fn a_change_in_which_no_workflow_moves_is_none_of_the_history() {
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let mut listener = server.subscribe_feed("workflow-history");
        listener.next();
        http.put_state("workflows", r#"[{"id":1,"n":1},{"id":2}]"#);
        assert_eq!(listener.next()["rev"], 1);
        for (workflows, rev) in [
            (r#"[{"id":2},{"id":1,"n":1}]"#, 2),
            (
                r#"[{"id":2},"no workflow",{"id":1,"n":1},{"name":"no id"}]"#,
                3,
            ),
            (r#"[{"id":2},{"id":1,"n":2},{"id":1,"n":1}]"#, 4),
        ] {
            assert_eq!(http.put_state("workflows", workflows)["rev"], rev);
            listener.is_quiet();
        }
        http.put_state("x", r#"[{"id":3}]"#);
        http.put_state("workflows", r#"[{"id":2}]"#);
        let frame = listener.next();
        assert_eq!(
            (&frame["rev"], &frame["data"]["total_count"]),
            (&json!(2), &json!(3))
        );
    }
}

#[test]
fn fifty_are_shown_and_all_are_counted_by_status_or_else_by_phase() {
    let workflow = |id: u64| match id % 4 {
        0 => json!({"id": id, "status": "done", "phase": "ignored"}),
        1 => json!({"id": id, "status": "running"}),
        2 => json!({"id": id, "phase": "plan"}),
        _ => json!({"id": id}),
    };
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let workflows: Vec<Value> = (0..80).map(workflow).collect();
        http.put_state("workflows", &json!(workflows).to_string());
        let history = http.state("workflow-history")["data"].take();
        let shown = history["workflows"].as_array().expect("a list");
        let ids: Vec<_> = shown.iter().map(|entry| entry["id"].as_u64()).collect();
        assert!(ids.iter().copied().eq((30..80).rev().map(Some)), "{ids:?}");
        assert_eq!(history["total_count"], 80);
        #[rustfmt::skip]
        let expected = json!({"workflows": 80, "by_status": {"done": 20, "running": 20}, "by_phase": {"plan": 20}});
        assert_eq!(history["analytics"], expected);

        // One is done, another leaves its phase for a status; those that go count no more.
        let mut later = workflows[..40].to_vec();
        later[1]["status"] = json!("done");
        later[2] = json!({"id": 2, "status": "failed"});
        http.put_state("workflows", &json!(later).to_string());
        let history = http.state("workflow-history")["data"].take();
        assert_eq!(history["workflows"].as_array().map(Vec::len), Some(50));
        assert_eq!(history["total_count"], 122);
        #[rustfmt::skip]
        let expected = json!({"workflows": 40, "by_status": {"done": 11, "running": 9, "failed": 1}, "by_phase": {"plan": 9}});
        assert_eq!(history["analytics"], expected);
    }
}

#[test]
fn workflows_that_are_no_list_are_harmless() {
    #[rustfmt::skip]
    let states = [
        "null", "{}", r#"{"id":1,"status":"x"}"#, r#""workflows""#, "7", "true", r#"[1,null,"id",[{"id":1}],{"id":null},{"id":{}}]"#,
    ];
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let mut listener = server.subscribe_feed("workflow-history");
        let empty = listener.next();
        let mut workflows = server.subscribe_feed("workflows");
        workflows.next();
        for (state, rev) in states.iter().zip(1..) {
            assert_eq!(http.put_state("workflows", state)["rev"], rev, "{state}");
            assert_eq!(workflows.next()["rev"], rev, "{state}");
            listener.is_quiet();
            assert_eq!(http.state("workflow-history"), empty, "{state}");
        }
        http.put_state("workflows", r#"[{"id":1}]"#);
        assert_eq!(listener.next()["data"]["total_count"], 1);
        http.put_state("workflows", "null");
        let history = listener.next()["data"].take();
        assert_eq!(id_and_change(&history["workflows"][0]), ("1", "went"));
        assert_eq!(history["total_count"], 2);
    }
}

#[test]
fn over_restarts_nothing_is_recorded_twice_and_nothing_lost() {
    for signal in [Signal::TERM, Signal::KILL] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let database = dir.path().join("history.db");
        let mut expected = Vec::new();
        let mut last = Value::Null;
        for round in 0..4_u64 {
            let mut program = Program::start(&database, &[]);
            let mut http = program.http();
            if round > 0 {
                let restored = program.subscribe_feed("workflow-history").next();
                assert_eq!(restored, last, "{signal:?}");
                let same = json!([{"id": "stays", "status": "s"}, {"id": round - 1}]).to_string();
                assert_eq!(http.put_state("workflows", &same)["changed"], false);
                expected.push(((round - 1).to_string(), "went"));
            } else {
                expected.push(("stays".to_owned(), "appeared"));
            }
            let workflows = json!([{"id": "stays", "status": "s"}, {"id": round}]).to_string();
            http.put_state("workflows", &workflows);
            expected.push((round.to_string(), "appeared"));
            last = http.state("workflow-history");
            assert_eq!(last["rev"], round + 1);
            program.signal(signal);
            program.wait();

            let stored = rows(&database);
            let kept: Vec<_> = stored
                .iter()
                .map(|row| (row.0.clone(), &row.1[..]))
                .collect();
            assert_eq!(kept, expected, "{signal:?}");
            assert_shown_is_stored(&last["data"], &stored);
            let analytics = json!({"workflows": 2, "by_status": {"s": 1}, "by_phase": {}});
            assert_eq!(last["data"]["analytics"], analytics, "{signal:?}");
        }
    }
}

#[test]
fn what_several_publishers_do_to_workflows_is_recorded_once_each() {
    let mut server = TestServer::start();
    thread::scope(|scope| {
        for publisher in 0..4 {
            let mut http = server.http();
            scope.spawn(move || {
                for n in 0..50 {
                    let workflows = json!([{"id": publisher, "n": n}]).to_string();
                    http.put_state("workflows", &workflows);
                }
            });
        }
    });
    let history = server.http().state("workflow-history")["data"].take();
    let workflows = server.http().state("workflows")["data"].take();
    server.shutdown();

    let stored = rows(&server.database());
    assert_eq!(history["total_count"], stored.len());
    assert_shown_is_stored(&history, &stored);
    // Replayed, they come to the last state: none is missing, none out of its place.
    let mut there: Vec<Value> = Vec::new();
    for (workflow, change, _, state) in &stored {
        let at = there
            .iter()
            .position(|one| one["id"].as_u64() == workflow.parse().ok());
        match (&change[..], at) {
            ("appeared", None) => there.push(state.clone()),
            ("changed", Some(at)) => there[at] = state.clone(),
            ("went", Some(at)) => assert_eq!(there.remove(at), *state),
            _ => panic!("{workflow} {change} while {there:?}"),
        }
    }
    assert_eq!(json!(there), workflows);
}

#[test]
fn whoever_publishes_the_history_takes_it_over_for_good() {
    let own = r#"{"workflows":["mine"],"total_count":1}"#;
    let keeps_its_own = |http: &mut Http, id: u64, rev: u64| {
        http.put_state("workflows", &json!([{"id": id}]).to_string());
        let history = http.state("workflow-history");
        assert_eq!(
            history["data"],
            json!({"workflows": ["mine"], "total_count": 1})
        );
        assert_eq!(history["rev"], rev);
    };
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let mut listener = server.subscribe_feed("workflow-history");
        listener.next();
        http.put_state("workflows", r#"[{"id":0}]"#);
        assert_eq!(listener.next()["rev"], 1);
        assert_eq!(http.put_state("workflow-history", own)["rev"], 2);
        assert_eq!(listener.next()["rev"], 2);
        keeps_its_own(&mut http, 1, 2);
        listener.is_quiet();
    }

    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("taken.db");
    for (round, signal) in [(0, Signal::TERM), (1, Signal::KILL), (2, Signal::TERM)] {
        let mut program = Program::start(&database, &[]);
        let mut http = program.http();
        if round == 0 {
            http.put_state("workflows", r#"[{"id":"before"}]"#);
            http.put_state("workflow-history", own);
        }
        keeps_its_own(&mut http, round, 2);
        program.signal(signal);
        program.wait();
        let stored = rows(&database);
        let stored: Vec<_> = stored.iter().map(|(workflow, ..)| &workflow[..]).collect();
        assert_eq!(stored, ["before"], "nothing is recorded that is not shown");
    }
}

/// Workflow, change, time and state of every transition in the database, oldest first.
type Row = (String, String, String, Value);

fn rows(database: &Path) -> Vec<Row> {
    let db = Connection::open(database).expect("a database");
    let select =
        "SELECT workflow, change, timestamp, state FROM threadcast_workflow_history ORDER BY id";
    let mut select = db.prepare(select).expect("the table");
    let rows = select.query_map((), |row| {
        let state: String = row.get(3)?;
        let state = serde_json::from_str(&state).expect("JSON");
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, state))
    });
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}

/// The feed shows the newest rows, as they are.
fn assert_shown_is_stored(history: &Value, stored: &[Row]) {
    let newest = stored.iter().rev().take(50).map(|(_, change, at, state)| {
        let mut entry = state.clone();
        entry["history"] = json!({"change": change, "at": at});
        entry
    });
    assert_eq!(history["workflows"], newest.collect::<Value>());
    assert_eq!(history["total_count"], stored.len());
}

fn id_and_change(entry: &Value) -> (&str, &str) {
    let ids = ["id", "adw_id", "workflow_id"];
    let id = ids.iter().find_map(|name| entry.get(name)).expect("an id");
    let change = entry["history"]["change"].as_str().expect("a change");
    (id.as_str().unwrap_or("1"), change)
}

/// The server's time, from a message that is stored for it.
fn now(http: &mut Http) -> String {
    let body = json!({"channel_id": "clock", "author": "a", "content": ""});
    let answer = http.post_json("/api/messages", &body).json();
    answer["message"]["timestamp"]
        .as_str()
        .expect("a time")
        .to_owned()
}
