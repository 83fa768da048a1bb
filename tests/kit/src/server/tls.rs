//! The server's side of TLS: protocol versions, its identity, and whose client certificates it demands.

use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::Options;
use super::keys::signing_key;

/// The versions of TLS that a server speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// 1.2 and 1.3.
    #[default]
    Both,
    /// Only 1.2.
    Tls12,
    /// Only 1.3.
    Tls13,
}

impl TlsVersions {
    fn supported(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            TlsVersions::Both => vec![&version::TLS12, &version::TLS13],
            TlsVersions::Tls12 => vec![&version::TLS12],
            TlsVersions::Tls13 => vec![&version::TLS13],
        }
    }
}

/// What accepts TLS connections by these options; unusable certificates and keys are `InvalidInput`.
pub(super) fn acceptor(options: &Options) -> io::Result<TlsAcceptor> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&options.tls_versions.supported())
        .map_err(|error| invalid("TLS versions", &error))?;
    let builder = match &options.client_ca_pem {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem, "client CA")? {
                roots.add(certificate).map_err(|error| invalid("client CA", &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| invalid("client CA", &error))?)
        }
    };
    let chain = certificates(&options.identity.cert_pem, "server certificate")?;
    let key = PrivateKeyDer::from_pem_slice(options.identity.key_pem.as_bytes())
        .map_err(|error| invalid("server private key", &error))?;
    let key = chain.first().map(|certificate| signing_key(&key, certificate));
    let key = key.transpose().map_err(|error| invalid("server private key", &error))?;
    let key = key.ok_or_else(|| invalid("server certificate", &"no certificate in it"))?;
    let identity = CertifiedKey::new(chain, key);
    identity.keys_match().or_else(unless_unknown).map_err(|error| invalid("server certificate and key", &error))?;
    Ok(TlsAcceptor::from(Arc::new(builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity))))))
}

/// Whether a key of ours belongs to the certificate, rustls can't say.
fn unless_unknown(error: rustls::Error) -> Result<(), rustls::Error> {
    match error {
        rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown) => Ok(()),
        error => Err(error),
    }
}

fn certificates(pem: &str, what: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let certificates = certificates.map_err(|error| invalid(what, &error))?;
    if certificates.is_empty() {
        return Err(invalid(what, &"no certificate in it"));
    }
    Ok(certificates)
}

fn invalid(what: &str, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use rustls::{ClientConfig, ClientConnection, ProtocolVersion, StreamOwned};

    use super::*;
    use crate::certs::{self, Authority, Identity};
    use crate::server::{Answer, Endpoint, Server};

    /// One enrollment: the version of TLS it was made with, and the answer.
    fn enroll(server: &Server, ca_pem: &str, client: Option<&Identity>) -> io::Result<(ProtocolVersion, String)> {
        let mut roots = RootCertStore::empty();
        certificates(ca_pem, "CA")?.into_iter().for_each(|certificate| roots.add(certificate).unwrap());
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(certificates(&identity.cert_pem, "client")?, key).unwrap()
            }
        };
        let tls = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(tls, TcpStream::connect(("127.0.0.1", server.port()))?);
        stream.write_all(
            b"POST /enroll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        )?;
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            // A connection that was just dropped.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            _ => Ok((stream.conn.protocol_version().unwrap(), answer)),
        }
    }

    #[test]
    fn it_speaks_the_versions_asked_for() {
        let ca = certs::default_authority().cert_pem();
        for (tls_versions, spoken) in [
            (TlsVersions::Both, ProtocolVersion::TLSv1_3),
            (TlsVersions::Tls13, ProtocolVersion::TLSv1_3),
            (TlsVersions::Tls12, ProtocolVersion::TLSv1_2),
        ] {
            let server = Server::start(Options { tls_versions, ..Options::default() }).unwrap();
            let (version, answer) = enroll(&server, &ca, None).unwrap();
            assert_eq!(version, spoken);
            assert!(answer.ends_with(r#"{"node_key":"node-key-1"}"#), "{answer}");
        }
    }

    #[test]
    fn only_clients_of_the_named_authority_get_in() {
        let ca = certs::default_authority().cert_pem();
        let clients = Authority::new("clients");
        let server = Server::start(Options { client_ca_pem: Some(clients.cert_pem()), ..Options::default() }).unwrap();
        enroll(&server, &ca, None).unwrap_err();
        enroll(&server, &ca, Some(&Authority::new("others").issue_client("host"))).unwrap_err();
        let both = |server: &Server| (server.handshake_errors().len() == 2).then_some(());
        server.wait("two failed handshakes", Duration::from_secs(5), both);
        assert_eq!(server.connections(), 0);
        enroll(&server, &ca, Some(&clients.issue_client("host"))).unwrap();
        assert_eq!((server.connections(), server.requests().len()), (1, 1));
    }

    #[test]
    fn customised_certificates_are_as_customised() {
        let authority = Authority::new("another");
        let expired = authority.issue_server_with(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
        let server = Server::start(Options { identity: expired, ..Options::default() }).unwrap();
        let error = enroll(&server, &authority.cert_pem(), None).unwrap_err();
        assert!(error.to_string().contains("expired"), "{error}");
    }

    #[test]
    fn faults_are_the_same_behind_tls() {
        let ca = certs::default_authority().cert_pem();
        let server = Server::start(Options::default()).unwrap();
        let faults = [Answer::drop_connection(), Answer::drop_mid_request(), Answer::truncated("{\"a", 9)];
        server.script(Endpoint::Enroll, faults);
        assert_eq!(enroll(&server, &ca, None).unwrap().1, "");
        assert_eq!(enroll(&server, &ca, None).unwrap().1, "");
        assert!(enroll(&server, &ca, None).unwrap().1.ends_with("\r\n\r\n{\"a"));
    }
}
