//! A redis-server and nodes for measurements, and what they use of the processor.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// Whether there is a redis-server.
pub(crate) fn has_redis() -> bool {
    let version = Command::new("redis-server").arg("--version").output();
    version.is_ok_and(|run| run.status.success())
}

/// A process that ends with this value.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// A redis-server with these settings.
    pub(crate) fn redis(dir: &Path, settings: &[&str]) -> Result<Self, String> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let address = free.map_err(|error| format!("no free port: {error}"))?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port"]);
        command.arg(address.port().to_string()).arg("--dir");
        command.arg(dir).args(settings).stdout(Stdio::null());
        let child = command
            .spawn()
            .map_err(|error| format!("can't start redis-server: {error}"))?;
        let redis = Self { child, address };
        within("redis-server accepts", || TcpStream::connect(address).ok())?;
        Ok(redis)
    }

    /// A server with this database; a node when its flags say so.
    pub(crate) fn server(database: &Path, flags: &[&str]) -> Result<Self, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--log-level", "warn"]);
        command.arg("--db").arg(database).args(flags);
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("can't start the program: {error}"))?;
        let stdout = child.stdout.take().ok_or("its output is no pipe")?;
        let mut line = String::new();
        let _ = BufReader::new(stdout).read_line(&mut line);
        let address = line
            .split_once("http://")
            .and_then(|(_, rest)| rest.split([',', ' ', '\n']).next()?.parse().ok());
        let Some(address) = address else {
            let _ = child.kill();
            let _ = child.wait();
            return Err("the server ended before it listened".to_owned());
        };
        Ok(Self { child, address })
    }

    /// A node of this Redis that has found it.
    pub(crate) fn node(database: &Path, redis: &Self, flags: &[&str]) -> Result<Self, String> {
        let url = format!("redis://{}", redis.address);
        let mut all = vec!["--backplane", &url];
        all.extend(flags);
        let node = Self::server(database, &all)?;
        within("the node finds Redis", || {
            let health = node.health().ok()?;
            (health["backplane"]["connected"] == true).then_some(())
        })?;
        Ok(node)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// User and system time since its start, in seconds.
    pub(crate) fn cpu(&self) -> f64 {
        // In hundredths of a second, the 14th and 15th field: proc_pid_stat(5).
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let stat = stat.unwrap_or_default();
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        let fields = fields.split_ascii_whitespace().skip(11).take(2);
        fields
            .filter_map(|field| field.parse::<f64>().ok())
            .sum::<f64>()
            / 100.0
    }

    pub(crate) fn health(&self) -> Result<Value, String> {
        let failed = |error: std::io::Error| format!("no answer: {error}");
        let mut stream = TcpStream::connect(self.address).map_err(failed)?;
        stream
            .write_all(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).map_err(|error| format!("no health: {error}"))
    }

    /// Its newest message.
    pub(crate) fn head(&self) -> Result<u64, String> {
        self.health()?["head"].as_u64().ok_or("no head".to_owned())
    }

    pub(crate) fn await_head(&self, head: u64) -> Result<(), String> {
        within("the node has what the others have", || {
            self.head().ok().filter(|it| *it >= head)
        })
        .map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until there is something.
fn within<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T, String> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(found) = ask() {
            return Ok(found);
        }
        thread::sleep(Duration::from_millis(2));
    }
    Err(format!("not within {PATIENCE:?}: {what}"))
}
