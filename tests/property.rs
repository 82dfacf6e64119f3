//! Random interleavings of publishing, joining, leaving, stalling, reading on and restarts,
//! held against a simple model: every view is a contiguous run of its channel's log, or a
//! `gap` says where it is not.
//!
//! A test that somebody wrote has the interleavings that somebody thought of. Here a seed
//! makes them; a failure prints its seed and steps. `THREADCAST_SEED=7` runs one seed,
//! `THREADCAST_SEEDS=500` the first 500. The steps of a seed are always the same, what the
//! server's threads make of them is not: a rare failure may need some runs to come back.

mod common;
#[path = "property/model.rs"]
mod model;

use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::sse::{Polled, Sse};
use common::{DEADLINE, Http, Response};
use model::{Began, Frame, Model, Start, View};
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{AddressFamily, SocketType};
use serde_json::{Value, json};
use tempfile::TempDir;
use threadcast::Server;
use threadcast::config::{Config, Database};
use tungstenite::protocol::{CloseFrame, WebSocket, WebSocketConfig, frame::coding::CloseCode};
use tungstenite::{Error, Message};

/// How many seeds run when nobody says otherwise.
const SEEDS: u64 = 20;

const CHANNELS: [&str; 3] = ["lab", "other", "quiet"];
const STEPS: usize = 250;
const MAX_SUBSCRIBERS: usize = 8;

/// A kind of server. What may be forgotten is one more line here.
struct Setup {
    name: &'static str,
    /// The store outlives the server.
    restarts: bool,
    /// Old messages go: a view may have gaps.
    forgets: bool,
    change: fn(&mut Config),
}

const SETUPS: [Setup; 5] = [
    Setup {
        name: "file",
        restarts: true,
        forgets: false,
        change: |_| {},
    },
    Setup {
        name: "memory",
        restarts: false,
        forgets: false,
        change: |config| config.database = Database::Memory,
    },
    Setup {
        name: "small ring",
        restarts: false,
        forgets: true,
        change: |config| {
            config.database = Database::Memory;
            config.limits.memory_bytes = 16 << 10;
        },
    },
    Setup {
        name: "file that keeps the newest",
        restarts: true,
        forgets: true,
        change: |config| config.retention.keep_messages = Some(50),
    },
    Setup {
        name: "file, nothing recent in memory",
        restarts: true,
        forgets: false,
        change: |config| config.limits.recent_bytes = 0,
    },
];

#[test]
fn every_view_is_a_contiguous_run_of_its_channel_s_log_or_says_where_it_is_not() {
    let number = |name| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().expect("a number in the environment"))
    };
    let seeds = match number("THREADCAST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("THREADCAST_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.finish();
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// What happened, told when the test fails.
struct Story {
    title: String,
    steps: Vec<String>,
}

impl Drop for Story {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.title);
            for step in &self.steps {
                eprintln!("  {step}");
            }
        }
    }
}

/// A server and everybody who talks to it.
struct World {
    story: Story,
    random: Random,
    setup: &'static Setup,
    config: Config,
    server: Option<Server>,
    model: Model,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    /// The views of connections that ended.
    views: Vec<View>,
    joined: usize,
    _dir: TempDir,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let setup = &SETUPS[(seed % SETUPS.len() as u64) as usize];
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut config = Config::default();
        config.listen = "127.0.0.1:0".parse().expect("an address");
        config.database = Database::File(dir.path().join("test.db"));
        let limits = &mut config.limits;
        // Nobody is given up for being slow.
        limits.write_timeout = DEADLINE * 10;
        limits.ping_interval = DEADLINE * 10;
        limits.max_outbox_chunks = random.one_of(&[1, 2, 8]);
        limits.max_outbox_bytes = random.one_of(&[500, 4_000, 32_000]);
        limits.max_in_flight = random.one_of(&[1, 3, 32]);
        limits.max_batch = random.one_of(&[1, 5, 512]);
        limits.max_fanout_bytes = random.one_of(&[1, 10_000, 8 << 20]);
        config.drain = DEADLINE;
        (setup.change)(&mut config);
        let mut world = Self {
            story: Story {
                title: format!(
                    "seed {seed}, {}: THREADCAST_SEED={seed} runs it alone",
                    setup.name
                ),
                steps: Vec::new(),
            },
            random,
            setup,
            config,
            server: None,
            model: Model::default(),
            publishers: Vec::new(),
            subscribers: Vec::new(),
            views: Vec::new(),
            joined: 0,
            _dir: dir,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let server = Server::start(self.config.clone()).expect("the server starts");
        let address = server.address();
        shrink_send_buffers(address);
        self.server = Some(server);
        self.publishers = (0..3).map(|_| Publisher::connect(address)).collect();
    }

