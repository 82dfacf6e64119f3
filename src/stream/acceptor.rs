//! TLS on accepted connections: certificate and key from their files, and the handshake.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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
    let (chain, secret) = (certificates(cert)?, private_key(key)?);
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

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let file = path.display();
    let wrong = |what: String| Err(Error::Config(format!("--tls-cert: {what}")));
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return wrong(format!("cannot read {file}: {error}")),
    };
    let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => wrong(format!(
            "there is no certificate in {file}; PEM is needed, with `-----BEGIN CERTIFICATE-----`"
        )),
        Err(error) => wrong(format!("{file} is damaged PEM: {error}")),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let file = path.display();
    let wrong = |what: String| Err(Error::Config(format!("--tls-key: {what}")));
    let (bytes, mode) = match read_with_mode(path) {
        Ok(read) => read,
        Err(error) => return wrong(format!("cannot read {file}: {error}")),
    };
    if mode & 0o077 != 0 {
        return wrong(format!(
            "{file} is open to others than its owner (mode {:03o}), and a private key must not be; run: chmod 600 {file}",
            mode & 0o777
        ));
    }
    let has = |text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    if has("-----BEGIN ENCRYPTED PRIVATE KEY-----") || has("Proc-Type: 4,ENCRYPTED") {
        return wrong(format!(
            "the private key in {file} is encrypted, and nobody is asked for its password; \
             decrypt it with: openssl pkey -in {file} -out PLAIN"
        ));
    }
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => wrong(format!(
            "there is no private key in {file}; PEM is needed, with `-----BEGIN PRIVATE KEY-----`"
        )),
        Err(error) => wrong(format!("{file} is damaged PEM: {error}")),
    }
}

/// The mode is that of the file that was read, whatever its name means by then.
fn read_with_mode(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let mut file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok((bytes, mode))
}
