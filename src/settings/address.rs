//! Where servers and proxies are.

use std::fmt;

use crate::secret::{MASK, Secret};

/// `tls_hostname`: the server, and a path that stands before each endpoint's own, as it does for the built-in plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The host and port to connect to.
    pub address: HostPort,
    /// Empty, or from its first slash on.
    pub path: String,
}

/// A host name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A DNS name, an IPv4 address or a bracketed IPv6 address.
    pub host: String,
    /// The port, when it was given.
    pub port: Option<u16>,
}

/// An HTTP proxy that is asked to CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Host and port (3128 unless given).
    pub address: HostPort,
    /// User name and password, when given before an `@`.
    pub credentials: Option<(String, Secret)>,
}

impl Server {
    /// Reads `host[:port][/path]`; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        let valid = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&b));
        let address = HostPort::parse(address)?;
        valid.then(|| Self { address, path: path.to_owned() })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.address, self.path)
    }
}

impl HostPort {
    /// `host`, `host:port`, `[v6]` or `[v6]:port`; nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rfind(':') {
            Some(colon) if !text.ends_with(']') => (text.get(..colon)?, Some(text.get(colon + 1..)?.parse().ok()?)),
            _ => (text, None),
        };
        let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let valid = match address {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
        };
        (valid && port != Some(0)).then(|| Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// An address as it may be shown: what stands before an `@` can be a password.
#[must_use]
pub(crate) fn without_password(text: &str) -> String {
    text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, address)| format!("{MASK}@{address}"))
}

impl Proxy {
    const DEFAULT_PORT: u16 = 3128;

    /// Reads `[user:password@]host[:port]`; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (credentials, address) = match text.rsplit_once('@') {
            Some((credentials, address)) => {
                let (user, password) = credentials.split_once(':').filter(|(_, rest)| !rest.starts_with("//"))?;
                (Some((user.to_owned(), Secret::new(password))), address)
            }
            None => (None, text),
        };
        let mut address = HostPort::parse(address)?;
        address.port.get_or_insert(Self::DEFAULT_PORT);
        Some(Self { address, credentials })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_have_a_path() {
        for good in ["localhost", "fleet:8080/", "10.0.0.1/osquery", "[::1]:8443/a/b%20c"] {
            assert_eq!(Server::parse(good).unwrap().to_string(), good);
        }
        for bad in ["", "/osquery", "https://host", "host /path", "host/a b", "host/a?b", "host/a#b", "host/\n"] {
            assert_eq!(Server::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn servers_are_hosts_with_or_without_a_port() {
        for good in ["localhost", "fleet.example.com:8080", "10.0.0.1:443", "[::1]:8443", "[::1]", "a_b"] {
            assert_eq!(HostPort::parse(good).unwrap().to_string(), good);
        }
        for bad in ["", "https://host", "host:", "host:0", "host:99999", "host/path", "::1", "[::1", "ho st", "h@st"] {
            assert_eq!(HostPort::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_proxy_has_a_default_port_and_may_have_credentials() {
        assert_eq!(Proxy::parse("proxy").unwrap().address.to_string(), "proxy:3128");
        let proxy = Proxy::parse("me:p@ss@proxy:8080").unwrap();
        assert_eq!(proxy.address.to_string(), "proxy:8080");
        let (user, password) = proxy.credentials.unwrap();
        assert_eq!((user.as_str(), password.expose()), ("me", "p@ss"));
        assert_eq!(Proxy::parse("http://me:hunter2@proxy"), None);
    }
}
