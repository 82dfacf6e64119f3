//! The history of workflows: what appeared, changed or went whenever their feed changed.
//!
//! The store keeps the newest thousands of transitions, the `workflow-history` feed shows the
//! newest fifty.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::protocol::{State, same_object};

/// Transitions in the feed.
const SHOWN: usize = 50;

/// Bytes of the transitions in the feed: with large workflows it shows fewer.
const SHOWN_BYTES: usize = 256 << 10;

/// Distinct values counted by name; all further ones are counted as [`OTHER`].
const MAX_COUNTED: usize = 64;
const OTHER: &str = "other";

/// Where a workflow has its identity, the first that is there.
const IDS: [&str; 3] = ["id", "adw_id", "workflow_id"];

/// What happened to a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Appeared,
    /// It differs.
    Changed,
    /// It is not there any more.
    Went,
}

impl Change {
    /// Its name in the store and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Appeared => "appeared",
            Self::Changed => "changed",
            Self::Went => "went",
        }
    }
}

/// One workflow's step from one state of the feed to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The workflow's id.
    pub workflow: String,
    /// What happened.
    pub change: Change,
    /// The workflow as it is now, or was last.
    pub state: Map<String, Value>,
}

/// The transitions between two states of the feed, each JSON: first what went, then what
/// appeared or changed in the order of the list.
pub fn transitions(before: &str, after: &State) -> Vec<Transition> {
    let before: Value = serde_json::from_str(before).unwrap_or_default();
    let (before, after) = (workflows(&before), workflows(after.value()));
    let earlier: BTreeMap<&str, _> = before.iter().map(|(id, state)| (&id[..], *state)).collect();
    let later: BTreeMap<&str, _> = after.iter().map(|(id, state)| (&id[..], *state)).collect();
    let went = before
        .iter()
        .filter(|(id, _)| !later.contains_key(&id[..]))
        .map(|(id, state)| (id, Change::Went, *state));
    let stayed = after
        .iter()
        .filter_map(|(id, state)| match earlier.get(&id[..]) {
            None => Some((id, Change::Appeared, *state)),
            Some(before) if !same_object(before, state) => Some((id, Change::Changed, *state)),
            Some(_) => None,
        });
    went.chain(stayed)
        .map(|(id, change, state)| Transition {
            workflow: id.clone(),
            change,
            state: state.clone(),
        })
        .collect()
}

/// The objects of a list that have an id, each id once: of several the last counts.
fn workflows(list: &Value) -> Vec<(String, &Map<String, Value>)> {
    let objects = list.as_array().into_iter().flatten();
    let mut found: Vec<(String, &Map<String, Value>)> = Vec::new();
    let mut places = BTreeMap::new();
    for object in objects.filter_map(Value::as_object) {
        let Some(id) = IDS.iter().find_map(|name| scalar(object.get(*name)?)) else {
            continue;
        };
        match places.get(&id) {
            Some(&at) => found[at] = (id, object),
            None => {
                places.insert(id.clone(), found.len());
                found.push((id, object));
            }
        }
    }
    found
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What the feed shows: bounded in entries, in their bytes and in the values counted by name.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// JSON objects, newest first.
    newest: VecDeque<String>,
    total: u64,
    analytics: Analytics,
}

/// The workflows that are there now, counted.
#[derive(Debug, Clone, Default, Serialize)]
struct Analytics {
    workflows: u64,
    by_status: BTreeMap<String, u64>,
    /// Those without a status.
    by_phase: BTreeMap<String, u64>,
}

impl History {
    /// The history that made this state of the feed; an empty one for any other state.
    pub fn restore(state: &str) -> Self {
        let state: Value = serde_json::from_str(state).unwrap_or_default();
        let newest = state["workflows"].as_array().into_iter().flatten();
        Self {
            newest: newest.map(Value::to_string).collect(),
            total: state["total_count"].as_u64().unwrap_or(0),
            // Counted anew with the next change.
            analytics: Analytics::default(),
        }
    }

    /// Adds the transitions that led to this state of the workflows' feed at this time.
    pub fn record(&mut self, transitions: &[Transition], after: &State, timestamp: &str) {
        self.total += transitions.len() as u64;
        self.analytics = Analytics::of(after);
        for transition in &transitions[transitions.len().saturating_sub(SHOWN)..] {
            let mut entry = transition.state.clone();
            let history = json!({"change": transition.change.as_str(), "at": timestamp});
            entry.insert("history".to_owned(), history);
            self.newest.push_front(Value::Object(entry).to_string());
        }
        self.newest.truncate(SHOWN);
        let mut bytes: usize = self.newest.iter().map(String::len).sum();
        while bytes > SHOWN_BYTES && self.newest.len() > 1 {
            bytes -= self.newest.pop_back().map_or(0, |oldest| oldest.len());
        }
    }

    /// The feed's state.
    pub fn state(&self) -> String {
        let newest: Vec<&str> = self.newest.iter().map(String::as_str).collect();
        let analytics = serde_json::to_string(&self.analytics)
            .expect("numbers by name always have a JSON form");
        format!(
            r#"{{"workflows":[{}],"total_count":{},"analytics":{analytics}}}"#,
            newest.join(","),
            self.total
        )
    }
}

