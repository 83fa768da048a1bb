//! X.509 certificates written by hand, well-formed or not, and signed all the same.

use std::sync::LazyLock;

use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls_pki_types::CertificateDer;

/// Tags of DER.
pub mod tag {
    /// SEQUENCE
    pub const SEQUENCE: u8 = 0x30;
    /// SET
    pub const SET: u8 = 0x31;
    /// OBJECT IDENTIFIER
    pub const OID: u8 = 0x06;
    /// OCTET STRING
    pub const OCTETS: u8 = 0x04;
    /// BIT STRING
    pub const BITS: u8 = 0x03;
    /// UTF8String
    pub const UTF8: u8 = 0x0c;
    /// PrintableString
    pub const PRINTABLE: u8 = 0x13;
    /// TeletexString
    pub const TELETEX: u8 = 0x14;
    /// IA5String
    pub const IA5: u8 = 0x16;
    /// BMPString
    pub const BMP: u8 = 0x1e;
    /// A subjectAltName's dNSName.
    pub const DNS_NAME: u8 = 0x82;
    /// A subjectAltName's iPAddress.
    pub const IP_ADDRESS: u8 = 0x87;
}

/// From the beginning to the end of this time (2020-01-01 to 2040-01-01, in Unix seconds) every certificate is valid.
pub const VALID: std::ops::Range<u64> = 1_577_836_800..2_208_988_800;

const ED25519: [u8; 3] = [0x2b, 0x65, 0x70];
const COMMON_NAME: [u8; 3] = [0x55, 4, 3];
const ORGANIZATION: [u8; 3] = [0x55, 4, 10];
const ALTERNATIVE_NAME: [u8; 3] = [0x55, 0x1d, 17];
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 19];
const NAME_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 30];
const EXTENDED_KEY_USAGE: [u8; 3] = [0x55, 0x1d, 37];
const SERVER_AUTHENTICATION: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTHENTICATION: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 2];

/// Who holds a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// The authority.
    Authority,
    /// Every server.
    Server,
    /// A name that no trusted authority has.
    Stranger,
}

static KEYS: LazyLock<[Ed25519KeyPair; 3]> =
    LazyLock::new(|| [1, 2, 3].map(|seed| Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()));

/// The authority's own certificate.
pub static AUTHORITY: LazyLock<CertificateDer<'static>> =
    LazyLock::new(|| Certificate { constraints: Constraints::Authority, ..Certificate::authority() }.signed());

/// The same authority, limited to names in `example.com`.
pub static LIMITED_AUTHORITY: LazyLock<CertificateDer<'static>> =
    LazyLock::new(|| Certificate { limits: Some("example.com"), ..Certificate::authority() }.signed());

/// A part of a subject's or issuer's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Whether it is the common name or the organization.
    pub kind: AttributeKind,
    /// The type of its string.
    pub tag: u8,
    /// The string.
    pub text: Vec<u8>,
}

/// Which part of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeKind {
    /// CN
    CommonName,
    /// O
    Organization,
}

impl Attribute {
    /// A common name, as UTF-8.
    #[must_use]
    pub fn common_name(text: &str) -> Self {
        Self { kind: AttributeKind::CommonName, tag: tag::UTF8, text: text.into() }
    }
}

/// basicConstraints
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constraints {
    /// Not there.
    Absent,
    /// CA:TRUE
    Authority,
    /// CA:FALSE
    Server,
}

/// extendedKeyUsage
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Not there.
    Any,
    /// serverAuth
    Server,
    /// clientAuth
    Client,
}

/// What a certificate is made of.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Whose name is under it.
    pub issuer: Vec<Attribute>,
    /// Whose it is.
    pub subject: Vec<Attribute>,
    /// The names in subjectAltName, with their tags; `None` when the extension isn't there.
    pub alternatives: Option<Vec<(u8, Vec<u8>)>>,
    /// basicConstraints
    pub constraints: Constraints,
    /// extendedKeyUsage
    pub usage: Usage,
    /// The one domain that nameConstraints permits.
    pub limits: Option<&'static str>,
    /// Whose key is in it.
    pub key: Signer,
    /// Whose key signs it.
    pub signer: Signer,
}

impl Certificate {
    fn authority() -> Self {
        Self {
            issuer: authority_name(),
            subject: authority_name(),
            alternatives: None,
            constraints: Constraints::Authority,
            usage: Usage::Any,
            limits: None,
            key: Signer::Authority,
            signer: Signer::Authority,
        }
    }

