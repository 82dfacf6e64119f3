//! A real proxy with the configuration that the README has.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::DEADLINE;
use super::system::own_address;

const README: &str = include_str!("../../README.md");

/// The site that the README's configurations are for.
pub const SITE: &str = "board.example";

/// Proxies that the README has a configuration for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    Caddy,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Nginx, Self::Caddy];

    pub fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Caddy => "caddy",
        }
    }

    pub fn is_installed(self) -> bool {
        let mut command = Command::new(self.program());
        command.arg(if self == Self::Nginx { "-v" } else { "version" });
        let run = command.output();
        run.is_ok_and(|run| run.status.success())
    }

    /// Its configuration, as the README has it.
    pub fn configuration(self) -> &'static str {
        block(match self {
            Self::Nginx => "nginx",
            Self::Caddy => "caddyfile",
        })
    }

    /// The configuration for plain HTTP on this address, and what is around it; nothing else is
    /// changed. Returns the command that runs it.
    fn configure(self, address: SocketAddr, servers: &[SocketAddr], dir: &Path) -> Command {
        let shown = dir.display();
        let file = dir.join("main.conf");
        let mut command = Command::new(self.program());
        match self {
            Self::Nginx => {
                let site = replace(
                    self.configuration(),
                    &[
                        ("listen 443 ssl;", &format!("listen {address};")),
                        ("server 127.0.0.1:8010;", &upstream(servers)),
                        ("ssl_certificate     ", "# "),
                        ("ssl_certificate_key ", "# "),
                        ("/var/log/nginx/", &format!("{shown}/")),
                    ],
                );
                let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|what| format!("{what}_temp_path {shown}/{what};\n"))
                    .concat();
                // One process: killed, it leaves nobody behind.
                let text = format!(
                    "daemon off;\nmaster_process off;\npid {shown}/pid;\nerror_log {shown}/error.log;\nevents {{}}\nhttp {{\n{temporary}{site}}}\n"
                );
                fs::write(&file, text).expect("a file");
                command.arg("-p").arg(dir).args(["-e", "stderr", "-c"]);
                command.arg(file);
            }
            Self::Caddy => {
                let site = replace(
                    self.configuration(),
                    &[
                        (
                            &format!("{SITE} {{"),
                            &format!(
                                "http://{SITE}:{} {{\n\tbind {}",
                                address.port(),
                                address.ip()
                            ),
                        ),
                        ("127.0.0.1:8010", &servers[0].to_string()),
                    ],
                );
                fs::write(&file, format!("{{\n\tadmin off\n}}\n{site}")).expect("a file");
                command.args(["run", "--adapter", "caddyfile", "--config"]);
                command.arg(file);
                for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
                    command.env(variable, dir);
                }
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(dir.join("log")).expect("a file"));
        command
    }
}

/// The text of the README's only block of this language.
fn block(language: &str) -> &'static str {
    let fence = format!("```{language}\n");
    let mut blocks = README.split(&fence[..]).skip(1);
    let text = blocks.next().expect("the README has it");
    assert!(blocks.next().is_none(), "two blocks of {language}");
    text.split("```").next().expect("a part")
}

/// The flags that the README gives a server behind a proxy, with this tokens file.
pub fn flags(tokens: &Path) -> Vec<String> {
    let mut lines = README.lines();
    let line = lines.find(|line| line.starts_with("threadcast ") && line.contains("-proxy"));
    let line = line.expect("the README has it");
    let tokens = format!("--tokens {}", tokens.display());
    let line = replace(line, &[("--tokens tokens", &tokens)]);
    line.split(' ').skip(1).map(str::to_owned).collect()
}

/// nginx's words for these servers, as the README has them for several.
fn upstream(servers: &[SocketAddr]) -> String {
    let each = servers.iter().map(|server| format!("server {server};"));
    let balance = (servers.len() > 1).then(|| "least_conn;".to_owned());
    balance
        .into_iter()
        .chain(each)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Each of these must be there exactly once.
fn replace(text: &str, changes: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (from, to) in changes {
        assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
        text = text.replace(from, to);
    }
    text
}

/// A running proxy; killed when this is dropped.
pub struct Proxy {
    child: Child,
    pub address: SocketAddr,
    pub dir: TempDir,
}

impl Proxy {
    /// Starts one in front of this server; waits until it accepts.
    pub fn start(kind: Kind, server: SocketAddr) -> Self {
        Self::before(kind, &[server])
    }

    /// An nginx that sends each connection to the server that has the fewest.
    pub fn balancing(servers: &[SocketAddr]) -> Self {
        Self::before(Kind::Nginx, servers)
    }

    fn before(kind: Kind, servers: &[SocketAddr]) -> Self {
        let start = Instant::now();
        loop {
            if let Some(proxy) = Self::try_start(kind, servers) {
                return proxy;
            }
            // Somebody else has taken the port since it was free.
            assert!(start.elapsed() < DEADLINE, "{kind:?} does not start");
        }
    }

    fn try_start(kind: Kind, servers: &[SocketAddr]) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let address = TcpListener::bind((own_address(), 0)).and_then(|free| free.local_addr());
        let address = address.expect("a free port");
        let mut command = kind.configure(address, servers, dir.path());
        let mut proxy = Self {
            child: command.spawn().expect("an installed proxy starts"),
            address,
            dir,
        };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if proxy.child.try_wait().expect("a child").is_some() {
                let log = fs::read_to_string(proxy.dir.path().join("log")).unwrap_or_default();
                assert!(
                    log.to_lowercase().contains("address already in use"),
                    "{log}"
                );
                return None;
            }
            assert!(start.elapsed() < DEADLINE, "{kind:?} does not accept");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(proxy)
    }

    /// Ends it at once, in the middle of whatever it does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill();
    }
}
