//! The remote TLS API: what is sent where, how the answer is judged, and who this node is.
//!
//! Pure: `endpoint`, `url` (with the customizations that change URLs), [`api`] (answers, and `body`, what requests carry) and
//! [`configuration`] (what osqueryd takes for one), `outages` (when a server that is not well is asked). With a network: `trust` (of `roots` and `algorithms`) below `tls`
//! (`pem` reads its files), `proxy` and `resolver`, each within a `deadline`, below `transport` (HTTP, with `gzip`) below `request` (built, sent,
//! judged, noted in `stats`; an operator's `headers`) below `node` (with the node key, from one of the `servers`). `enroll` alone touches the node key; `host` asks osqueryd about this
//! host. `probe` connects for the doctor's sake, and so does `old_tls`.

mod algorithms;
pub mod api;
mod body;
pub mod configuration;
mod deadline;
mod endpoint;
mod enroll;
mod error;
mod gzip;
mod headers;
mod host;
mod node;
mod node_key;
mod old_tls;
mod outages;
mod pem;
mod probe;
mod proxy;
mod request;
mod resolver;
mod roots;
mod servers;
mod stats;
mod tls;
mod transport;
mod transport_error;
mod trust;
mod url;

pub use self::endpoint::Endpoint;
pub use self::enroll::{EnrollError, Enrollment, EnrollmentStatus, Enrollments, mask_stored_keys, stored_key};
pub use self::error::RemoteError;
pub use self::headers::{Headers, HeadersError};
pub use self::host::{Host, HostError};
pub use self::node::Node;
pub use self::old_tls::old_version;
pub use self::probe::{Look, look, server_date};
pub use self::request::{
    Applicant, Blame, Request, RequestError, Requests, SecretError, enroll_secret, key_place, shown_url,
};
pub use self::servers::Servers;
pub use self::stats::{EndpointStats, Stats};
pub use self::tls::{Expiries, TlsError, Traffic, bundle, certificates, check_files};
pub use self::transport::{Answer, Encoding, Method, Outgoing, Transport, read_body, retry_after};
pub use self::transport_error::{HostNotFound, ProxyError, Step, TransportError};
pub use self::trust::{NotPinned, ServerVerifier, TrustKind, explain};
pub use self::url::{Url, same_host_redirect};
