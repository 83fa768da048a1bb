//! The way to the server, step by step: name, proxy, TCP, TLS.

use std::net::ToSocketAddrs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustls::{AlertDescription as Alert, CertificateError as Cert, Error};
use rustls_pki_types::CertificateDer;

use super::certificates::{ValidityState, common_name, describe, names_as_issuer, pin};
use super::fault::PROXY_CREDENTIALS;
use super::handshake::Facts;
use super::subject::Subject;
use super::{Check, Level, Report};
use crate::chain::chain;
use crate::clock::{seconds, unix_time};
use crate::remote::{Look, TlsError, TransportError, bundle, look, old_version, server_date};
use crate::settings::{HostPort, Proxy};
use crate::words::counted;

/// A resolver that takes longer is a failure of the check.
const RESOLVER_LIMIT: Duration = Duration::from_secs(5);

/// Other servers are not in use now.
const OTHER_LIMIT: Duration = Duration::from_secs(4);

const STEPS: [Check; 4] = [Check::NameResolution, Check::Proxy, Check::TcpConnection, Check::TlsHandshake];

/// What was seen of the server, when a connection could be tried.
pub(super) fn check(subject: &Subject, report: &mut Report<'_>) -> Option<Look> {
    let (Ok(server), Ok(proxy)) = (&subject.settings.server, &subject.settings.proxy) else {
        skip(&STEPS, "--tls_hostname or --proxy_hostname can't be used", report);
        return None;
    };
    if subject.settings.tls.pins.is_err() {
        skip(&STEPS, "--tls_pins can't be used: see own flags", report);
        return None;
    }
    let server = &server.address;
    let first = proxy.as_ref().map_or(server, |proxy| &proxy.address);
    if !resolve(first, proxy.is_some(), subject.left(RESOLVER_LIMIT), report) {
        skip(STEPS.get(1..).unwrap_or_default(), "the name has no address", report);
        return None;
    }
    if let Some(failed) = failed_file(report) {
        skip(STEPS.get(1..).unwrap_or_default(), &format!("no connection can be made: see {}", failed.name()), report);
        return None;
    }
    let look = look(&subject.settings);
    match proxy {
        None => report.ok(Check::Proxy, "none is set"),
        Some(proxy) => match &look.error {
            Some(TransportError::Proxy(error)) => {
                let (message, remedy) = of_proxy(&chain(error).to_string(), server, proxy);
                report.fail(Check::Proxy, message, remedy);
                skip(STEPS.get(2..).unwrap_or_default(), "the proxy gives no connection", report);
                return None;
            }
            _ if look.connected => report.ok(Check::Proxy, format!("{} connects to {server}", proxy.address)),
            _ => report.skip(Check::Proxy, "it was not reached"),
        },
    }
    connected(subject, server, &look, report);
    Some(look)
}

/// The servers that are asked while the first one fails: one that isn't there is found out too late.
pub(super) fn others(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::OtherServers;
    let others = &subject.settings.failover.servers;
    if others.is_empty() {
        return report.ok(CHECK, "none is set (--failover_hostnames)");
    }
    if let Some(failed) = failed_file(report) {
        return report.skip(CHECK, format!("no connection can be made: see {}", failed.name()));
    }
    let (mut failed, mut lines) = (0, Vec::new());
    for (number, server) in (1..).zip(others) {
        let mut settings = subject.settings.with_server(number).into_owned();
        settings.request_timeout = subject.left(OTHER_LIMIT);
        match look(&settings).error {
            None => lines.push(format!("{server}: reached, and its certificate is trusted")),
            Some(error) => {
                failed += 1;
                lines.push(format!("{server}: {}", chain(&error)));
            }
        }
    }
    match failed {
        0 => report.ok_with(CHECK, "they can be reached, and are trusted:", lines),
        _ => report.problem(
            CHECK,
            Level::Warning,
            format!("{failed} of {} can't be asked when the first one fails:", others.len()),
            "see that --failover_hostnames names servers, and that they have the first one's authorities",
            lines,
        ),
    }
}

/// The check of a file without which no connection can be made, where it has failed.
fn failed_file(report: &Report<'_>) -> Option<Check> {
    [Check::ServerTrust, Check::ClientCertificate].into_iter().find(|check| report.has_failed(*check))
}

fn skip(steps: &[Check], reason: &str, report: &mut Report<'_>) {
    for step in steps {
        report.skip(*step, reason);
    }
}

