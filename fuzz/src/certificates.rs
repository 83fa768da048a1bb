//! Server certificates: no name is believed that is not there.
//!
//! The input's first byte says which of three it is:
//! * a certificate's bytes, behind a host's name and a line's end. What is in it to be signed is signed anew, so that
//!   no signature stands in the way of the names. A certificate that is accepted must have the host's name as a value of DER;
//! * a bundle of PEM. A good server is accepted only if its authority's key is in there;
//! * a certificate built from parts, of which is known what must be refused, and what must not.

use std::net::IpAddr;
use std::time::Duration;

use arbitrary::Arbitrary;
use osquery_remote_tls::remote::{ServerVerifier, TrustKind, explain};
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::der::{
    self, AUTHORITY, Attribute, AttributeKind, Certificate, Constraints, LIMITED_AUTHORITY, Signer, Usage, VALID, tag,
};
use crate::many;

/// The name that well-formed certificates are mostly for.
pub const HOST: &str = "fleet.example.com";

/// Tries one input.
pub fn run(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else { return };
    let kind = if first & 4 == 0 { TrustKind::Explicit } else { TrustKind::Default };
    match first & 3 {
        0 => check_bytes(rest, kind, Signer::Server),
        1 => check_bytes(rest, kind, Signer::Authority),
        2 => check_bundle(rest, kind),
        _ => {
            check_case(&Case::changed(many(rest)));
        }
    }
}

/// Whether a server with this certificate is accepted under this name.
fn accepts(
    bundle: Vec<CertificateDer<'static>>,
    kind: TrustKind,
    leaf: &CertificateDer<'_>,
    host: &str,
    now: u64,
) -> bool {
    let Ok(verifier) = ServerVerifier::new(bundle, kind) else { return false };
    let Ok(name) = ServerName::try_from(host) else { return false };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    match verifier.verify_server_cert(leaf, &[], &name, &[], now) {
        Ok(_) => true,
        Err(error) => {
            assert!(!explain(&error).is_empty());
            false
        }
    }
}

fn check_bytes(rest: &[u8], kind: TrustKind, signer: Signer) {
    let end = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
    let host = String::from_utf8_lossy(&rest[..end]);
    let certificate = rest.get(end + 1..).unwrap_or_default();
    let to_be_signed = der::first(certificate).and_then(|(_, content)| der::first(content));
    let leaf = der::sign(to_be_signed.map_or(certificate, |(whole, _)| whole), signer);
    let bundle = match signer {
        Signer::Authority => AUTHORITY.clone(),
        _ => leaf.clone(),
    };
    if accepts(vec![bundle], kind, &leaf, &host, VALID.start + 1) {
        assert!(stands_in(&host, &leaf), "{host} is not in this certificate");
    }
}

/// Whether a certificate's bytes hold this name, or one with `*.` in place of its first label, as a value of DER.
fn stands_in(host: &str, certificate: &[u8]) -> bool {
    if let Ok(address) = host.parse::<IpAddr>() {
        return contains(certificate, &der::value(tag::IP_ADDRESS, &octets(address)));
    }
    let certificate = certificate.to_ascii_lowercase();
    let host = canonical(host);
    let wildcard = host.split_once('.').map(|(_, domain)| format!("*.{domain}"));
    // A tag or a length may be changed by lower case; that is the same for both sides.
    let is_there = |tag: u8, name: &str| contains(&certificate, &der::value(tag, name.as_bytes()).to_ascii_lowercase());
    [tag::DNS_NAME, tag::UTF8, tag::PRINTABLE, tag::TELETEX, tag::IA5]
        .iter()
        .any(|&tag| is_there(tag, &host) || wildcard.as_ref().is_some_and(|wildcard| is_there(tag, wildcard)))
}

fn check_bundle(pem: &[u8], kind: TrustKind) {
    let bundle: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem).flatten().collect();
    let key = der::first(&AUTHORITY).map(|(whole, _)| key_in(whole)).unwrap();
    let has_authority = bundle.iter().any(|certificate| contains(certificate, key));
    let server = Case::good().certificate().signed();
    if accepts(bundle, kind, &server, HOST, VALID.start + 1) {
        assert!(has_authority, "a server is accepted without its authority");
    }
}

/// The 32 bytes of the authority's key.
fn key_in(certificate: &[u8]) -> &[u8] {
    let before: &[u8] = &[tag::BITS, 33, 0];
    let at = certificate.windows(before.len()).position(|window| window == before).unwrap() + before.len();
    &certificate[at..at + 32]
}

/// A certificate of known parts, and where it is judged.
#[derive(Debug)]
struct Case {
    host: Host,
    subject: Vec<(Part, StringType, Text)>,
    alternatives: Option<Vec<(AlternativeKind, Text)>>,
    issuer: Issuer,
    well_signed: bool,
    constraints: BasicConstraints,
    usage: KeyUsage,
    limited: bool,
    bundle_has_leaf: bool,
    bundle_has_authority: bool,
    explicit: bool,
    time: Time,
}

