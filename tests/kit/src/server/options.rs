//! How a server is to be.

use std::sync::Arc;

use serde_json::{Value, json};

use super::recorded::Recorded;
use super::tls::TlsVersions;
use crate::certs::{self, Identity};

/// Called with each request once its answer is decided, before it is sent.
pub type Observer = Arc<dyn Fn(&Recorded) + Send + Sync>;

/// What one request brought that default behaviour accepts.
#[derive(Clone, Copy, Debug)]
pub enum Taken<'a> {
    /// Result lines.
    Results(&'a [Value]),
    /// Status lines.
    Statuses(&'a [Value]),
    /// The body of a `distributed_write`.
    Written(&'a Value),
}

/// Called with what is accepted, before it is answered. The server waits for it, and must not be called from it.
pub type Drain = Arc<dyn Fn(Taken<'_>) + Send + Sync>;

/// How a server is to be. The default has any free port, TLS with a certificate of
/// [`certs::default_authority`] for `localhost`, 127.0.0.1 and `::1`, keeps connections alive, and takes any secret.
#[derive(Clone)]
pub struct Options {
    /// The port on 127.0.0.1; 0 for any that is free.
    pub port: u16,
    /// The server's certificate chain and key.
    pub identity: Identity,
    /// The authority of client certificates: one is demanded on every connection when this is set.
    pub client_ca_pem: Option<String>,
    /// When set, an enrollment with another secret is answered `node_invalid`.
    pub enroll_secret: Option<String>,
    /// The member of the enroll request that holds the secret.
    pub secret_name: String,
    /// When false, answers are HTTP/1.0 with `Connection: close`, and the connection closes behind each.
    pub keep_alive: bool,
    /// When true, log requests without `Content-Encoding: gzip` are answered 400.
    pub require_gzip: bool,
    /// `Some(3)`: every third config request with a valid key is answered `node_invalid`, and the key forgotten.
    pub invalid_every: Option<u32>,
    /// Whether a config request with an `etag` is answered with one, and shortly where it is still right, as new servers do.
    pub etags: bool,
    /// The versions of TLS it speaks.
    pub tls_versions: TlsVersions,
    /// The configuration it serves.
    pub config: Value,
    /// When false, plain HTTP.
    pub tls: bool,
    /// Sees each request, too.
    pub observer: Option<Observer>,
    /// Gets what is accepted; the server then keeps no lines, results, requests or failed handshakes, and can run for
    /// days.
    pub drain: Option<Drain>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            port: 0,
            identity: certs::default_authority().issue_server(&["localhost", "127.0.0.1", "::1"]),
            client_ca_pem: None,
            enroll_secret: None,
            secret_name: "enroll_secret".to_owned(),
            keep_alive: true,
            require_gzip: false,
            invalid_every: None,
            etags: false,
            tls_versions: TlsVersions::Both,
            config: example_config(),
            tls: true,
            observer: None,
            drain: None,
        }
    }
}

/// A configuration that schedules one query a second.
pub fn example_config() -> Value {
    json!({
        "schedule": {
            "clock": { "query": "SELECT unix_time FROM time", "interval": 1 }
        }
    })
}
