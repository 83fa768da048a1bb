//! The way to the server, step by step: name, proxy, TCP, TLS.

use std::net::ToSocketAddrs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::certificates::{Term, describe};
use super::{Check, Level, Report, Subject};
use crate::chain::chain;
use crate::remote::{Look, TlsError, TransportError, look};
use crate::settings::HostPort;

/// As long as a request's connection may take in all.
const RESOLVER_LIMIT: Duration = Duration::from_secs(16);

const STEPS: [Check; 4] = [Check::NameResolution, Check::Proxy, Check::TcpConnection, Check::TlsHandshake];

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    let (Ok(server), Ok(proxy)) = (&subject.settings.server, &subject.settings.proxy) else {
        for step in STEPS {
            report.skip(step, "--tls_hostname or --proxy_hostname can't be used");
        }
        return;
    };
    let server = &server.address;
    let first = proxy.as_ref().map_or(server, |proxy| &proxy.address);
    if !resolve(first, proxy.is_some(), report) {
        for step in STEPS.into_iter().skip(1) {
            report.skip(step, "the name has no address");
        }
        return;
    }
    if let Err(error) = &subject.settings.tls.client {
        for step in STEPS.into_iter().skip(1) {
            report.skip(step, format!("--{} can't be used", error.flag));
        }
        return;
    }
    let look = look(&subject.settings);
    match proxy {
        None => report.ok(Check::Proxy, "none is set"),
        Some(proxy) => match &look.error {
            Some(error @ TransportError::Proxy(_)) => {
                report.fail(
                    Check::Proxy,
                    chain(error).to_string(),
                    "see that --proxy_hostname is right, with user:password@ if the proxy wants them, and that the \
                     proxy allows CONNECT to the server",
                );
                report.skip(Check::TcpConnection, "the proxy gives no connection");
                report.skip(Check::TlsHandshake, "the proxy gives no connection");
                return;
            }
            _ if look.connected => report.ok(Check::Proxy, format!("{} connects to {server}", proxy.address)),
            _ => report.skip(Check::Proxy, "it was not reached"),
        },
    }
    connected(server, &look, report);
}

/// Whether the name that is connected to first has an address.
fn resolve(host: &HostPort, is_proxy: bool, report: &mut Report<'_>) -> bool {
    const CHECK: Check = Check::NameResolution;
    let name = host.host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let (answer, answered) = mpsc::channel();
    let asked = (name.clone(), host.port.unwrap_or(443));
    // The system's resolver has no deadline: a thread that it keeps ends with the process.
    let resolver = thread::Builder::new().name("resolver".to_owned()).spawn(move || {
        let found = asked.to_socket_addrs().map(|addresses| addresses.map(|address| address.ip()).collect::<Vec<_>>());
        // Nobody hears an answer that is late.
        let _ = answer.send(found);
    });
    let problem = match resolver.map(|_| answered.recv_timeout(RESOLVER_LIMIT)) {
        Ok(Ok(Ok(mut addresses))) if !addresses.is_empty() => {
            addresses.dedup();
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let whose = if is_proxy { " (the proxy's; the server's name is the proxy's to resolve)" } else { "" };
            report.ok(CHECK, format!("{name} is {}{whose}", addresses.join(", ")));
            return true;
        }
        Ok(Ok(Ok(_))) => "it has no address".to_owned(),
        Ok(Ok(Err(error))) | Err(error) => error.to_string(),
        Ok(Err(_)) => format!("no answer within {} s", RESOLVER_LIMIT.as_secs()),
    };
    let flag = if is_proxy { "--proxy_hostname" } else { "--tls_hostname" };
    report.fail(
        CHECK,
        format!("the name {name} can't be resolved: {problem}"),
        format!("see that {flag} is right, and that this host's DNS (/etc/resolv.conf, /etc/hosts) knows it"),
    );
    false
}

fn connected(server: &HostPort, look: &Look, report: &mut Report<'_>) {
    let port = server.port.unwrap_or(443);
    if let (false, Some(error)) = (look.connected, &look.error) {
        // A file that can't be used was told of, and keeps nobody from connecting.
        report.fail(
            Check::TcpConnection,
            format!("{server}: {}", chain(error)),
            format!("see that the server listens on port {port}, and that no firewall is in the way"),
        );
        report.skip(Check::TlsHandshake, "there is no connection");
        return;
    }
    report.ok(Check::TcpConnection, format!("{server} accepts connections on port {port}"));
    handshake(server, look, report);
}

fn handshake(server: &HostPort, look: &Look, report: &mut Report<'_>) {
    const CHECK: Check = Check::TlsHandshake;
    let presented: Vec<String> = look.chain.iter().map(describe).collect();
    if let Some(error) = &look.error {
        let message = match look.chain.is_empty() {
            true => format!("{server}: {}", chain(error)),
            false => format!("{server}: {}; it presents:", chain(error)),
        };
        report.problem(CHECK, Level::Failure, message, remedy(error), presented);
        return;
    }
    let agreed = look.agreed.clone().unwrap_or_default();
    let soon = look.chain.iter().filter_map(|certificate| match Term::of(certificate) {
        Term::EndsSoon(days) => Some(days),
        Term::Over(_) => Some(0),
        _ => None,
    });
    match soon.min() {
        Some(days) => report.problem(
            CHECK,
            Level::Warning,
            format!("{agreed}; a certificate of the chain ends in {days} days:"),
            "renew it on the server",
            presented,
        ),
        None => report.ok_with(CHECK, format!("{agreed}; the server's certificate is trusted:"), presented),
    }
}

fn remedy(error: &TransportError) -> &'static str {
    match error {
        TransportError::Tls(TlsError::File { .. }) => "correct the file that the flag names",
        TransportError::Timeout(_) => "see that a TLS server listens on this port, and not something that waits",
        TransportError::Tls(_) => {
            "see that --tls_hostname is the certificate's name, --tls_server_certs holds its authority, the \
             certificate is in its time, and this host's clock is right (docs/tls.md)"
        }
        _ => "see that a TLS server listens on this port",
    }
}
