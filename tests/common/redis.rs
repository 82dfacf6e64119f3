//! A real redis-server, and what a test does to it: ends it, stops it, looks into it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::DEADLINE;
#[cfg(feature = "tls")]
use super::identity::Identity;
pub use super::resp::{Connection, Reply};
use super::system::{own_address, skipped};

/// A redis-server on a free port with a directory of its own; killed when this is dropped.
pub struct Redis {
    child: Child,
    pub address: SocketAddr,
    password: Option<String>,
    config: Vec<String>,
    dir: TempDir,
}

impl Redis {
    /// One that keeps nothing on the disk. `None`, said loudly, where there is no redis-server.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// One that answers only what is on the disk, so that its `kill -9` loses nothing.
    pub fn start_durable() -> Option<Self> {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// One that wants this password.
    pub fn start_locked(password: &str) -> Option<Self> {
        let mut redis = Self::start_with(&["--requirepass", password])?;
        redis.password = Some(password.to_owned());
        Some(redis)
    }

    /// One that speaks TLS on another port, too, with a certificate of its own, and wants to see
    /// one of its clients, signed by these.
    #[cfg(feature = "tls")]
    pub fn start_tls(clients: &Identity) -> Option<(Self, TlsPort)> {
        let ip = own_address();
        let free = || TcpListener::bind((ip, 0)).expect("a free port");
        // Two that are held at once are two.
        let [address, tls] = [free(), free()].map(|free| free.local_addr().expect("an address"));
        let port = tls.port();
        let identity = Identity::of(&address.ip().to_string());
        let [cert, key] = identity.tls().map(|path| path.display().to_string());
        let redis = Self::start_at(
            address,
            &[
                "--tls-port",
                &port.to_string(),
                "--tls-cert-file",
                &cert,
                "--tls-key-file",
                &key,
                "--tls-ca-cert-file",
                &clients.root(),
            ],
        )?;
        let url = format!("rediss://{}:{port}", address.ip());
        Some((redis, TlsPort { url, identity }))
    }

    /// One that follows this one, with all that it has by now.
    pub fn replica(&self) -> Self {
        let (ip, port) = (self.address.ip(), self.address.port());
        let replica = Self::start_with(&["--replicaof", &format!("{ip} {port}")]);
        let replica = replica.expect("there is one already");
        super::eventually("it is connected", || {
            replica.call(&["ROLE"]).list()[3].text() == "connected"
        });
        replica
    }

    /// One with these flags.
    pub fn start_with(config: &[&str]) -> Option<Self> {
        Self::start_at(free_address(), config)
    }

    fn start_at(address: SocketAddr, config: &[&str]) -> Option<Self> {
        let installed = Command::new("redis-server").arg("--version").output();
        if !installed.is_ok_and(|run| run.status.success()) {
            skipped("there is no redis-server");
            return None;
        }
        let config: Vec<_> = config.iter().map(|&text| text.to_owned()).collect();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let child = spawn(address, &config, &dir);
        Some(Self {
            child,
            address,
            password: None,
            config,
            dir,
        })
    }

    /// What `--backplane` is given.
    pub fn url(&self) -> String {
        let password = self.password.as_ref();
        let user = password.map_or(String::new(), |password| format!(":{password}@"));
        format!("redis://{user}{}", self.address)
    }

    /// One command on a connection of its own.
    pub fn call(&self, command: &[&str]) -> Reply {
        let mut connection = Connection::open(self.address);
        if let Some(password) = &self.password {
            connection.call(&["AUTH", password]);
        }
        let reply = connection.call(command);
        assert!(!matches!(reply, Reply::Error(_)), "{command:?}: {reply:?}");
        reply
    }

    /// The only stream that it has.
    pub fn stream(&self) -> String {
        let keys = self.call(&["KEYS", "*"]);
        let keys = keys.list().iter().map(Reply::text);
        let streams: Vec<_> = keys
            .filter(|key| self.call(&["TYPE", key]).text() == "stream")
            .collect();
        let [stream] = streams[..] else {
            panic!("not one stream: {streams:?}");
        };
        stream.to_owned()
    }

    /// Leaves only the newest entries in the stream.
    pub fn trim(&self, entries: usize) {
        self.call(&["XTRIM", &self.stream(), "MAXLEN", &entries.to_string()]);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again where it was, with what it has on the disk.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.address, &self.config, &self.dir);
    }

    /// Stops it in the middle of whatever it does: it accepts connections and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        // The signal is on its way until the process is seen to be stopped.
        let stat = format!("/proc/{}/stat", self.child.id());
        super::eventually("Redis has stopped", || {
            let stat = fs::read_to_string(&stat).expect("a child");
            stat.rsplit_once(") ")
                .is_some_and(|(_, state)| state.starts_with('T'))
        });
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where a Redis speaks TLS, and by what it is known.
#[cfg(feature = "tls")]
pub struct TlsPort {
    pub url: String,
    pub identity: Identity,
}

fn free_address() -> SocketAddr {
    let free = TcpListener::bind((own_address(), 0)).and_then(|free| free.local_addr());
    free.expect("a free port")
}

/// Starts one; returns when it answers, its data read.
fn spawn(address: SocketAddr, config: &[String], dir: &TempDir) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--port", &address.port().to_string()]);
    command.args(["--bind", &address.ip().to_string(), "--save", ""]);
    command.arg("--dir").arg(dir.path()).args(config);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).spawn().expect("it starts");
    let start = Instant::now();
    while !answers(address) {
        let ended = child.try_wait().expect("a child");
        assert_eq!(ended, None, "redis-server {config:?} ends");
        assert!(start.elapsed() < DEADLINE, "Redis does not answer");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn answers(address: SocketAddr) -> bool {
    // Not by the calls of a test, which must succeed: a server that starts ends connections.
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let mut answer = [0; 64];
    let read = stream
        .set_read_timeout(Some(DEADLINE))
        .and_then(|()| stream.write_all(b"*1\r\n$4\r\nPING\r\n"))
        .and_then(|()| stream.read(&mut answer));
    let answer = &answer[..read.unwrap_or(0)];
    answer.starts_with(b"+PONG") || answer.starts_with(b"-NOAUTH")
}

/// Plays a Redis of this version to whoever connects, for as long as the test's process lives.
pub fn pretend(version: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || play(stream, version));
        }
    });
    address
}

/// Knows what every Redis since 1.0 knows.
fn play(stream: TcpStream, version: &str) -> Option<()> {
    let mut requests = BufReader::new(stream.try_clone().ok()?);
    let mut answers = stream;
    loop {
        if requests.fill_buf().ok()?.is_empty() {
            return None;
        }
        let request = Reply::read(&mut requests);
        let command = request.list()[0].text().to_uppercase();
        let info = format!("# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n");
        let answer = match command.as_str() {
            "AUTH" | "SELECT" => "+OK\r\n".to_owned(),
            "PING" => "+PONG\r\n".to_owned(),
            "TIME" => "*2\r\n$10\r\n1700000000\r\n$1\r\n0\r\n".to_owned(),
            "INFO" => format!("${}\r\n{info}\r\n", info.len()),
            _ => format!("-ERR unknown command '{command}'\r\n"),
        };
        answers.write_all(answer.as_bytes()).ok()?;
    }
}
