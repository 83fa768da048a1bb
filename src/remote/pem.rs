//! PEM as osquery's OpenSSL reads it: a byte order mark doesn't matter, and certificates may have their older labels.
//!
//! Behind a `TRUSTED CERTIFICATE` (what `openssl x509 -trustout` writes, and RHEL's ca-bundle.trust.crt is made of)
//! stands for what it is trusted, and for what not. One that is not trusted for servers is left out: such a bundle
//! lists authorities that are distrusted, too.

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::asn1_rs::{Any, Class, FromDer, Tag};
use x509_parser::certificate::X509Certificate;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The older labels of a certificate.
const OLDER_LABELS: [&[u8]; 2] = [b"TRUSTED CERTIFICATE", b"X509 CERTIFICATE"];

/// What a certificate may be trusted for, as the contents of object identifiers: TLS servers, or everything.
const FOR_SERVERS: [&[u8]; 2] = [&[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01], &[0x55, 0x1d, 0x25, 0x00]];

/// The certificates in a text, but for those that are not trusted for servers.
pub(super) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&with_today_s_labels(text)).collect();
    Ok(certificates?.into_iter().filter_map(without_trust).collect())
}

/// The first private key in a text.
pub(super) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, pem::Error> {
    PrivateKeyDer::from_pem_slice(&with_today_s_labels(text))
}

fn with_today_s_labels(text: &[u8]) -> Vec<u8> {
    let mut normal = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        match OLDER_LABELS.iter().find_map(|label| around(line, label)) {
            Some((before, behind)) => normal.extend([before, b"CERTIFICATE", behind].concat()),
            None => normal.extend(line),
        }
    }
    normal
}

/// What stands around the label in a section's first or last line.
fn around<'a>(line: &'a [u8], label: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let start = [&b"-----BEGIN "[..], b"-----END "].into_iter().find(|start| line.starts_with(start))?;
    let (before, rest) = line.split_at_checked(start.len())?;
    let behind = rest.strip_prefix(label)?;
    behind.starts_with(b"-----").then_some((before, behind))
}

/// The certificate alone, unless what stands behind it says that it isn't trusted for servers.
fn without_trust(section: CertificateDer<'static>) -> Option<CertificateDer<'static>> {
    let length = match X509Certificate::from_der(&section) {
        Ok(([], _)) => return Some(section),
        Ok((trust, _)) if !is_for_servers(trust) => return None,
        Ok((trust, _)) => section.len() - trust.len(),
        // Its use fails, and says so.
        Err(_) => return Some(section),
    };
    Some(CertificateDer::from(section.get(..length)?.to_vec()))
}

/// OpenSSL's X509_CERT_AUX: a sequence of what the certificate is trusted for, if it is limited, and, tagged 0, of what
/// it is not trusted for.
fn is_for_servers(trust: &[u8]) -> bool {
    let Ok((_, whole)) = Any::from_der(trust) else { return false };
    if whole.tag() != Tag::Sequence {
        return false;
    }
    let mut members = elements(whole.data).into_iter();
    let names_servers = |list: &Any<'_>| elements(list.data).iter().any(|purpose| FOR_SERVERS.contains(&purpose.data));
    members.all(|member| match (member.class(), member.tag()) {
        (Class::Universal, Tag::Sequence) => names_servers(&member),
        (Class::ContextSpecific, Tag(0)) => !names_servers(&member),
        _ => true,
    })
}

/// The elements that a sequence's contents are, as far as they can be told apart.
pub(super) fn elements(mut data: &[u8]) -> Vec<Any<'_>> {
    let mut elements = Vec::new();
    while let Ok((rest, element)) = Any::from_der(data) {
        elements.push(element);
        data = rest;
    }
    elements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_certificate_is_trusted_for_counts() {
        const SERVER: &[u8] = &[0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1];
        const EMAIL: &[u8] = &[0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 4];
        const ANY: &[u8] = &[0x06, 4, 0x55, 0x1d, 0x25, 0];
        let tagged = |tag: u8, content: &[u8]| [&[tag, content.len() as u8], content].concat();
        let trusted = |purposes: &[u8]| tagged(0x30, purposes);
        let rejected = |purposes: &[u8]| tagged(0xa0, purposes);
        let alias = tagged(0x0c, b"an alias");
        for (members, is_trusted) in [
            (vec![], true),
            (vec![alias.clone()], true),
            (vec![trusted(SERVER)], true),
            (vec![trusted(&[EMAIL, ANY].concat()), alias.clone()], true),
            (vec![trusted(EMAIL), alias.clone()], false),
            (vec![trusted(SERVER), rejected(EMAIL)], true),
            (vec![trusted(SERVER), rejected(SERVER)], false),
            (vec![rejected(ANY)], false),
        ] {
            assert_eq!(is_for_servers(&tagged(0x30, &members.concat())), is_trusted, "{members:?}");
        }
        assert!(!is_for_servers(b"junk"));
    }

    #[test]
    fn labels_are_those_of_today() {
        let text = b"\xef\xbb\xbf-----BEGIN TRUSTED CERTIFICATE-----\r\nAA==\r\n-----END TRUSTED CERTIFICATE-----\r\n\
            -----BEGIN X509 CERTIFICATE-----\n-----END X509 CERTIFICATE-----\n-----BEGIN X509 CRL-----";
        let normal = b"-----BEGIN CERTIFICATE-----\r\nAA==\r\n-----END CERTIFICATE-----\r\n\
            -----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n-----BEGIN X509 CRL-----";
        assert_eq!(with_today_s_labels(text), normal);
    }
}