/// A proxy's refusals, each with its remedy.
fn of_proxy(error: &str, server: &HostPort, proxy: &Proxy) -> (String, String) {
    let port = server.port.unwrap_or(443);
    let status =
        error.split_once("answered HTTP ").and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
    let address = &proxy.address;
    let Some(status) = status else {
        let remedy = format!("see that --proxy_hostname names an HTTP proxy that runs at {address}");
        return (error.to_owned(), remedy);
    };
    let remedy = match status {
        "407" if proxy.credentials.is_some() => "the proxy does not take the user and the password in --proxy_hostname",
        "407" => PROXY_CREDENTIALS,
        "403" | "405" => "have the proxy allow CONNECT to the server's name and port",
        "502" | "503" | "504" => "the proxy can't reach the server: see that its name is right, and the proxy's log",
        _ => "see the proxy's log for why it refuses CONNECT",
    };
    (format!("the proxy {address} answers CONNECT to {}:{port} by HTTP {status}", server.host), remedy.to_owned())
}

/// Whether the name that is connected to first has an address.
fn resolve(host: &HostPort, is_proxy: bool, limit: Duration, report: &mut Report<'_>) -> bool {
    const CHECK: Check = Check::NameResolution;
    let name = host.host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let (answer, answered) = mpsc::channel();
    let asked = (name.clone(), host.port.unwrap_or(443));
    // The system's resolver has no deadline: a thread that it keeps ends with the process.
    let resolver = thread::Builder::new().name("resolver".to_owned()).spawn(move || {
        let found = asked.to_socket_addrs().map(|addresses| addresses.map(|address| address.ip()).collect::<Vec<_>>());
        // An answer that is late has no receiver any more.
        let _ = answer.send(found);
    });
    let problem = match resolver.map(|_| answered.recv_timeout(limit)) {
        Ok(Ok(Ok(mut addresses))) if !addresses.is_empty() => {
            addresses.dedup();
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let whose = if is_proxy { " (the proxy's; the server's name is the proxy's to resolve)" } else { "" };
            report.ok(CHECK, format!("{name} is {}{whose}", addresses.join(", ")));
            return true;
        }
        Ok(Ok(Ok(_))) => "it has no address".to_owned(),
        Ok(Ok(Err(error))) | Err(error) => error.to_string(),
        Ok(Err(_)) => format!("no answer within {} s", limit.as_secs()),
    };
    let flag = if is_proxy { "--proxy_hostname" } else { "--tls_hostname" };
    report.fail(
        CHECK,
        format!("the name {name} can't be resolved: {problem}"),
        format!("see that {flag} is right, and that this host's DNS (/etc/resolv.conf, /etc/hosts) knows it"),
    );
    false
}

fn connected(subject: &Subject, server: &HostPort, look: &Look, report: &mut Report<'_>) {
    let port = server.port.unwrap_or(443);
    if let (false, Some(error)) = (look.connected, &look.error) {
        let (message, remedy) = match error {
            TransportError::Timeout(_) => (
                format!("{server}: no answer from port {port}"),
                format!("see that {server} is the server, and that no firewall swallows connections to port {port}"),
            ),
            _ => (
                format!("{server}: {}", chain(error)),
                format!("see that the server listens on port {port}, and that no firewall is in the way"),
            ),
        };
        report.fail(Check::TcpConnection, message, remedy);
        report.skip(Check::TlsHandshake, "there is no connection");
        return;
    }
    report.ok(Check::TcpConnection, format!("{server} accepts connections on port {port}"));
    handshake(subject, server, look, report);
}

fn handshake(subject: &Subject, server: &HostPort, look: &Look, report: &mut Report<'_>) {
    const CHECK: Check = Check::TlsHandshake;
    let presented = presented(subject, look);
    if let Some(error) = &look.error {
        let diagnosis = facts(subject, server, look, error, &authorities(subject)).diagnosis();
        let colon = if look.chain.is_empty() { "" } else { "; it presents:" };
        let message = format!("{server}: {}{colon}", diagnosis.message);
        return report.problem(CHECK, Level::Failure, message, diagnosis.remedy, presented);
    }
    let agreed = look.agreed.clone().unwrap_or_default();
    let soon = look.chain.iter().filter_map(|certificate| match ValidityState::of(certificate) {
        ValidityState::EndsSoon(days) => Some(days),
        ValidityState::Over(_) => Some(0),
        _ => None,
    });
    match (soon.min(), ending_trust(subject, look)) {
        (Some(days), _) => report.problem(
            CHECK,
            Level::Warning,
            format!("{agreed}; a certificate of the chain ends in {}:", counted(days.unsigned_abs(), "day")),
            "renew it on the server",
            presented,
        ),
        (None, Some(end)) => report.problem(
            CHECK,
            Level::Warning,
            format!("{agreed}; the authority by which the server's certificate is trusted {end}; it presents:"),
            "add your server's next authority to the file of --tls_server_certs",
            presented,
        ),
        (None, None) => {
            let pinned = subject.settings.tls.pins.as_ref().is_ok_and(|pins| !pins.is_empty());
            let and_pinned = if pinned { ", and a key of its chain is pinned" } else { "" };
            report.ok_with(CHECK, format!("{agreed}; the server's certificate is trusted{and_pinned}:"), presented);
        }
    }
}

