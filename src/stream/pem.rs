//! Certificates and private keys from files in PEM, by the flag that named the file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, Result};

/// A file that was read, once.
pub(crate) struct Pem<'a> {
    flag: &'a str,
    path: &'a Path,
    pub(crate) bytes: Vec<u8>,
    mode: u32,
}

impl<'a> Pem<'a> {
    /// # Errors
    /// [`Error::Config`] when it cannot be read, here and below with the flag, the file and what
    /// would be right.
    pub(crate) fn read(flag: &'a str, path: &'a Path) -> Result<Self> {
        let (bytes, mode) = read_with_mode(path).map_err(|error| {
            Error::Config(format!("{flag}: cannot read {}: {error}", path.display()))
        })?;
        Ok(Self {
            flag,
            path,
            bytes,
            mode,
        })
    }

    /// All of its certificates, one or more.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let file = self.path.display();
        let chain: Result<Vec<_>, pem::Error> =
            CertificateDer::pem_slice_iter(&self.bytes).collect();
        match chain {
            Ok(chain) if !chain.is_empty() => Ok(chain),
            Ok(_) => self.wrong(format!(
                "there is no certificate in {file}; PEM is needed, with `-----BEGIN CERTIFICATE-----`"
            )),
            Err(error) => self.wrong(format!("{file} is damaged PEM: {error}")),
        }
    }

    /// Its private key, which nobody but the file's owner may be able to read.
    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        let file = self.path.display();
        if self.mode & 0o077 != 0 {
            return self.wrong(format!(
                "{file} is open to others than its owner (mode {:03o}), and a private key must not be; run: chmod 600 {file}",
                self.mode & 0o777
            ));
        }
        let has = |text: &str| {
            self.bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        if has("-----BEGIN ENCRYPTED PRIVATE KEY-----") || has("Proc-Type: 4,ENCRYPTED") {
            return self.wrong(format!(
                "the private key in {file} is encrypted, and nobody is asked for its password; \
                 decrypt it with: openssl pkey -in {file} -out PLAIN"
            ));
        }
        match PrivateKeyDer::from_pem_slice(&self.bytes) {
            Ok(key) => Ok(key),
            Err(pem::Error::NoItemsFound) => self.wrong(format!(
                "there is no private key in {file}; PEM is needed, with `-----BEGIN PRIVATE KEY-----`"
            )),
            Err(error) => self.wrong(format!("{file} is damaged PEM: {error}")),
        }
    }

    fn wrong<T>(&self, what: String) -> Result<T> {
        Err(Error::Config(format!("{}: {what}", self.flag)))
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
