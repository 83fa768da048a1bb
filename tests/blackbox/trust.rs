//! Which server certificates are trusted. docs/tls.md has the table.

use std::fs;
use std::net::Ipv4Addr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use testkit::certs::{Authority, CertificateKind, Identity, self_signed};
use testkit::server::TlsVersions;

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
    let message = rig.refusal();
    assert_eq!(rig.server.requests().len(), 0);
    message
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
fn with_damaged_signature(certificate: &str) -> String {
    let mut der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap().to_vec();
    *der.last_mut().unwrap() ^= 1;
    pem(&der)
}

fn pem(der: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
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

/// From a review of issue 14: a pin must not make an authority of a leaf.
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

/// The case san-without-dns-name.
#[test]
fn the_common_name_counts_where_the_alternative_names_are_no_dns_names() {
    let authority = Authority::new("ours");
    let with = |alternative: SanType, name: &str| {
        authority.issue_server_with(|params| {
            params.subject_alt_names = vec![alternative];
            params.distinguished_name.push(DnType::CommonName, name);
        })
    };
    let alternatives = || {
        [
            SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
            SanType::Rfc822Name("root@localhost".try_into().unwrap()),
            SanType::URI("spiffe://localhost/fleet".try_into().unwrap()),
        ]
    };
    for alternative in alternatives() {
        trusting(&authority.cert_pem(), with(alternative, "localhost")).config();
    }
    for alternative in alternatives() {
        let message = refusal(&trusting(&authority.cert_pem(), with(alternative, "elsewhere")));
        assert!(message.contains("another name"), "{message}");
    }
}

/// The case pem-forms.
#[test]
fn pem_may_have_a_byte_order_mark_and_the_older_labels() {
    let authority = Authority::new("ours");
    let plain = authority.cert_pem();
    let labelled = |label: &str| plain.replace("CERTIFICATE", label);
    let forms = [format!("\u{feff}{plain}"), labelled("TRUSTED CERTIFICATE"), labelled("X509 CERTIFICATE")];
    for bundle in forms.iter().chain([&with_trust(&plain, 0x30)]) {
        trusting(bundle, authority.issue_server(&["localhost"])).config();
    }
    // RHEL's bundle has authorities that are not trusted, too.
    let message = refusal(&trusting(&with_trust(&plain, 0xa0), authority.issue_server(&["localhost"])));
    assert!(message.contains("it holds no certificate"), "{message}");
}

/// A trusted certificate as `openssl x509 -trustout` writes it, with servers in the list of this tag: 0x30 is what it is
/// trusted for, 0xa0 what it is not.
fn with_trust(certificate: &str, list: u8) -> String {
    let mut der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap().to_vec();
    der.extend([0x30, 12, list, 10, 0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1]);
    pem(&der).replace("CERTIFICATE", "TRUSTED CERTIFICATE")
}

/// An authority after `customise` has changed it.
fn authority(name: &str, customise: impl FnOnce(&mut CertificateParams)) -> CertifiedIssuer<'static, KeyPair> {
    CertifiedIssuer::self_signed(authority_params(name, customise), KeyPair::generate().unwrap()).unwrap()
}

fn authority_params(name: &str, customise: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    customise(&mut params);
    params
}

/// A certificate for `localhost` of this authority, with these behind it.
fn issued(authority: &CertifiedIssuer<'_, KeyPair>, others: &[String]) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::ExplicitNoCa;
    let leaf = params.signed_by(&key, authority).unwrap();
    Identity { cert_pem: format!("{}{}", leaf.pem(), others.concat()), key_pem: key.serialize_pem() }
}

fn in_2020(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
}

/// The case expired-root.
#[test]
fn an_authority_out_of_its_time_is_none() {
    let old = authority("old root", in_2020);
    let message = refusal(&trusting(&old.pem(), issued(&old, &[])));
    assert!(
        message.contains("that the server's certificate comes from (CN=old root) has expired on 2021-01-01"),
        "{message}"
    );
    let middle = authority_params("middle", |_| {});
    let middle = CertifiedIssuer::signed_by(middle, KeyPair::generate().unwrap(), &old).unwrap();
    let message = refusal(&trusting(&old.pem(), issued(&middle, &[middle.pem()])));
    assert!(message.contains("(CN=old root) has expired on 2021-01-01"), "{message}");
    let coming = authority("coming", |params| params.not_before = rcgen::date_time_ymd(2900, 1, 1));
    let message = refusal(&trusting(&coming.pem(), issued(&coming, &[])));
    assert!(message.contains("(CN=coming) is valid from 2900-01-01 only (is this host's clock right?)"), "{message}");
    // Beside a good one it does no harm, and another one's chain isn't blamed on it.
    let good = authority("good", |_| {});
    let bundle = format!("{}{}", old.pem(), good.pem());
    trusting(&bundle, issued(&good, &[])).config();
    let message = refusal(&trusting(&bundle, issued(&authority("stranger", |_| {}), &[])));
    assert!(message.contains("not issued by an authority in tls_server_certs"), "{message}");
}

