//! Certificates, and connections to servers that have them.

use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use super::{DEADLINE, Ws};

/// TLS over a socket.
pub type Tunnel = StreamOwned<ClientConnection, TcpStream>;

/// A server's certificate, signed over an intermediate by an authority that its clients know.
pub struct Identity {
    dir: TempDir,
    client: Arc<ClientConfig>,
}

impl Identity {
    pub fn new() -> Self {
        Self::of("localhost")
    }

    /// That of whoever has this name or address.
    pub fn of(name: &str) -> Self {
        let authority = |name: &str| {
            let mut params = CertificateParams::new([]).expect("parameters");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            (params, KeyPair::generate().expect("a key"))
        };
        let (params, key) = authority("root");
        let root = params.self_signed(&key).expect("a certificate");
        let issuer = Issuer::new(params, key);
        let (params, key) = authority("intermediate");
        let intermediate = params.signed_by(&key, &issuer).expect("a certificate");
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new([name.to_owned()])
            .and_then(|params| params.signed_by(&key, &issuer))
            .expect("a certificate");

        let dir = tempfile::tempdir().expect("a directory");
        let chain = leaf.pem() + &intermediate.pem();
        for (name, pem) in [
            ("root.pem", root.pem()),
            ("cert.pem", chain),
            ("key.pem", key.serialize_pem()),
        ] {
            write_for_owner(&dir.path().join(name), &pem);
        }
        Self {
            dir,
            client: client(root.der()),
        }
    }

    /// The files with the certificate and the key.
    pub fn tls(&self) -> [PathBuf; 2] {
        ["cert.pem", "key.pem"].map(|name| self.dir.path().join(name))
    }

    /// The file with the certificate of whoever signed.
    pub fn root(&self) -> String {
        let path = self.dir.path().join("root.pem");
        path.to_str().expect("text").to_owned()
    }

    /// A connection that shakes hands at the first read or write.
    pub fn connect(&self, address: SocketAddr) -> Tunnel {
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(Arc::clone(&self.client), name).expect("a client");
        StreamOwned::new(connection, plain(address))
    }

    pub fn open(&self, address: SocketAddr, path: &str) -> Ws<Tunnel> {
        Ws::over(self.connect(address), path)
    }

    pub fn subscribe(&self, address: SocketAddr, channel: &str) -> Ws<Tunnel> {
        self.open(address, &format!("/api/ws/{channel}"))
    }
}

/// Writes a file that nobody else may read.
pub fn write_for_owner(path: &Path, text: &str) {
    fs::write(path, text).expect("a file");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("a mode");
}

fn client(root: &CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions that there are")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// A connection on which nothing was said yet.
pub fn plain(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream.set_nodelay(true).expect("nodelay");
    stream
}
