//! Faults on the way to the server: name, proxy, TCP, TLS, client certificates.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::Duration;

use testkit::certs::{Authority, CertificateKind, default_authority};
use testkit::proxy::{Behaviour, Proxy};
use testkit::server::{self, Answer, Endpoint};

use super::files::client;
use super::{Fault, Host, fault, find, look};
use crate::pins::{SPARE, pin};

#[rustfmt::skip]
pub(super) const FAULTS: &[Fault] = &[
    fault("name resolution", "failure", "the name no-such-host.invalid can't be resolved",
        "--tls_hostname is right", |host| host.flag("tls_hostname", "no-such-host.invalid")),
    fault("name resolution", "failure", "the name no-such-proxy.invalid can't be resolved",
        "--proxy_hostname is right", |host| host.flag("proxy_hostname", "no-such-proxy.invalid")),
    fault("tcp connection", "failure", "can't connect: Connection refused",
        "see that the server listens on port", |host| host.server.stop()),
    fault("proxy", "failure", "by HTTP 407",
        "the proxy wants a user and a password: --proxy_hostname=USER:PASSWORD@HOST:PORT",
        |host| proxy(host, Behaviour::Refuse(407), "")),
    fault("proxy", "failure", "answers CONNECT to localhost:",
        "does not take the user and the password", |host| proxy(host, Behaviour::Refuse(407), "me:p4ssw0rd@")),
    fault("proxy", "failure", "by HTTP 403",
        "have the proxy allow CONNECT", |host| proxy(host, Behaviour::Refuse(403), "")),
    fault("proxy", "failure", "by HTTP 502",
        "the proxy can't reach the server", |host| proxy(host, Behaviour::Refuse(502), "")),
    fault("proxy", "failure", "by HTTP 500",
        "the proxy's log", |host| proxy(host, Behaviour::Refuse(500), "")),
    fault("proxy", "failure", "gave no connection: timed out",
        "names an HTTP proxy that runs at", |host| { hurry(host); proxy(host, Behaviour::Hang, ""); }),
    fault("proxy", "failure", "gave no connection: ",
        "names an HTTP proxy that runs at", |host| proxy(host, Behaviour::Garbage, "")),
    fault("proxy", "failure", "Connection refused",
        "names an HTTP proxy that runs at", |host| {
            let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
            host.flag("proxy_hostname", &unused.to_string());
        }),
    fault("other servers", "warning", "1 of 2 can't be asked when the first one fails:",
        "--failover_hostnames names servers", |host| {
            let itself = host.server.hostname();
            host.file("remote_tls.flags", &format!("--failover_hostnames={itself},localhost:1\n"));
        }),
    fault("tls handshake", "failure", "does not speak TLS on port",
        "osquery speaks https only", |host| *host = with_server(|server| server.tls = false)),
    fault("tls handshake", "failure", "doesn't answer TLS's greeting",
        "and not something that waits", |host| { hurry(host); raw_server(host, |_| None); }),
    fault("tls handshake", "failure", "hangs up on TLS's greeting",
        "that it knows this name", |host| raw_server(host, |_| Some(Vec::new()))),
    fault("tls handshake", "failure", "the server speaks TLS 1.1, and nothing newer",
        "have it speak TLS 1.2 or 1.3", |host| raw_server(host, old_tls)),
    fault("tls handshake", "failure", "the server's certificate is for elsewhere.example, and for another name than tls_hostname (localhost)",
        "such as elsewhere.example", |host| *host = showing(CertificateKind::WrongName)),
    fault("tls handshake", "failure", "the server's certificate has expired on 2021-01-01, ",
        "renew it on the server", |host| *host = showing(CertificateKind::Expired)),
    fault("tls handshake", "failure", "the server's certificate is not valid yet: it begins on 2900-01-01, in ",
        "set this host's clock if it is behind", |host| *host = showing(CertificateKind::NotYetValid)),
    fault("tls handshake", "failure", "neither the server's key nor that of an issuer is one of tls_pins; it presents:",
        "add its pin to --tls_pins", |host| pins(host, &[SPARE, SPARE])),
    fault("tls handshake", "failure", "is issued by \"CN=another authority\", which --tls_server_certs=",
        "put the certificate of \"CN=another authority\" into", |host| *host = showing(CertificateKind::OtherIssuer)),
    fault("tls handshake", "failure", "is issued by \"CN=localhost\", which --tls_server_certs=",
        "it is its own authority: put that very certificate into", |host| {
            let identity = testkit::certs::self_signed(|_| {});
            *host = with_server(|server| server.identity = identity);
        }),
    fault("tls handshake", "failure", "not meant for TLS servers",
        "issue another certificate", |host| *host = showing(CertificateKind::WrongPurpose)),
    fault("tls handshake", "failure", "this host's clock is wrong: it says ",
        "set the clock, and have it kept by NTP", |host| {
            *host = showing(CertificateKind::Expired);
            let then = std::time::UNIX_EPOCH + Duration::from_secs(1_592_000_000);
            let answer = Answer::default_behaviour().header("Date", &httpdate::fmt_http_date(then));
            host.server.always(Endpoint::Enroll, Some(answer));
        }),
    fault("tls handshake", "warning", "a certificate of the chain ends in 10 days",
        "renew it on the server", |host| {
            let authority = Authority::new("short");
            let soon = time::OffsetDateTime::now_utc() + Duration::from_secs(10 * 24 * 3600 + 3600);
            let identity = authority.issue_server_with(|params| params.not_after = soon);
            *host = with_server(|server| server.identity = identity);
            host.file("ca.pem", &authority.cert_pem());
        }),
    fault("server answer", "failure", "the server wants a client certificate, and none is set",
        "set --tls_client_cert and --tls_client_key", |host| *host = wanting_clients(&default_authority().cert_pem())),
    fault("server answer", "failure", "the server refuses this host's client certificate (",
        "see whom the server takes client certificates from", |host| {
            *host = wanting_clients(&Authority::new("of other clients").cert_pem());
            client(host, |cert, key| (cert, key));
        }),
    fault("server answer", "failure", "the server wants a client certificate (HTTP 400: 400 Bad Request No required SSL certificate was sent nginx)",
        "set --tls_client_cert and --tls_client_key", |host| {
            let page = "<html><head><title>400 No required SSL certificate was sent</title></head><body><h1>400 Bad Request</h1>\
                        <center>No required SSL certificate was sent</center><hr>nginx</body></html>";
            host.server.always(Endpoint::Config, Some(Answer::status(400, page)));
        }),
];

