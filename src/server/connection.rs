//! One accepted connection: requests are read whole, under limits and deadlines; then a
//! subscriber stays on this thread, everything else goes over the relay.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connections::{Admitted, Counted};
use super::relay::Relay;
use super::rest::{Publishing, Route};
use super::socket::{self, Sockets};
use super::stream::{self, Streams};
use super::subscriber::wanted;
use super::waiting::{self, Waited};
use crate::access::{Access, Peer, Refusal};
use crate::config::Limits;
use crate::http::{Framing, Head, Incoming, Problem, Received, Reply, linger};
use crate::manager::Kind;
use crate::protocol::Topic;
use crate::stream::{Acceptor, Refused, Stream};
use crate::usage::Usage;

/// How long a refused client may go on sending before its connection is cut.
const LINGER: Duration = Duration::from_secs(1);

/// How long a stopping server waits for a request after one that it answered without saying that
/// it was the last: no longer than it takes to find what has arrived.
const LAST_LOOK: Duration = Duration::from_millis(1);

/// What every connection works with.
pub(super) struct Door {
    pub(super) limits: Limits,
    pub(super) usage: Arc<Usage>,
    pub(super) access: Arc<Access>,
    pub(super) relay: Arc<Relay>,
    pub(super) publishing: Publishing,
    pub(super) sockets: Sockets,
    /// With it, TLS is all that is spoken.
    pub(super) tls: Option<Arc<Acceptor>>,
    pub(super) streams: Streams,
}

/// Serves a connection to its end, which is the end of its thread.
pub(super) fn serve(door: &Door, stream: &Arc<Stream>, peer: SocketAddr, admitted: &Admitted) {
    // Small frames go out at once.
    let _ = stream.set_nodelay(true);
    let _ = stream.set_write_timeout(Some(door.limits.write_timeout));
    let mut connection = Connection {
        door,
        stream,
        peer,
        admitted,
        incoming: Incoming::default(),
        origin: None,
        head_only: false,
    };
    // One after the other, each without the stack of the one before: a thread keeps every page of
    // its stack that was ever touched, and most of them wait for their next message for ever.
    let mut ended = connection.run();
    if let Ended::Asked(asked) = ended {
        ended = connection.subscribe(*asked);
    }
    drop(connection);
    if let Ended::Subscribed(subscription) = ended {
        ended = subscription.serve();
    }
    if let Ended::Unread = ended {
        linger(stream, LINGER);
    }
}

/// Somebody who wants to be a subscriber.
struct Asked {
    head: Box<Head>,
    kind: Kind,
    topic: Topic,
    peer: Peer,
}

/// A subscriber who was answered, and what counts it until its end.
struct Subscription<'a> {
    session: Session<'a>,
    _counted: Option<Counted>,
}

enum Session<'a> {
    WebSocket(Box<socket::Session<'a>>),
    EventStream(Box<stream::Session<'a>>),
}

impl<'a> Subscription<'a> {
    #[inline(never)]
    fn serve(self) -> Ended<'a> {
        match self.session {
            Session::WebSocket(session) => session.serve(),
            Session::EventStream(session) => session.serve(),
        }
        Ended::Gone
    }
}

struct Connection<'a> {
    door: &'a Door,
    stream: &'a Arc<Stream>,
    peer: SocketAddr,
    admitted: &'a Admitted,
    incoming: Incoming,
    /// The page that the request in hand comes from, if it may read the answer.
    origin: Option<String>,
    /// It wants no body, so no refusal has one.
    head_only: bool,
}

/// Why no further request is read.
enum Ended<'a> {
    /// The client is gone.
    Gone,
    /// It wants to be a subscriber.
    Asked(Box<Asked>),
    /// It is one from now on.
    Subscribed(Subscription<'a>),
    /// The server closes, and the client may still be sending.
    Unread,
}

