//! Why there is no TLS connection, each reason with its own words and its own remedy. Pure: what was seen comes in.

use std::path::Path;

use rustls::{AlertDescription as Alert, CertificateError as Cert, Error};
use rustls_pki_types::CertificateDer;

use super::certificates::{Validity, common_name, issuer, names};
use super::fault::CLIENT_CERTIFICATE;
use crate::chain::chain;
use crate::clock::date;
use crate::remote::{NotPinned, TlsError, TransportError};
use crate::settings::HostPort;
use crate::words::counted;

const DAY: i64 = 24 * 3600;

/// What is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Diagnosis {
    pub(super) message: String,
    pub(super) remedy: String,
}

/// What was seen of a handshake that failed.
pub(super) struct Facts<'a> {
    pub(super) server: &'a HostPort,
    pub(super) error: &'a TransportError,
    /// What the server presented, its own certificate first.
    pub(super) chain: &'a [CertificateDer<'static>],
    /// `tls_server_certs`, and the names of the authorities in it.
    pub(super) trust: &'a Path,
    pub(super) authorities: &'a [String],
    /// Whether the server asked for a client certificate, and whether there is one to show.
    pub(super) asked_for_certificate: bool,
    pub(super) has_certificate: bool,
    /// This host's time and the server's, in Unix seconds.
    pub(super) now: i64,
    pub(super) server_time: Option<i64>,
    /// The version that the server speaks, when it is an old one.
    pub(super) old_version: Option<&'static str>,
}

impl Facts<'_> {
    /// Why the handshake failed, and the remedy.
    pub(super) fn diagnosis(&self) -> Diagnosis {
        let port = self.server.port.unwrap_or(443);
        match self.error {
            TransportError::Tls(TlsError::Handshake(error)) => self.handshake(error),
            TransportError::Tls(TlsError::File { flag, .. }) => {
                diagnosis(chain(self.error).to_string(), format!("correct the file that --{flag} names"))
            }
            TransportError::Tls(TlsError::Name(name)) => diagnosis(
                format!("{name} is no name that a certificate can have"),
                "set --tls_hostname to the server's name, as its certificate has it".to_owned(),
            ),
            TransportError::Timeout(_) => diagnosis(
                "the server takes the connection and doesn't answer TLS's greeting".to_owned(),
                format!("see that a TLS server listens on port {port} (--tls_hostname), and not something that waits"),
            ),
            other => diagnosis(
                format!("the server hangs up on TLS's greeting ({})", chain(other)),
                format!("see that a TLS server listens on port {port}, and that it knows this name (--tls_hostname)"),
            ),
        }
    }

    fn handshake(&self, error: &Error) -> Diagnosis {
        let port = self.server.port.unwrap_or(443);
        match error {
            Error::InvalidCertificate(certificate) => self.certificate(certificate, error),
            Error::InvalidMessage(_) => diagnosis(
                format!("the server does not speak TLS on port {port}"),
                "osquery speaks https only: see that --tls_hostname names the server's TLS port, or put TLS before it"
                    .to_owned(),
            ),
            Error::AlertReceived(alert) => {
                match client_certificate(*alert, self.asked_for_certificate, self.has_certificate) {
                    Some(diagnosis) => diagnosis,
                    None => self.no_common_version(error),
                }
            }
            Error::PeerIncompatible(_) => self.no_common_version(error),
            other => diagnosis(other.to_string(), "look at the server's log".to_owned()),
        }
    }

    fn no_common_version(&self, error: &Error) -> Diagnosis {
        match self.old_version {
            Some(version) => diagnosis(
                format!("the server speaks {version}, and nothing newer"),
                "have it speak TLS 1.2 or 1.3: what is older is broken, and not spoken here".to_owned(),
            ),
            None => diagnosis(
                format!("{}", TlsError::Handshake(error.clone())),
                "have the server speak TLS 1.2 or 1.3 with ECDHE and AES-GCM or ChaCha20 (docs/tls.md)".to_owned(),
            ),
        }
    }

    fn certificate(&self, certificate: &Cert, error: &Error) -> Diagnosis {
        match certificate {
            Cert::Expired | Cert::ExpiredContext { .. } | Cert::NotValidYet | Cert::NotValidYetContext { .. } => {
                self.out_of_time(error)
            }
            Cert::NotValidForName | Cert::NotValidForNameContext { .. } => self.wrong_name(),
            Cert::UnknownIssuer => self.unknown_issuer(),
            other if NotPinned::is(other) => diagnosis(
                TlsError::Handshake(error.clone()).to_string(),
                "if its key was changed on purpose, add its pin to --tls_pins; else find out who answers in the server's place"
                    .to_owned(),
            ),
            _ => diagnosis(
                TlsError::Handshake(error.clone()).to_string(),
                "issue another certificate for the server (docs/tls.md says what is taken)".to_owned(),
            ),
        }
    }

    /// The clock is at fault where the certificate is in its time by the server's.
    fn out_of_time(&self, error: &Error) -> Diagnosis {
        let today = date(self.now);
        let valid_at = |time: i64| self.chain.iter().filter_map(Validity::of).all(|validity| validity.holds(time));
        if let Some(theirs) = self.server_time.filter(|time| (time - self.now).abs() > DAY && valid_at(*time)) {
            return diagnosis(
                format!(
                    "this host's clock is wrong: it says {today}, and the server's {}, at which its certificate is valid",
                    date(theirs)
                ),
                "set the clock, and have it kept by NTP (chrony, systemd-timesyncd)".to_owned(),
            );
        }
        let outside = self.chain.iter().filter_map(|one| Some((one, Validity::of(one)?)));
        let Some((one, validity)) = outside.into_iter().find(|(_, validity)| !validity.holds(self.now)) else {
            return diagnosis(TlsError::Handshake(error.clone()).to_string(), "renew it on the server".to_owned());
        };
        let whose =
            if self.chain.first() == Some(one) { "the server's certificate" } else { "a certificate of the chain" };
        if self.now > validity.end {
            let days = counted(((self.now - validity.end) / DAY).unsigned_abs(), "day");
            return diagnosis(
                format!("{whose} has expired on {}, {days} ago (today is {today} here)", date(validity.end)),
                "renew it on the server; if it is today's elsewhere, set this host's clock".to_owned(),
            );
        }
        let days = counted(((validity.begin - self.now) / DAY).unsigned_abs(), "day");
        diagnosis(
            format!(
                "{whose} is not valid yet: it begins on {}, in {days} (today is {today} here)",
                date(validity.begin)
            ),
            "set this host's clock if it is behind; else issue the certificate anew".to_owned(),
        )
    }

    fn wrong_name(&self) -> Diagnosis {
        let (host, named) = (&self.server.host, self.chain.first().map(names).unwrap_or_default());
        let remedy = match named.iter().find(|name| !name.starts_with('*')) {
            Some(name) => format!(
                "set --tls_hostname to a name that it has, such as {name}, or have the server's certificate issued for {host}"
            ),
            None => format!("have the server's certificate issued for {host}"),
        };
        let named = if named.is_empty() { "no name at all".to_owned() } else { named.join(", ") };
        diagnosis(
            format!("the server's certificate is for {named}, and for another name than tls_hostname ({host})"),
            remedy,
        )
    }

    fn unknown_issuer(&self) -> Diagnosis {
        let (trust, last) = (self.trust.display(), self.chain.last());
        let by = last.map(issuer).unwrap_or_default();
        let is_its_own = last.is_some_and(|one| common_name(one) == by);
        let message = format!(
            "the server's certificate is issued by \"{by}\", which --tls_server_certs={trust} doesn't hold (it has: {})",
            if self.authorities.is_empty() { "no certificate".to_owned() } else { self.authorities.join("; ") }
        );
        let remedy = match (is_its_own, self.chain.len()) {
            (true, 1) => format!("it is its own authority: put that very certificate into {trust}"),
            (false, 1) => format!(
                "put the certificate of \"{by}\" into {trust}; if it is an intermediate one, have the server send it along \
                 (its whole chain)"
            ),
            _ => format!("put the certificate of \"{by}\" into {trust}; something between may have put its own there"),
        };
        diagnosis(message, remedy)
    }
}

