//! Threadcast: a real-time broadcast server in one small program.
//!
//! POST a message, and every subscriber of its channel, over WebSocket or as an event stream, has it, stored, in one order.
//! Publish a state, and every subscriber of its feed has it, but only when it changed.
//!
//! **One thread commits every message and thereby decides its order; one registry holds
//! every subscriber's bounded outbox; one thread owns each connection; nothing else is
//! shared.** There is no async runtime and no `unsafe`.
//!
//! # Threads
//!
//! | name | how many | what it does |
//! |---|---|---|
//! | `listener` | 1 | accepts on the one public port, enforces the connection limits, spawns `conn-N` |
//! | `conn-N` | 1 per connection | reads whole requests; hands what publishes to the journal, relays the others to `rest`, at once or when there is what a long poll waits for, or becomes the session of a WebSocket or an event stream |
//! | `rest` | 1 | tiny_http's request loop: routes and handlers of all that does not publish; waits neither for a client nor for the disk |
//! | `query-N` | 2 | read history from the store for `rest` |
//! | `journal` | 1 | the sequencer: takes all waiting drafts and states, commits them in one transaction, answers their publishers |
//! | `flush` | 1, with `--sync normal` | brings the store's write-ahead log to the disk, which no commit waits for |
//! | `broadcast` | 1 | takes committed batches in order, merges what waits into one chunk per channel, offers it to the subscribers |
//! | `append`, `follow`, `presence` | 1 each, with a backplane | append to the log that several nodes share; read it for `journal`; tell other nodes of the subscribers here |
//! | `feeds` | 1 | offers the newest states to the subscribers of feeds, so that a large one holds up no message |
//! | `watch-FEED` | 1 per watched feed | looks at a file or command while the feed has subscribers |
//! | `watchdog` | 1, when systemd asks for it | says that the server works, as long as `journal` and `rest` answer |
//! | `handler` | 1 per subscription of the embedding program | calls it with what happens |
//!
//! tiny_http has an accept thread of its own and one thread per connection of the relay.
//!
//! # A message's way
//!
//! `POST` → `conn-N` reads it whole ([`http`]) and makes a draft of it → `journal` commits it with
//! all others that wait and answers at the commit, into the client's socket → `broadcast` offers the
//! encoded frame to every [`Client`](manager::Client) of the channel → it is written to the
//! socket right there, or by whoever is writing to that. A socket that is full is left to its own
//! thread.
//!
//! Many messages in one request are one submission: committed together or not at all, however
//! small a batch is. A request with an `Idempotency-Key` is looked for by `journal` before, and
//! remembered in the transaction of what it stands for, by its hash, with the number, time and
//! count of its answer: whoever repeats it brings the rest of that answer along, and gets it
//! again byte for byte. Two of one key are never in one batch, so the second finds the first.
//!
//! The journal looks for the next order for 150 µs before it sleeps, if the last one came as soon:
//! waking a thread on an idle core costs 30 µs. `conn-N` sleeps until its client has sent something
//! or the answer did not fit into the socket.
//!
//! A long poll (`GET /api/messages?since=…&wait=…`) waits on its connection's own thread, before
//! it is relayed: registered with the [`manager`] first, then looked, then woken at the commit.
//!
//! # What an idle connection costs
//!
//! Two pages of its thread's stack, one of which is mostly the thread's own, and 2 to 4 KiB of
//! heap. A thread keeps each page that was ever touched, so what is done once in a connection's
//! life is done in frames of its own (`inline(never)` in `server::connection`), not above those of
//! the session. Buffers and the outbox are made when there is something to put into them.
//!
//! # Who may do what
//!
//! The door asks [`access`] once for each request, before its body is read: foreign pages and
//! wrong tokens end there. What comes out, a [`Peer`](access::Peer), goes along: the session has
//! it, and `rest` finds it by the number of the relay's connection that a request came on, so
//! there is nothing in a request that could be forged. The route's scope is asked for in one
//! place, the channel or feed by whoever knows its name.
//!
//! # The log is the queue
//!
//! The manager knows the *offered head*: the newest message that `broadcast` has taken up. It
//! raises it and takes the lists of clients in one step; everything up to it that a client
//! does not have is in the store, everything after it comes live. A client whose outbox is
//! full is *behind* and no longer fed: its own thread brings it what comes after its cursor, up
//! to the offered head, a page of the store or a chunk that is still in memory at a time, each
//! when the one before is in the socket, and feeds it live again in one step with the look that
//! there is no more. Joining with `since` or `last`
//! is the same with another cursor. So nothing is dropped for being slow, and slowness costs
//! one page of memory.
//!
//! # A state's way
//!
//! `PUT` or a watcher → compared with the feed's last state, and answered there and then if it
//! is the same → `journal` gives it the next revision and commits it → it replaces the last
//! state in the [`manager`], under the lock under which subscribers register: whoever comes
//! later starts with it → `feeds` offers it to those that were there. A subscriber has one
//! place for states: what it cannot take is replaced by the next.
//!
//! # Several nodes
//!
//! With a backplane the log is a stream on Redis or Valkey, and each server, a *node*, has its
//! replica in its own store (`backplane`: the wire and the keys; `journal::shared`: the threads).
//! What publishers submit goes to `append`, which appends a batch with one script; Redis gives
//! the ids in the order of the stream, so an entry's id in the stream is its place in the order.
//! `follow` reads the stream and hands it to `journal`, which stores it with how far that is, in
//! one transaction, then takes the same way to the subscribers as in a server by itself, and
//! answers those publishers whose batches are applied by then. So an acknowledged message is in
//! the log and in the store of the node that acknowledged it.
//!
//! A batch has a number that the script knows again, so that one whose answer was lost is run
//! once more and stored once; and a time after which the script refuses it, so that a publisher
//! who was told 503 finds nothing stored later. Where neither helps, because Redis stays away,
//! the answer says that it is not known. A state names the revision that it follows; if the log
//! has another one, nothing is appended, and the node plans anew when it has that. An
//! `Idempotency-Key` is remembered in Redis, for all nodes.
//!
//! Each entry names the one before it. A node that misses some, because they were trimmed, notes
//! the *hole* in its store, reads all feeds' states anew and lets its subscribers go on from the
//! store, where whoever's cursor is before the hole is told of the gap.
//!
//! A Redis that was started anew, or a replica in its place, may have lost the end of the log, and
//! whoever joins first does not know what others had of it. So the log notes the run of Redis in
//! which it last went on. In another run the first node to join lets the ids jump, to at least a
//! million for each second since 2026: none is given to two messages. The append script refuses
//! what comes before that, and a batch that an earlier run was sent is looked for and not appended
//! again.
//!
//! # Watching it
//!
//! `GET /metrics` has what was done ([`metrics`]) and what there is ([`manager::Census`]). Counting
//! takes no lock, and on the fan-out one addition for each chunk, however many subscribers it goes
//! to. A page is written on a `query` thread, in some milliseconds for 9,000 subscribers on as many
//! channels; of these it has the manager's lock while it copies a pointer for each channel and feed.
//!
//! # Rooms
//!
//! A module uses only floors below its own; `tests/floors.rs` holds that.
//!
//! | floor | rooms |
//! |---|---|
//! | 5 | `main`, `cli` |
//! | 4 | [`server`] (wiring, start, shutdown), its listener and connections, what waits there; `bench` |
//! | 3 | `server::rest` (the only room that knows tiny_http), `server::relay`, `server::socket` (WebSockets), `server::stream` (event streams), `watch`; `client` (the commands' side of the wire) |
//! | 2 | [`journal`] (with the `broadcast` and `feeds` threads), `server::subscriber` (what both kinds of sessions do) |
//! | 1 | [`manager`], [`store`], `backplane` (the log that several nodes share) |
//! | 0 | [`access`], [`config`], [`error`], [`protocol`], [`frame`], [`history`], [`http`], [`metrics`], [`stream`], [`usage`] |
//!
//! # Invariants
//!
//! - Once the server runs, only `journal` writes to the store and changes its feeds; only `broadcast` offers
//!   messages, only `feeds` states.
//! - Nothing is broadcast or acknowledged that is not committed.
//! - No request reaches a handler or a session without a peer; no secret goes beyond [`access`].
//! - Only the holder of a client's writer lock writes to its socket; nothing follows a close frame.
//!   Over TLS its own records (tickets, key updates, alerts) come from whoever reads, too, in
//!   one order under the session's lock, which is never held while anything waits.
//! - The manager's lock is held for edits of its map and to take lists, never during a send,
//!   a log line or a read of the store.
//! - A client is fed live only when it has everything of its channel up to the offered head.
//! - A client is registered before its answer goes out: who has seen the handshake, or an event
//!   stream's head, hears the next message.
//! - An event's `id:` is where to go on: everything before it was sent or told to be missing.
//! - A feed's revision only grows, and no subscriber is given a state older than one it had.
//! - A panic in one connection ends that connection only; locks recover from poisoning.
//! - Every accepted connection ends in one place that unregisters it, the drop of its `Admitted`.
//! - There is no global state, and no lazy singleton.
//!
//! # Bounds
//!
//! `GET /api/health` shows those that refuse a client, with how often they did ([`usage`]);
//! `GET /metrics` how full the queues are ([`metrics`]).
//!
//! | what | bounded by |
//! |---|---|
//! | connections, their threads and descriptors | [`Limits::max_connections`], and what the machine allows |
//! | connections from one address, and the map that counts them | [`Limits::max_connections_per_address`]; the open connections |
//! | tokens | the tokens file: 16 MiB |
//! | buckets of publishers, of addresses with wrong tokens | 16,384 each; who is new beyond that shares one |
//! | answers that wait because of wrong tokens | about ten for one address, each 10 s at most; a client that goes ends its own |
//! | subscribers of one channel or feed | [`Limits::max_subscribers`] |
//! | a request head, a body, a frame | [`Limits::max_head_bytes`], [`Limits::max_body_bytes`] |
//! | what a subscriber behind has in memory | one page: 64 KiB or one message |
//! | what was broadcast last, for subscribers that fall behind | [`Limits::recent_bytes`], and 8,192 chunks; once more as events while event streams had them |
//! | pages read for several subscribers behind | 32, and 2 MiB and one page, in buffers up to twice as large; once more as events for event streams; given out for a second |
//! | reads for subscribers behind | two at a time, further ones wait for their turn |
//! | messages in one request | [`Limits::max_body_bytes`]: one transaction, whatever [`Limits::max_batch`] |
//! | long polls that wait | the connections, each with a wake handle and for 60 s at most; behind a proxy they count for their client's address |
//! | answers remembered by their `Idempotency-Key` | 24 hours, and the 100,000 newest, about 20 MB; as many as fit an eighth of [`Retention::max_db_bytes`](config::Retention::max_db_bytes) or [`Limits::memory_bytes`], at least 64 |
//! | messages in the store | [`Retention`](config::Retention); without it the disk |
//! | a connection's TLS | what arrives: one record (16 KiB), a handshake 64 KiB; what the socket does not take: the records of 64 KiB, with nothing encrypted behind them |
//! | TLS sessions that may be resumed | 256, the oldest make room |
//! | a subscriber's outbox | [`Limits::max_outbox_chunks`], [`Limits::max_outbox_bytes`], and as many answers as [`Limits::max_in_flight`] |
//! | drafts waiting for the journal | [`Limits::max_queued_bytes`] and one read of each publisher |
//! | frames waiting for the fan-out | [`Limits::max_fanout_bytes`] and one batch |
//! | requests in hand, queries waiting | [`Limits::max_rest_requests`]; what publishes: one of each connection |
//! | answers that publishers do not take | what is left of one for each connection, until its write timeout |
//! | states | [`Limits::max_feeds`], each [`Limits::max_body_bytes`], in memory (once more as an event, while event streams had it) and in the store |
//! | a feed's slow subscriber | one state partly written, and the newest, which it shares with the feed; 128 KiB in the kernel |
//! | states waiting for their fan-out | the newest of each feed, with those before it up to 64 KiB |
//! | the history of workflows | 50 entries and 256 KiB in memory, 10,000 in the store |
//! | a watched command | [`Config::watch_timeout`], [`Limits::max_body_bytes`] of output |
//! | what an event stream's client may send | 64 KiB, dropped as it comes; then it is cut off |
//! | events waiting for a handler | 1,024, sharing their bytes with the broadcast; further ones are counted and told as missed |
//! | a page of history | [`Limits::max_page_bytes`] |
//! | a page of metrics | some 150 series: no label has a name that a client chose |
//! | the console in a browser | 500 rows, as many messages or 4 million characters that have none yet, 500 entries of each list and object of a state |
//! | channels in the manager | the connections: a channel without any is forgotten, and so is a feed without state |
//! | `sub`: a frame, lines that are not written yet | 16 MiB; 64 KiB and one line |
//! | `pub`: a line, messages waiting for their ack | 16 MiB; 64 and 256 KiB, or one that is longer |
//! | an HTTP answer to a client command | 1 MiB |
//! | read from the shared log and not stored yet | one read: 1,024 entries, and 2 MiB if they are as large as those before; and three parts of 2 MiB or one entry |
//! | batches in the shared log that wait to be applied here | [`Limits::max_queued_bytes`], and the time that [`Backplane::timeout`](config::Backplane::timeout) gives each |
//! | entries in the shared log | [`Backplane::keep`](config::Backplane::keep), about; states of feeds beside it by [`Limits::max_feeds`] |
//! | answers remembered there by their `Idempotency-Key` | 24 hours |
//! | what nodes tell of their subscribers | the channels with subscribers, for 10 s |
//! | holes | 1,000 are told apart; of more the two oldest are one |
//! | running counts of the store | the distinct channels, providers and lanes stored |

pub mod access;
mod backplane;
pub mod config;
pub mod error;
pub mod frame;
pub mod history;
pub mod http;
pub mod journal;
pub mod manager;
pub mod metrics;
pub mod protocol;
pub mod server;
pub mod store;
pub mod stream;
pub mod usage;
mod watch;

pub use config::{Config, Database, Limits, Sync};
pub use error::{Error, Result};
pub use manager::ConnectionManager;
pub use server::Server;