fn with_server(change: impl FnOnce(&mut server::Options)) -> Host {
    Host::with_server(change)
}

fn showing(kind: CertificateKind) -> Host {
    let (identity, bundle) = kind.make();
    let host = Host::with_server(|server| server.identity = identity);
    host.file("ca.pem", &bundle);
    host
}

fn wanting_clients(authority: &str) -> Host {
    Host::with_server(|server| server.client_ca_pem = Some(authority.to_owned()))
}

/// A request may take a second.
fn hurry(host: &mut Host) {
    host.file("remote_tls.flags", "--request_timeout=1\n");
}

fn proxy(host: &mut Host, behaviour: Behaviour, credentials: &str) {
    let proxy = Proxy::start(behaviour).unwrap();
    host.flag("proxy_hostname", &format!("{credentials}127.0.0.1:{}", proxy.port()));
    host.kept.push(Box::new(proxy));
}

/// In the server's place, a listener that answers a greeting with this: `None` waits, an empty answer hangs up.
fn raw_server(host: &mut Host, answer: fn(&[u8]) -> Option<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    host.flag("tls_hostname", &format!("localhost:{}", listener.local_addr().unwrap().port()));
    // It ends with the tests.
    thread::spawn(move || {
        let mut waiting = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut greeting = [0; 2048];
            let length = stream.read(&mut greeting).unwrap_or(0);
            match answer(&greeting[..length]) {
                None => waiting.push(stream),
                Some(bytes) => _ = stream.write_all(&bytes),
            }
        }
    });
}