    fn address(&self) -> SocketAddr {
        self.server.as_ref().expect("it runs").address()
    }

    fn tell(&mut self, step: String) {
        self.story.steps.push(step);
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..28 => self.publish(),
            28..42 => self.publish_over_websocket(),
            42..48 => self.settle(),
            48..63 => self.join(),
            63..69 => self.leave(),
            69..91 => self.change_pace(),
            91..99 => thread::sleep(Duration::from_micros(self.random.below(2000) as u64)),
            _ => self.restart(),
        }
        for at in 0..self.subscribers.len() {
            let most = match self.subscribers[at].pace {
                Pace::Reading if self.random.percent(60) => usize::MAX,
                Pace::Slow => self.random.below(3),
                Pace::Reading | Pace::Stalled => 0,
            };
            self.hear(at, most);
        }
    }

    /// A burst over HTTP, whose answers are read later.
    fn publish(&mut self) {
        let (channel, count, size) = self.burst();
        let at = self.random.below(self.publishers.len());
        let first = self.model.sent.len();
        for _ in 0..count {
            let number = self.model.send(channel);
            self.publishers[at].send(channel, number, size);
        }
        self.tell(format!(
            "publisher {at} sends {first} to {} of {size} bytes to {}",
            first + count - 1,
            CHANNELS[channel]
        ));
    }

    fn publish_over_websocket(&mut self) {
        let (_, count, size) = self.burst();
        let Some(at) = self.any_subscriber() else {
            return;
        };
        if matches!(self.subscribers[at].wire, Wire::Events(_)) {
            return;
        }
        let first = self.model.sent.len();
        let subscriber = &mut self.subscribers[at];
        for _ in 0..count {
            let number = self.model.send(subscriber.view.channel);
            subscriber.publish(number, size);
        }
        let step = format!(
            "{} sends {first} to {} of {size} bytes",
            subscriber.view.name,
            first + count - 1
        );
        self.tell(step);
    }

    /// Channel, number of messages and their size.
    fn burst(&mut self) -> (usize, usize, usize) {
        let channel = self.random.one_of(&[0, 0, 0, 1, 1, 2]);
        let most = self.random.one_of(&[1, 1, 4, 12, 60]);
        let size = self.random.one_of(&[10, 10, 300, 3000]);
        (channel, 1 + self.random.below(most), size)
    }

    /// Reads all answers that one publisher still gets.
    fn settle(&mut self) {
        let at = self.random.below(self.publishers.len());
        self.publishers[at].settle(&mut self.model);
        self.tell(format!("publisher {at} has read its answers"));
    }

    fn join(&mut self) {
        if self.subscribers.len() == MAX_SUBSCRIBERS {
            return self.leave();
        }
        let channel = self.random.one_of(&[0, 0, 0, 1, 1, 2]);
        let known = self.model.channel(channel);
        let start = match self.random.below(10) {
            0..3 => Start::Live,
            3..6 if !known.is_empty() => Start::Since(self.random.one_of(&known)),
            3..7 => Start::Since(0),
            7 => Start::Since(self.model.acknowledged + self.random.one_of(&[0, 1, 5, 1_000_000])),
            _ => Start::Last(self.random.one_of(&[0, 1, 3, 40, 1000])),
        };
        self.connect(channel, start);
    }

    fn connect(&mut self, channel: usize, start: Start) {
        let began = Began {
            sent: self.model.sent.len(),
            acknowledged: self.model.acknowledged,
            heard: self.model.heard,
        };
        self.joined += 1;
        let is_websocket = self.random.percent(60);
        let kind = if is_websocket { "websocket" } else { "stream" };
        let name = format!("{kind} {}", self.joined);
        self.tell(format!("{name} joins {}: {start:?}", CHANNELS[channel]));
        let view = View {
            name,
            channel,
            start,
            began,
            frames: Vec::new(),
            oldest_then: None,
            end: None,
        };
        let subscriber = Subscriber::connect(self.address(), view, is_websocket);
        self.subscribers.push(subscriber);
    }

    fn leave(&mut self) {
        let Some(at) = self.any_subscriber() else {
            return;
        };
        let mut subscriber = self.subscribers.swap_remove(at);
        let name = subscriber.view.name.clone();
        match self.random.below(3) {
            0 => {
                self.tell(format!("{name} closes"));
                subscriber.close(&mut self.model);
            }
            1 => self.tell(format!("{name} drops its connection")),
            _ => {
                self.tell(format!("{name} resets its connection"));
                set_socket_linger(subscriber.stream(), Some(Duration::ZERO)).expect("a socket");
            }
        }
        self.views.push(subscriber.view);
    }

    fn change_pace(&mut self) {
        let Some(at) = self.any_subscriber() else {
            return;
        };
        let pace = self
            .random
            .one_of(&[Pace::Reading, Pace::Reading, Pace::Slow, Pace::Stalled]);
        let subscriber = &mut self.subscribers[at];
        subscriber.pace = pace;
        let step = format!("{} is now {pace:?}", subscriber.view.name);
        self.tell(step);
    }

    fn any_subscriber(&mut self) -> Option<usize> {
        let count = self.subscribers.len();
        (count > 0).then(|| self.random.below(count))
    }

    /// Ends the server while everybody talks, starts it again on the same store; most
    /// subscribers come back with the last id they have.
    fn restart(&mut self) {
        if !self.setup.restarts {
            return;
        }
        self.tell("restart".to_owned());
        let server = self.server.take().expect("it runs");
        let ending = thread::spawn(move || server.shutdown());
        // Answers that nobody reads would hold it up.
        for mut publisher in self.publishers.drain(..) {
            publisher.settle(&mut self.model);
        }
        for subscriber in &mut self.subscribers {
            subscriber.until("the server says goodbye", &mut self.model, |subscriber| {
                subscriber.closed.is_some()
            });
            assert_eq!(subscriber.closed, Some(1001), "{}", subscriber.view.name);
        }
        let gone: Vec<Subscriber> = self.subscribers.drain(..).collect();
        let back: Vec<(usize, Start)> = gone
            .iter()
            .map(|subscriber| (subscriber.view.channel, subscriber.resumption()))
            .collect();
        // The server waits for the clients to close their side.
        self.views
            .extend(gone.into_iter().map(|subscriber| subscriber.view));
        ending.join().expect("the server ends");
        self.start();
        for (channel, start) in back {
            if self.random.percent(80) {
                self.connect(channel, start);
            }
        }
    }

    /// The oldest message that is kept, for setups in which that changes.
    fn oldest(&mut self) -> u64 {
        if !self.setup.forgets {
            return 1;
        }
        let page = Http::connect(self.address())
            .get("/api/messages?since=0&limit=1")
            .json();
        let head = page["head"].as_u64().expect("a head");
        page["messages"][0]["id"].as_u64().unwrap_or(head + 1)
    }

    /// Lets a subscriber read so many frames, as far as they are there.
    fn hear(&mut self, at: usize, most: usize) {
        let subscriber = &mut self.subscribers[at];
        let before = subscriber.view.frames.len();
        for _ in 0..most {
            if !subscriber.hear(&mut self.model) {
                break;
            }
            assert_eq!(
                subscriber.closed, None,
                "{} is closed",
                subscriber.view.name
            );
        }
        let has_gap = |frame: &Frame| matches!(frame, Frame::Gap { .. });
        let view = &self.subscribers[at].view;
        let has_news =
            (before == 0 && !view.frames.is_empty()) || view.frames[before..].iter().any(has_gap);
        if !has_news || !self.setup.forgets {
            return;
        }
        let now = self.oldest();
        let view = &mut self.subscribers[at].view;
        view.oldest_then.get_or_insert(now);
        for frame in &mut view.frames[before..] {
            if let Frame::Gap { oldest_then, .. } = frame {
                *oldest_then = Some(now);
            }
        }
    }

    /// Everybody reads on until the last message of its channel; then every view is looked at.
    fn finish(mut self) {
        self.tell("the end".to_owned());
        for publisher in &mut self.publishers {
            publisher.settle(&mut self.model);
        }
        for at in 0..self.subscribers.len() {
            self.hear_until(at, |subscriber| subscriber.unanswered.is_empty());
        }
        let ends: Vec<u64> = (0..CHANNELS.len())
            .map(|channel| {
                let number = self.model.send(channel);
                self.publishers[0].send(channel, number, 0);
                self.publishers[0].settle(&mut self.model);
                self.model.acknowledged
            })
            .collect();
        for at in 0..self.subscribers.len() {
            let end = ends[self.subscribers[at].view.channel];
            self.hear_until(at, |subscriber| subscriber.has_all(end));
            // Whatever came twice, or too late, comes before the answer to this.
            if let Wire::Frames(_) = self.subscribers[at].wire {
                self.subscribers[at].say(&json!({"type": "ping"}));
                self.hear_until(at, |subscriber| subscriber.ponged);
            }
        }
        let oldest = self.learn_from_the_store();
        let subscribers = std::mem::take(&mut self.subscribers);
        self.views.extend(subscribers.into_iter().map(|subscriber| {
            let mut view = subscriber.view;
            view.end = Some(ends[view.channel]);
            view
        }));
        let known: usize = (0..CHANNELS.len())
            .map(|channel| self.model.channel(channel))
            .map(|ids| ids.iter().filter(|id| **id >= oldest.1).count())
            .sum();
        assert_eq!(known, oldest.0, "the store has lost messages");
        for view in &self.views {
            if let Err(why) = self.model.check(view, self.setup.forgets) {
                panic!("{why}");
            }
        }
        self.server.take().expect("it runs").shutdown();
    }

    fn hear_until(&mut self, at: usize, ready: impl Fn(&Subscriber) -> bool) {
        let start = Instant::now();
        while !ready(&self.subscribers[at]) {
            let subscriber = &self.subscribers[at];
            assert!(
                start.elapsed() < DEADLINE,
                "{subscriber} does not get what it still should"
            );
            self.subscribers[at].wait();
            self.hear(at, usize::MAX);
        }
    }

    /// Takes up all that is stored; returns how many messages that are, and the first.
    fn learn_from_the_store(&mut self) -> (usize, u64) {
        let mut http = Http::connect(self.address());
        let (mut count, mut oldest, mut since) = (0, None, 0);
        loop {
            let target = format!("/api/messages?since={since}&limit=1000");
            let page = http.get(&target).json();
            let messages = page["messages"].as_array().expect("a list");
            for message in messages {
                let (id, number) = read_message(message);
                self.model.learn(id, number);
                oldest.get_or_insert(id);
                since = id;
            }
            count += messages.len();
            if messages.is_empty() {
                return (count, oldest.unwrap_or(0));
            }
        }
    }
}

