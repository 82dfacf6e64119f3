//! TLS to the server: by which certificates it is known, the handshake, the bytes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

use super::connection::left;
use super::{Failure, Remote, Retry};

/// An encrypted connection's state; the socket is kept beside it.
#[derive(Debug)]
pub(super) struct Session(Box<ClientConnection>);

impl Session {
    /// Makes the handshake. Blocks until the deadline at most, give or take a read.
    ///
    /// # Errors
    /// For good when the server is not known by its certificate.
    pub(super) fn begin(
        socket: &mut TcpStream,
        remote: &Remote,
        deadline: Instant,
    ) -> Result<Self, Failure> {
        let host = remote.url().host.clone();
        let name = ServerName::try_from(host)
            .map_err(|error| refused(format!("the URL's host is none for TLS: {error}")))?;
        let config = config(remote.roots()).map_err(refused)?;
        let mut session = ClientConnection::new(config, name)
            .map_err(|error| refused(format!("cannot begin TLS: {error}")))?;
        let authority = remote.url().authority();
        while session.is_handshaking() {
            let time = left(deadline).ok_or_else(|| {
                Failure::passing(format!("no TLS with {authority}: it took too long"))
            })?;
            let step = socket
                .set_read_timeout(Some(time))
                .and_then(|()| session.complete_io(socket));
            step.map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => refused(format!("no TLS with {authority}: {error}")),
                _ => Failure::passing(format!("no TLS with {authority}: {error}")),
            })?;
        }
        Ok(Self(Box::new(session)))
    }

    pub(super) fn read(&mut self, socket: &mut TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
        match Stream::new(&mut *self.0, socket).read(bytes) {
            // Without a farewell of TLS (close_notify): the layers above know what is whole.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            result => result,
        }
    }

    pub(super) fn write(&mut self, socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
        Stream::new(&mut *self.0, socket).write(bytes)
    }

    pub(super) fn flush(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        Stream::new(&mut *self.0, socket).flush()
    }

    /// Says that nothing more comes, as far as that needs no waiting.
    pub(super) fn finish(&mut self, socket: &mut TcpStream) {
        self.0.send_close_notify();
        let _ = self.0.write_tls(socket);
    }
}

fn config(roots: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut known = RootCertStore::empty();
    match roots {
        Some(path) => {
            let wrong =
                |error: &dyn std::fmt::Display| format!("--cacert {}: {error}", path.display());
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| wrong(&error))?;
                known.add(certificate).map_err(|error| wrong(&error))?;
            }
            if known.is_empty() {
                return Err(wrong(&"it has no certificate in PEM"));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            known.add_parsable_certificates(found.certs);
            if known.is_empty() {
                return Err(
                    "the system has no certificates; name a file of some with --cacert".to_owned(),
                );
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(known)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn refused(sentence: String) -> Failure {
    Failure {
        sentence,
        retry: Retry::Never,
    }
}