/// Of those in `tls_server_certs` by which the chain is trusted, where none of them lasts: how the first one ends. Where nothing in
/// that file lasts, `files` has said so.
fn ending_trust(subject: &Subject, look: &Look) -> Option<String> {
    let bundle = bundle(&subject.settings.tls.server_certs).unwrap_or_default();
    let lasts = |authority: &CertificateDer<'_>| matches!(ValidityState::of(authority), ValidityState::Valid(_));
    let is_used = |authority: &&CertificateDer<'static>| look.chain.iter().any(|one| names_as_issuer(one, authority));
    let used: Vec<&CertificateDer<'static>> = bundle.iter().filter(is_used).collect();
    if !bundle.iter().any(lasts) || used.iter().any(|authority| lasts(authority)) {
        return None;
    }
    let authority = used.first()?;
    let ends = match ValidityState::of(authority) {
        ValidityState::EndsSoon(days) => format!("ends in {}", counted(days.unsigned_abs(), "day")),
        ValidityState::Over(date) => format!("ended on {date}"),
        _ => return None,
    };
    Some(format!("{ends} ({})", common_name(authority)))
}

/// What the server presents, each certificate with its key's pin; and what else is pinned that there is.
fn presented(subject: &Subject, look: &Look) -> Vec<String> {
    let pinned = subject.settings.tls.pins.as_deref().unwrap_or_default();
    let line = |certificate: &CertificateDer<'_>| {
        let pin = pin(certificate)?;
        Some(format!("its key's pin: {pin}{}", if pinned.contains(&pin) { ", which is in --tls_pins" } else { "" }))
    };
    let mut lines: Vec<String> =
        look.chain.iter().flat_map(|certificate| [Some(describe(certificate)), line(certificate)]).flatten().collect();
    if !pinned.is_empty() {
        let is_pinned = |one: &&CertificateDer<'static>| pin(one).is_some_and(|pin| pinned.contains(&pin));
        let bundle = bundle(&subject.settings.tls.server_certs).unwrap_or_default();
        for authority in bundle.iter().filter(is_pinned).filter(|authority| !look.chain.contains(authority)) {
            lines.push(format!("pinned, in --tls_server_certs: {}", describe(authority)));
        }
    }
    lines
}

/// The names of the trusted authorities, as many as a reader takes in.
fn authorities(subject: &Subject) -> Vec<String> {
    let bundle = bundle(&subject.settings.tls.server_certs).unwrap_or_default();
    let more = bundle.len().saturating_sub(3);
    let mut named: Vec<String> = bundle.iter().take(3).map(common_name).collect();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    named
}

/// What more there is to see is looked at only where it can be the reason.
fn facts<'a>(
    subject: &'a Subject,
    server: &'a HostPort,
    look: &'a Look,
    error: &'a TransportError,
    authorities: &'a [String],
) -> Facts<'a> {
    let handshake = match error {
        TransportError::Tls(TlsError::Handshake(error)) => Some(error),
        _ => None,
    };
    let is_out_of_time = matches!(
        handshake,
        Some(Error::InvalidCertificate(
            Cert::Expired | Cert::ExpiredContext { .. } | Cert::NotValidYet | Cert::NotValidYetContext { .. }
        ))
    );
    let has_nothing_in_common = matches!(
        handshake,
        Some(
            Error::PeerIncompatible(_)
                | Error::AlertReceived(Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::InsufficientSecurity)
        )
    );
    let is_direct = matches!(subject.settings.proxy, Ok(None));
    Facts {
        server,
        error,
        chain: &look.chain,
        trust: &subject.settings.tls.server_certs,
        authorities,
        asked_for_certificate: look.asked_for_certificate,
        has_certificate: matches!(subject.settings.tls.client, Ok(Some(_))),
        now: unix_time(),
        server_time: is_out_of_time.then(|| server_date(&subject.settings)).flatten().map(seconds),
        old_version: (has_nothing_in_common && is_direct).then(|| old_version(server)).flatten(),
    }
}
