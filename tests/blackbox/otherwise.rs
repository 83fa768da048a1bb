//! What is judged otherwise than by the built-in plugins: the rows of the table in docs/migrate.md that no other module
//! tries.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rustls::crypto::ring;
use rustls::{CipherSuite, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use testkit::certs::{Authority, default_authority};
use testkit::server::{Answer, Endpoint};

use crate::rig::{Rig, Setup};

/// Each row's subject in docs/migrate.md, and the test that tries it.
const ROWS: [(&str, &str); 11] = [
    ("suites", "otherwise::no_suites_but_those_with_forward_secrecy_are_offered"),
    ("a key for RSASSA-PSS alone, TLS 1.2", "trust::keys_on_p_521_and_keys_for_rsassa_pss_alone_are_known"),
    ("a client key on P-521", "otherwise::a_client_key_on_p_521_is_refused_by_name"),
    ("a configuration with none of osquery's members", "config::only_a_configuration_reaches_osqueryd"),
    ("X.509 version 1", "trust::a_version_1_certificate_is_refused_and_the_message_says_why"),
    ("SHA-1, RSA below 2048 bits", "trust::weak_signatures_are_refused_by_name"),
    (
        "a trust that is an intermediate",
        "trust::chains_with_intermediates_and_superfluous_certificates_of_rsa_and_ecdsa",
    ),
    ("a common name, or a certificate as itself", "trust::only_an_explicit_bundle_makes_names_and_certificates_count"),
    ("a bundle, certificate or key that became unusable", "tls::certificates_replaced_on_disk_are_used_at_once"),
    ("headers of an answer", "otherwise::an_answer_may_have_a_hundred_headers"),
    ("a folded header", "otherwise::a_folded_header_is_refused"),
];

#[test]
fn the_documentation_has_each_row_and_no_other() {
    let text = include_str!("../../docs/migrate.md");
    let table = text.split("## What is judged otherwise").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).collect();
    // The first row is the head.
    assert_eq!(rows.len() - 1, ROWS.len(), "{rows:#?}");
    for (subject, test) in ROWS {
        assert!(rows.iter().any(|row| row.starts_with(&format!("| {subject} |"))), "no row for {subject} ({test})");
    }
}

#[test]
fn no_suites_but_those_with_forward_secrecy_are_offered() {
    use CipherSuite::*;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = format!("localhost:{}", listener.local_addr().unwrap().port());
    let rig = Setup::new().flag("tls_hostname", &address).flag("tls_enroll_max_attempts", "1").start();
    let server = thread::spawn(move || client_hello(&listener.accept().unwrap().0));
    rig.refusal();
    let mut offered = offered_suites(&server.join().unwrap());
    // What stands for "no renegotiation" is no suite.
    offered.retain(|suite| *suite != TLS_EMPTY_RENEGOTIATION_INFO_SCSV);
    let expected = [
        TLS13_AES_256_GCM_SHA384,
        TLS13_AES_128_GCM_SHA256,
        TLS13_CHACHA20_POLY1305_SHA256,
        TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    assert_eq!(offered, expected);
}

/// The first record that a client sends.
fn client_hello(mut client: &TcpStream) -> Vec<u8> {
    let mut head = [0; 5];
    client.read_exact(&mut head).unwrap();
    let mut record = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    client.read_exact(&mut record).unwrap();
    record
}

fn offered_suites(hello: &[u8]) -> Vec<CipherSuite> {
    // Type and length, version, random; then the session's identifier and the suites, each with its length.
    let session = usize::from(hello[38]);
    let suites = &hello[39 + session..];
    let length = usize::from(u16::from_be_bytes([suites[0], suites[1]]));
    let pairs = suites[2..2 + length].chunks_exact(2);
    pairs.map(|pair| CipherSuite::from(u16::from_be_bytes([pair[0], pair[1]]))).collect()
}

#[test]
fn a_client_key_on_p_521_is_refused_by_name() {
    let setup = Setup::new().flag("tls_enroll_max_attempts", "1");
    let cert = setup.file("client.pem", include_str!("../kit/fixtures/p521-leaf.pem"));
    let key = setup.file("client.key", include_str!("../kit/fixtures/p521-pkcs8.key"));
    let setup = setup.client_certificate(&cert, &key);
    let message = setup.start().refusal();
    assert!(message.contains("client.pem can't be used: with its key: "), "{message}");
}

#[test]
fn an_answer_may_have_a_hundred_headers() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
    let with_headers = |count: usize| {
        let answer = Answer::default_behaviour();
        (0..count).fold(answer, |answer, n| answer.header(&format!("x-header-{n}"), "value"))
    };
    rig.server.script(Endpoint::Config, [with_headers(120)]);
    rig.config();
    rig.server.script(Endpoint::Config, [with_headers(130)]);
    let message = rig.refusal();
    assert!(message.contains("headers"), "{message}");
}

#[test]
fn a_folded_header_is_refused() {
    let taken = enroll_with("X-Plain: one line\r\n");
    assert!(taken.stored_key().is_some());
    let message = enroll_with("X-Folded: one line\r\n and another\r\n").refusal();
    assert!(message.contains("the connection broke"), "{message}");
}

/// A rig that has asked a server which answers everything with a node key and these headers.
fn enroll_with(headers: &str) -> Rig {
    let body = r#"{"node_key":"k-1"}"#;
    let length = body.len();
    let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = format!("localhost:{}", listener.local_addr().unwrap().port());
    let setup = Setup::new().flag("tls_hostname", &address).flag("tls_enroll_max_attempts", "1");
    let setup = setup.flag("config_tls_max_attempts", "1");
    let tls = tls_config(default_authority());
    // It ends with the test's process.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that doesn't like the answer hangs up.
            let _ = answer_once(client, &tls, &answer);
        }
    });
    let rig = setup.start();
    rig.gen_config();
    rig
}

fn tls_config(authority: &Authority) -> Arc<ServerConfig> {
    let identity = authority.issue_server(&["localhost"]);
    let chain = vec![CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

/// Reads a request to its end, and answers it.
fn answer_once(client: TcpStream, tls: &Arc<ServerConfig>, answer: &str) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(tls)).map_err(std::io::Error::other)?;
    let mut reader = BufReader::new(StreamOwned::new(connection, client));
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line)? > 2 {
        let header = line.to_ascii_lowercase();
        length = header.strip_prefix("content-length:").map_or(length, |value| value.trim().parse().unwrap());
        line.clear();
    }
    reader.read_exact(&mut vec![0; length])?;
    reader.get_mut().write_all(answer.as_bytes())?;
    reader.get_mut().conn.send_close_notify();
    reader.get_mut().flush()
}