/// A server of TLS 1.1: it refuses a greeting of 1.2 by the alert `protocol_version`, and takes one of its own.
fn old_tls(greeting: &[u8]) -> Option<Vec<u8>> {
    let is_old = greeting.get(9..11) == Some(&[3, 2]);
    Some(if is_old {
        // The head of a record, of a ServerHello, and its version.
        [&[0x16, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2][..], &[0; 36]].concat()
    } else {
        vec![0x15, 3, 2, 0, 2, 2, 70]
    })
}

fn pins(host: &mut Host, pins: &[&str]) {
    host.file("remote_tls.flags", &format!("--tls_pins={}\n", pins.join(",")));
}

#[test]
fn the_pins_of_the_server_s_chain_are_shown_and_which_of_them_count() {
    let mut host = Host::new();
    let authority = pin(&default_authority().cert_pem());
    let shown = "its key's pin: ";
    let examined = host.examine(&[]);
    examined.must_say("tls handshake", "ok", "the server's certificate is trusted:", "");
    let key = examined.text.split(shown).nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert!(!examined.text.contains("which is in --tls_pins"), "{}", examined.text);
    pins(&mut host, &[&key, SPARE]);
    let examined = host.examine(&[]);
    examined.must_say("tls handshake", "ok", "trusted, and a key of its chain is pinned:", "");
    assert!(examined.text.contains(&format!("{shown}{key}, which is in --tls_pins")), "{}", examined.text);
    pins(&mut host, &[SPARE, &authority]);
    let examined = host.examine(&[]);
    examined.must_say("tls handshake", "ok", "trusted, and a key of its chain is pinned:", "");
    assert!(examined.text.contains("pinned, in --tls_server_certs: CN=testkit authority"), "{}", examined.text);
}

#[test]
fn what_is_wrong_with_the_way_to_the_server_is_said() {
    find(FAULTS);
}

#[test]
fn what_is_trusted_is_shown_and_what_is_not_too() {
    for (name, kind) in CertificateKind::ALL {
        let host = showing(kind);
        let examined = look(&host.flagfile(), &host.path("remote_tls.flags"), &[]);
        let is_good = ["good", "common-name", "self-signed", "self-signed-authority"].contains(&name);
        let level = if is_good { "ok" } else { "failure" };
        examined.must_say("tls handshake", level, "", "");
        let chain = examined.of("tls handshake")[0]["details"].to_string();
        assert!(chain.contains(", issued by CN="), "{name}: {chain}");
        // Nothing is sent to a server that isn't trusted, but a GET for the time.
        let requests = host.server.requests();
        if !is_good {
            examined.must_say("config endpoint", "skipped", "there is no connection to the server", "");
            assert!(requests.iter().all(|request| request.method == "GET" && request.body.is_empty()), "{name}");
            assert!(requests.iter().all(|request| request.header("authorization").is_none()), "{name}");
        }
    }
}

#[test]
fn a_client_certificate_that_the_server_takes_is_right_and_so_is_a_proxy() {
    let mut host = wanting_clients(&default_authority().cert_pem());
    client(&mut host, |cert, key| (cert, key));
    let examined = look(&host.flagfile(), &host.path("remote_tls.flags"), &[]);
    examined.must_say("client certificate", "ok", "belong together", "");
    examined.must_say("server answer", "ok", "HTTP ", "");
    let mut host = Host::new();
    proxy(&mut host, Behaviour::Tunnel, "me:p4ssw0rd@");
    let examined = look(&host.flagfile(), &host.path("remote_tls.flags"), &[]);
    examined.must_say("proxy", "ok", "connects to localhost:", "");
    examined.must_say("server answer", "ok", "HTTP ", "");
    assert!(!examined.text.contains("p4ssw0rd"), "{}", examined.text);
}
