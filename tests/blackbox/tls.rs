//! TLS: which servers are trusted, as whom we come, how connections are used.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use testkit::certs::{Authority, Identity, self_signed};
use testkit::server::{Endpoint, TlsVersions};

use crate::rig::{Rig, Setup, line};

/// A rig whose server has this identity, and which trusts `bundle`.
fn trusting(bundle: &str, identity: Identity) -> Rig {
    let setup = Setup::new();
    let path = setup.file("bundle.pem", bundle);
    setup
        .flag("tls_server_certs", path.to_str().unwrap())
        .flag("tls_enroll_max_attempts", "1")
        .server(|server| server.identity = identity)
        .start()
}

/// What genConfig says where the server isn't trusted.
fn refusal(rig: &Rig) -> String {
    let outcome = rig.gen_config();
    assert_eq!(outcome.code, 1, "trusted");
    outcome.message
}

#[test]
fn an_authority_in_the_bundle_is_trusted_and_another_one_is_not() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    trusting(&format!("{}{}", other.cert_pem(), ours.cert_pem()), ours.issue_server(&["localhost"])).config();
    let rig = trusting(&other.cert_pem(), ours.issue_server(&["localhost"]));
    assert!(refusal(&rig).contains("not issued by an authority in tls_server_certs"), "{}", refusal(&rig));
    assert_eq!(rig.server.requests().len(), 0);
}

#[test]
fn a_directory_of_bundles_is_trusted() {
    let authority = Authority::new("ours");
    let setup = Setup::new().server(|server| server.identity = authority.issue_server(&["localhost"]));
    let directory = setup.path().join("certs");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("README"), "no certificate").unwrap();
    fs::write(directory.join("ours.pem"), authority.cert_pem()).unwrap();
    setup.flag("tls_server_certs", directory.to_str().unwrap()).start().config();
}

#[test]
fn both_tls_versions_are_spoken() {
    for versions in [TlsVersions::Tls12, TlsVersions::Tls13] {
        Setup::new().server(|server| server.tls_versions = versions).start().config();
    }
}

#[test]
fn a_name_that_the_certificate_does_not_have_is_refused() {
    let authority = Authority::new("ours");
    let rig = trusting(&authority.cert_pem(), authority.issue_server(&["elsewhere.example"]));
    assert!(refusal(&rig).contains("for another name than tls_hostname"), "{}", refusal(&rig));
}

#[test]
fn an_address_is_matched_against_the_certificate_s_addresses() {
    let authority = Authority::new("ours");
    let setup = Setup::new();
    let bundle = setup.file("bundle.pem", &authority.cert_pem());
    let address = Ipv4Addr::LOCALHOST.to_string();
    let with = |identity| {
        let setup = Setup::new().server(|server| server.identity = identity);
        let setup = setup.flag("tls_server_certs", bundle.to_str().unwrap()).flag("tls_enroll_max_attempts", "1");
        setup.address(&address).start()
    };
    with(authority.issue_server(&[&address])).config();
    assert!(refusal(&with(authority.issue_server(&["localhost"]))).contains("another name"));
}

#[test]
fn a_bundle_that_can_t_be_used_is_named() {
    let unusable = |path: &str| {
        let rig = Setup::new().flag("tls_server_certs", path).flag("tls_enroll_max_attempts", "1").start();
        refusal(&rig)
    };
    let message = unusable("/no/such/bundle.pem");
    assert!(message.contains("--tls_server_certs=/no/such/bundle.pem can't be used: No such file"), "{message}");
    let message = unusable("/dev/null");
    assert!(message.contains("it holds no certificate in PEM"), "{message}");
}

#[test]
fn a_certificate_without_alternative_names_is_judged_by_its_common_name() {
    let authority = Authority::new("ours");
    let with_name = |name: &str| {
        authority.issue_server_with(|params| {
            params.subject_alt_names.clear();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
        })
    };
    trusting(&authority.cert_pem(), with_name("localhost")).config();
    let message = refusal(&trusting(&authority.cert_pem(), with_name("elsewhere")));
    assert!(message.contains("another name"), "{message}");
    // With alternative names the common name doesn't count.
    let both = authority.issue_server_with(|params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("elsewhere".try_into().unwrap())];
        params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
    });
    assert!(refusal(&trusting(&authority.cert_pem(), both)).contains("another name"));
}

#[test]
fn a_self_signed_certificate_is_trusted_as_itself_and_nothing_else() {
    let kinds = || {
        [rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained), rcgen::IsCa::NoCa].map(|kind| {
            self_signed(|params| {
                params.is_ca = kind;
                params.subject_alt_names = vec![rcgen::SanType::DnsName("localhost".try_into().unwrap())];
            })
        })
    };
    for (identity, other) in kinds().into_iter().zip(kinds()) {
        trusting(&identity.cert_pem.clone(), identity.clone()).config();
        let message = refusal(&trusting(&other.cert_pem, identity));
        assert!(message.contains("certificate"), "{message}");
    }
    let elsewhere = self_signed(|params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.subject_alt_names = vec![rcgen::SanType::DnsName("elsewhere".try_into().unwrap())];
    });
    assert!(refusal(&trusting(&elsewhere.cert_pem.clone(), elsewhere)).contains("another name"));
    let expired = self_signed(|params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.subject_alt_names = vec![rcgen::SanType::DnsName("localhost".try_into().unwrap())];
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    assert!(refusal(&trusting(&expired.cert_pem.clone(), expired)).contains("expired"));
}

#[test]
fn an_expired_certificate_is_refused() {
    let authority = Authority::new("ours");
    let identity = authority.issue_server_with(|params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("localhost".try_into().unwrap())];
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    assert!(refusal(&trusting(&authority.cert_pem(), identity)).contains("expired"));
}

#[test]
fn a_client_certificate_is_shown_on_every_endpoint() {
    let clients = Authority::new("clients");
    let setup = Setup::new().server(|server| server.client_ca_pem = Some(clients.cert_pem()));
    let (cert, key) = clients.issue_client("host").write(setup.path(), "client");
    let rig =
        setup.flag("tls_client_cert", cert.to_str().unwrap()).flag("tls_client_key", key.to_str().unwrap()).start();
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
        refusal(&flags.iter().fold(setup, |setup, (name, value)| setup.flag(name, value)).start())
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
    assert!(strangers.contains("one") && strangers.contains("with its key"), "{strangers}");
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
    let idle_since = Instant::now();
    while idle_since.elapsed() < Duration::from_millis(1100) {
        std::thread::yield_now();
    }
    rig.config();
    let of = |index: usize| rig.server.requests_to(Endpoint::Config)[index].connection;
    assert_ne!(of(0), of(1));
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
fn certificates_replaced_on_disk_are_used_at_the_next_connection() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let setup = Setup::new()
        .flag("tls_session_reuse", "false")
        .flag("config_tls_max_attempts", "1")
        .server(|server| server.identity = second.issue_server(&["localhost"]));
    let bundle = setup.file("bundle.pem", &first.cert_pem());
    let rig = setup.flag("tls_server_certs", bundle.to_str().unwrap()).flag("tls_enroll_max_attempts", "1").start();
    refusal(&rig);
    fs::write(&bundle, second.cert_pem()).unwrap();
    rig.config();
    rig.said("TLS certificates changed on disk: using the new ones");
    fs::write(&bundle, "damaged").unwrap();
    rig.config();
    rig.said("the certificates read before go on being used");
}
