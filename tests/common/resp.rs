//! The protocol of Redis (RESP2, redis.io/docs/latest/develop/reference/protocol-spec), as far as
//! tests and benches speak it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Nil,
    Number(i64),
    Text(String),
    Error(String),
    List(Vec<Reply>),
}

impl Reply {
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            other => panic!("not a text: {other:?}"),
        }
    }

    pub fn number(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            other => panic!("not a number: {other:?}"),
        }
    }

    pub fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            other => panic!("not a list: {other:?}"),
        }
    }

    pub fn read(from: &mut impl BufRead) -> Self {
        let mut line = String::new();
        from.read_line(&mut line).expect("an answer in time");
        let line = line.strip_suffix("\r\n").expect("a whole line");
        let number = || line[1..].parse().expect("a number");
        match line.as_bytes()[0] {
            b'+' => Self::Text(line[1..].to_owned()),
            b'-' => Self::Error(line[1..].to_owned()),
            b':' => Self::Number(number()),
            b'$' | b'*' if number() < 0 => Self::Nil,
            b'$' => {
                let mut bytes = vec![0; number() as usize + 2];
                from.read_exact(&mut bytes).expect("a whole text");
                bytes.truncate(bytes.len() - 2);
                Self::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            b'*' => Self::List((0..number()).map(|_| Self::read(from)).collect()),
            _ => panic!("no answer of Redis: {line}"),
        }
    }
}

/// A connection for commands.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("Redis accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Sends one command and reads its answer, which may be an error.
    pub fn call<T: AsRef<[u8]>>(&mut self, command: &[T]) -> Reply {
        self.send(&encode(command));
        Reply::read(&mut self.stream)
    }

    /// Sends encoded commands, whose answers are read with [`Self::read`].
    pub fn send(&mut self, commands: &[u8]) {
        self.stream.get_mut().write_all(commands).expect("it reads");
    }

    pub fn read(&mut self) -> Reply {
        Reply::read(&mut self.stream)
    }
}

/// A command's bytes.
pub fn encode<T: AsRef<[u8]>>(command: &[T]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for part in command {
        let part = part.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}
