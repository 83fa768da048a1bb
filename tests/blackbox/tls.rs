//! TLS: as whom we come, and how connections are used.

use std::fs;
use std::time::{Duration, Instant};

use testkit::certs::{Authority, default_authority};
use testkit::server::{Answer, Endpoint, TlsVersions};

use crate::rig::{LIMIT, Setup, line, pass};

#[test]
fn both_tls_versions_are_spoken() {
    for versions in [TlsVersions::Tls12, TlsVersions::Tls13] {
        Setup::new().server(|server| server.tls_versions = versions).start().config();
    }
}

#[test]
fn a_client_certificate_is_shown_on_every_endpoint() {
    let clients = Authority::new("clients");
    let setup = Setup::new().server(|server| server.client_ca_pem = Some(clients.cert_pem()));
    let (cert, key) = clients.issue_client("host").write(setup.path(), "client");
    let rig = setup.client_certificate(&cert, &key).start();
    rig.config();
    rig.log(&line(0));
    rig.delivered(1);
    assert_eq!(rig.call("distributed", &[("action", "getQueries")]).code, 0);
    assert_eq!(rig.server.requests_to(Endpoint::Enroll).len(), 1);
}

#[test]
fn a_client_certificate_that_is_missing_or_can_t_be_used_is_named() {
    let clients = Authority::new("clients");
    let with = |flags: &[(&str, &str)]| {
        let setup = Setup::new()
            .server(|server| server.client_ca_pem = Some(clients.cert_pem()))
            .flag("tls_enroll_max_attempts", "1");
        flags.iter().fold(setup, |setup, (name, value)| setup.flag(name, value)).start().refusal()
    };
    assert!(with(&[]).contains("client certificate"), "{}", with(&[]));
    let half = with(&[("tls_client_cert", "/c.pem")]);
    assert!(half.contains("--tls_client_key="), "{half}");
    let missing = with(&[("tls_client_cert", "/no/c.pem"), ("tls_client_key", "/no/k.pem")]);
    assert!(missing.contains("--tls_client_cert=/no/c.pem can't be used"), "{missing}");
    let directory = tempfile::tempdir().unwrap();
    let (cert, _) = clients.issue_client("one").write(directory.path(), "one");
    let (_, key) = clients.issue_client("two").write(directory.path(), "two");
    let strangers = with(&[("tls_client_cert", cert.to_str().unwrap()), ("tls_client_key", key.to_str().unwrap())]);
    assert!(strangers.contains("one") && strangers.contains("don't belong together"), "{strangers}");
}

#[test]
fn connections_are_kept_or_not_as_the_flag_says() {
    for (reuse, connections) in [("true", 1), ("false", 4)] {
        let rig = Setup::new().flag("tls_session_reuse", reuse).start();
        for _ in 0..3 {
            rig.config();
        }
        assert_eq!(rig.server.connections(), connections, "tls_session_reuse={reuse}");
    }
}

#[test]
fn a_connection_idle_for_too_long_is_not_used_again() {
    let rig = Setup::new().flag("tls_session_timeout", "1").start();
    rig.config();
    pass(Duration::from_millis(1100));
    rig.config();
    let of = |index: usize| rig.server.requests_to(Endpoint::Config)[index].connection;
    assert_ne!(of(0), of(1));
}

/// Issue 15: a connection that was always in use outlived `tls_session_timeout`.
#[test]
fn a_connection_that_is_never_idle_is_not_used_for_ever() {
    let rig = Setup::new().flag("tls_session_timeout", "1").start();
    rig.osqueryd.wait("another connection", LIMIT, || {
        rig.config();
        (rig.server.connections() >= 3).then_some(())
    });
}

#[test]
fn a_connection_closed_while_idle_costs_nothing() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").start();
    for _ in 0..3 {
        rig.config();
        rig.server.stop();
        rig.server.resume().unwrap();
    }
    rig.server.script(Endpoint::Config, [testkit::server::Answer::default_behaviour().close_silently()]);
    rig.config();
    rig.config();
}

#[test]
fn certificates_replaced_on_disk_are_used_at_once() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let setup = Setup::new()
        .flag("config_tls_max_attempts", "1")
        .server(|server| server.identity = second.issue_server(&["localhost"]));
    let bundle = setup.file("bundle.pem", &first.cert_pem());
    let rig = setup.flag("tls_server_certs", bundle.to_str().unwrap()).flag("tls_enroll_max_attempts", "1").start();
    rig.refusal();
    fs::write(&bundle, second.cert_pem()).unwrap();
    rig.config();
    rig.said("TLS certificates changed on disk: using the new ones");
    fs::write(&bundle, "damaged").unwrap();
    rig.config();
    rig.said("the certificates read before go on being used");
}

