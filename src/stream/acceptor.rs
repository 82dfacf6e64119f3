//! TLS on accepted connections: certificate and key from their files, and the handshake.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustls::ServerConfig;
use rustls::crypto::ring;

use super::pem::Pem;
use super::session::{Session, wait};
use super::{Refused, Stream};
use crate::config::Tls;
use crate::error::{Error, Result};

/// First byte of every TLS connection: the content type of a handshake record (RFC 8446,
/// section 5.1).
const HANDSHAKE: u8 = 22;

/// What every handshake works with, until it is read anew.
#[derive(Debug)]
pub(crate) struct Acceptor {
    files: Tls,
    current: Mutex<Arc<ServerConfig>>,
}

impl Acceptor {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// [`Error::Config`], with the file and what would be right.
    pub(crate) fn new(files: &Tls) -> Result<Self> {
        Ok(Self {
            current: Mutex::new(load(files)?),
            files: files.clone(),
        })
    }

    /// Reads certificate and key anew, for connections accepted from now on.
    ///
    /// # Errors
    /// [`Error::Config`]; those before go on being used then.
    pub(crate) fn reload(&self) -> Result<()> {
        let config = load(&self.files)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Makes the handshake, which must end before the deadline however its bytes drip in.
    /// Blocks until then at most.
    #[inline(never)]
    pub(crate) fn accept(&self, stream: &Stream, deadline: Instant) -> Result<(), Refused> {
        if first_byte(stream, deadline).map_err(Refused::Failed)? != HANDSHAKE {
            return Err(Refused::NotTls);
        }
        let config = Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner));
        let session = Session::new(config, &stream.socket).map_err(Refused::Failed)?;
        stream
            .session
            .get_or_init(|| Box::new(session))
            .handshake(&stream.socket, deadline)
            .map_err(Refused::Failed)
    }
}

/// Looks at the first byte, and leaves it there.
fn first_byte(stream: &Stream, deadline: Instant) -> io::Result<u8> {
    let mut first = [0];
    wait(&stream.socket, true, false, Some(deadline))?;
    match stream.socket.peek(&mut first)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(first[0]),
    }
}

fn load(files: &Tls) -> Result<Arc<ServerConfig>> {
    let Tls { cert, key } = files;
    let chain = Pem::read("--tls-cert", cert)?.certificates()?;
    let secret = Pem::read("--tls-key", key)?.private_key()?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, secret)
        });
    let mut config = config.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => Error::Config(format!(
            "the private key in {} is not that of the first certificate in {}; \
             the server's own certificate comes first, then those that signed it",
            key.display(),
            cert.display()
        )),
        error => Error::Config(format!(
            "the certificate in {} with the private key in {} cannot be used: {error}",
            cert.display(),
            key.display()
        )),
    })?;
    // Who speaks only HTTP/2 finds out in the handshake (RFC 7301, section 3.2).
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