/// What makes a case differ from a good one.
#[derive(Arbitrary, Debug)]
enum Change {
    Host(Host),
    Subject(Part, StringType, Text),
    NoAlternatives,
    OtherAlternatives(Vec<(AlternativeKind, Text)>),
    Issuer(Issuer),
    BadSignature,
    Constraints(BasicConstraints),
    Usage(KeyUsage),
    Limited,
    Bundle { has_leaf: bool, has_authority: bool },
    DefaultTrust,
    Time(Time),
}

#[derive(Arbitrary, Clone, Debug)]
enum Host {
    Known(u8),
    Text(String),
    Address(IpAddr),
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Part {
    CommonName,
    Organization,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum StringType {
    Utf8,
    Printable,
    Teletex,
    Ia5,
    Bmp,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum AlternativeKind {
    Dns,
    Address,
    Other,
}

#[derive(Arbitrary, Clone, Debug)]
enum Text {
    Host(Host),
    Wildcard(Host),
    Longer(Host, String),
    Behind(String, Host),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Issuer {
    Itself,
    Authority,
    Stranger,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum BasicConstraints {
    Absent,
    Authority,
    Server,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum KeyUsage {
    Any,
    Server,
    Client,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Time {
    Before,
    Within,
    After,
}

const HOSTS: [&str; 6] = [HOST, "localhost", "example.com", "a.b", "10.0.0.1", "FLEET.example.com."];

impl Host {
    fn text(&self) -> String {
        match self {
            Self::Known(index) => HOSTS[usize::from(*index) % HOSTS.len()].to_owned(),
            Self::Text(text) => text.clone(),
            Self::Address(address) => address.to_string(),
        }
    }
}

impl Text {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Host(host) => host.text().into(),
            Self::Wildcard(host) => {
                let host = host.text();
                let domain = host.split_once('.').map_or(host.as_str(), |(_, domain)| domain);
                format!("*.{domain}").into()
            }
            Self::Longer(host, more) => format!("{}{more}", host.text()).into(),
            Self::Behind(before, host) => format!("{before}{}", host.text()).into(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

impl Case {
    /// A server that is accepted by its authority.
    fn good() -> Self {
        Self {
            host: Host::Known(0),
            subject: Vec::new(),
            alternatives: Some(vec![(AlternativeKind::Dns, Text::Host(Host::Known(0)))]),
            issuer: Issuer::Authority,
            well_signed: true,
            constraints: BasicConstraints::Absent,
            usage: KeyUsage::Any,
            limited: false,
            bundle_has_leaf: false,
            bundle_has_authority: true,
            explicit: true,
            time: Time::Within,
        }
    }

    fn changed(changes: Vec<Change>) -> Self {
        let mut case = Self::good();
        for change in changes {
            match change {
                Change::Host(host) => case.host = host,
                Change::Subject(part, kind, text) => case.subject.push((part, kind, text)),
                Change::NoAlternatives => case.alternatives = None,
                Change::OtherAlternatives(names) => case.alternatives = Some(names),
                Change::Issuer(issuer) => {
                    case.issuer = issuer;
                    case.bundle_has_leaf = issuer == Issuer::Itself;
                }
                Change::BadSignature => case.well_signed = false,
                Change::Constraints(constraints) => case.constraints = constraints,
                Change::Usage(usage) => case.usage = usage,
                Change::Limited => case.limited = true,
                Change::Bundle { has_leaf, has_authority } => {
                    case.bundle_has_leaf = has_leaf;
                    case.bundle_has_authority = has_authority;
                }
                Change::DefaultTrust => case.explicit = false,
                Change::Time(time) => case.time = time,
            }
        }
        case
    }

    fn certificate(&self) -> Certificate {
        let subject: Vec<Attribute> = self.subject.iter().map(attribute).collect();
        let signer = match (self.issuer, self.well_signed) {
            (Issuer::Itself, true) => Signer::Server,
            (Issuer::Authority, true) => Signer::Authority,
            _ => Signer::Stranger,
        };
        Certificate {
            issuer: match self.issuer {
                Issuer::Itself => subject.clone(),
                Issuer::Authority => der::authority_name(),
                Issuer::Stranger => vec![Attribute::common_name("Stranger")],
            },
            subject,
            alternatives: self.alternatives.as_ref().map(|names| names.iter().map(alternative).collect()),
            constraints: match self.constraints {
                BasicConstraints::Absent => Constraints::Absent,
                BasicConstraints::Authority => Constraints::Authority,
                BasicConstraints::Server => Constraints::Server,
            },
            usage: match self.usage {
                KeyUsage::Any => Usage::Any,
                KeyUsage::Server => Usage::Server,
                KeyUsage::Client => Usage::Client,
            },
            limits: None,
            key: Signer::Server,
            signer,
        }
    }

    fn bundle(&self, leaf: &CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        let authority = if self.limited { &*LIMITED_AUTHORITY } else { &*AUTHORITY };
        let authority = self.bundle_has_authority.then(|| authority.clone());
        self.bundle_has_leaf.then(|| leaf.clone()).into_iter().chain(authority).collect()
    }

    fn now(&self) -> u64 {
        match self.time {
            Time::Before => VALID.start - 1,
            Time::Within => VALID.start + 1,
            Time::After => VALID.end + 1,
        }
    }

    /// Whether nothing stands against the certificate but, maybe, its names.
    fn is_trusted(&self) -> bool {
        let by_someone = match self.issuer {
            Issuer::Itself => self.explicit && self.bundle_has_leaf,
            Issuer::Authority => self.bundle_has_authority,
            Issuer::Stranger => false,
        };
        by_someone && self.well_signed && self.time == Time::Within && self.usage != KeyUsage::Client
    }

    /// Whether the host's name is in the certificate, where it counts.
    fn names_the_host(&self) -> bool {
        let host = self.host.text();
        let name = canonical(&host);
        if let Some(alternatives) = &self.alternatives {
            let alternatives: Vec<_> = alternatives.iter().map(alternative).collect();
            if let Ok(address) = host.parse::<IpAddr>() {
                return alternatives.contains(&(tag::IP_ADDRESS, octets(address)));
            }
            let dns: Vec<_> = alternatives.iter().filter(|(kind, _)| *kind == tag::DNS_NAME).collect();
            // Without any the common name counts.
            if !dns.is_empty() {
                return dns.iter().any(|(_, other)| matches(other, &name));
            }
        }
        let common_names = self.subject.iter().map(attribute).filter(|part| part.kind == AttributeKind::CommonName);
        let is_believed =
            self.explicit && !(self.limited && self.bundle_has_authority && self.issuer == Issuer::Authority);
        is_believed
            && host.parse::<IpAddr>().is_err()
            && common_names.into_iter().any(|part| part.tag != tag::BMP && matches(&part.text, &name))
    }

    /// Whether it is such that every client accepts it.
    fn is_impeccable(&self) -> bool {
        let plain_names = |text: &Text| matches!(text, Text::Host(Host::Known(0..4)));
        let names = self.alternatives.as_ref().is_some_and(|names| {
            !names.is_empty() && names.iter().all(|(kind, text)| *kind == AlternativeKind::Dns && plain_names(text))
        });
        let subject = self.subject.iter().all(|(_, kind, text)| *kind == StringType::Utf8 && plain_names(text));
        let is_leaf = self.issuer == Issuer::Itself || self.constraints != BasicConstraints::Authority;
        matches!(self.host, Host::Known(0..4)) && names && subject && is_leaf && !self.limited
    }
}

fn check_case(case: &Case) {
    let leaf = case.certificate().signed();
    let kind = if case.explicit { TrustKind::Explicit } else { TrustKind::Default };
    let accepted = accepts(case.bundle(&leaf), kind, &leaf, &case.host.text(), case.now());
    let may_be = case.is_trusted() && case.names_the_host();
    assert!(!accepted || may_be, "accepted: {case:?}");
    assert!(accepted || !(may_be && case.is_impeccable()), "refused: {case:?}");
}

fn attribute((part, kind, text): &(Part, StringType, Text)) -> Attribute {
    Attribute {
        kind: match part {
            Part::CommonName => AttributeKind::CommonName,
            Part::Organization => AttributeKind::Organization,
        },
        tag: match kind {
            StringType::Utf8 => tag::UTF8,
            StringType::Printable => tag::PRINTABLE,
            StringType::Teletex => tag::TELETEX,
            StringType::Ia5 => tag::IA5,
            StringType::Bmp => tag::BMP,
        },
        text: text.bytes(),
    }
}

fn alternative((kind, text): &(AlternativeKind, Text)) -> (u8, Vec<u8>) {
    match (kind, text) {
        (AlternativeKind::Dns, text) => (tag::DNS_NAME, text.bytes()),
        (AlternativeKind::Address, Text::Host(Host::Address(address))) => (tag::IP_ADDRESS, octets(*address)),
        (AlternativeKind::Address, text) => (tag::IP_ADDRESS, text.bytes()),
        // An e-mail address.
        (AlternativeKind::Other, text) => (0x81, text.bytes()),
    }
}

/// Whether a name in a certificate is this name, or one with `*` as its first label, of at least three labels.
fn matches(in_certificate: &[u8], name: &str) -> bool {
    let domain = name.split_once('.').filter(|(label, domain)| !label.is_empty() && domain.contains('.'));
    let wildcard = domain.map(|(_, domain)| format!("*.{domain}"));
    in_certificate.eq_ignore_ascii_case(name.as_bytes())
        || wildcard.is_some_and(|wildcard| in_certificate.eq_ignore_ascii_case(wildcard.as_bytes()))
}

/// Lower case, without the dot that may end a host's name.
fn canonical(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    host.strip_suffix('.').map_or(host.clone(), str::to_owned)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this a verifier that refuses every server would pass.
    #[test]
    fn a_good_server_is_accepted() {
        let case = Case::good();
        assert!(case.is_trusted() && case.names_the_host() && case.is_impeccable());
        check_case(&case);
        let itself = Case { issuer: Issuer::Itself, bundle_has_leaf: true, ..Case::good() };
        assert!(itself.is_trusted() && itself.is_impeccable());
        check_case(&itself);
    }
}
