//! Nodes behind one Redis: real programs, each with a database of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use super::cli::{Client, threadcast};
use super::gate::Gate;
use super::redis::Redis;
use super::{Http, Program, Response, Ws, eventually, message};

/// Some nodes and their Redis.
pub struct Cluster {
    // Before Redis, so that they end first.
    pub nodes: Vec<Node>,
    pub redis: Redis,
    dir: TempDir,
}

impl Cluster {
    /// Three nodes on this Redis, all of them connected.
    pub fn of(redis: Redis) -> Self {
        Self::of_with(redis, &[])
    }

    /// The same with further flags.
    pub fn of_with(redis: Redis, flags: &[&str]) -> Self {
        let mut cluster = Self {
            nodes: Vec::new(),
            redis,
            dir: tempfile::tempdir().expect("a temporary directory"),
        };
        for _ in 0..3 {
            cluster.add_with(flags);
        }
        cluster
    }

    /// Two nodes on this Redis, and one that has a gate before it.
    pub fn with_gate(redis: Redis, flags: &[&str]) -> (Self, Gate) {
        let mut cluster = Self::of_with(redis, flags);
        let gate = Gate::before(cluster.redis.address);
        let database = cluster.nodes.pop().expect("a third").database;
        let url = format!("redis://{}", gate.address);
        let node = Node::start_at(database, &url, flags);
        node.await_connected();
        cluster.nodes.push(node);
        (cluster, gate)
    }

    /// One more node, with an empty database.
    pub fn add(&mut self) -> &Node {
        self.add_with(&[])
    }

    fn add_with(&mut self, flags: &[&str]) -> &Node {
        let database = self.dir.path().join(format!("{}.db", self.nodes.len()));
        let node = Node::start(database, &self.redis, flags);
        node.await_connected();
        self.nodes.push(node);
        self.nodes.last().expect("it was pushed")
    }

    /// What every node has, which is the same; waits for those behind until it is.
    #[track_caller]
    pub fn history(&self) -> Vec<Value> {
        let mut all = Vec::new();
        eventually("all nodes have the same", || {
            all = self.nodes.iter().map(Node::history).collect();
            all.iter().all(|history| *history == all[0])
        });
        all.swap_remove(0)
    }
}

/// One node.
pub struct Node {
    pub program: Program,
    pub database: PathBuf,
    log: NamedTempFile,
    flags: Vec<String>,
}

impl Node {
    pub fn start(database: PathBuf, redis: &Redis, flags: &[&str]) -> Self {
        Self::start_at(database, &redis.url(), flags)
    }

    /// One whose Redis is behind something else.
    pub fn start_at(database: PathBuf, url: &str, flags: &[&str]) -> Self {
        let mut all = vec!["--backplane".to_owned(), url.to_owned()];
        all.extend(flags.iter().map(|&flag| flag.to_owned()));
        let log = NamedTempFile::new().expect("a file");
        Self {
            program: run(&database, &all, log.path()),
            database,
            log,
            flags: all,
        }
    }

    /// Starts it anew with the database that it has, on another port.
    pub fn restart(&mut self) {
        self.program.kill();
        self.program = run(&self.database, &self.flags, self.log.path());
    }

    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Everything stands still in it until [`Self::resume`]; its connections stay.
    pub fn pause(&self) {
        self.program.signal(Signal::STOP);
        // A thread goes on until it sees that it is to stop.
        let is_stopped = |task: PathBuf| {
            let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_none_or(|(_, state)| state.starts_with('T'))
        };
        eventually("all of it stands still", || {
            self.program.entries("task").all(is_stopped)
        });
    }

    pub fn resume(&self) {
        self.program.signal(Signal::CONT);
    }

    pub fn http(&self) -> Http {
        self.program.http()
    }

    pub fn subscribe(&self, channel: &str) -> Ws {
        self.program.subscribe(channel)
    }

    pub fn publish(&self, channel: &str, content: &str) -> u64 {
        publish(&mut self.http(), channel, content)
    }

    pub fn health(&self) -> Value {
        self.http().get("/api/health").json()
    }

    pub fn head(&self) -> u64 {
        self.health()["head"].as_u64().expect("an id")
    }

    pub fn is_connected(&self) -> bool {
        self.health()["backplane"]["connected"] == true
    }

