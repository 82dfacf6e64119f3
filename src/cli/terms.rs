//! What `sub` and `pub` have in common: the flags for server, token, heartbeat and output.

use std::fs;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::flags::duration;
use crate::client::{KeepAlive, Remote, Token, Url};

/// No token is longer.
const MAX_TOKEN_BYTES: u64 = 8 << 10;

/// Where the server is, and who we are to it.
#[derive(Debug, Args)]
pub(super) struct Server {
    /// The server: http://HOST:PORT or ws://HOST:PORT, with a path if it is behind one; https and wss in a
    /// build with TLS
    #[arg(
        long,
        env = "THREADCAST_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8010"
    )]
    url: String,

    /// Token for the server, sent as `Authorization: Bearer`; other users of this machine can see flags,
    /// but not the environment nor --token-file
    #[arg(
        long,
        env = "THREADCAST_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    token: Option<Token>,

    /// File that holds the token, in place of --token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// File of certificates in PEM by which an https server is known, in place of the system's
    #[arg(long, env = "THREADCAST_CACERT", value_name = "FILE")]
    cacert: Option<PathBuf>,

    /// Silence of the server after which it is pinged
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = duration)]
    ping_interval: Duration,

    /// Further silence after which the connection is given up
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pong_timeout: Duration,
}

impl Server {
    pub(super) fn remote(&self) -> Result<Remote, String> {
        let url = Url::parse(&self.url).map_err(|error| format!("--url: {error}"))?;
        let token = match &self.token_file {
            None => self.token.clone().filter(|token| !token.is_empty()),
            Some(path) => Some(
                read_token(path)
                    .map_err(|error| format!("--token-file {}: {error}", path.display()))?,
            ),
        };
        if self.cacert.is_some() && !url.tls {
            return Err("--cacert is for https:// and wss:// only".to_owned());
        }
        Remote::new(url, token, self.cacert.clone())
    }

    pub(super) fn keep_alive(&self) -> KeepAlive {
        KeepAlive {
            interval: self.ping_interval,
            timeout: self.pong_timeout,
        }
    }
}

fn read_token(path: &PathBuf) -> Result<Token, String> {
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
        .map_err(|error| error.to_string())?;
    Ok(text.trim().to_owned().into())
}

/// How things are printed.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Form {
    /// Print JSON, one object a line, on a terminal, too
    #[arg(long, conflicts_with = "human")]
    json: bool,

    /// Print lines for people, into a pipe or file, too
    #[arg(long)]
    human: bool,
}

impl Form {
    pub(super) fn is_human(self) -> bool {
        self.human || (!self.json && std::io::stdout().is_terminal())
    }
}
