//! The wire to Redis or Valkey: the only file that knows the `redis` crate.

use std::time::Duration;

use ::redis::{
    Client, ConnectionAddr, ConnectionLike, ErrorKind, ProtocolVersion, RedisError, Value,
};

use super::{Failure, Reply};

/// Where Redis is, and as whom to go there.
#[derive(Clone)]
pub(crate) struct Remote {
    client: Client,
}

/// One connection. Whoever got [`Failure::Lost`] from it has to take another.
pub(crate) struct Connection(::redis::Connection);

impl Remote {
    /// Reads a URL.
    ///
    /// # Errors
    /// A sentence that says what is wrong; it never has the password.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let form = "write redis://HOST:PORT, redis://USER:PASSWORD@HOST:PORT/DATABASE or rediss://… for TLS";
        let is_tls = url.starts_with("rediss:") || url.starts_with("valkeys:");
        if is_tls && !cfg!(feature = "tls") {
            return Err(
                "--backplane asks for TLS (rediss://), which this build has not; \
                 build with `cargo build --release --features redis,tls`"
                    .to_owned(),
            );
        }
        let client = Client::open(url)
            .map_err(|_| format!("--backplane is no address of a Redis server; {form}"))?;
        let info = client.get_connection_info().clone();
        // Everything here is read as the older protocol has it.
        let settings = info.redis_settings().clone();
        let settings = settings
            .set_protocol(ProtocolVersion::RESP2)
            .set_skip_set_lib_name();
        let client = Client::open(info.set_redis_settings(settings))
            .map_err(|_| format!("--backplane is no address of a Redis server; {form}"))?;
        Ok(Self { client })
    }

    /// Where it is, without a password.
    pub(crate) fn address(&self) -> String {
        let info = self.client.get_connection_info();
        let scheme = match info.addr() {
            ConnectionAddr::TcpTls { .. } => "rediss://",
            ConnectionAddr::Tcp(..) => "redis://",
            _ => "unix:",
        };
        format!("{scheme}{}", info.addr())
    }

    /// Connects, shows the password, chooses the database. Blocks for so long at most, for each
    /// of the host's addresses.
    pub(crate) fn connect(&self, patience: Duration) -> Result<Connection, Failure> {
        let connection = self.client.get_connection_with_timeout(patience)?;
        connection.set_read_timeout(Some(patience))?;
        connection.set_write_timeout(Some(patience))?;
        Ok(Connection(connection))
    }
}

impl Connection {
    /// How long an answer may take from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) -> Result<(), Failure> {
        Ok(self
            .0
            .set_read_timeout(Some(patience.max(Duration::from_millis(1))))?)
    }

    /// Sends a command and waits for its answer.
    pub(crate) fn run(&mut self, command: &str, arguments: &[&[u8]]) -> Result<Reply, Failure> {
        let mut packed = ::redis::cmd(command);
        for argument in arguments {
            packed.arg(*argument);
        }
        reply(self.0.req_command(&packed)?)
    }
}

fn reply(value: Value) -> Result<Reply, Failure> {
    Ok(match value {
        Value::Nil => Reply::Nothing,
        Value::Int(number) => Reply::Number(number),
        Value::BulkString(bytes) => Reply::Bytes(bytes),
        Value::SimpleString(text) => Reply::Bytes(text.into_bytes()),
        Value::Okay => Reply::Bytes(b"OK".to_vec()),
        Value::Array(values) => {
            Reply::List(values.into_iter().map(reply).collect::<Result<_, _>>()?)
        }
        Value::ServerError(error) => return Err(RedisError::from(error).into()),
        _ => Reply::Nothing,
    })
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        let code = error.code().unwrap_or_default();
        let is_password = error.kind() == ErrorKind::AuthenticationFailed
            || ["NOAUTH", "WRONGPASS"].contains(&code);
        if is_password {
            return Self::Password;
        }
        match error.kind() {
            ErrorKind::Server(_) | ErrorKind::Extension => Self::Refused {
                code: code.to_owned(),
                reason: match error.detail() {
                    Some(detail) => format!("{code} {detail}").trim().to_owned(),
                    None => error.to_string(),
                },
            },
            _ => Self::Lost(error.to_string()),
        }
    }
}