    pub fn await_connected(&self) {
        eventually("the node has found Redis", || self.is_connected());
    }

    pub fn await_disconnected(&self) {
        eventually("the node misses Redis", || !self.is_connected());
    }

    /// Waits as long as it comes nearer.
    pub fn await_head(&self, id: u64) {
        let mut head = self.head();
        while head < id {
            let before = head;
            eventually("the node has what the others have", || {
                head = self.head();
                head > before
            });
        }
    }

    /// What it has logged since it was started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).expect("a log")
    }

    /// Every message that it has, a page at a time.
    pub fn history(&self) -> Vec<Value> {
        let mut http = self.http();
        let mut messages: Vec<Value> = Vec::new();
        loop {
            let since = messages.last().map_or(0, id);
            let page = http.get(&format!("/api/messages?since={since}&limit=1000"));
            let mut page = page.json();
            let Some(page) = page["messages"].as_array_mut().filter(|it| !it.is_empty()) else {
                return messages;
            };
            messages.append(page);
        }
    }
}

fn run(database: &Path, flags: &[String], log: &Path) -> Program {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    Program::start_logging(database, &flags, log)
}

pub fn id(message: &Value) -> u64 {
    message["id"].as_u64().expect("an id")
}

pub fn contents(messages: &[Value]) -> Vec<&str> {
    messages
        .iter()
        .map(|message| message["content"].as_str().expect("a text"))
        .collect()
}

/// Publishes a message and returns its id.
pub fn publish(http: &mut Http, channel: &str, content: &str) -> u64 {
    let body = message(channel, content);
    let answer = until_taken(|| http.post_json("/api/messages", &body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    id(&answer.json()["message"])
}

/// Asks again while the answer is that nothing was stored: so it is when Redis has been silent for
/// a second, which on a busy machine it may be.
pub fn until_taken(mut ask: impl FnMut() -> Response) -> Response {
    let mut answer = ask();
    eventually("it is taken", || {
        let is_refused = answer.status == 503 && answer.text().contains("nothing was stored");
        if is_refused {
            answer = ask();
        }
        !is_refused
    });
    answer
}

/// Tries to publish; whatever the answer.
pub fn try_publish(http: &mut Http, content: &str) -> Response {
    http.post_json("/api/messages", &message("lab", content))
}

/// Publishes many with few requests; returns the last id.
pub fn publish_many(http: &mut Http, channel: &str, count: usize) -> u64 {
    let mut last = 0;
    let mut left = count;
    while left > 0 {
        let some = left.min(500);
        let lines: String = (0..some)
            .map(|_| {
                json!({"channel_id": channel, "author": "a", "content": "x"}).to_string() + "\n"
            })
            .collect();
        let kind = [("Content-Type", "application/x-ndjson")];
        let answer = http.request("POST", "/api/messages", &kind, lines.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        last = answer.json()["ids"]
            .as_array()
            .and_then(|ids| ids.last()?.as_u64())
            .expect("ids");
        left -= some;
    }
    last
}

/// A server by itself, to which these were published.
pub fn single(database: &Path, contents: &[&str]) -> Program {
    let single = Program::start(database, &[]);
    for content in contents {
        single.http().publish("lab", content);
    }
    single
}

/// Starts a node that must not start; returns what it says.
#[track_caller]
pub fn refused(database: &Path, url: &str, flags: &[&str]) -> String {
    let mut command = threadcast(&["serve", "--listen", "127.0.0.1:0", "--backplane", url]);
    command.arg("--db").arg(database).args(flags);
    command.stdin(Stdio::null());
    let (client, stdout) = Client::spawn(command);
    let (code, _, errors) = client.end();
    drop(stdout);
    let said: Vec<_> = errors
        .into_iter()
        .filter(|line| !line.contains(" INFO "))
        .collect();
    assert_eq!(code, Some(1), "{said:?}");
    let [sentence] = &said[..] else {
        panic!("not one sentence: {said:?}");
    };
    sentence.clone()
}

/// Has these words in it, and no others' secrets.
#[track_caller]
pub fn assert_says(sentence: &str, words: &[&str]) {
    let lower = sentence.to_lowercase();
    for word in words {
        assert!(
            lower.contains(&word.to_lowercase()),
            "{word:?} is not in {sentence:?}"
        );
    }
    assert!(!sentence.contains("s3cret"), "a password: {sentence:?}");
}