impl<'a> Connection<'a> {
    /// Answers requests until the connection becomes something else. Never inlined, like what it
    /// calls, so that each has its frame only while it runs.
    #[inline(never)]
    fn run(&mut self) -> Ended<'a> {
        let limits = &self.door.limits;
        // A new connection has as long for its first byte as a request for all of them.
        let first_byte = Instant::now() + limits.head_timeout;
        if let Err(ended) = self.encrypt(first_byte) {
            return ended;
        }
        let mut idle = match self.door.tls {
            Some(_) => first_byte.saturating_duration_since(Instant::now()),
            None => limits.head_timeout,
        };
        loop {
            // No shutdown waits long for the rest of what has just begun.
            let in_time = match self.admitted.is_stopping() {
                true => limits.head_timeout.min(LINGER),
                false => limits.head_timeout,
            };
            let max_bytes = limits.max_head_bytes;
            let mut head = match self.incoming.head(self.stream, idle, in_time, max_bytes) {
                Ok(Received::Head(head)) => head,
                Ok(Received::Nothing) if self.admitted.is_stopping() => return Ended::Unread,
                Ok(Received::Nothing) => return Ended::Gone,
                Err(problem) => return self.refuse(problem),
            };
            self.admitted.begin_request();
            let peer = match self.admit(&mut head) {
                Ok(peer) => peer,
                Err(refusal) => return self.refuse_admission(*refusal),
            };
            if let Some(wanted) = wanted(&head) {
                return self.ask(wanted, head, peer);
            }
            let body = match self.body(&head) {
                Ok(Some(body)) => body,
                Ok(None) => return Ended::Gone,
                Err(problem) => return self.refuse(problem),
            };
            match waiting::wait(self.door, &head, &peer, self.stream, self.admitted) {
                Ok(Waited::Enough) => {}
                Ok(Waited::Gone) => return Ended::Gone,
                Err(problem) => return self.refuse(problem),
            }
            // Whoever drains wants its clients to go elsewhere.
            let draining = self.admitted.is_stopping() || self.door.usage.traffic.is_draining();
            let keep_alive = head.keep_alive && !draining;
            let written = match Publishing::route(&head) {
                Some(route) => self.publish(route, &head, body, &peer, keep_alive),
                None => self.relay(&head, &body, &peer, keep_alive),
            };
            if let Err(ended) = written {
                return ended;
            }
            let is_stopping = !self.admitted.end_request();
            if !keep_alive {
                return Ended::Unread;
            }
            // The client may have sent its next request on this answer.
            idle = if is_stopping {
                LAST_LOOK
            } else {
                limits.idle_timeout
            };
        }
    }

    /// Publishes, and waits for the client's next request or, if that may be here already, for the
    /// answer to this one: when it returns, that is written.
    #[inline(never)]
    fn publish(
        &self,
        route: &Route,
        head: &Head,
        body: Vec<u8>,
        peer: &Peer,
        keep_alive: bool,
    ) -> Result<(), Ended<'a>> {
        let answers = self.admitted.answers();
        let (awaited, usage) = (answers.begin(), Arc::clone(&self.door.usage));
        let is_1_0 = head.is_1_0;
        let answer = move |reply: Reply| {
            usage.traffic.answers.add(Some(reply.status));
            awaited.write(reply.into_bytes(false, is_1_0, keep_alive));
        };
        let publishing = &self.door.publishing;
        publishing.serve(route, head, body, peer, answer);
        let may_idle = keep_alive && self.incoming.is_empty();
        let in_time = !may_idle || answers.wait_for_more(self.door.limits.idle_timeout);
        if let Some(left) = answers.settle() {
            self.write(&left).map_err(|_| Ended::Gone)?;
        }
        if in_time { Ok(()) } else { Err(Ended::Gone) }
    }

    /// Lets REST answer.
    #[inline(never)]
    fn relay(
        &self,
        head: &Head,
        body: &[u8],
        peer: &Peer,
        keep_alive: bool,
    ) -> Result<(), Ended<'a>> {
        let answer = self.door.relay.exchange(head, body, peer, keep_alive);
        self.door.usage.traffic.answers.add(status(&answer));
        self.write(&answer).map_err(|_| Ended::Gone)
    }

    /// Whose request it is.
    #[inline(never)]
    fn admit(&mut self, head: &mut Head) -> Result<Peer, Box<Refusal>> {
        (self.origin, self.head_only) = (None, head.method == "HEAD");
        let admission = self.door.access.admit(head, self.peer);
        // 403 is for the page: it has nothing to read here.
        let is_readable = !matches!(&admission, Err(refusal) if refusal.problem.status == 403);
        if is_readable {
            let origin = head.joined("origin");
            self.origin =
                origin.filter(|origin| origin.bytes().all(|byte| byte.is_ascii_graphic()));
        }
        admission
    }

    /// Begins TLS, where that is spoken.
    #[inline(never)]
    fn encrypt(&self, deadline: Instant) -> Result<(), Ended<'a>> {
        let Some(tls) = &self.door.tls else {
            return Ok(());
        };
        match tls.accept(self.stream, deadline) {
            Ok(()) => Ok(()),
            Err(Refused::NotTls) => Err(self.refuse(Problem::new(
                400,
                "this port speaks TLS: use https:// or wss:// instead of http:// or ws://",
            ))),
            Err(Refused::Failed(error)) => {
                log::debug!("no TLS with {}: {error}", self.peer);
                // Whoever broke a rule is told which, and should be able to read that.
                let told = error.kind() == std::io::ErrorKind::InvalidData;
                Err(if told { Ended::Unread } else { Ended::Gone })
            }
        }
    }

    /// The request's body, asked for if the client waits for that.
    #[inline(never)]
    fn body(&mut self, head: &Head) -> Result<Option<Vec<u8>>, Problem> {
        let limits = &self.door.limits;
        if head.framing == Framing::None && matches!(head.method.as_str(), "POST" | "PUT" | "PATCH")
        {
            return Err(Problem::new(
                411,
                format!(
                    "a {} needs a `Content-Length` or `Transfer-Encoding: chunked`",
                    head.method
                ),
            ));
        }
        let is_too_large =
            matches!(head.framing, Framing::Length(length) if length > limits.max_body_bytes);
        if head.expects_continue
            && !is_too_large
            && self.incoming.is_empty()
            && self.write(b"HTTP/1.1 100 Continue\r\n\r\n").is_err()
        {
            return Ok(None);
        }
        self.incoming.body(
            self.stream,
            head.framing,
            limits.body_timeout,
            limits.max_body_bytes,
        )
    }

    #[inline(never)]
    fn ask(
        &self,
        wanted: Result<(Kind, Topic), Problem>,
        head: Box<Head>,
        peer: Peer,
    ) -> Ended<'a> {
        match wanted {
            Ok((kind, topic)) => Ended::Asked(Box::new(Asked {
                head,
                kind,
                topic,
                peer,
            })),
            Err(problem) => self.refuse(problem),
        }
    }

    #[inline(never)]
    fn subscribe(&mut self, asked: Asked) -> Ended<'a> {
        self.begin(asked)
            .unwrap_or_else(|problem| self.refuse(problem))
    }

    fn begin(&mut self, asked: Asked) -> Result<Ended<'a>, Problem> {
        let Asked {
            head,
            kind,
            topic,
            peer,
        } = asked;
        let _counted = self.admitted.count(&peer)?;
        let early = std::mem::take(&mut self.incoming).into_rest();
        self.admitted.leave_http();
        let Door {
            sockets, streams, ..
        } = self.door;
        let session = match kind {
            Kind::WebSocket => {
                let session = sockets.begin(head, topic, peer, self.stream, early)?;
                Session::WebSocket(session)
            }
            Kind::EventStream => {
                drop(early);
                match streams.begin(head, topic, peer, self.stream)? {
                    Some(session) => Session::EventStream(session),
                    None => {
                        // Nobody has subscribed.
                        self.door.usage.traffic.answers.add(Some(200));
                        return Ok(Ended::Unread);
                    }
                }
            }
        };
        Ok(Ended::Subscribed(Subscription { session, _counted }))
    }

    /// Whoever tries many wrong tokens waits for each answer.
    #[inline(never)]
    fn refuse_admission(&self, refusal: Refusal) -> Ended<'a> {
        let Refusal { problem, wait } = refusal;
        if matches!(problem.status, 401 | 429) {
            self.door.usage.refused.credentials.add();
        }
        if !self.stays_for(wait) {
            return Ended::Gone;
        }
        self.refuse(problem)
    }

    /// Waits; `false` as soon as the client goes, or a shutdown cuts it off. What it sends
    /// meanwhile is dropped: its connection ends after the answer.
    fn stays_for(&self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut dropped = [0; 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            if self.stream.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            match (&**self.stream).read(&mut dropped) {
                Ok(1..) => {}
                Ok(0) => return false,
                Err(error) if is_no_end(&error) => {}
                Err(_) => return false,
            }
        }
    }

    #[inline(never)]
    fn refuse(&self, problem: Problem) -> Ended<'a> {
        if problem.status == 413 {
            self.door.usage.refused.message_bytes.add();
        }
        self.door.usage.traffic.answers.add(Some(problem.status));
        log::debug!("refused {}: {problem}", self.peer);
        let mut reply = Reply::from(problem);
        if let Some(origin) = &self.origin {
            reply = reply.readable_by(origin);
        }
        let answer = reply.into_bytes(self.head_only, false, false);
        match (&**self.stream).write_all(&answer) {
            Ok(()) => Ended::Unread,
            Err(_) => Ended::Gone,
        }
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        // Each part of an answer has the write timeout anew: slow is allowed, stuck is not.
        while !bytes.is_empty() {
            match (&**self.stream).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether a read failed for now only.
fn is_no_end(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::WouldBlock | Kind::TimedOut | Kind::Interrupted
    )
}

/// The status of a response.
fn status(answer: &[u8]) -> Option<u16> {
    let status = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    str::from_utf8(status).ok()?.parse().ok()
}
