//! Publishers on several nodes that go on until a test has seen enough, and what they were
//! answered.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::Value;

use super::cluster::{Node, contents, id};
use super::{Http, eventually, message};

/// A test that fails leaves them alone: they end with their nodes.
pub struct Load {
    answers: Arc<Answers>,
    publishers: Vec<JoinHandle<()>>,
}

/// What was answered with 200.
pub struct Acknowledged(Vec<(u64, String)>);

#[derive(Default)]
struct Answers {
    acknowledged: Mutex<Vec<(u64, String)>>,
    is_over: AtomicBool,
}

impl Load {
    /// Two publishers on each node, whose messages begin with `name`.
    pub fn on(nodes: &[Node], name: &str) -> Self {
        let answers = Arc::new(Answers::default());
        let publishers = nodes.iter().chain(nodes).enumerate();
        let publishers = publishers.map(|(number, node)| {
            let (answers, http) = (Arc::clone(&answers), node.http());
            let name = format!("{name} {number}");
            thread::spawn(move || answers.publish(http, &name))
        });
        Self {
            publishers: publishers.collect(),
            answers,
        }
    }

    /// Waits for so many more.
    #[track_caller]
    pub fn await_acknowledged(&self, more: usize) {
        let all = || self.answers.acknowledged.lock().expect("a list").len();
        let before = all();
        eventually("more are acknowledged", || all() >= before + more);
    }

    pub fn end(self) -> Acknowledged {
        self.answers.is_over.store(true, Ordering::Relaxed);
        for publisher in self.publishers {
            publisher.join().expect("a publisher");
        }
        let mut acknowledged = self.answers.acknowledged.lock().expect("a list");
        Acknowledged(std::mem::take(&mut *acknowledged))
    }
}

impl Answers {
    /// Goes on until it is over or the node has gone.
    fn publish(&self, mut http: Http, name: &str) {
        for turn in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let content = format!("{name}: {turn}");
            let body = message("lab", &content);
            let Some(answer) = http.try_post_json("/api/messages", &body) else {
                return;
            };
            match answer.status {
                200 => {
                    let id = id(&answer.json()["message"]);
                    let mut acknowledged = self.acknowledged.lock().expect("a list");
                    acknowledged.push((id, content));
                }
                503 => {}
                _ => panic!("{}", answer.text()),
            }
        }
    }
}

impl Acknowledged {
    /// Everything is there under its id, and nothing is there twice.
    #[track_caller]
    pub fn assert_is_in(&self, history: &[Value]) {
        let unique: HashSet<_> = contents(history).into_iter().collect();
        assert_eq!(unique.len(), history.len(), "a message is there twice");
        self.assert_is_among(history);
    }

    /// Everything is in the history of one node or another, under an id of its own.
    #[track_caller]
    pub fn assert_each_is_somewhere(&self, nodes: &[Node]) {
        let ids: HashSet<u64> = self.0.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids.len(), self.0.len(), "an id is given twice");
        let stored: Vec<Value> = nodes.iter().flat_map(Node::history).collect();
        self.assert_is_among(&stored);
    }

    #[track_caller]
    fn assert_is_among(&self, stored: &[Value]) {
        let stored: HashSet<(u64, &str)> = stored.iter().map(id).zip(contents(stored)).collect();
        for (id, content) in &self.0 {
            assert!(stored.contains(&(*id, content)), "{id} {content:?} is lost");
        }
    }
}
