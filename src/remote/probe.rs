//! One connection to the server, made to look at it: by the same chain of connectors as every request's, up to the
//! end of the handshake. Nothing is sent over it.
//!
//! The chain that the server presents is seen before it is judged, so that it can be shown also when it is refused:
//! the judgement itself stays as it is, and a refused connection ends there.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use ureq::Agent;
use ureq::http::header::DATE;
use ureq::unversioned::transport::{ConnectionDetails, Connector, Either, Transport};

use super::proxy::ProxyConnector;
use super::resolver::{NoLookup, ResolvingConnector};
use super::tls::{TlsConnector, TlsTransport, Watch};
use super::transport::{ConnectionSettings, config};
use super::transport_error::TransportError;
use crate::lock::{Mutex, MutexGuard};
use crate::settings::Settings;

/// What a proxy is told of who looks; osqueryd, whose version it would be, is perhaps not there.
const USER_AGENT: &str = "osquery/0.0.0";

/// What a look at the server shows.
#[derive(Debug, Default)]
pub struct Look {
    /// Whether a connection was made, by way of the proxy if one is set.
    pub connected: bool,
    /// The certificates that the server presented, its own first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether the server asked for a client certificate.
    pub asked_for_certificate: bool,
    /// The version and suite of a handshake that succeeded.
    pub agreed: Option<String>,
    /// Why there was no such handshake.
    pub error: Option<TransportError>,
}

/// Connects to the configured server as a request would, and hangs up behind the handshake.
#[must_use]
pub fn look(settings: &Settings) -> Look {
    let witness = Arc::new(Witness::default());
    let error = connect(settings, &witness).err();
    let mut seen = witness.seen();
    let mut look = std::mem::take(&mut *seen);
    look.error = error.filter(|_| look.agreed.is_none());
    look
}

fn connect(settings: &Settings, witness: &Arc<Witness>) -> Result<(), TransportError> {
    let server = settings.server.as_ref().map_err(Clone::clone)?;
    let client = settings.tls.client.clone()?;
    let connection = ConnectionSettings::new(settings, USER_AGENT)?;
    let watch = Box::new(Observer::new(witness, Judgement::Ours));
    let connector =
        ().chain(ProxyConnector::new(connection.proxy.clone(), USER_AGENT))
            .chain(ResolvingConnector::new())
            .chain(Connected(Arc::clone(witness)))
            .chain(TlsConnector::with(&settings.tls, client, Arc::default(), Some(watch))?)
            .chain(Agreed(Arc::clone(witness)));
    let agent = Agent::with_parts(config(&connection)?, connector, NoLookup);
    // The last connector ends it before there is anything to send.
    agent.get(format!("https://{server}/")).call().map(drop).map_err(TransportError::from)
}

/// What the server's clock says, though its certificate is not trusted: only to tell an expired certificate from a
/// clock that is wrong. No secret is sent, and nothing but the time is believed.
#[must_use]
pub fn server_date(settings: &Settings) -> Option<SystemTime> {
    let server = settings.server.as_ref().ok()?;
    let client = settings.tls.client.clone().ok()?;
    let watch = Box::new(Observer::new(&Arc::new(Witness::default()), Judgement::Unjudged));
    let connection = ConnectionSettings::new(settings, USER_AGENT).ok()?;
    let connector =
        ().chain(ProxyConnector::new(connection.proxy.clone(), USER_AGENT))
            .chain(ResolvingConnector::new())
            .chain(TlsConnector::with(&settings.tls, client, Arc::default(), Some(watch)).ok()?);
    let agent = Agent::with_parts(config(&connection).ok()?, connector, NoLookup);
    let path = if settings.endpoints.enroll.starts_with('/') { &settings.endpoints.enroll } else { "/" };
    let response = agent.get(format!("https://{server}{path}")).call().ok()?;
    httpdate::parse_http_date(response.headers().get(DATE)?.to_str().ok()?).ok()
}

/// Sees what happens while a connection is made.
#[derive(Debug, Default)]
struct Witness(Mutex<Look>);

/// How the server's certificate is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// As for every request.
    Ours,
    /// Every certificate is accepted: only what the server sends is looked at.
    Unjudged,
}

/// Shows the chain, and that a client certificate is asked for, to a witness.
struct Observer {
    witness: Arc<Witness>,
    judgement: Judgement,
}

impl Observer {
    fn new(witness: &Arc<Witness>, judgement: Judgement) -> Self {
        Self { witness: Arc::clone(witness), judgement }
    }
}

impl Watch for Observer {
    fn verifier(&self, judge: Arc<dyn ServerCertVerifier>) -> Arc<dyn ServerCertVerifier> {
        Arc::new(Watching { witness: Arc::clone(&self.witness), judge, judgement: self.judgement })
    }

    fn resolver(&self, resolver: Arc<dyn ResolvesClientCert>) -> Arc<dyn ResolvesClientCert> {
        Arc::new(Asked { witness: Arc::clone(&self.witness), resolver })
    }
}

/// Notes that the server asks for a client certificate.
#[derive(Debug)]
struct Asked {
    witness: Arc<Witness>,
    resolver: Arc<dyn ResolvesClientCert>,
}

impl ResolvesClientCert for Asked {
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.witness.seen().asked_for_certificate = true;
        self.resolver.resolve(issuers, schemes)
    }

    fn has_certs(&self) -> bool {
        self.resolver.has_certs()
    }
}

impl Witness {
    fn seen(&self) -> MutexGuard<'_, Look> {
        self.0.lock()
    }
}

#[derive(Debug)]
struct Watching {
    witness: Arc<Witness>,
    judge: Arc<dyn ServerCertVerifier>,
    judgement: Judgement,
}

impl ServerCertVerifier for Watching {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        self.witness.seen().chain = chain.map(|certificate| certificate.clone().into_owned()).collect();
        match self.judgement {
            Judgement::Ours => {
                self.judge.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            Judgement::Unjudged => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}

/// Notes that the server, and not the proxy alone, was reached.
struct Connected(Arc<Witness>);

impl<In: Transport> Connector<In> for Connected {
    type Out = In;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<In>, ureq::Error> {
        if details.needs_tls() && chained.is_some() {
            self.0.seen().connected = true;
        }
        Ok(chained)
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connected")
    }
}

/// Notes the end of a handshake, and ends the attempt.
struct Agreed(Arc<Witness>);

impl<In: Transport> Connector<Either<In, TlsTransport>> for Agreed {
    type Out = Either<In, TlsTransport>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<Either<In, TlsTransport>>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        match chained {
            Some(Either::B(tls)) => {
                self.0.seen().agreed = Some(tls.agreed());
                Err(ureq::Error::ConnectionFailed)
            }
            // The way to the proxy.
            plain => Ok(plain),
        }
    }
}

impl fmt::Debug for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Agreed")
    }
}
