//! Certificates, shown to a reader and looked at for their time.

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::clock::{date, unix_time};
use crate::settings::Pin;

/// A certificate that ends within this number of days is worth a warning.
const SOON_DAYS: i64 = 30;

const DAY: i64 = 24 * 3600;

/// How a certificate stands in its time of validity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ValidityState {
    /// It is valid until this date, which is not soon.
    Valid(String),
    /// It is valid, and ends within [`SOON_DAYS`]: in this number of days.
    EndsSoon(i64),
    /// It ended at this date.
    Over(String),
    /// It begins at this date.
    NotYet(String),
    /// It can't be parsed.
    Unreadable,
}

impl ValidityState {
    /// The state of a certificate by the host's clock.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Self::Unreadable };
        let validity = parsed.validity();
        Self::between(validity.not_before.timestamp(), validity.not_after.timestamp(), unix_time())
    }

    fn between(begin: i64, end: i64, now: i64) -> Self {
        match (end - now) / DAY {
            _ if now < begin => Self::NotYet(date(begin)),
            _ if now > end => Self::Over(date(end)),
            days if days < SOON_DAYS => Self::EndsSoon(days),
            _ => Self::Valid(date(end)),
        }
    }
}

/// From when to when a certificate is valid, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) begin: i64,
    pub(super) end: i64,
}

impl Validity {
    /// None for what can't be parsed.
    pub(super) fn of(certificate: &CertificateDer<'static>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let validity = parsed.validity();
        Some(Self { begin: validity.not_before.timestamp(), end: validity.not_after.timestamp() })
    }

    pub(super) fn holds(self, time: i64) -> bool {
        (self.begin..=self.end).contains(&time)
    }
}

/// The names that a certificate is for; its common name when there are no others.
pub(super) fn names(certificate: &CertificateDer<'static>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    match parsed.subject_alternative_name() {
        Ok(Some(extension)) => extension.value.general_names.iter().filter_map(name).collect(),
        _ => parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect(),
    }
}

/// The subject, for a reader.
pub(super) fn common_name(certificate: &CertificateDer<'static>) -> String {
    X509Certificate::from_der(certificate).map_or_else(|_| "?".to_owned(), |(_, parsed)| parsed.subject().to_string())
}

/// Who has issued it.
pub(super) fn issuer(certificate: &CertificateDer<'static>) -> String {
    X509Certificate::from_der(certificate).map_or_else(|_| "?".to_owned(), |(_, parsed)| parsed.issuer().to_string())
}

/// Whether a certificate names the other one as its issuer.
pub(super) fn names_as_issuer(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    let parsed = |one| X509Certificate::from_der(one).map(|(_, parsed)| parsed);
    match (parsed(certificate), parsed(authority)) {
        (Ok(certificate), Ok(authority)) => certificate.issuer().as_raw() == authority.subject().as_raw(),
        _ => false,
    }
}

/// Its key, as `tls_pins` names it; `None` for what can't be parsed.
pub(super) fn pin(certificate: &CertificateDer<'_>) -> Option<Pin> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(Pin::of(parsed.public_key().raw))
}

/// Subject, issuer, names and end on one line.
pub(super) fn describe(certificate: &CertificateDer<'_>) -> String {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return "a certificate that can't be parsed".to_owned();
    };
    let names = match parsed.subject_alternative_name() {
        Ok(Some(extension)) => extension.value.general_names.iter().filter_map(name).collect::<Vec<_>>().join(", "),
        _ => String::new(),
    };
    let names = if names.is_empty() { names } else { format!(" for {names}") };
    let (subject, issuer) = (parsed.subject(), parsed.issuer());
    let validity = parsed.validity();
    let (begin, end) = (date(validity.not_before.timestamp()), date(validity.not_after.timestamp()));
    format!("{subject}{names}, issued by {issuer}, from {begin} to {end}")
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(address) => Some(std::net::Ipv4Addr::from(address).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|address| std::net::Ipv6Addr::from(address).to_string()),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_seen_from_all_sides() {
        let now = 1_900_000_000;
        assert_eq!(ValidityState::between(now + 1, now + DAY, now), ValidityState::NotYet("2030-03-17".to_owned()));
        assert_eq!(ValidityState::between(now - DAY, now - 1, now), ValidityState::Over("2030-03-17".to_owned()));
        assert_eq!(ValidityState::between(now - DAY, now + 29 * DAY + 5, now), ValidityState::EndsSoon(29));
        assert_eq!(
            ValidityState::between(now - DAY, now + 31 * DAY, now),
            ValidityState::Valid("2030-04-17".to_owned())
        );
    }
}