/// Whether an alert is about the certificate of this side, and what is said then.
pub(super) fn client_certificate(alert: Alert, asked: bool, has: bool) -> Option<Diagnosis> {
    let about_it = matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
    );
    // What some servers say in its stead.
    let maybe = asked && matches!(alert, Alert::HandshakeFailure | Alert::DecryptError);
    match (about_it || maybe, has) {
        (false, _) => None,
        (true, false) => Some(certificate_wanted()),
        (true, true) => Some(diagnosis(
            format!("the server refuses this host's client certificate ({alert:?})"),
            format!("see whom the server takes client certificates from; {CLIENT_CERTIFICATE}"),
        )),
    }
}

/// A server that wants a client certificate, and none is set.
pub(super) fn certificate_wanted() -> Diagnosis {
    diagnosis("the server wants a client certificate, and none is set".to_owned(), CLIENT_CERTIFICATE.to_owned())
}

fn diagnosis(message: String, remedy: String) -> Diagnosis {
    Diagnosis { message, remedy }
}

#[cfg(test)]
mod tests {
    use rustls::InvalidMessage;

    use super::*;

    fn judge(error: Error, change: impl FnOnce(&mut Facts<'_>)) -> Diagnosis {
        let error = TransportError::Tls(TlsError::Handshake(error));
        let server = HostPort::parse("fleet.example:8443").unwrap();
        let mut facts = Facts {
            server: &server,
            error: &error,
            chain: &[],
            trust: Path::new("/ca.pem"),
            authorities: &[],
            asked_for_certificate: false,
            has_certificate: false,
            now: 1_900_000_000,
            server_time: None,
            old_version: None,
        };
        change(&mut facts);
        facts.diagnosis()
    }

    #[test]
    fn what_speaks_no_tls_or_an_old_one_is_told_apart() {
        let plain = judge(Error::InvalidMessage(InvalidMessage::InvalidContentType), |_| {});
        assert!(plain.message.contains("does not speak TLS on port 8443"), "{plain:?}");
        let old = judge(Error::AlertReceived(Alert::ProtocolVersion), |facts| facts.old_version = Some("TLS 1.1"));
        assert_eq!(old.message, "the server speaks TLS 1.1, and nothing newer");
        let other = judge(Error::AlertReceived(Alert::HandshakeFailure), |_| {});
        assert!(other.remedy.contains("ECDHE"), "{other:?}");
    }

    #[test]
    fn a_client_certificate_is_wanted_or_refused() {
        let wanted = judge(Error::AlertReceived(Alert::CertificateRequired), |_| {});
        assert!(wanted.message.contains("wants a client certificate, and none is set"), "{wanted:?}");
        let wanted = judge(Error::AlertReceived(Alert::HandshakeFailure), |facts| facts.asked_for_certificate = true);
        assert!(wanted.remedy.contains("--tls_client_cert and --tls_client_key"), "{wanted:?}");
        let refused = judge(Error::AlertReceived(Alert::UnknownCA), |facts| facts.has_certificate = true);
        assert!(refused.message.contains("refuses this host's client certificate (UnknownCA)"), "{refused:?}");
    }
}