/// Issue 15: a kept connection went on after its bundle had been replaced.
#[test]
fn a_kept_connection_ends_when_its_trust_is_withdrawn() {
    let setup = Setup::new().flag("config_tls_max_attempts", "1");
    let bundle = setup.file("bundle.pem", &default_authority().cert_pem());
    let rig = setup.flag("tls_server_certs", bundle.to_str().unwrap()).start();
    rig.config();
    let asked = rig.server.requests().len();
    fs::write(&bundle, Authority::new("another").cert_pem()).unwrap();
    let message = rig.refusal();
    assert!(message.contains("not issued by an authority in tls_server_certs"), "{message}");
    assert_eq!(rig.server.requests().len(), asked, "it was asked over the old connection");
    // Given back, it counts again.
    fs::write(&bundle, default_authority().cert_pem()).unwrap();
    rig.config();
}

#[test]
fn a_kept_connection_ends_when_the_client_certificate_or_its_key_changes() {
    let clients = Authority::new("clients");
    let setup = Setup::new().server(|server| server.client_ca_pem = Some(clients.cert_pem()));
    let (cert, key) = clients.issue_client("host").write(setup.path(), "client");
    let flagged = setup.client_certificate(&cert, &key);
    let rig = flagged.start();
    rig.config();
    rig.config();
    assert_eq!(rig.server.connections(), 1);
    clients.issue_client("host").write(rig.directory.path(), "client");
    rig.config();
    assert_eq!(rig.server.connections(), 2);
    rig.config();
    assert_eq!(rig.server.connections(), 2);
}

/// Issue 15: eleven redirects took 44 s at a limit of 6.
#[test]
fn a_request_s_redirects_have_one_deadline_together() {
    let rig = Setup::new().flag("config_tls_max_attempts", "1").own_flag("--request_timeout=3").start();
    rig.config();
    let redirect = Answer::empty(307).header("location", "/config").delayed(Duration::from_secs(2));
    rig.server.script(Endpoint::Config, vec![redirect; 5]);
    let began = Instant::now();
    let message = rig.refusal();
    assert!(message.contains("timed out"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[test]
fn keys_in_every_form_are_taken_and_encrypted_ones_are_named() {
    let clients = Authority::new("clients");
    let forms = [
        ("rsa-pkcs8", include_str!("../kit/fixtures/rsa-pkcs8.key"), include_str!("../kit/fixtures/rsa-pkcs8.key")),
        ("rsa-pkcs1", include_str!("../kit/fixtures/rsa-pkcs8.key"), include_str!("../kit/fixtures/rsa-pkcs1.key")),
        ("ec-pkcs8", include_str!("../kit/fixtures/ec-pkcs8.key"), include_str!("../kit/fixtures/ec-pkcs8.key")),
        ("ec-sec1", include_str!("../kit/fixtures/ec-pkcs8.key"), include_str!("../kit/fixtures/ec-sec1.key")),
        ("encrypted", include_str!("../kit/fixtures/ec-pkcs8.key"), include_str!("../kit/fixtures/ec-encrypted.key")),
    ];
    for (form, pkcs8, key) in forms {
        let setup = Setup::new()
            .flag("tls_enroll_max_attempts", "1")
            .server(|server| server.client_ca_pem = Some(clients.cert_pem()));
        let cert = setup.file("client.pem", &clients.certify_client("host", pkcs8));
        let key = setup.file("client.key", key);
        let rig = setup.client_certificate(&cert, &key).start();
        if form == "encrypted" {
            let message = rig.refusal();
            assert!(message.contains("client.key can't be used: it holds no unencrypted private key"), "{message}");
        } else {
            rig.config();
        }
    }
}

#[test]
fn a_client_s_whole_chain_is_shown() {
    let root = Authority::new("root");
    let middle = root.subordinate("middle");
    let setup = Setup::new().server(|server| server.client_ca_pem = Some(root.cert_pem()));
    let client = middle.issue_client("host");
    let cert = setup.file("client.pem", &format!("{}{}", client.cert_pem, middle.cert_pem()));
    let key = setup.file("client.key", &client.key_pem);
    let rig = setup.client_certificate(&cert, &key).start();
    rig.config();
}

#[test]
fn a_client_certificate_replaced_on_disk_is_used_at_the_next_connection() {
    let clients = Authority::new("clients");
    let setup = Setup::new()
        .flag("tls_session_reuse", "false")
        .flag("config_tls_max_attempts", "1")
        .flag("tls_enroll_max_attempts", "1")
        .server(|server| server.client_ca_pem = Some(clients.cert_pem()));
    let stranger = Authority::new("strangers").issue_client("host");
    let cert = setup.file("client.pem", &stranger.cert_pem);
    let key = setup.file("client.key", &stranger.key_pem);
    let rig = setup.client_certificate(&cert, &key).start();
    assert!(rig.refusal().contains("refused our client certificate"), "{}", rig.refusal());
    let ours = clients.issue_client("host");
    fs::write(&key, &ours.key_pem).unwrap();
    fs::write(&cert, &ours.cert_pem).unwrap();
    rig.config();
    // Half of a rotation: the key doesn't belong to the certificate yet.
    fs::write(&key, clients.issue_client("host").key_pem).unwrap();
    rig.config();
    rig.said("the certificates read before go on being used");
}
