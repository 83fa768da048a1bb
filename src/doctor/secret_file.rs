//! The enroll secret: whether it can be had, and whether it looks like what its author meant. It is never shown.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::encoding::Encoding;
use super::subject::Subject;
use super::{Check, Report};
use crate::chain::chain;
use crate::remote::{self, SecretError};
use crate::secret::Secret;
use crate::settings::SecretSource;

const CHECK: Check = Check::EnrollSecret;

const OTHERS_READ: u32 = 0o004;

/// Secrets and keys are for their owner.
pub(super) fn warn_if_others_read(check: Check, path: &Path, report: &mut Report<'_>) {
    if fs::metadata(path).is_ok_and(|file| file.mode() & OTHERS_READ != 0) {
        report.warn(
            check,
            format!("{} is readable by everybody on this host", path.display()),
            format!("chmod o-r {}", path.display()),
        );
    }
}

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    let enroll = &subject.settings.enroll;
    if enroll.disabled {
        return report.skip(CHECK, "--disable_enrollment: none is needed");
    }
    if let SecretSource::File(path) = &enroll.secret
        && let Ok(bytes) = fs::read(path)
        && let Some(encoding) = Encoding::of(&bytes)
    {
        let message = match encoding {
            Encoding::Utf16 => format!("{} is UTF-16: no server has such a secret", path.display()),
            Encoding::Mark => {
                format!("{} is {}, which is sent as a part of the secret", path.display(), encoding.name())
            }
        };
        return report.fail(CHECK, message, encoding.remedy(path));
    }
    match remote::enroll_secret(&enroll.secret) {
        Ok(known) => judge(&known, subject, report),
        Err(SecretError::Variable(name)) => report.warn(
            CHECK,
            format!("--enroll_secret_env={name}: there is no such variable here"),
            "see that osqueryd's service sets it, or run the doctor with it",
        ),
        Err(error) => {
            let remedy = match &error {
                SecretError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                    "make the file (chmod 0600) with your server's enroll secret in it, or correct --enroll_secret_path"
                }
                SecretError::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                    "run the doctor as root"
                }
                _ => "see that --enroll_secret_path names a text file",
            };
            report.fail(CHECK, chain(&error).to_string(), remedy);
        }
    }
}

fn judge(known: &Secret, subject: &Subject, report: &mut Report<'_>) {
    let (text, source) = (known.expose(), &subject.settings.enroll.secret);
    let lines = text.lines().count();
    let is_quoted = |quote: char| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    match source {
        SecretSource::None if matches!(subject.settings.tls.client, Ok(Some(_))) => {
            return report.ok(CHECK, "none is set: the server knows its hosts by their client certificates");
        }
        SecretSource::None => {
            return report.warn(
                CHECK,
                "neither --enroll_secret_path nor --enroll_secret_env is set: the empty secret is sent",
                "set --enroll_secret_path, unless the server takes every host",
            );
        }
        _ if text.is_empty() => report.fail(CHECK, "the secret is empty", "put your server's enroll secret there"),
        _ if lines > 1 => report.warn(
            CHECK,
            format!("the secret has {lines} lines, all of which are sent"),
            "leave the one line that is the secret",
        ),
        _ if is_quoted('"') || is_quoted('\'') => report.warn(
            CHECK,
            "the secret has quotes around it, which are sent as a part of it",
            "remove the quotes, unless the server's secret has them",
        ),
        _ => {}
    }
    if let SecretSource::File(path) = source {
        warn_if_others_read(CHECK, path, report);
        if report.is_clean(CHECK) {
            report.ok(CHECK, format!("{} holds one", path.display()));
        }
    } else if report.is_clean(CHECK) {
        report.ok(CHECK, "the environment variable holds one");
    }
}
