//! Which browser pages may talk to the server, and by which names.
//!
//! A page says in `Origin` where it comes from (RFC 6454); programs that are no browsers send
//! none and pass. A page whose own name was made to lead here (DNS rebinding) is found by the
//! `Host` it believes in.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::http::{Head, Problem};

/// An origin that may talk to the server although it is not the server's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigin {
    /// Every page of the web (`*`).
    Any,
    /// Pages of one site, like `https://board.example` or `http://10.0.0.7:8080`.
    Site(String),
}

impl FromStr for AllowedOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let text = text.to_ascii_lowercase();
        match split(&text) {
            Some((scheme, host)) if host == authority(scheme, host) => Ok(Self::Site(text)),
            Some((scheme, host)) => Err(format!(
                "{text:?} has the port that {scheme} has anyway, which browsers leave out; write {scheme}://{}",
                authority(scheme, host)
            )),
            None => Err(format!(
                "{text:?} is no origin; write a scheme, a host and, where it is another than the usual, a port, like https://board.example (no path, no slash at the end), or *"
            )),
        }
    }
}

/// The origins and hosts that pass.
#[derive(Debug)]
pub(super) struct Origins {
    /// The server listens for its own machine only.
    loopback: bool,
    allowed: Vec<String>,
    any: bool,
}

impl Origins {
    pub(super) fn new(listen: SocketAddr, allowed: &[AllowedOrigin]) -> Self {
        let sites = allowed.iter().filter_map(|origin| match origin {
            AllowedOrigin::Any => None,
            AllowedOrigin::Site(site) => Some(site.clone()),
        });
        Self {
            loopback: listen.ip().to_canonical().is_loopback(),
            any: allowed.contains(&AllowedOrigin::Any),
            allowed: sites.collect(),
        }
    }

    /// Refuses requests that a foreign page makes a browser send.
    ///
    /// # Errors
    /// 403, with what was found and how to let it in.
    pub(super) fn check(&self, head: &Head) -> Result<(), Problem> {
        if self.any {
            return Ok(());
        }
        let host = head.joined("host");
        self.check_host(host.as_deref())?;
        match head.joined("origin") {
            Some(origin) => self.check_origin(&origin.to_ascii_lowercase(), host.as_deref()),
            None => check_fetch(head),
        }
    }

    fn check_host(&self, host: Option<&str>) -> Result<(), Problem> {
        let Some(host) = host.filter(|_| self.loopback) else {
            return Ok(());
        };
        let host = host.to_ascii_lowercase();
        let of_a_site = |site: &String| split(site).is_some_and(|(_, name)| name == host);
        if is_loopback(&host) || self.allowed.iter().any(of_a_site) {
            return Ok(());
        }
        Err(Problem::new(
            403,
            format!(
                "the `Host` {host:?} is not a name of this server, which listens on loopback: use localhost or 127.0.0.1, or let it in with --allow-origin http://{host}"
            ),
        ))
    }

    fn check_origin(&self, origin: &str, host: Option<&str>) -> Result<(), Problem> {
        let passes = split(origin).is_some_and(|(scheme, name)| {
            let is_own = host.is_some_and(|host| {
                authority(scheme, &host.to_ascii_lowercase()) == authority(scheme, name)
            });
            is_own || (self.loopback && is_loopback(name))
        });
        if passes || self.allowed.iter().any(|site| site == origin) {
            return Ok(());
        }
        Err(Problem::new(
            403,
            format!(
                "pages of the origin {origin:?} may not use this server; let them in with --allow-origin"
            ),
        ))
    }
}

/// A page that wants no answer (`no-cors`) sends no `Origin` with a GET; browsers say so in
/// another header (Fetch Metadata Request Headers, section 2).
fn check_fetch(head: &Head) -> Result<(), Problem> {
    let site = head.joined("sec-fetch-site").unwrap_or_default();
    let is_navigation = head.lists("sec-fetch-mode", "navigate");
    if is_navigation || !matches!(site.as_str(), "cross-site" | "same-site") {
        return Ok(());
    }
    Err(Problem::new(
        403,
        "a page of another origin may not use this server without saying who it is (`Sec-Fetch-Site`)",
    ))
}

/// Scheme and authority of an origin; `null` is none.
fn split(origin: &str) -> Option<(&str, &str)> {
    let (scheme, host) = origin.split_once("://")?;
    let is_scheme = matches!(scheme, "http" | "https");
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    (is_scheme && !host.is_empty() && host.bytes().all(is_host)).then_some((scheme, host))
}

/// Without the scheme's own port, as browsers write it in `Origin`.
fn authority<'a>(scheme: &str, host: &'a str) -> &'a str {
    let usual = if scheme == "https" { ":443" } else { ":80" };
    host.strip_suffix(usual).unwrap_or(host)
}

/// Whether a host, with or without port, is this machine by name (RFC 6761, section 6.3) or
/// address.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or((rest, "?")),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return false;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost"
        || name.ends_with(".localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
#[path = "origin_tests.rs"]
mod tests;
