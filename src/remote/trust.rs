//! Which server certificates are trusted: webpki's judgement, and beside it what osquery's OpenSSL judges otherwise and
//! people deploy.
//!
//! Only where `tls_server_certs` names the trust explicitly:
//! 1. a certificate without a DNS name in its subjectAltName whose subject CN is the host's name (osquery's own example
//!    has no subjectAltName at all);
//! 2. a self-signed server certificate in the bundle as itself, with `CA:TRUE` (what `openssl req -x509` makes);
//! 3. the same without basicConstraints.
//!
//! A certificate with a DNS name is judged by its subjectAltName alone, and in each case a wrong name, an expired
//! certificate, another issuer or a bad signature is refused.
//!
//! Everywhere, as OpenSSL and unlike webpki: an authority of the bundle counts while it is in its time (`roots`), and
//! an issuer of certificates must be meant to be one (keyUsage).
//!
//! Pins come on top of all that: one of the keys must be in the chain as it was verified, from the server's own certificate
//! to the authority in the bundle. What a server sends along besides counts for nothing: a server can send
//! certificates of others.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::asn1_rs::Any;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_SUBJECT_ALT_NAME, Oid};
use x509_parser::prelude::FromDer;

use super::algorithms::{ALGORITHMS, verify_by_pss_key};
use super::pem::elements;
use super::roots::{OutOfTime, Roots, is_for_servers, may_sign, seconds};
use crate::settings::Pin;

/// How the trust came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustKind {
    /// The operator named a bundle: its certificates may be meant as themselves.
    Explicit,
    /// osquery's default bundle of public authorities.
    Default,
}

/// Judges the certificates that servers show, by the rules above.
#[derive(Debug)]
pub struct ServerVerifier {
    /// Whose certificates are trusted. webpki takes whatever it is given for an authority, so that a server's pinned
    /// certificate must not be among them.
    roots: Roots,
    kind: TrustKind,
    /// The bundle's certificates as themselves.
    bundle: Vec<CertificateDer<'static>>,
    /// The keys of which one must be in the chain. Without keys every chain will do.
    pins: Vec<Pin>,
}

/// An intermediate certificate that would make the chain whole, if it were meant to sign others.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("an intermediate certificate of the server's is not meant to sign others (keyUsage)")]
struct MayNotSign;

/// The server's certificate is trusted, and its keys are not the ones that are pinned.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("neither the server's key nor that of an issuer is one of tls_pins")]
pub struct NotPinned;

impl NotPinned {
    /// Whether that is what is wrong with a certificate.
    #[must_use]
    pub fn is(error: &CertificateError) -> bool {
        matches!(error, CertificateError::Other(OtherError(inner)) if inner.is::<Self>())
    }
}

impl ServerVerifier {
    /// Trusts `bundle`; fails when none of its certificates is of use.
    pub fn new(bundle: Vec<CertificateDer<'static>>, kind: TrustKind) -> Result<Self, String> {
        let roots = Roots::of(&bundle);
        let pinned =
            kind == TrustKind::Explicit && bundle.iter().any(|certificate| is_self_signed(certificate) == Ok(true));
        if roots.is_empty() && !pinned {
            return Err(
                "it holds no certificate of an authority (CA:TRUE, and meant to sign those of servers)".to_owned()
            );
        }
        Ok(Self { roots, kind, bundle, pins: Vec::new() })
    }

    /// This verifier, which also wants one of these keys in the chain. Without keys every chain will do.
    #[must_use]
    pub fn pinned(self, pins: Vec<Pin>) -> Self {
        Self { pins, ..self }
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if self.kind == TrustKind::Explicit && self.bundle.contains(certificate) && is_self_signed(certificate)? {
            verify_pinned(certificate, now)?;
            verify_name(certificate, name, || true)?;
            return self.verify_pins(certificate, None);
        }
        self.verify_chain(&ParsedCertificate::try_from(certificate)?, intermediates, now)?;
        // Asked for only where there is no DNS name: it reads the whole bundle.
        let common_name_counts = || self.kind == TrustKind::Explicit && !self.has_name_constraints(intermediates);
        verify_name(certificate, name, common_name_counts)?;
        self.verify_pins(certificate, Some((intermediates, now)))
    }

    /// That a pinned key is in the chain, where any is pinned: the certificate's own, or one of a chain that makes it
    /// trusted.
    fn verify_pins(
        &self,
        certificate: &CertificateDer<'_>,
        issuers: Option<(&[CertificateDer<'_>], UnixTime)>,
    ) -> Result<(), rustls::Error> {
        if self.pins.is_empty() || self.pins.contains(&pin_of(certificate)?) {
            return Ok(());
        }
        let has_one =
            issuers.is_some_and(|(intermediates, now)| self.has_pinned_issuer(certificate, intermediates, now));
        if has_one { Ok(()) } else { Err(CertificateError::Other(OtherError(Arc::new(NotPinned))).into()) }
    }

    /// Whether there is a chain with a pinned key in it, among those that there are.
    fn has_pinned_issuer(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> bool {
        let is_pinned = |path: &VerifiedPath<'_>| {
            let sent = path.intermediate_certificates().map(|issuer| Pin::of(&issuer.subject_public_key_info()));
            let mut keys = sent.chain(self.roots.pin(path.anchor()));
            if keys.any(|key| self.pins.contains(&key)) { Ok(()) } else { Err(webpki::Error::UnknownIssuer) }
        };
        let (signers, valid) = (signers(intermediates), self.roots.valid(now));
        let usage = KeyUsage::server_auth();
        EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
            certificate
                .verify_for_usage(ALGORITHMS.all, &valid.roots, &signers, now, usage, None, Some(&is_pinned))
                .is_ok()
        })
    }