impl Analytics {
    fn of(state: &State) -> Self {
        let mut analytics = Self::default();
        for (_, workflow) in workflows(state.value()) {
            analytics.workflows += 1;
            let named = |field: &str| workflow.get(field).and_then(scalar);
            if let Some(status) = named("status") {
                count(&mut analytics.by_status, status);
            } else if let Some(phase) = named("phase") {
                count(&mut analytics.by_phase, phase);
            }
        }
        analytics
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: String) {
    let is_known = counts.contains_key(&name) || counts.len() < MAX_COUNTED;
    let name = if is_known { name } else { OTHER.to_owned() };
    *counts.entry(name).or_default() += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(json: Value) -> State {
        State::from(json)
    }

    fn steps(before: &Value, after: Value) -> Vec<(String, &'static str)> {
        transitions(&before.to_string(), &state(after))
            .into_iter()
            .map(|step| (step.workflow, step.change.as_str()))
            .collect()
    }

    fn expect(steps: Vec<(String, &'static str)>, expected: &[(&str, &str)]) {
        let steps: Vec<_> = steps
            .iter()
            .map(|(id, change)| (&id[..], *change))
            .collect();
        assert_eq!(steps, expected);
    }

    #[test]
    fn what_went_comes_before_what_appeared_or_changed() {
        let before = json!([{"id": 1, "status": "a"}, {"adw_id": "x", "n": 1}, {"id": 2}]);
        let after = json!([{"workflow_id": "new"}, {"id": 2}, {"adw_id": "x", "n": 2}]);
        expect(
            steps(&before, after),
            &[("1", "went"), ("new", "appeared"), ("x", "changed")],
        );
    }

    #[test]
    fn what_is_no_workflow_is_passed_over() {
        for list in [
            json!(null),
            json!({"id": 1}),
            json!([1, "id", {"name": "x"}, {"id": null}]),
        ] {
            expect(steps(&json!([]), list), &[]);
        }
        let twice = json!([{"id": 1, "n": 1}, {"id": 1, "n": 2}]);
        expect(steps(&json!([{"id": 1, "n": 2.0}]), twice), &[]);
        expect(
            steps(&json!("not a list"), json!([{"id": ""}])),
            &[("", "appeared")],
        );
    }

    #[test]
    fn the_newest_come_first_and_what_is_there_is_counted() {
        let mut history = History::default();
        let mut before = "[]".to_owned();
        for after in [
            json!([{"id": 1, "status": "running"}, {"id": 2, "phase": "plan"}]),
            json!([{"id": 1, "status": "done"}, {"id": 2, "phase": "plan"}]),
            json!([{"id": 1, "status": "done"}, {"id": 3, "status": "done", "phase": "x"}]),
        ] {
            let after = state(after);
            history.record(&transitions(&before, &after), &after, "t");
            // As after a restart, and once more with the same: no workflow counts twice.
            let shown = history.state();
            history = History::restore(&shown);
            history.record(&[], &after, "t");
            assert_eq!(history.state(), shown);
            before = after.as_str().to_owned();
        }
        let shown: Value = serde_json::from_str(&history.state()).expect("JSON");
        let entry = |mut workflow: Value, change: &str| {
            workflow["history"] = json!({"change": change, "at": "t"});
            workflow
        };
        assert_eq!(
            shown,
            json!({
                "workflows": [
                    entry(json!({"id": 3, "status": "done", "phase": "x"}), "appeared"),
                    entry(json!({"id": 2, "phase": "plan"}), "went"),
                    entry(json!({"id": 1, "status": "done"}), "changed"),
                    entry(json!({"id": 2, "phase": "plan"}), "appeared"),
                    entry(json!({"id": 1, "status": "running"}), "appeared"),
                ],
                "total_count": 5,
                "analytics": {"workflows": 2, "by_status": {"done": 2}, "by_phase": {}},
            })
        );
    }

    #[test]
    fn what_is_shown_and_counted_is_bounded() {
        let mut history = History::default();
        let many: Vec<Value> = (0..200)
            .map(|id| json!({"id": id, "status": format!("s{id}")}))
            .collect();
        let all = state(Value::from(many));
        history.record(&transitions("[]", &all), &all, "t");
        assert_eq!((history.newest.len(), history.total), (SHOWN, 200));
        assert!(history.newest[0].contains(r#""id":199,"#));
        assert_eq!(history.analytics.by_status.len(), MAX_COUNTED + 1);
        assert_eq!(history.analytics.by_status.values().sum::<u64>(), 200);

        let large = "x".repeat(SHOWN_BYTES / 2);
        let workflows: Vec<Value> = (0..9).map(|id| json!({"id": id, "log": large})).collect();
        let after = state(Value::from(workflows));
        history.record(&transitions("[]", &after), &after, "t");
        assert!(history.newest.len() < 3);
        assert!(history.state().len() < 2 * SHOWN_BYTES);
    }
}
