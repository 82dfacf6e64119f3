//! Measures what the parts cost, each by itself, as time of its process.

use std::path::Path;
use std::time::Instant;

use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::common;
use crate::costs::Costs;
use crate::nodes::Process;
use crate::resp;

/// How long everything is done, from nothing to a figure that stands.
struct Size {
    messages: usize,
    seconds: &'static str,
}

pub(crate) fn all(quick: bool) -> Result<Costs, String> {
    let size = if quick {
        Size {
            messages: 20_000,
            seconds: "0.5",
        }
    } else {
        Size {
            messages: 400_000,
            seconds: "5",
        }
    };
    let dir = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let dir = dir.path();
    let redis = Process::redis(dir, &[])?;
    let (append, append_message) = appends(&redis, size.messages)?;
    let (read, read_entry, entry_bytes) = reads(&redis, size.messages)?;
    drop(redis);
    let (commit, commit_message) = commits(dir, size.messages / 4)?;
    let (apply, apply_wall) = applied(dir, size.messages / 8)?;
    let [publish, delivery, delivery_alone] = served(size.seconds)?;
    Ok(Costs {
        append,
        append_message,
        read,
        read_entry,
        entry_bytes,
        commit,
        commit_message,
        apply,
        apply_wall,
        publish: publish - commit_message,
        delivery,
        delivery_alone,
    })
}

/// What a call and each of its parts cost, from calls with one part and with many.
fn split(one: f64, many: f64, parts: f64) -> (f64, f64) {
    let part = (many - one).max(0.0) / (parts - 1.0);
    (one - part, part)
}

/// Redis' time for appends of 1 and of 256 messages, by the clock of its process.
fn appends(redis: &Process, messages: usize) -> Result<(f64, f64), String> {
    let one = append_cost(redis, 1, messages / 8)?;
    let many = append_cost(redis, 256, messages)?;
    Ok(split(one, many, 256.0))
}

/// What a node asks Redis to do with a batch.
const APPEND: &str = include_str!("../../src/backplane/append.lua");
const STREAM: &str = "bench";
const LOG: &str = "{bench}:log";

fn append_cost(redis: &Process, size: usize, messages: usize) -> Result<f64, String> {
    let mut connection = resp::Connection::open(redis.address);
    connection.call(&["DEL", STREAM]);
    connection.call(&["HSET", LOG, "id", "of the bench", "run", "this one"]);
    connection.call(&["XADD", STREAM, "0-1", "h", "0-0", "x", ""]);
    let loaded = connection.call(&["SCRIPT", "LOAD", APPEND]);
    let (node, count) = (format!("node {size}"), size.to_string());
    let keys = [STREAM, LOG, "{bench}:feeds", &format!("{{bench}}:{node}")];
    let message = json!({"c": "a channel", "a": "an author", "t": "x".repeat(200)}).to_string();
    let calls = messages / size;
    let before = redis.cpu();
    for call in 1..=calls {
        let number = call.to_string();
        let mut command = vec!["EVALSHA", loaded.text(), "4"];
        command.extend(keys);
        // Identity, node, number, deadline, entries kept; no checks, no states, no claims; the run of
        // Redis, how far the node has the log.
        command.extend(["of the bench", &node, &number, "9e15", "1000000"]);
        command.extend([&count, "0", "0", "0", "this one", "0", "0"]);
        command.extend((0..size).map(|_| message.as_str()));
        let reply = connection.call(&command);
        let is_done = matches!(&reply, resp::Reply::List(list) if list[0].text() == "done");
        if !is_done {
            return Err(format!("Redis refused an append: {reply:?}"));
        }
    }
    Ok((redis.cpu() - before) * 1e6 / calls as f64)
}