    fn verify_chain(
        &self,
        certificate: &ParsedCertificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let judge = |roots: &RootCertStore, intermediates: &[CertificateDer<'_>]| {
            verify_server_cert_signed_by_trust_anchor(certificate, roots, intermediates, now, ALGORITHMS.all)
        };
        let signers = signers(intermediates);
        let valid = self.roots.valid(now);
        let error = match judge(&valid, &signers) {
            Err(error @ rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => error,
            outcome => return outcome,
        };
        // With whom would it have been trusted?
        if signers.len() < intermediates.len() && judge(&valid, intermediates).is_ok() {
            return Err(CertificateError::Other(OtherError(Arc::new(MayNotSign))).into());
        }
        let reason = self.roots.out_of_time(now).find(|(root, _)| judge(root, &signers).is_ok());
        Err(reason.map_or(error, |(_, reason)| CertificateError::Other(OtherError(Arc::new(reason))).into()))
    }

    /// Whether any authority that may be in the chain is limited to some names. Those limits were judged against
    /// alternative names only, so a common name is not believed then.
    fn has_name_constraints(&self, intermediates: &[CertificateDer<'_>]) -> bool {
        let constrains = |certificate: &CertificateDer<'_>| {
            parse(certificate).map_or(true, |parsed| has_extension(&parsed, &OID_X509_EXT_NAME_CONSTRAINTS))
        };
        intermediates.iter().any(constrains) || self.bundle.iter().any(constrains)
    }
}

/// A self-signed certificate that is trusted as itself, whatever its basicConstraints.
fn verify_pinned(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let parsed = parse(certificate)?;
    if seconds(now) < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if seconds(now) > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    // As OpenSSL does: a certificate for clients is not accepted as a server's.
    if !is_for_servers(&parsed) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    verify_own_signature(certificate, &parsed)
}

/// That a certificate's signature is by its own key.
fn verify_own_signature(certificate: &CertificateDer<'_>, parsed: &X509Certificate<'_>) -> Result<(), rustls::Error> {
    // The parser's own judgement knows what is deployed mostly; then the algorithms that it doesn't know.
    if parsed.verify_signature(None).is_ok() || is_signed_by_itself(certificate, parsed) == Some(true) {
        return Ok(());
    }
    Err(CertificateError::BadSignature.into())
}

fn is_signed_by_itself(certificate: &CertificateDer<'_>, parsed: &X509Certificate<'_>) -> Option<bool> {
    let (_, whole) = Any::from_der(certificate).ok()?;
    // What is signed, how, and the signature.
    let named = elements(whole.data).get(1)?.data;
    let own = EndEntityCert::try_from(certificate).ok()?;
    let signature = parsed.signature_value.as_ref();
    let mut algorithms = ALGORITHMS.all.iter().filter(|algorithm| algorithm.signature_alg_id().as_ref() == named);
    let signed = parsed.tbs_certificate.as_ref();
    Some(algorithms.any(|&algorithm| own.verify_signature(algorithm, signed, signature).is_ok()))
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
        verify_tls12_signature(message, certificate, signature, &ALGORITHMS)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match verify_by_pss_key(message, certificate, signature) {
            Some(outcome) => outcome.map(|()| HandshakeSignatureValid::assertion()),
            None => verify_tls13_signature(message, certificate, signature, &ALGORITHMS),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

/// When a certificate expires, in Unix seconds; `None` for one that can't be read.
pub(super) fn expiry(certificate: &CertificateDer<'_>) -> Option<i64> {
    parse(certificate).ok().map(|parsed| parsed.validity().not_after.timestamp())
}

/// subjectAltName when it has a DNS name, else the subject's CN where it counts.
fn verify_name(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    common_name_counts: impl FnOnce() -> bool,
) -> Result<(), rustls::Error> {
    let parsed = parse(certificate)?;
    let dns = match name {
        ServerName::DnsName(dns) if !has_dns_name(&parsed) && common_name_counts() => dns,
        _ => return verify_server_name(&ParsedCertificate::try_from(certificate)?, name),
    };
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

/// Whether there is a DNS name in subjectAltName. In one that can't be parsed there may be.
fn has_dns_name(certificate: &X509Certificate<'_>) -> bool {
    match certificate.subject_alternative_name() {
        Ok(Some(names)) => names
            .value
            .general_names
            .iter()
            .any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::Invalid(..))),
        Ok(None) => has_extension(certificate, &OID_X509_EXT_SUBJECT_ALT_NAME),
        Err(_) => true,
    }
}

/// By its identifier: one that can't be parsed is there all the same.
fn has_extension(certificate: &X509Certificate<'_>, identifier: &Oid<'_>) -> bool {
    certificate.extensions().iter().any(|extension| extension.oid == *identifier)
}

/// The pin of a certificate: the SHA-256 of its public key.
fn pin_of(certificate: &CertificateDer<'_>) -> Result<Pin, rustls::Error> {
    Ok(Pin::of(parse(certificate)?.public_key().raw))
}

/// Those of a server's intermediate certificates that may have signed others.
fn signers<'a>(intermediates: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    intermediates.iter().filter(|certificate| is_signer(certificate)).cloned().collect()
}

/// Whether a server's intermediate certificate may have signed another one.
fn is_signer(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|parsed| may_sign(&parsed))
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
             (RSA of 2048 bits and more, ECDSA P-256, P-384 and P-521, Ed25519, with SHA-256 and better)"
                .to_owned()
        }
        Cert::Other(OtherError(inner))
            if inner.is::<OutOfTime>() || inner.is::<MayNotSign>() || inner.is::<NotPinned>() =>
        {
            inner.to_string()
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

/// What a handshake can agree on with us.
const OURS: &str =
    "TLS 1.2 and 1.3, the suites ECDHE with AES-GCM or ChaCha20-Poly1305, the curves X25519, P-256 and P-384";

fn explain_handshake(error: &rustls::Error) -> String {
    use rustls::AlertDescription as Alert;
    use rustls::PeerIncompatible as Peer;
    match error {
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS on this port".to_owned(),
        rustls::Error::AlertReceived(Alert::ProtocolVersion)
        | rustls::Error::PeerIncompatible(
            Peer::ServerDoesNotSupportTls12Or13 | Peer::ServerTlsVersionIsDisabledByOurConfig,
        ) => "the server speaks neither TLS 1.2 nor TLS 1.3".to_owned(),
        rustls::Error::PeerIncompatible(_) => format!("the server has nothing in common with us: {OURS} are ours"),
        rustls::Error::AlertReceived(Alert::HandshakeFailure) => format!(
            "the server refused the handshake: it has nothing in common with us ({OURS} are ours), or it wants a client \
             certificate (tls_client_cert, tls_client_key)"
        ),
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            "the server wants a client certificate (tls_client_cert, tls_client_key)".to_owned()
        }
        rustls::Error::InconsistentKeys(_) => {
            "the client certificate and its key don't belong together (tls_client_cert, tls_client_key)".to_owned()
        }
        rustls::Error::AlertReceived(
            Alert::BadCertificate | Alert::UnknownCA | Alert::CertificateExpired | Alert::CertificateUnknown,
        ) => format!("the server refused our client certificate ({error})"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
    use rustls_pki_types::pem::PemObject;
    use std::time::Duration;

    /// rustls serves no such certificate, so that this can't be tried with a server of the kit.
    #[test]
    fn a_version_1_certificate_is_refused_and_the_message_says_why() {
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let authority = certificate(include_str!("../../tests/kit/fixtures/v1-ca.pem"));
        let leaf = certificate(include_str!("../../tests/kit/fixtures/v1-leaf.pem"));
        let verifier = ServerVerifier::new(vec![authority], TrustKind::Explicit).unwrap();
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
            let verifier = ServerVerifier::new(vec![leaf.clone()], TrustKind::Explicit).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_900_000_000));
            verifier.verify_server_cert(&leaf, &[], &ServerName::try_from("localhost").unwrap(), &[], now)
        };
        assert!(judge(vec![]).is_ok());
        assert!(judge(vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]).is_ok());
        let error = judge(vec![ExtendedKeyUsagePurpose::ClientAuth]).unwrap_err();
        assert!(explain(&error).contains("not meant for TLS servers"), "{error:?}");
    }

    /// A bundle at osquery's default path can't be tried with the real binary.
    #[test]
    fn only_an_explicit_bundle_makes_names_and_certificates_count() {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_900_000_000));
        let host = ServerName::try_from("localhost").unwrap();
        let params = |name: &str, is_ca: IsCa| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = is_ca;
            params
        };
        let authority = params("authority", IsCa::Ca(BasicConstraints::Unconstrained));
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let leaf =
            params("localhost", IsCa::ExplicitNoCa).signed_by(&KeyPair::generate().unwrap(), &authority).unwrap();
        let itself = params("localhost", IsCa::NoCa).self_signed(&KeyPair::generate().unwrap()).unwrap();
        let judge = |kind: TrustKind, certificate: &rcgen::Certificate| {
            let bundle = vec![authority.der().clone(), itself.der().clone()];
            let verifier = ServerVerifier::new(bundle, kind).unwrap();
            verifier.verify_server_cert(certificate.der(), &[], &host, &[], now).map(drop)
        };
        for certificate in [&leaf, &itself] {
            judge(TrustKind::Explicit, certificate).unwrap();
            judge(TrustKind::Default, certificate).unwrap_err();
        }
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
