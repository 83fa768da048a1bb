//! The endpoints' URLs, with the customizations `tls_node_api` and `tls_secret_always`. Pure.

use std::fmt;

use crate::secret::{Secret, percent_encode};
use crate::settings::{HostPort, Server};

/// A URL to ask, and the same without secrets to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    full: String,
    shown: String,
}

/// What `tls_secret_always` adds: the secret's name and the secret.
pub(super) type SecretVariable<'a> = Option<(&'a str, &'a Secret)>;

impl Url {
    /// `https://<server><endpoint>` (with the path of `tls_hostname` between them, if it has one), and the secret with
    /// `tls_secret_always`.
    #[must_use]
    pub fn new(server: &Server, endpoint: &str, secret: SecretVariable<'_>) -> Self {
        Self::from_path(server, endpoint.to_owned(), endpoint.to_owned(), secret)
    }

    /// `https://<server>/<node key><endpoint>`, the secret, and the node key once more as a variable.
    ///
    /// The built-in plugins write a bare `&` before it also when there is no query yet; here it is a `?` then. Both
    /// percent-encode nothing; keys of unreserved characters are the same bytes in both.
    #[must_use]
    pub fn for_node(server: &Server, endpoint: &str, node_key: &Secret, secret: SecretVariable<'_>) -> Self {
        let key = node_key.percent_encoded();
        let mut url = Self::from_path(server, format!("/{key}{endpoint}"), format!("/<node_key>{endpoint}"), secret);
        url.add_variable("node_key", &key, "<node_key>");
        url
    }

    /// The whole URL, secrets included.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.full
    }

    fn from_path(server: &Server, path: String, shown_path: String, secret: SecretVariable<'_>) -> Self {
        let mut url = Self { full: format!("https://{server}{path}"), shown: format!("https://{server}{shown_path}") };
        if let Some((name, secret)) = secret {
            url.add_variable(&percent_encode(name), &secret.percent_encoded(), "<secret>");
        }
        url
    }

    fn add_variable(&mut self, name: &str, value: &str, shown: &str) {
        let separator = if self.full.contains('?') { '&' } else { '?' };
        self.full.push_str(&format!("{separator}{name}={value}"));
        self.shown.push_str(&format!("{separator}{name}={shown}"));
    }
}

/// The URL as it may be shown: secrets in it are masked.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Where a redirect leads, when it may be followed: over https, to the same host and port, nowhere else.
///
/// `location` is absolute, or relative to the host (`/path`), as in the redirects that the built-in client follows.
#[must_use]
pub fn same_host_redirect(server: &Server, location: &str) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("https://{}{location}", server.address));
    }
    let rest = location.strip_prefix("https://")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let target = HostPort::parse(authority)?;
    let same_port = target.port.unwrap_or(443) == server.address.port.unwrap_or(443);
    (same_port && target.host.eq_ignore_ascii_case(&server.address.host)).then(|| location.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server::parse("localhost:8443").unwrap()
    }

    #[test]
    fn a_plain_endpoint() {
        assert_eq!(Url::new(&server(), "/log", None).expose(), "https://localhost:8443/log");
    }

    /// The case doctor-flags/path-in-tls_hostname (osquery#6162): osqueryd takes a path in `tls_hostname` as it is.
    #[test]
    fn the_host_s_path_stands_before_each_endpoint() {
        let server = Server::parse("fleet.example.com:8443/osquery").unwrap();
        assert_eq!(Url::new(&server, "/log", None).expose(), "https://fleet.example.com:8443/osquery/log");
        let url = Url::for_node(&server, "/config", &Secret::new("k-1"), None);
        assert_eq!(url.expose(), "https://fleet.example.com:8443/osquery/k-1/config?node_key=k-1");
        let with_slash = Server::parse("fleet.example.com:8443/").unwrap();
        assert_eq!(Url::new(&with_slash, "/log", None).expose(), "https://fleet.example.com:8443//log");
        let elsewhere = same_host_redirect(&server, "/elsewhere");
        assert_eq!(elsewhere.as_deref(), Some("https://fleet.example.com:8443/elsewhere"));
    }

    #[test]
    fn the_secret_joins_an_existing_query() {
        let secret = Secret::new("s3cr3t/with+odd=chars");
        let url = Url::new(&server(), "/enroll?tenant=1", Some(("enroll_secret", &secret)));
        assert_eq!(url.expose(), "https://localhost:8443/enroll?tenant=1&enroll_secret=s3cr3t%2Fwith%2Bodd%3Dchars");
        assert_eq!(url.to_string(), "https://localhost:8443/enroll?tenant=1&enroll_secret=<secret>");
    }

    #[test]
    fn the_node_api_puts_the_key_in_front_and_behind() {
        let key = Secret::new("q/8Z+ \"é");
        let url = Url::for_node(&server(), "/config", &key, None);
        assert_eq!(url.expose(), "https://localhost:8443/q%2F8Z%2B%20%22%C3%A9/config?node_key=q%2F8Z%2B%20%22%C3%A9");
        assert_eq!(url.to_string(), "https://localhost:8443/<node_key>/config?node_key=<node_key>");
        let secret = Secret::new("s3cret");
        let url = Url::for_node(&server(), "/log", &Secret::new("k-1"), Some(("deploy_key", &secret)));
        assert_eq!(url.expose(), "https://localhost:8443/k-1/log?deploy_key=s3cret&node_key=k-1");
    }

    #[test]
    fn redirects_stay_with_the_host() {
        let server = server();
        for good in ["/elsewhere?a=b", "https://LOCALHOST:8443/x", "https://localhost:8443?x"] {
            assert!(same_host_redirect(&server, good).is_some(), "{good}");
        }
        let bad = ["http://localhost:8443/x", "https://localhost/x", "https://evil:8443/", "//evil/x", "x", ""];
        for bad in bad.into_iter().chain(["https://localhost:8443@evil/", "https://evil/#localhost:8443"]) {
            assert_eq!(same_host_redirect(&server, bad), None, "{bad}");
        }
        let default_port = Server::parse("fleet").unwrap();
        assert!(same_host_redirect(&default_port, "https://fleet:443/x").is_some());
    }
}
