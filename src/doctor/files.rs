//! The files that flags name: trust, client certificate and key, more headers. The enroll secret is in `secret_file`.

use std::io;

use rustls_pki_types::CertificateDer;

use super::certificates::{ValidityState, describe};
use super::secret_file::{self, warn_if_others_read};
use super::subject::Subject;
use super::{Check, Report};
use crate::chain::chain;
use crate::remote::{Headers, HeadersError, TlsError, bundle, certificates, check_files};
use crate::settings::{ClientIdentity, TlsSettings};
use crate::words::counted;

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    if subject.knows_no_flag() {
        for check in [Check::EnrollSecret, Check::ServerTrust, Check::ClientCertificate, Check::RequestHeaders] {
            report.skip(check, "no flag is known");
        }
        return;
    }
    secret_file::check(subject, report);
    trust(&subject.settings.tls, report);
    client(subject, report);
    headers(subject, report);
}

fn trust(tls: &TlsSettings, report: &mut Report<'_>) {
    const CHECK: Check = Check::ServerTrust;
    let shown = tls.server_certs.display();
    // Without a client certificate: only the trust is looked at here.
    let loaded = bundle(&tls.server_certs).and_then(|bundle| {
        check_files(tls, None)?;
        Ok(bundle)
    });
    let bundle = match loaded {
        Ok(bundle) => bundle,
        Err(error) => {
            return report.fail(
                CHECK,
                error.to_string(),
                "name the PEM file of your server's authority by --tls_server_certs",
            );
        }
    };
    let terms: Vec<ValidityState> = bundle.iter().map(ValidityState::of).collect();
    let good = terms.iter().any(|term| matches!(term, ValidityState::Valid(_) | ValidityState::EndsSoon(_)));
    let lasting = terms.iter().any(|term| matches!(term, ValidityState::Valid(_)));
    let ending =
        terms.iter().filter(|term| matches!(term, ValidityState::Over(_) | ValidityState::EndsSoon(_))).count() as u64;
    let (count, have) = (counted(bundle.len() as u64, "certificate"), if ending == 1 { "has" } else { "have" });
    let end = if ending == 1 { "ends" } else { "end" };
    let of_them = format!("{ending} of {count} {have} ended or {end} soon");
    if !good {
        report.fail(
            CHECK,
            format!("{shown}: no certificate in it is valid today"),
            "get your server's authority anew, and see that this host's clock is right",
        );
    } else if let (false, [only]) = (lasting, bundle.as_slice()) {
        warn_of_the_end(CHECK, &format!("{shown}: "), only, report);
    } else if !lasting {
        report.warn(
            CHECK,
            format!("{shown}: {of_them}"),
            "get your server's authority anew, before its certificate ends",
        );
    }
    if tls.pins.as_ref().is_ok_and(|pins| pins.len() == 1) {
        report.warn(
            CHECK,
            "--tls_pins has one key and no spare: when the server's key changes, this host can't reach it any more",
            "make a spare key, keep it in a safe place, and add its pin; or add that of the authority",
        );
    }
    if report.is_clean(CHECK) {
        // Of a public bundle's many authorities some always do. `connection` knows whether the server needs one of them.
        report.ok(CHECK, format!("{shown}: {}", if ending == 0 { count } else { of_them }));
    }
}

fn warn_of_the_end(check: Check, place: &str, certificate: &CertificateDer<'_>, report: &mut Report<'_>) {
    let what = match ValidityState::of(certificate) {
        ValidityState::Valid(_) => return,
        ValidityState::EndsSoon(days) => format!("ends in {}", counted(days.unsigned_abs(), "day")),
        ValidityState::Over(date) => format!("ended on {date}"),
        ValidityState::NotYet(date) => format!("begins on {date} only"),
        ValidityState::Unreadable => "can't be parsed".to_owned(),
    };
    report.warn(check, format!("{place}a certificate {what}: {}", describe(certificate)), "replace it in time");
}

fn client(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::ClientCertificate;
    match &subject.settings.tls.client {
        Ok(None) => report.ok(CHECK, "none is set"),
        Ok(Some(client)) => pair(client, &subject.settings.tls, report),
        Err(error) => {
            report.fail(CHECK, error.to_string(), "set both --tls_client_cert and --tls_client_key, or neither")
        }
    }
}

fn pair(client: &ClientIdentity, tls: &TlsSettings, report: &mut Report<'_>) {
    const CHECK: Check = Check::ClientCertificate;
    let certificates = match certificates("tls_client_cert", &client.cert) {
        Ok(certificates) => certificates,
        Err(error) => return report.fail(CHECK, error.to_string(), "put the certificate there, in PEM"),
    };
    match check_files(tls, Some(client.clone())) {
        Err(TlsError::File { flag: "tls_server_certs", .. }) => {
            return report.skip(CHECK, "it can be judged only when the trust can be used");
        }
        Err(error @ TlsError::File { flag: "tls_client_key", .. }) => {
            return report.fail(CHECK, error.to_string(), "put the certificate's key there, in PEM, not encrypted");
        }
        Err(error) => return report.fail(CHECK, error.to_string(), "put a certificate and its own key there"),
        Ok(()) => {}
    }
    let shown = client.cert.display();
    let Some(own) = certificates.first() else { return };
    match ValidityState::of(own) {
        ValidityState::Over(date) => report.fail(CHECK, format!("{shown} ended on {date}"), "issue a new certificate"),
        ValidityState::NotYet(date) => {
            report.fail(CHECK, format!("{shown} begins on {date} only"), "see that this host's clock is right");
        }
        _ => warn_of_the_end(CHECK, &format!("{shown}: "), own, report),
    }
    warn_if_others_read(CHECK, &client.key, report);
    if report.is_clean(CHECK) {
        report.ok_with(CHECK, format!("{shown} and its key belong together"), vec![describe(own)]);
    }
}

fn headers(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::RequestHeaders;
    let Some(path) = &subject.settings.headers_file else { return report.ok(CHECK, "none are set") };
    let shown = path.display();
    let error = match Headers::of(&subject.settings) {
        Ok(headers) => {
            let names: Vec<&str> = headers.names().map(|name| name.as_str()).collect();
            return match names.as_slice() {
                [] => report.warn(
                    CHECK,
                    format!("{shown} has no header in it"),
                    "put one in each line, Name: value, or take --tls_headers_file away",
                ),
                names => report.ok(CHECK, format!("{shown}: {}", names.join(", "))),
            };
        }
        Err(error) => error,
    };
    let remedy = match &error {
        HeadersError::Line { .. } => "correct the line: Name: value, or a comment that begins with #".to_owned(),
        HeadersError::File { source, .. } => match source.kind() {
            io::ErrorKind::NotFound => {
                format!(
                    "make the file (chmod 0600) with a header in each line, Name: value, or correct the flag in {}",
                    subject.own_path.display()
                )
            }
            io::ErrorKind::PermissionDenied if source.raw_os_error().is_some() => "run the doctor as root".to_owned(),
            io::ErrorKind::PermissionDenied => {
                format!("have it in a directory of osqueryd's user, owned by that user: chmod 0600 {shown}")
            }
            _ => "see that --tls_headers_file names a text file".to_owned(),
        },
    };
    report.fail(CHECK, chain(&error).to_string(), remedy);
}
