//! Which server certificates are trusted. docs/tls.md has the table.

use std::fs;
use std::net::Ipv4Addr;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use testkit::certs::{Authority, CertificateKind, Identity, self_signed};

use crate::rig::{Rig, Setup};

const RSA_KEY: &str = include_str!("../kit/fixtures/rsa-pkcs8.key");
const EC_KEY: &str = include_str!("../kit/fixtures/ec-pkcs8.key");

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

/// What genConfig says where the server isn't trusted; nothing must have been asked.
fn refusal(rig: &Rig) -> String {
    let outcome = rig.gen_config();
    assert_eq!(outcome.code, 1, "trusted");
    assert_eq!(rig.server.requests().len(), 0);
    outcome.message
}

/// The table of docs/tls.md: each kind that the reference server can show, and what is said of it.
const TABLE: [(&str, Option<&str>); 9] = [
    ("good", None),
    ("common-name", None),
    ("self-signed-authority", None),
    ("self-signed", None),
    ("wrong-name", Some("the server's certificate is for another name than tls_hostname")),
    ("expired", Some("the server's certificate has expired")),
    ("not-yet-valid", Some("the server's certificate is not valid yet (is this host's clock right?)")),
    ("other-issuer", Some("the server's certificate is not issued by an authority in tls_server_certs")),
    ("wrong-purpose", Some("the server's certificate is not meant for TLS servers (extendedKeyUsage)")),
];

#[test]
fn every_kind_of_certificate_is_judged_as_the_documentation_says() {
    let documentation = include_str!("../../docs/tls.md");
    for (name, kind) in CertificateKind::ALL {
        let (_, message) = TABLE.iter().find(|(listed, _)| *listed == name).unwrap();
        let (identity, bundle) = kind.make();
        let rig = trusting(&bundle, identity);
        match message {
            None => drop(rig.config()),
            Some(message) => {
                let said = refusal(&rig);
                assert!(said.contains(message), "{name}: {said}");
                assert!(documentation.contains(message), "docs/tls.md does not have: {message}");
            }
        }
        assert!(documentation.contains(&format!("`{name}`")), "docs/tls.md does not have {name}");
    }
}

#[test]
fn weak_signatures_are_refused_by_name() {
    let leaf = include_str!("../kit/fixtures/weak-leaf.pem");
    let weak = Identity { cert_pem: leaf.to_owned(), key_pem: EC_KEY.to_owned() };
    let message = refusal(&trusting(include_str!("../kit/fixtures/weak-ca.pem"), weak));
    assert!(message.contains("signed with a weak or unsupported algorithm or key"), "{message}");
}

#[test]
fn a_damaged_signature_is_refused_in_every_kind() {
    for kind in [CertificateKind::Good, CertificateKind::CommonName, CertificateKind::SelfSigned] {
        let (mut identity, bundle) = kind.make();
        let damaged = with_damaged_signature(&identity.cert_pem);
        // Pinned as itself it stays pinned; its signature is wrong all the same.
        let bundle = if bundle == identity.cert_pem { damaged.clone() } else { bundle };
        identity.cert_pem = damaged;
        let message = refusal(&trusting(&bundle, identity));
        assert!(message.contains("bad signature"), "{kind:?}: {message}");
    }
}

/// The same certificate with the last byte of its signature changed.
fn with_damaged_signature(pem: &str) -> String {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    let mut der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    *der.last_mut().unwrap() ^= 1;
    let base64: String = base64(&der).as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line) + "\n").collect();
    format!("-----BEGIN CERTIFICATE-----\n{base64}-----END CERTIFICATE-----\n")
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, &byte| group << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let symbol = ALPHABET[(group >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= chunk.len() { symbol as char } else { '=' });
        }
    }
    text
}

#[test]
fn without_an_explicit_bundle_only_authorities_count() {
    // The default bundle isn't there in the tests, which is said of that very path.
    let rig = Setup::new().without_flag("tls_server_certs").flag("tls_enroll_max_attempts", "1").start();
    let message = refusal(&rig);
    assert!(message.contains("--tls_server_certs=/opt/osquery/share/osquery/certs/certs.pem"), "{message}");
}

/// An authority below another one, and a leaf of it: the chain that a server shows, leaf first.
fn chain(root_key: KeyPair, leaf_key: &str) -> (String, String, String) {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let root = CertifiedIssuer::self_signed(authority("root"), root_key).unwrap();
    let middle = CertifiedIssuer::signed_by(authority("middle"), KeyPair::generate().unwrap(), &root).unwrap();
    let leaf_key = KeyPair::from_pem(leaf_key).unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::ExplicitNoCa;
    let leaf = params.signed_by(&leaf_key, &middle).unwrap();
    (root.pem(), middle.pem(), leaf.pem())
}