/// A connection that publishes over HTTP, and does not wait for the answers.
struct Publisher {
    http: Http,
    unanswered: VecDeque<usize>,
}

impl Publisher {
    fn connect(address: SocketAddr) -> Self {
        Self {
            http: Http::connect(address),
            unanswered: VecDeque::new(),
        }
    }

    fn send(&mut self, channel: usize, number: usize, size: usize) {
        let body = json!({
            "channel_id": CHANNELS[channel], "author": "", "content": content(number, size),
        })
        .to_string();
        self.http.send(format!(
            "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        self.unanswered.push_back(number);
    }

    /// Reads all answers; those that do not come are of messages that nobody can know of.
    fn settle(&mut self, model: &mut Model) {
        while let Some(number) = self.unanswered.pop_front() {
            match self.http.try_response(false) {
                Some(response) => answered(&response, number, model),
                None => self.unanswered.clear(),
            }
        }
    }
}

fn answered(response: &Response, number: usize, model: &mut Model) {
    match response.status {
        200 => {
            let (id, answered) = read_message(&response.json()["message"]);
            assert_eq!(answered, number, "the answer is another message's");
            model.acknowledge(id, number);
        }
        503 => model.sent[number].refused = true,
        _ => panic!("{}", response.text()),
    }
}

/// How fast a subscriber reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Reading,
    Slow,
    Stalled,
}

/// What a subscriber speaks.
enum Wire {
    Frames(WebSocket<TcpStream>),
    Events(Sse),
}

struct Subscriber {
    wire: Wire,
    view: View,
    pace: Pace,
    /// What it has published and not heard of yet.
    unanswered: Vec<usize>,
    ponged: bool,
    /// The server's close code, an event stream's in its last comment.
    closed: Option<u16>,
}

impl Subscriber {
    fn connect(address: SocketAddr, view: View, is_websocket: bool) -> Self {
        let stream = slow_stream(address);
        let query = match view.start {
            Start::Live => String::new(),
            Start::Since(since) => format!("?since={since}"),
            Start::Last(count) => format!("?last={count}"),
        };
        let channel = CHANNELS[view.channel];
        let wire = if is_websocket {
            let url = format!("ws://{address}/api/ws/{channel}{query}");
            // What tungstenite has read ahead is out of the server's sight.
            let config = WebSocketConfig::default().read_buffer_size(1 << 10);
            let (socket, _) = tungstenite::client::client_with_config(url, stream, Some(config))
                .expect("a handshake");
            Wire::Frames(socket)
        } else {
            // As an `EventSource` comes back, whatever its first request asked for.
            let (query, header) = match view.start {
                Start::Since(since) => ("?last=1", format!("Last-Event-ID: {since}\r\n")),
                Start::Live | Start::Last(_) => (&query[..], String::new()),
            };
            let path = format!("/api/sse/{channel}{query}");
            Wire::Events(Sse::on(stream, &path, &header))
        };
        Self {
            wire,
            view,
            pace: Pace::Reading,
            unanswered: Vec::new(),
            ponged: false,
            closed: None,
        }
    }