/// Redis' time for a read and each of its entries, and an entry's bytes.
fn reads(redis: &Process, messages: usize) -> Result<(f64, f64, f64), String> {
    let mut connection = resp::Connection::open(redis.address);
    let mut cost = |count: usize, messages: usize| -> (f64, f64) {
        let count_text = count.to_string();
        let (mut bytes, calls) = (0, messages / count);
        let before = redis.cpu();
        for call in 0..calls {
            let after = format!("{}-0", call * count % (messages / 2 / count * count + 1));
            let read = ["XREAD", "COUNT", &count_text, "STREAMS", STREAM, &after];
            bytes += wire(&connection.call(&read));
        }
        let calls = calls as f64;
        ((redis.cpu() - before) * 1e6 / calls, bytes as f64 / calls)
    };
    let (one, bytes_of_one) = cost(1, messages / 8);
    let (many, bytes) = cost(256, messages);
    let (_, entry_bytes) = split(bytes_of_one, bytes, 256.0);
    let (read, entry) = split(one, many, 256.0);
    Ok((read, entry, entry_bytes))
}

/// Bytes that an answer is on its way.
fn wire(reply: &resp::Reply) -> usize {
    match reply {
        resp::Reply::Text(text) => text.len() + text.len().to_string().len() + 5,
        resp::Reply::List(list) => 5 + list.iter().map(wire).sum::<usize>(),
        _ => 5,
    }
}

/// SQLite's time for a commit and each message in it, in a database of the server's own.
fn commits(dir: &Path, messages: usize) -> Result<(f64, f64), String> {
    let file = dir.join("commits.db");
    drop(Process::server(&file, &[])?);
    let failed = |error: rusqlite::Error| format!("SQLite: {error}");
    let mut database = Connection::open(file).map_err(failed)?;
    database
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")
        .map_err(failed)?;
    let mut cost = |size: usize, messages: usize| {
        let text = "x".repeat(200);
        let start = Instant::now();
        for _ in 0..messages / size {
            let transaction = database.transaction()?;
            let mut insert = transaction.prepare_cached(
                "INSERT INTO messages (channel_id, author, content, timestamp) VALUES (?1, ?2, ?3, ?4)",
            )?;
            for _ in 0..size {
                let time = "2026-01-05T12:34:56.789012+00:00";
                insert.execute(params!["a channel", "an author", text, time])?;
            }
            drop(insert);
            transaction.commit()?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / (messages / size) as f64)
    };
    let one = cost(1, messages / 8).map_err(failed)?;
    let many = cost(256, messages).map_err(failed)?;
    Ok(split(one, many, 256.0))
}

/// A node that comes back to many messages: its time for each, and how long each takes.
fn applied(dir: &Path, messages: usize) -> Result<(f64, f64), String> {
    let redis = Process::redis(dir, &[])?;
    let first = Process::node(&dir.join("first.db"), &redis, &[])?;
    let url = format!("http://{}", first.address);
    // As many as this generator publishes in its time; all that counts is that there are enough.
    while first.head()? < messages as u64 {
        let flags = ["--url", &url, "--subscribers", "0", "--publishers", "16"];
        let flags = [&flags[..], &["--warmup-seconds", "0", "--seconds", "1"]].concat();
        report(&flags)?;
    }
    let head = first.head()?;
    let start = Instant::now();
    let second = Process::node(&dir.join("second.db"), &redis, &[])?;
    second.await_head(head)?;
    let each = 1e6 / head as f64;
    Ok((second.cpu() * each, start.elapsed().as_secs_f64() * each))
}

fn report(flags: &[&str]) -> Result<Value, String> {
    common::report(Path::new(common::PROGRAM), flags)
}

/// A server's time for a POST, for a delivery among many, and for one alone.
fn served(seconds: &str) -> Result<[f64; 3], String> {
    let loaded = |flags: &str| {
        let mut all = vec!["--seconds", seconds];
        all.extend(flags.split(' '));
        report(&all)
    };
    let figure = |report: &Value, place: &str| {
        let figure = report.pointer(place).and_then(|figure| figure.as_f64());
        figure.ok_or_else(|| format!("no {place} in the report"))
    };
    let posts = loaded("--subscribers 0 --publishers 8")?;
    let of_a_second = figure(&posts, "/server/cpu_seconds_per_second")?;
    let post = of_a_second * 1e6 / figure(&posts, "/messages_per_second")?;
    let deliveries = |flags| {
        let report = loaded(flags)?;
        figure(&report, "/server/cpu_seconds_per_million_deliveries")
    };
    Ok([
        post,
        deliveries("--publishers 8 --max-behind 1000")?,
        deliveries("--rate 20")?,
    ])
}
