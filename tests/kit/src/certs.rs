//! Certificates made on the spot: an authority, and the server and client certificates it issues.
//!
//! All keys are ECDSA P-256, which every TLS library in question speaks, and are written as PKCS#8 PEM.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

/// A certification authority whose key lives in memory only.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority with a new key.
    pub fn new(common_name: &str) -> Authority {
        Authority::new_with(common_name, |_| {})
    }

    /// The same, after `customise` has changed its certificate.
    pub fn new_with(common_name: &str, customise: impl FnOnce(&mut CertificateParams)) -> Authority {
        let mut params = authority_params(common_name);
        customise(&mut params);
        Authority { issuer: CertifiedIssuer::self_signed(params, new_key()).expect("a CA certificate is made") }
    }

    /// The authority's own certificate: what `tls_server_certs` names.
    pub fn cert_pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server certificate for these DNS names and IP addresses; the first is the common name too.
    pub fn issue_server(&self, names: &[&str]) -> Identity {
        self.issue(server_params(names))
    }

    /// A server certificate for `localhost` after `customise` has changed it: expired, without names, and so on.
    pub fn issue_server_with(&self, customise: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = server_params(&["localhost"]);
        customise(&mut params);
        self.issue(params)
    }

    /// A client certificate.
    pub fn issue_client(&self, common_name: &str) -> Identity {
        let mut params = named(common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(leaf(params))
    }

    /// A client certificate (PEM) for a key that exists (PKCS#8 PEM).
    pub fn certify_client(&self, common_name: &str, key_pem: &str) -> String {
        let mut params = named(common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::from_pem(key_pem).expect("a key in PKCS#8");
        leaf(params).signed_by(&key, &self.issuer).expect("a certificate is signed").pem()
    }

    /// An authority below this one.
    pub fn subordinate(&self, common_name: &str) -> Authority {
        let issuer = CertifiedIssuer::signed_by(authority_params(common_name), new_key(), &self.issuer);
        Authority { issuer: issuer.expect("a CA certificate is made") }
    }

    fn issue(&self, params: CertificateParams) -> Identity {
        let key = new_key();
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate is signed");
        Identity { cert_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

/// A certificate (or a chain, leaf first) and the leaf's private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate chain, leaf first.
    pub cert_pem: String,
    /// The leaf's private key.
    pub key_pem: String,
}

impl Identity {
    /// Writes `<stem>.pem` and `<stem>.key` into `dir` and answers their paths, certificate first.
    pub fn write(&self, dir: &Path, stem: &str) -> (PathBuf, PathBuf) {
        let (cert, key) = (dir.join(format!("{stem}.pem")), dir.join(format!("{stem}.key")));
        fs::write(&cert, &self.cert_pem).expect("the certificate is written");
        fs::write(&key, &self.key_pem).expect("the private key is written");
        (cert, key)
    }
}

/// The certificates that a server in the field may show, each for `localhost` but for what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateKind {
    /// Nothing wrong with it.
    Good,
    /// Without subjectAltName: its common name is the host's.
    CommonName,
    /// Self-signed, `CA:TRUE`.
    SelfSignedAuthority,
    /// Self-signed, without basicConstraints.
    SelfSigned,
    /// For another host.
    WrongName,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// Issued by an authority that the client isn't told of.
    OtherIssuer,
    /// Meant for clients only.
    WrongPurpose,
}

impl CertificateKind {
    /// All kinds, by the name that the command line has for them.
    pub const ALL: [(&'static str, Self); 9] = [
        ("good", Self::Good),
        ("common-name", Self::CommonName),
        ("self-signed-authority", Self::SelfSignedAuthority),
        ("self-signed", Self::SelfSigned),
        ("wrong-name", Self::WrongName),
        ("expired", Self::Expired),
        ("not-yet-valid", Self::NotYetValid),
        ("other-issuer", Self::OtherIssuer),
        ("wrong-purpose", Self::WrongPurpose),
    ];

    /// A server identity of this kind, and the trust bundle (PEM) that a client is given for it.
    pub fn make(self) -> (Identity, String) {
        let authority = Authority::new("reference server authority");
        let bundle = authority.cert_pem();
        let of_itself = |identity: Identity| (identity.clone(), identity.cert_pem);
        let issued = |identity: Identity| (identity, bundle.clone());
        match self {
            Self::Good => issued(authority.issue_server(&["localhost", "127.0.0.1"])),
            Self::CommonName => issued(authority.issue_server_with(|params| params.subject_alt_names.clear())),
            Self::SelfSignedAuthority => {
                of_itself(self_signed(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)))
            }
            Self::SelfSigned => of_itself(self_signed(|_| {})),
            Self::WrongName => issued(authority.issue_server(&["elsewhere.example"])),
            Self::Expired => issued(authority.issue_server_with(|params| {
                params.not_before = rcgen::date_time_ymd(2020, 1, 1);
                params.not_after = rcgen::date_time_ymd(2021, 1, 1);
            })),
            Self::NotYetValid => issued(authority.issue_server_with(|params| {
                params.not_before = rcgen::date_time_ymd(2900, 1, 1);
                params.not_after = rcgen::date_time_ymd(2901, 1, 1);
            })),
            Self::OtherIssuer => issued(Authority::new("another authority").issue_server(&["localhost"])),
            Self::WrongPurpose => issued(authority.issue_server_with(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            })),
        }
    }
}

/// The authority behind [`crate::server::Options::default`], one a process.
pub fn default_authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::new("testkit authority"))
}

/// A self-signed server certificate for `localhost` after `customise` has changed it (basic constraints, names,
/// dates). Unchanged it has no basic constraints at all.
pub fn self_signed(customise: impl FnOnce(&mut CertificateParams)) -> Identity {
    let mut params = server_params(&["localhost"]);
    params.use_authority_key_identifier_extension = false;
    params.is_ca = IsCa::NoCa;
    customise(&mut params);
    let key = new_key();
    let certificate = params.self_signed(&key).expect("a certificate is signed");
    Identity { cert_pem: certificate.pem(), key_pem: key.serialize_pem() }
}

fn server_params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names.clone()).expect("DNS names or IP addresses");
    params.distinguished_name = common_name(names.first().map_or("server", String::as_str));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf(params)
}

fn leaf(mut params: CertificateParams) -> CertificateParams {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority_params(common_name: &str) -> CertificateParams {
    let mut params = named(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key is made")
}
