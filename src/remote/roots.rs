//! The authorities that a bundle makes trusted: those that are meant to issue certificates of servers, while they are in
//! their time.

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::{FromDer, X509Version};

use crate::clock::date;
use crate::settings::Pin;

/// The authorities of a bundle.
#[derive(Debug)]
pub(super) struct Roots(Vec<Root>);

#[derive(Debug)]
struct Root {
    anchor: TrustAnchor<'static>,
    pin: Pin,
    subject: String,
    /// Its time, in Unix seconds.
    begin: i64,
    end: i64,
}

/// Why an authority of the bundle can't be trusted now.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum OutOfTime {
    #[error(
        "the authority in tls_server_certs that the server's certificate comes from ({subject}) has expired on {date}"
    )]
    Expired { subject: String, date: String },
    #[error(
        "the authority in tls_server_certs that the server's certificate comes from ({subject}) is valid from {date} \
         only (is this host's clock right?)"
    )]
    NotYet { subject: String, date: String },
}

impl Roots {
    pub(super) fn of(bundle: &[CertificateDer<'static>]) -> Self {
        Self(bundle.iter().filter_map(Root::of).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pin of one of them.
    pub(super) fn pin(&self, anchor: &TrustAnchor<'_>) -> Option<Pin> {
        self.0.iter().find(|root| root.anchor == *anchor).map(|root| root.pin)
    }

    /// Those that are in their time.
    pub(super) fn valid(&self, now: UnixTime) -> RootCertStore {
        let now = seconds(now);
        RootCertStore {
            roots: self.0.iter().filter(|root| root.is_valid(now)).map(|root| root.anchor.clone()).collect(),
        }
    }

    /// Those that are not, each with the reason.
    pub(super) fn out_of_time(&self, now: UnixTime) -> impl Iterator<Item = (RootCertStore, OutOfTime)> {
        let now = seconds(now);
        self.0
            .iter()
            .filter(move |root| !root.is_valid(now))
            .map(move |root| (RootCertStore { roots: vec![root.anchor.clone()] }, root.reason(now)))
    }
}

impl Root {
    fn of(certificate: &CertificateDer<'static>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        if !is_authority(&parsed) || !may_sign(&parsed) || !is_for_servers(&parsed) {
            return None;
        }
        let validity = parsed.validity();
        Some(Self {
            anchor: webpki::anchor_from_trusted_cert(certificate).ok()?.to_owned(),
            pin: Pin::of(parsed.public_key().raw),
            subject: parsed.subject().to_string(),
            begin: validity.not_before.timestamp(),
            end: validity.not_after.timestamp(),
        })
    }

    fn is_valid(&self, now: i64) -> bool {
        (self.begin..=self.end).contains(&now)
    }

    fn reason(&self, now: i64) -> OutOfTime {
        let subject = self.subject.clone();
        match now < self.begin {
            true => OutOfTime::NotYet { subject, date: date(self.begin) },
            false => OutOfTime::Expired { subject, date: date(self.end) },
        }
    }
}

/// `CA:TRUE`, or of version 1, which knows no such extension.
fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    certificate.is_ca() || certificate.version() == X509Version::V1
}

/// keyUsage is absent or allows that certificates are signed.
pub(super) fn may_sign(certificate: &X509Certificate<'_>) -> bool {
    match certificate.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    }
}

/// extendedKeyUsage is absent or allows servers.
pub(super) fn is_for_servers(certificate: &X509Certificate<'_>) -> bool {
    match certificate.extended_key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.server_auth || usage.value.any),
        Err(_) => false,
    }
}

pub(super) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