    fn stream(&self) -> &TcpStream {
        match &self.wire {
            Wire::Frames(socket) => socket.get_ref(),
            Wire::Events(sse) => &sse.stream,
        }
    }

    fn say(&mut self, frame: &Value) {
        let Wire::Frames(socket) = &mut self.wire else {
            panic!("an event stream says nothing");
        };
        socket
            .send(Message::text(frame.to_string()))
            .expect("the server takes a frame");
    }

    fn publish(&mut self, number: usize, size: usize) {
        self.say(&json!({"type": "message", "ref": number, "content": content(number, size)}));
        self.unanswered.push(number);
    }

    /// Reads a frame if one is there; `false` when none is, or none can come any more.
    fn hear(&mut self, model: &mut Model) -> bool {
        self.stream().set_nonblocking(true).expect("a socket");
        let is_heard = match &mut self.wire {
            Wire::Frames(socket) => {
                let heard = socket.read();
                self.hear_frame(heard, model)
            }
            Wire::Events(sse) => {
                let polled = sse.poll_event();
                self.hear_event(polled, model)
            }
        };
        self.stream().set_nonblocking(false).expect("a socket");
        is_heard
    }

    fn hear_event(&mut self, polled: Polled, model: &mut Model) -> bool {
        let Wire::Events(sse) = &self.wire else {
            unreachable!("it polled one")
        };
        match polled {
            Polled::Event(event) => {
                self.frame(&event.json(), model);
                // Whatever came, its id is where to go on.
                let at = self.view.at().map(|id| id.to_string());
                assert_eq!(Some(event.id), at, "{}", self.view.name);
                true
            }
            Polled::Nothing => false,
            Polled::End if self.closed.is_some() => false,
            Polled::End => {
                let goodbye = sse.comments.last().map(String::as_str);
                let code = goodbye.and_then(|comment| comment.split(' ').next()?.parse().ok());
                self.closed = Some(code.unwrap_or(0));
                true
            }
        }
    }

