//! Which server certificates are trusted: webpki's judgement, and beside it the three kinds of certificate that
//! osquery's OpenSSL accepts, webpki doesn't, and people deploy.
//!
//! Only where `tls_server_certs` names the trust explicitly:
//! 1. a certificate without subjectAltName whose subject CN is the host's name (osquery's own example is one);
//! 2. a self-signed server certificate in the bundle as itself, with `CA:TRUE` (what `openssl req -x509` makes);
//! 3. the same without basicConstraints.
//!
//! A certificate with subjectAltName is judged by that alone, and in each case a wrong name, an expired
//! certificate, another issuer or a bad signature is refused.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::EndEntityCert;
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::{OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_SUBJECT_ALT_NAME, Oid};
use x509_parser::prelude::{FromDer, X509Version};

/// How the trust came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustKind {
    /// The operator named a bundle: its certificates may be meant as themselves.
    Explicit,
    /// osquery's default bundle of public authorities.
    Default,
}

/// Judges server certificates.
#[derive(Debug)]
pub struct ServerVerifier {
    /// Judges chains; `None` where nothing but pinned certificates is trusted.
    webpki: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
    kind: TrustKind,
    /// The bundle's certificates as themselves.
    bundle: Vec<CertificateDer<'static>>,
}

impl ServerVerifier {
    /// Trusts `bundle`; fails when none of its certificates is of use.
    pub fn new(
        bundle: Vec<CertificateDer<'static>>,
        kind: TrustKind,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        // webpki takes whatever it is given for an authority: a server's pinned certificate must not be one.
        roots.add_parsable_certificates(bundle.iter().filter(|certificate| is_authority(certificate)).cloned());
        let pinned =
            kind == TrustKind::Explicit && bundle.iter().any(|certificate| is_self_signed(certificate) == Ok(true));
        if roots.is_empty() && !pinned {
            return Err("it holds no usable certificate".to_owned());
        }
        // Judges names, handshake signatures and, where there are authorities, chains.
        let algorithms = provider.signature_verification_algorithms;
        let webpki = match roots.is_empty() {
            true => None,
            false => Some(
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| error.to_string())?,
            ),
        };
        Ok(Self { webpki, algorithms, kind, bundle })
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if self.kind == TrustKind::Explicit && self.bundle.contains(certificate) && is_self_signed(certificate)? {
            return self.verify_pinned(certificate, name, now);
        }
        let Some(webpki) = &self.webpki else { return Err(CertificateError::UnknownIssuer.into()) };
        match webpki.verify_server_cert(certificate, intermediates, name, &[], now) {
            // The name is judged last: the chain is good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.kind == TrustKind::Explicit && !self.has_name_constraints(intermediates) => {
                verify_name(certificate, name)
            }
            outcome => outcome.map(drop),
        }
    }

    /// Whether any authority that may be in the chain is limited to some names. Those limits were judged against
    /// alternative names only, so a common name is not believed then.
    fn has_name_constraints(&self, intermediates: &[CertificateDer<'_>]) -> bool {
        let constrains = |certificate: &CertificateDer<'_>| {
            parse(certificate).map_or(true, |parsed| has_extension(&parsed, &OID_X509_EXT_NAME_CONSTRAINTS))
        };
        intermediates.iter().any(constrains) || self.bundle.iter().any(constrains)
    }

    /// A self-signed certificate that is trusted as itself, whatever its basicConstraints.
    fn verify_pinned(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let parsed = parse(certificate)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < parsed.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > parsed.validity().not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        // As OpenSSL does: a certificate for clients is none for servers.
        let usage = parsed.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
        if usage.is_some_and(|usage| !usage.value.server_auth) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        // With its own key.
        parsed.verify_signature(None).map_err(|_| CertificateError::BadSignature)?;
        verify_name(certificate, name)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, server_name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// When a certificate expires, in Unix seconds; `None` for one that can't be read.
pub(super) fn expiry(certificate: &CertificateDer<'_>) -> Option<i64> {
    parse(certificate).ok().map(|parsed| parsed.validity().not_after.timestamp())
}

/// subjectAltName when there is one, else the subject's CN.
fn verify_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), rustls::Error> {
    let parsed = parse(certificate)?;
    if has_alternative_names(&parsed) {
        return end_entity(certificate)?.verify_is_valid_for_subject_name(name).map_err(other);
    }
    let ServerName::DnsName(dns) = name else { return Err(CertificateError::NotValidForName.into()) };
    let matches = parsed
        .subject()
        .iter_common_name()
        .filter_map(|common_name| common_name.as_str().ok())
        .any(|common_name| matches_host(common_name, dns.as_ref()));
    if matches { Ok(()) } else { Err(CertificateError::NotValidForName.into()) }
}

