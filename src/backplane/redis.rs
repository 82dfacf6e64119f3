//! The wire to Redis or Valkey: the only file that knows the `redis` crate.

use std::time::Duration;

use ::redis::{
    Client, ConnectionAddr, ConnectionInfo, ConnectionLike, ErrorKind, ProtocolVersion, RedisError,
    Value,
};

#[cfg(feature = "tls")]
use ::redis::{ClientTlsConfig, TlsCertificates};
#[cfg(feature = "tls")]
use rustls::{crypto::ring, sign::CertifiedKey};

use super::{Failure, Reply};
use crate::config;
#[cfg(feature = "tls")]
use crate::{error::Error, stream::pem::Pem};

/// Where Redis is, and as whom to go there.
#[derive(Clone)]
pub(crate) struct Remote {
    client: Client,
    database: i64,
}

/// One connection. Whoever got [`Failure::Lost`] from it has to take another.
pub(crate) struct Connection(::redis::Connection);

impl Remote {
    /// Reads the URL, and the files for TLS.
    ///
    /// # Errors
    /// A sentence that says what is wrong; it never has the password.
    pub(crate) fn new(config: &config::Backplane) -> Result<Self, String> {
        let url = config.url.as_str();
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
        let database = settings.db();
        // Chosen in `connect`: `redis` keeps no error's code when it does that itself.
        let settings = settings
            .set_db(0)
            .set_protocol(ProtocolVersion::RESP2)
            .set_skip_set_lib_name();
        let info = info.set_redis_settings(settings);
        if !is_tls && (config.cacert.is_some() || config.cert.is_some()) {
            return Err(
                "--backplane-cacert and --backplane-cert are for rediss:// only".to_owned(),
            );
        }
        let client = open(info, config)?;
        Ok(Self { client, database })
    }

    /// The number of the database that is asked for.
    pub(crate) fn database(&self) -> i64 {
        self.database
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
        let mut connection = Connection(connection);
        if self.database != 0 {
            let number = self.database.to_string();
            let chosen = connection.run("SELECT", &[number.as_bytes()]);
            chosen.map_err(|failure| match failure {
                // It has not so many, or it is a Redis Cluster and has only 0. Whatever else is an
                // ERR, as too many clients, is not about the number.
                Failure::Refused { reason, .. }
                    if ["ERR DB index", "ERR invalid DB index", "ERR SELECT"]
                        .iter()
                        .any(|about| reason.starts_with(about)) =>
                {
                    Failure::Unusable(format!(
                        "its database {number} cannot be used: it answers {reason:?}"
                    ))
                }
                other => other,
            })?;
        }
        Ok(connection)
    }
}

#[cfg(not(feature = "tls"))]
fn open(info: ConnectionInfo, _: &config::Backplane) -> Result<Client, String> {
    Client::open(info).map_err(|error| format!("--backplane: {error}"))
}

/// Knows Redis by the certificates that are asked for, and shows the node's own.
#[cfg(feature = "tls")]
fn open(info: ConnectionInfo, config: &config::Backplane) -> Result<Client, String> {
    let certificates = certificates(config).map_err(|error| error.to_string())?;
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    };
    client.map_err(|error| format!("--backplane: {error}"))
}

/// What is in the files, once it is sure that it can be used: `redis` takes anything at first.
#[cfg(feature = "tls")]
fn certificates(config: &config::Backplane) -> crate::error::Result<Option<TlsCertificates>> {
    let mut certificates = TlsCertificates {
        client_tls: None,
        root_cert: None,
    };
    if let Some(path) = &config.cacert {
        let pem = Pem::read("--backplane-cacert", path)?;
        pem.certificates()?;
        certificates.root_cert = Some(pem.bytes);
    }
    if let Some(path) = &config.cert {
        let pem = Pem::read("--backplane-cert", path)?;
        let (chain, key) = (pem.certificates()?, pem.private_key()?);
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
            let file = path.display();
            Error::Config(format!(
                "--backplane-cert: certificate and key in {file} do not go together: {error}"
            ))
        })?;
        certificates.client_tls = Some(ClientTlsConfig {
            client_cert: pem.bytes.clone(),
            client_key: pem.bytes,
        });
    }
    let is_any = certificates.root_cert.is_some() || certificates.client_tls.is_some();
    Ok(is_any.then_some(certificates))
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
        #[cfg(feature = "tls")]
        if let Some(reason) = distrust(&error) {
            return Self::Distrust(reason);
        }
        match error.kind() {
            ErrorKind::Server(_) | ErrorKind::Extension => match error.detail() {
                Some(detail) => Self::refused(format!("{code} {detail}").trim()),
                None => Self::Refused {
                    code: code.to_owned(),
                    reason: error.to_string(),
                },
            },
            // The system's words for it are that a resource is unavailable.
            _ if error.is_timeout() => Self::Lost("no answer in time".to_owned()),
            _ => Self::Lost(error.to_string()),
        }
    }
}

/// Why TLS with this Redis cannot come about, if that is what is wrong.
#[cfg(feature = "tls")]
fn distrust(error: &RedisError) -> Option<String> {
    use rustls::{AlertDescription as Alert, CertificateError, Error as Tls};
    use std::{error, io, sync::Arc};

    // What `redis` keeps of an error of the socket.
    let source = error::Error::source(error)?;
    let kept = source.downcast_ref::<Arc<dyn error::Error + Send + Sync>>()?;
    let within = kept.downcast_ref::<io::Error>()?.get_ref()?;
    let wrong = within.downcast_ref::<Tls>()?;
    match wrong {
        // A clock that is not set yet may be set later.
        Tls::InvalidCertificate(CertificateError::NotValidYet) => None,
        Tls::InvalidCertificate(CertificateError::UnknownIssuer) => Some(format!(
            "{wrong}; --backplane-cacert names those who sign its certificate"
        )),
        Tls::InvalidCertificate(_) => Some(wrong.to_string()),
        Tls::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::HandshakeFailure,
        ) => Some(format!(
            "{wrong}; --backplane-cert names the certificate that it wants to see"
        )),
        _ => None,
    }
}