    /// The certificate's bytes.
    #[must_use]
    pub fn signed(&self) -> CertificateDer<'static> {
        sign(&self.to_be_signed(), self.signer)
    }

    fn to_be_signed(&self) -> Vec<u8> {
        let serial = value(2, &[7]);
        let validity = value(tag::SEQUENCE, &[value(0x17, b"200101000000Z"), value(0x17, b"400101000000Z")].concat());
        let mut key = vec![0];
        key.extend(KEYS[self.key as usize].public_key().as_ref());
        let key = value(tag::SEQUENCE, &[algorithm(), value(tag::BITS, &key)].concat());
        let mut parts = vec![
            value(0xa0, &value(2, &[2])),
            serial,
            algorithm(),
            name(&self.issuer),
            validity,
            name(&self.subject),
            key,
        ];
        let extensions = self.extensions();
        if !extensions.is_empty() {
            parts.push(value(0xa3, &value(tag::SEQUENCE, &extensions.concat())));
        }
        value(tag::SEQUENCE, &parts.concat())
    }

    fn extensions(&self) -> Vec<Vec<u8>> {
        let mut extensions = Vec::new();
        if let Some(names) = &self.alternatives {
            let names: Vec<u8> = names.iter().flat_map(|(tag, name)| value(*tag, name)).collect();
            extensions.push(extension(&ALTERNATIVE_NAME, &value(tag::SEQUENCE, &names)));
        }
        match self.constraints {
            Constraints::Absent => {}
            Constraints::Authority => {
                extensions.push(extension(&BASIC_CONSTRAINTS, &value(tag::SEQUENCE, &value(1, &[0xff]))));
            }
            Constraints::Server => extensions.push(extension(&BASIC_CONSTRAINTS, &value(tag::SEQUENCE, &[]))),
        }
        let usage = match self.usage {
            Usage::Any => None,
            Usage::Server => Some(SERVER_AUTHENTICATION),
            Usage::Client => Some(CLIENT_AUTHENTICATION),
        };
        if let Some(usage) = usage {
            extensions.push(extension(&EXTENDED_KEY_USAGE, &value(tag::SEQUENCE, &value(tag::OID, &usage))));
        }
        if let Some(domain) = self.limits {
            let subtree = value(tag::SEQUENCE, &value(tag::DNS_NAME, domain.as_bytes()));
            extensions.push(extension(&NAME_CONSTRAINTS, &value(tag::SEQUENCE, &value(0xa0, &subtree))));
        }
        extensions
    }
}

/// The authority's name.
#[must_use]
pub fn authority_name() -> Vec<Attribute> {
    vec![Attribute::common_name("Fuzz authority")]
}

/// A certificate of these bytes, whatever they are, with a signature that is right for them.
#[must_use]
pub fn sign(to_be_signed: &[u8], signer: Signer) -> CertificateDer<'static> {
    let mut signature = vec![0];
    signature.extend(KEYS[signer as usize].sign(to_be_signed).as_ref());
    value(tag::SEQUENCE, &[to_be_signed, &algorithm(), &value(tag::BITS, &signature)].concat()).into()
}

/// Tag, length, content.
#[must_use]
pub fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let header = match length {
        0..=0x7f => vec![tag, length as u8],
        0x80..=0xff => vec![tag, 0x81, length as u8],
        0x100..=0xffff => vec![tag, 0x82, (length >> 8) as u8, length as u8],
        _ => vec![tag, 0x83, (length >> 16) as u8, (length >> 8) as u8, length as u8],
    };
    [&header, content].concat()
}

/// The first value within `bytes`, header included, and what it holds; what is cut off is missing.
#[must_use]
pub fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(*bytes.get(1)?);
    let (header, length) = match length {
        ..=0x7f => (2, length),
        0x81 => (3, usize::from(*bytes.get(2)?)),
        _ => (4, usize::from(*bytes.get(2)?) << 8 | usize::from(*bytes.get(3)?)),
    };
    let end = bytes.len().min(header + length);
    Some((&bytes[..end], bytes.get(header..end)?))
}

fn algorithm() -> Vec<u8> {
    value(tag::SEQUENCE, &value(tag::OID, &ED25519))
}

fn name(attributes: &[Attribute]) -> Vec<u8> {
    let part = |attribute: &Attribute| {
        let kind = match attribute.kind {
            AttributeKind::CommonName => COMMON_NAME,
            AttributeKind::Organization => ORGANIZATION,
        };
        let pair = [value(tag::OID, &kind), value(attribute.tag, &attribute.text)].concat();
        value(tag::SET, &value(tag::SEQUENCE, &pair))
    };
    value(tag::SEQUENCE, &attributes.iter().flat_map(part).collect::<Vec<u8>>())
}

fn extension(identifier: &[u8], content: &[u8]) -> Vec<u8> {
    value(tag::SEQUENCE, &[value(tag::OID, identifier), value(tag::OCTETS, content)].concat())
}
