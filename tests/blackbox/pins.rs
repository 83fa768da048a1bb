//! `tls_pins`: keys of which one must be in the server's chain, on top of ordinary trust.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use testkit::certs::{Authority, Identity, self_signed};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::rig::{LIMIT, Rig, Setup, line};

/// The pin of a key that no certificate here has.
pub(crate) const SPARE: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

const REFUSED: &str = "neither the server's key nor that of an issuer is one of tls_pins";

/// The pin of the first certificate in a PEM.
pub(crate) fn pin(pem: &str) -> String {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
    BASE64_STANDARD.encode(digest(&SHA256, parsed.public_key().raw))
}

fn setup(pins: &str, bundle: &str, identity: &Identity) -> Setup {
    let setup = Setup::new();
    let path = setup.file("bundle.pem", bundle);
    setup
        .flag("tls_server_certs", path.to_str().unwrap())
        .flag("tls_enroll_max_attempts", "1")
        .flag("config_tls_max_attempts", "1")
        .own_flag(&format!("--tls_pins={pins}"))
        .server(|server| server.identity = identity.clone())
}

/// What is said where the server isn't taken; nothing was asked, and lines are taken.
fn refusal(rig: &Rig) -> String {
    let message = rig.refusal();
    rig.log(&line(1));
    assert_eq!(rig.server.requests().len(), 0);
    message
}

/// A root, an authority below it, and a server that shows its own certificate and that authority's.
fn chain() -> (Authority, Authority, Identity) {
    let root = Authority::new("root");
    let below = root.subordinate("below");
    let mut identity = below.issue_server(&["localhost"]);
    identity.cert_pem += &below.cert_pem();
    (root, below, identity)
}

#[test]
fn any_key_of_the_verified_chain_will_do() {
    let (root, below, identity) = chain();
    for key in [&identity.cert_pem, &below.cert_pem(), &root.cert_pem()] {
        for pins in [format!("{SPARE},{}", pin(key)), format!("sha256//{}, {SPARE}", pin(key))] {
            setup(&pins, &root.cert_pem(), &identity).start().config();
        }
    }
    let itself = self_signed(|_| {});
    setup(&format!("{SPARE},{}", pin(&itself.cert_pem)), &itself.cert_pem, &itself).start().config();
    setup("", &itself.cert_pem, &itself).start().config();
}

#[test]
fn a_server_without_a_pinned_key_is_sent_nothing() {
    let (root, _, identity) = chain();
    let other = Authority::new("other").issue_server(&["localhost"]);
    let rig = setup(&format!("{SPARE},{}", pin(&other.cert_pem)), &root.cert_pem(), &identity).start();
    let message = refusal(&rig);
    assert!(message.contains(REFUSED), "{message}");
    let itself = self_signed(|_| {});
    let rig = setup(&format!("{SPARE},{}", pin(&root.cert_pem())), &itself.cert_pem, &itself).start();
    assert!(refusal(&rig).contains(REFUSED));
}

/// Certificates are public: who has one of another trusted authority could send a pinned one along.
#[test]
fn a_certificate_that_is_only_sent_along_does_not_count() {
    let (pinned, other) = (Authority::new("pinned"), Authority::new("other"));
    let mut identity = other.issue_server(&["localhost"]);
    identity.cert_pem += &pinned.cert_pem();
    let bundle = pinned.cert_pem() + &other.cert_pem();
    let pins = format!("{SPARE},{}", pin(&pinned.cert_pem()));
    assert!(refusal(&setup(&pins, &bundle, &identity).start()).contains(REFUSED));
    setup(&pins, &bundle, &pinned.issue_server(&["localhost"])).start().config();
}

#[test]
fn a_pin_takes_the_place_of_no_other_judgement() {
    let authority = Authority::new("authority");
    let expired = authority.issue_server_with(|params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let elsewhere = authority.issue_server(&["elsewhere.example"]);
    let strange = Authority::new("strange").issue_server(&["localhost"]);
    for (identity, said) in
        [(expired, "has expired"), (elsewhere, "for another name"), (strange, "not issued by an authority")]
    {
        let pins = format!("{SPARE},{}", pin(&identity.cert_pem));
        let message = refusal(&setup(&pins, &authority.cert_pem(), &identity).start());
        assert!(message.contains(said), "{said:?} is missing in {message}");
    }
}

#[test]
fn a_pin_that_can_t_be_read_is_named_and_no_connection_is_made() {
    let (root, _, identity) = chain();
    let rig = setup(&format!("{},c2hvcnQ=", pin(&root.cert_pem())), &root.cert_pem(), &identity).start();
    let message = refusal(&rig);
    assert!(message.contains("--tls_pins=c2hvcnQ= can't be used: a list of public keys' SHA-256"), "{message}");
    rig.said("--tls_pins=c2hvcnQ= can't be used");
    assert_eq!(rig.server.connections(), 0);
    assert_eq!(rig.server.handshake_errors(), [""; 0]);
}

#[test]
fn a_pin_without_a_spare_is_worth_a_warning() {
    let (root, _, identity) = chain();
    let warned = "tls_pins has one key and no spare";
    let alone = setup(&pin(&root.cert_pem()), &root.cert_pem(), &identity).start();
    alone.config();
    alone.said(warned);
    alone.osqueryd.wait("a configuration", LIMIT, || (alone.gen_config().code == 0).then_some(()));
    assert_eq!(alone.stderr().matches(warned).count(), 1, "it is said once");
    let two = setup(&format!("{SPARE},{}", pin(&root.cert_pem())), &root.cert_pem(), &identity).start();
    two.config();
    assert!(!two.stderr().contains(warned));
}