#[test]
fn a_certificate_that_is_not_meant_to_sign_is_no_authority() {
    let digital = |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let clients =
        |params: &mut CertificateParams| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for unfit in [authority("unfit", digital), authority("unfit", clients)] {
        // Alone it makes no trust; beside another one it doesn't count.
        let message = refusal(&trusting(&unfit.pem(), issued(&unfit, &[])));
        let expected = "it holds no certificate of an authority (CA:TRUE, and meant to sign those of servers)";
        // It is self-signed, and might be meant as itself.
        assert!(message.contains(expected) || message.contains("not issued by an authority"), "{message}");
        let bundle = format!("{}{}", unfit.pem(), authority("good", |_| {}).pem());
        let message = refusal(&trusting(&bundle, issued(&unfit, &[])));
        assert!(message.contains("not issued by an authority"), "{message}");
    }
    let root = authority("root", |_| {});
    let between = |customise: fn(&mut CertificateParams)| {
        let params = authority_params("between", customise);
        CertifiedIssuer::signed_by(params, KeyPair::from_pem(EC_KEY).unwrap(), &root).unwrap()
    };
    let unfit = between(digital);
    let message = refusal(&trusting(&root.pem(), issued(&unfit, &[unfit.pem()])));
    assert!(
        message.contains("an intermediate certificate of the server's is not meant to sign others (keyUsage)"),
        "{message}"
    );
    // The same authority by a certificate that allows it: the other one is superfluous.
    let fit = between(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    trusting(&root.pem(), issued(&unfit, &[unfit.pem(), fit.pem()])).config();
}

/// The reports of issue 11: servers with such keys could not be reached, and the built-in plugins reach them.
#[test]
fn keys_on_p_521_and_keys_for_rsassa_pss_alone_are_known() {
    let p521 = || Identity {
        cert_pem: include_str!("../kit/fixtures/p521-leaf.pem").to_owned(),
        key_pem: include_str!("../kit/fixtures/p521-pkcs8.key").to_owned(),
    };
    let pss = || Identity {
        cert_pem: include_str!("../kit/fixtures/pss-leaf.pem").to_owned(),
        key_pem: include_str!("../kit/fixtures/pss-pkcs1.key").to_owned(),
    };
    let p521_ca = include_str!("../kit/fixtures/p521-ca.pem");
    let pss_ca = include_str!("../kit/fixtures/pss-ca.pem");
    let speaking = |versions: TlsVersions, bundle: &str, identity: Identity| {
        let setup = Setup::new();
        let path = setup.file("bundle.pem", bundle);
        let setup = setup.flag("tls_server_certs", path.to_str().unwrap()).flag("tls_enroll_max_attempts", "1");
        setup.server(|server| (server.identity, server.tls_versions) = (identity, versions)).start()
    };
    speaking(TlsVersions::Tls13, p521_ca, p521()).config();
    speaking(TlsVersions::Tls12, p521_ca, p521()).config();
    speaking(TlsVersions::Tls13, pss_ca, pss()).config();
    for (damaged, bundle) in [(p521(), p521_ca), (pss(), pss_ca)] {
        let damaged = Identity { cert_pem: with_damaged_signature(&damaged.cert_pem), ..damaged };
        let message = refusal(&trusting(bundle, damaged));
        assert!(message.contains("bad signature"), "{message}");
        let stranger = Authority::new("stranger").cert_pem();
        let message = refusal(&trusting(&stranger, p521()));
        assert!(message.contains("not issued by an authority"), "{message}");
    }
    // rustls signs nothing by such a key in TLS 1.2.
    refusal(&speaking(TlsVersions::Tls12, pss_ca, pss()));
}