    fn hear_frame(&mut self, heard: tungstenite::Result<Message>, model: &mut Model) -> bool {
        let Wire::Frames(socket) = &mut self.wire else {
            unreachable!("it was read from one")
        };
        match heard {
            Ok(Message::Text(text)) => {
                self.frame(&serde_json::from_str(&text).expect("JSON"), model);
                true
            }
            Ok(Message::Close(frame)) => {
                self.closed = Some(frame.map_or(0, |frame| frame.code.into()));
                // Sends the answer to it.
                let _ = socket.flush();
                true
            }
            Ok(_) => true,
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => false,
            Err(Error::Io(error)) if error.kind() == ErrorKind::Interrupted => true,
            Err(error) => panic!("{} is lost: {error}", self.view.name),
        }
    }

    fn frame(&mut self, frame: &Value, model: &mut Model) {
        let id = |name: &str| frame[name].as_u64().expect("an id");
        let news = match frame["type"].as_str().expect("a type") {
            "message" => {
                let (id, number) = read_message(&frame["data"]);
                model.learn(id, number);
                model.heard = model.heard.max(id);
                Frame::Message(id)
            }
            "caught_up" => {
                model.heard = model.heard.max(id("head"));
                Frame::CaughtUp { head: id("head") }
            }
            "gap" => Frame::Gap {
                since: id("since"),
                oldest: id("oldest"),
                head: id("head"),
                reason: frame["reason"].as_str().expect("a reason").to_owned(),
                oldest_then: None,
            },
            "pong" => {
                self.ponged = true;
                return;
            }
            "ack" | "error" => {
                let place = self
                    .unanswered
                    .iter()
                    .position(|number| frame["ref"] == *number);
                let place = place.unwrap_or_else(|| panic!("nobody asked: {frame}"));
                let number = self.unanswered.swap_remove(place);
                match frame["code"].as_str() {
                    None => model.acknowledge(id("id"), number),
                    Some("store_unavailable") => model.sent[number].refused = true,
                    Some(_) => panic!("{frame}"),
                }
                return;
            }
            _ => panic!("{frame}"),
        };
        self.view.frames.push(news);
    }