#[test]
fn chains_with_intermediates_and_superfluous_certificates_of_rsa_and_ecdsa() {
    for (root_key, leaf_key) in
        [(KeyPair::from_pem(RSA_KEY).unwrap(), EC_KEY), (KeyPair::from_pem(EC_KEY).unwrap(), RSA_KEY)]
    {
        let (root, middle, leaf) = chain(root_key, leaf_key);
        let shows = |certificates: &str| Identity { cert_pem: certificates.to_owned(), key_pem: leaf_key.to_owned() };
        let stranger = Authority::new("stranger").cert_pem();
        trusting(&root, shows(&format!("{leaf}{middle}"))).config();
        // In any order, with the root and a stranger's among them.
        trusting(&root, shows(&format!("{leaf}{stranger}{root}{middle}"))).config();
        // Trust can begin in the middle.
        trusting(&middle, shows(&leaf)).config();
        let message = refusal(&trusting(&root, shows(&leaf)));
        assert!(message.contains("not issued by an authority"), "without the intermediate: {message}");
    }
}

#[test]
fn a_cross_signed_authority_is_trusted_by_either_way() {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "crossed");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = CertifiedIssuer::self_signed(params.clone(), KeyPair::from_pem(EC_KEY).unwrap()).unwrap();
    let mut old_params = CertificateParams::default();
    old_params.distinguished_name.push(DnType::CommonName, "old root");
    old_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let old = CertifiedIssuer::self_signed(old_params, KeyPair::generate().unwrap()).unwrap();
    let crossed = CertifiedIssuer::signed_by(params, KeyPair::from_pem(EC_KEY).unwrap(), &old).unwrap();
    let leaf_key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    leaf.is_ca = IsCa::ExplicitNoCa;
    let leaf = leaf.signed_by(&leaf_key, &own).unwrap();
    let shown = Identity { cert_pem: format!("{}{}", leaf.pem(), crossed.pem()), key_pem: leaf_key.serialize_pem() };
    trusting(&own.pem(), shown.clone()).config();
    trusting(&old.pem(), shown).config();
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
            params.distinguished_name.push(DnType::CommonName, name);
        })
    };
    trusting(&authority.cert_pem(), with_name("localhost")).config();
    let message = refusal(&trusting(&authority.cert_pem(), with_name("elsewhere")));
    assert!(message.contains("another name"), "{message}");
    // With alternative names the common name doesn't count.
    let both = authority.issue_server_with(|params| {
        params.subject_alt_names = vec![SanType::DnsName("elsewhere".try_into().unwrap())];
        params.distinguished_name.push(DnType::CommonName, "localhost");
    });
    assert!(refusal(&trusting(&authority.cert_pem(), both)).contains("another name"));
}

#[test]
fn a_self_signed_certificate_is_trusted_as_itself_and_nothing_else() {
    let kinds = || {
        [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::NoCa].map(|kind| {
            self_signed(|params| {
                params.is_ca = kind;
                params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
            })
        })
    };
    for (identity, other) in kinds().into_iter().zip(kinds()) {
        trusting(&identity.cert_pem.clone(), identity.clone()).config();
        let message = refusal(&trusting(&other.cert_pem, identity));
        assert!(message.contains("certificate"), "{message}");
    }
    let elsewhere = self_signed(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.subject_alt_names = vec![SanType::DnsName("elsewhere".try_into().unwrap())];
    });
    assert!(refusal(&trusting(&elsewhere.cert_pem.clone(), elsewhere)).contains("another name"));
    let expired = self_signed(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    assert!(refusal(&trusting(&expired.cert_pem.clone(), expired)).contains("expired"));
}

#[test]
fn a_pinned_certificate_is_no_authority() {
    let mut params = CertificateParams::new(vec!["other.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "pinned");
    params.is_ca = IsCa::ExplicitNoCa;
    let pinned = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let forged = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &pinned).unwrap();
    let identity = Identity { cert_pem: forged.pem(), key_pem: key.serialize_pem() };
    let message = refusal(&trusting(&pinned.pem(), identity.clone()));
    assert!(message.contains("not issued by an authority"), "{message}");
    // Nor is it one beside an authority.
    let bundle = format!("{}{}", pinned.pem(), Authority::new("another").cert_pem());
    let message = refusal(&trusting(&bundle, identity));
    assert!(message.contains("not issued by an authority"), "{message}");
}

#[test]
fn an_authority_limited_to_some_names_can_t_vouch_for_others_by_a_common_name() {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "limited");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("corp.example".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let limited = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name.push(DnType::CommonName, "localhost");
    leaf.is_ca = IsCa::ExplicitNoCa;
    let leaf = leaf.signed_by(&key, &limited).unwrap();
    let identity = Identity { cert_pem: leaf.pem(), key_pem: key.serialize_pem() };
    assert!(refusal(&trusting(&limited.pem(), identity)).contains("another name"));
}
