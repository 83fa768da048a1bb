//! Why a request has no answer: what ureq, and our own parts of its chain of connectors, report.

use std::fmt;
use std::io;

use super::tls::TlsError;
use crate::settings::{HostPort, Proxy, SettingError};

/// Why no answer was got.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A flag that the connection needs is unusable.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Trust, certificates or the handshake.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A name has no address.
    #[error(transparent)]
    HostNotFound(#[from] HostNotFound),
    /// The connection could not be made.
    #[error("can't connect")]
    Connect(#[source] io::Error),
    /// The proxy refused, can't be reached, or doesn't answer as an HTTP proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// A step took too long.
    #[error("timed out ({0})")]
    Timeout(Step),
    /// The connection broke after it was made.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The redirect leads elsewhere, or nowhere.
    #[error("redirected {0}: not followed")]
    Redirect(String),
    /// The answer is too large to be one.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(u64),
    /// The answer's body is compressed although that was not asked for, or in another way.
    #[error("the answer is encoded in a way that was not asked for: {0:?}")]
    Encoded(String),
    /// The answer's body is not compressed as its header says.
    #[error("the answer says that it is gzip, and is not")]
    NotGzip,
    /// The process is ending.
    #[error("ending")]
    Ending,
}

impl TransportError {
    /// Whether the server can't be reached, or doesn't answer in time: no flag is at fault, nor an answer.
    #[must_use]
    pub fn is_of_the_connection(&self) -> bool {
        matches!(self, Self::HostNotFound(_) | Self::Connect(_) | Self::Proxy(_) | Self::Timeout(_) | Self::Broken(_))
    }
}

/// A step of a request.
#[derive(Clone, Copy, Debug)]
pub struct Step(ureq::Timeout);

impl Step {
    /// Whether nothing has been sent yet.
    #[must_use]
    pub fn is_connecting(self) -> bool {
        matches!(self.0, ureq::Timeout::Resolve | ureq::Timeout::Connect)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            ureq::Timeout::Resolve => "the server's name was not resolved",
            ureq::Timeout::Connect => "no connection was made",
            ureq::Timeout::SendRequest | ureq::Timeout::SendBody | ureq::Timeout::Await100 => {
                "the server did not take the request"
            }
            ureq::Timeout::RecvResponse => "no answer came",
            ureq::Timeout::RecvBody => "the answer did not come to its end",
            _ => "the request was not done within request_timeout",
        })
    }
}

/// Why a proxy gave no connection.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {address} gave no connection")]
pub struct ProxyError {
    address: HostPort,
    source: BoxedError,
}

impl ProxyError {
    pub(super) fn new(proxy: &Proxy, source: impl Into<BoxedError>) -> Self {
        Self { address: proxy.address.clone(), source: source.into() }
    }
}

/// A name that has no address.
#[derive(Debug, thiserror::Error)]
#[error("the name {host} can't be resolved")]
pub struct HostNotFound {
    pub(super) host: String,
    pub(super) source: BoxedError,
}

/// The cause of an error that comes through ureq.
pub(super) type BoxedError = Box<dyn std::error::Error + Send + Sync>;

impl From<ureq::Error> for TransportError {
    fn from(error: ureq::Error) -> Self {
        use io::ErrorKind::{
            AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, PermissionDenied,
        };
        match error {
            ureq::Error::Timeout(step) => Self::Timeout(Step(step)),
            ureq::Error::Io(error) => match error.kind() {
                ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable
                | PermissionDenied => Self::Connect(error),
                // What a reader of the body wraps.
                _ => match error.downcast::<ureq::Error>() {
                    Ok(inner) => Self::from(inner),
                    Err(error) => Self::Broken(error.to_string()),
                },
            },
            ureq::Error::Other(error) => Self::from_connector(error),
            other => Self::Broken(other.to_string()),
        }
    }
}

impl TransportError {
    /// What our own parts of the connector chain, and the resolver, report.
    fn from_connector(error: BoxedError) -> Self {
        let error = match error.downcast::<TlsError>() {
            Ok(error) => return Self::Tls(*error),
            Err(error) => error,
        };
        let error = match error.downcast::<ProxyError>() {
            Ok(error) => return Self::Proxy(*error),
            Err(error) => error,
        };
        match error.downcast::<HostNotFound>() {
            Ok(error) => Self::HostNotFound(*error),
            Err(error) => Self::Broken(error.to_string()),
        }
    }
}