    /// Waits until something may be there to read.
    fn wait(&self) {
        let stream = self.stream();
        stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .expect("a socket");
        let _ = stream.peek(&mut [0]);
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    }

    fn until(&mut self, what: &str, model: &mut Model, ready: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !ready(self) {
            assert!(start.elapsed() < DEADLINE, "{}: {what}", self.view.name);
            if !self.hear(model) {
                self.wait();
            }
        }
    }

    /// Says goodbye and reads what comes before the answer; an event stream just ends.
    fn close(&mut self, model: &mut Model) {
        let Wire::Frames(socket) = &mut self.wire else {
            return;
        };
        let goodbye = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        socket
            .close(Some(goodbye))
            .expect("the server takes a frame");
        self.until("an answer to its close", model, |subscriber| {
            subscriber.closed.is_some()
        });
        assert_eq!(self.closed, Some(1000));
    }

    /// Whether it is past this message of its channel, and has been told so if it asked.
    fn has_all(&self, end: u64) -> bool {
        let is_caught_up = |frame: &Frame| matches!(frame, Frame::CaughtUp { .. });
        self.view.at() >= Some(end)
            && (self.view.start == Start::Live || self.view.frames.iter().any(is_caught_up))
    }

    /// Where it goes on when it comes back.
    fn resumption(&self) -> Start {
        if let Wire::Events(sse) = &self.wire {
            // It knows its beginning before anything has come.
            return match sse.last_event_id.parse() {
                Ok(id) => Start::Since(id),
                Err(_) => self.view.start,
            };
        }
        self.view.at().map_or(self.view.start, Start::Since)
    }
}

impl Display for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = &self.view.frames;
        write!(
            f,
            "{} (from {:?}, waits for {} answers, last frames {:?})",
            self.view.name,
            self.view.start,
            self.unanswered.len(),
            &frames[frames.len().saturating_sub(3)..],
        )
    }
}

/// A connection whose receiving side is small, so that a server soon notices when nobody reads.
fn slow_stream(address: SocketAddr) -> TcpStream {
    let socket =
        rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a descriptor");
    // Before the handshake, in which the window is told. With less the kernel drops what it
    // has no room for, and whoever was slow waits for retransmissions.
    set_socket_recv_buffer_size(&socket, 16 << 10).expect("a size");
    rustix::net::connect(&socket, &address).expect("the server accepts");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.set_nodelay(true).expect("nodelay");
    stream
}

/// Makes the buffers of the connections that this listener accepts small. Loopback connections
/// have some 2 MiB, which would let almost nobody fall behind. Without it the test is weaker
/// and as true, so that it asks for nothing that a system may not have.
#[cfg(target_os = "linux")]
fn shrink_send_buffers(listener: SocketAddr) {
    use rustix::net::sockopt::{set_socket_send_buffer_size, socket_acceptconn};
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

    let Ok(own) = pidfd_open(getpid(), PidfdFlags::empty()) else {
        return;
    };
    let numbers = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for number in numbers.collect::<Vec<i32>>() {
        let Ok(socket) = pidfd_getfd(&own, number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        let address = rustix::net::getsockname(&socket).and_then(SocketAddr::try_from);
        if address == Ok(listener) && socket_acceptconn(&socket) == Ok(true) {
            let _ = set_socket_send_buffer_size(&socket, 4 << 10);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn shrink_send_buffers(_: SocketAddr) {}

/// A message's content tells its number.
fn content(number: usize, size: usize) -> String {
    format!("{number}:{}", "x".repeat(size))
}

/// Id and number of a message.
fn read_message(message: &Value) -> (u64, usize) {
    let content = message["content"].as_str().expect("a content");
    let number = content.split(':').next().and_then(|text| text.parse().ok());
    (
        message["id"].as_u64().expect("an id"),
        number.expect("a number"),
    )
}