/// A common name as OpenSSL takes it: the host's name, or `*.` in place of its first label.
fn matches_host(common_name: &str, host: &str) -> bool {
    if common_name.eq_ignore_ascii_case(host) {
        return true;
    }
    match (common_name.strip_prefix("*."), host.split_once('.')) {
        (Some(domain), Some((label, rest))) => {
            !label.is_empty() && domain.contains('.') && domain.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

fn has_alternative_names(certificate: &X509Certificate<'_>) -> bool {
    has_extension(certificate, &OID_X509_EXT_SUBJECT_ALT_NAME)
}

/// By its identifier: one that can't be parsed is there all the same.
fn has_extension(certificate: &X509Certificate<'_>, identifier: &Oid<'_>) -> bool {
    certificate.extensions().iter().any(|extension| extension.oid == *identifier)
}

/// Whether a certificate may issue others: `CA:TRUE`, or of version 1, which knows no such extension.
fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|parsed| parsed.is_ca() || parsed.version() == X509Version::V1)
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> Result<bool, rustls::Error> {
    let parsed = parse(certificate)?;
    Ok(parsed.subject().as_raw() == parsed.issuer().as_raw())
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, rustls::Error> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}

fn end_entity<'a>(certificate: &'a CertificateDer<'_>) -> Result<EndEntityCert<'a>, rustls::Error> {
    EndEntityCert::try_from(certificate).map_err(other)
}

fn other(error: webpki::Error) -> rustls::Error {
    let error = match error {
        webpki::Error::CertNotValidForName(_) => CertificateError::NotValidForName,
        error => CertificateError::Other(OtherError(Arc::new(error))),
    };
    error.into()
}

/// A handshake's error in words that name the cause and the remedy.
#[must_use]
pub fn explain(error: &rustls::Error) -> String {
    use CertificateError as Cert;
    let rustls::Error::InvalidCertificate(certificate) = error else { return explain_handshake(error) };
    match certificate {
        Cert::Expired | Cert::ExpiredContext { .. } => "the server's certificate has expired".to_owned(),
        Cert::NotValidYet | Cert::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet (is this host's clock right?)".to_owned()
        }
        Cert::UnknownIssuer => "the server's certificate is not issued by an authority in tls_server_certs".to_owned(),
        Cert::BadSignature => "the server's certificate has a bad signature".to_owned(),
        Cert::NotValidForName | Cert::NotValidForNameContext { .. } => {
            "the server's certificate is for another name than tls_hostname".to_owned()
        }
        Cert::InvalidPurpose | Cert::InvalidPurposeContext { .. } => {
            "the server's certificate is not meant for TLS servers (extendedKeyUsage)".to_owned()
        }
        Cert::UnsupportedSignatureAlgorithmContext { .. }
        | Cert::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the server's certificate is signed with a weak or unsupported algorithm or key \
             (RSA of 2048 bits and more, ECDSA P-256 and P-384, Ed25519, with SHA-256 and better)"
                .to_owned()
        }
        Cert::Other(OtherError(inner)) => match inner.downcast_ref::<webpki::Error>() {
            Some(webpki::Error::UnsupportedCertVersion) => {
                "the server's certificate is of X.509 version 1, which is not supported: issue one of version 3"
                    .to_owned()
            }
            Some(webpki::Error::CaUsedAsEndEntity) => {
                "the server's certificate is an authority's (CA:TRUE), and tls_server_certs does not hold it itself"
                    .to_owned()
            }
            _ => format!("the server's certificate is refused: {inner}"),
        },
        other => format!("the server's certificate is refused: {other}"),
    }
}

fn explain_handshake(error: &rustls::Error) -> String {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS on this port".to_owned(),
        rustls::Error::PeerIncompatible(reason) => {
            format!(
                "the server supports none of our versions or suites (TLS 1.2 and 1.3, ECDHE with AES-GCM or ChaCha20): {reason:?}"
            )
        }
        rustls::Error::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => format!(
            "the server refused ({error}); it may ask for a client certificate (tls_client_cert, tls_client_key)"
        ),
        rustls::Error::AlertReceived(
            Alert::BadCertificate | Alert::UnknownCA | Alert::CertificateExpired | Alert::CertificateUnknown,
        ) => format!("the server refused our client certificate ({error})"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
    use rustls::crypto::ring;
    use rustls_pki_types::pem::PemObject;
    use std::time::Duration;

    /// rustls serves no such certificate, so that this can't be tried with a server of the kit.
    #[test]
    fn a_version_1_certificate_is_refused_and_the_message_says_why() {
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let authority = certificate(include_str!("../../tests/kit/fixtures/v1-ca.pem"));
        let leaf = certificate(include_str!("../../tests/kit/fixtures/v1-leaf.pem"));
        let provider = Arc::new(ring::default_provider());
        let verifier = ServerVerifier::new(vec![authority], TrustKind::Explicit, provider).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_900_000_000));
        let name = ServerName::try_from("localhost").unwrap();
        let error = verifier.verify_server_cert(&leaf, &[], &name, &[], now).unwrap_err();
        assert!(explain(&error).contains("X.509 version 1, which is not supported"), "{error:?}");
    }

    #[test]
    fn a_pinned_certificate_for_clients_is_none_for_servers() {
        let judge = |usages: Vec<ExtendedKeyUsagePurpose>| {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.extended_key_usages = usages;
            let leaf = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone();
            let provider = Arc::new(ring::default_provider());
            let verifier = ServerVerifier::new(vec![leaf.clone()], TrustKind::Explicit, provider).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_900_000_000));
            verifier.verify_server_cert(&leaf, &[], &ServerName::try_from("localhost").unwrap(), &[], now)
        };
        assert!(judge(vec![]).is_ok());
        assert!(judge(vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]).is_ok());
        let error = judge(vec![ExtendedKeyUsagePurpose::ClientAuth]).unwrap_err();
        assert!(explain(&error).contains("not meant for TLS servers"), "{error:?}");
    }

    #[test]
    fn a_common_name_matches_like_a_host_name() {
        assert!(matches_host("localhost", "LOCALHOST"));
        assert!(matches_host("*.example.com", "fleet.example.com"));
        for (common_name, host) in [
            ("*.example.com", "example.com"),
            ("*.example.com", "a.b.example.com"),
            ("*.com", "example.com"),
            ("*", "localhost"),
            ("localhost", "localhost.evil"),
            ("", "localhost"),
        ] {
            assert!(!matches_host(common_name, host), "{common_name} {host}");
        }
    }
}
