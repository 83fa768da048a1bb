//! Keys that rustls' provider can't sign with: those on P-521, and those for RSASSA-PSS alone.

use std::sync::Arc;

use p521::ecdsa::signature::Signer as _;
use p521::ecdsa::{Signature, SigningKey as P521};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::server::ParsedCertificate;
use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// id-RSASSA-PSS, as it stands in a certificate.
const RSASSA_PSS: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];

/// rsa_pss_pss_sha256: what such a key signs with in TLS 1.3.
const RSA_PSS_PSS_SHA256: SignatureScheme = SignatureScheme::Unknown(0x0809);

/// The key of this certificate, ready to sign.
pub(super) fn signing_key(
    key: &PrivateKeyDer<'_>,
    certificate: &CertificateDer<'_>,
) -> Result<Arc<dyn SigningKey>, Error> {
    let Ok(known) = any_supported_type(key) else { return p521(key) };
    let public = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    let is_for_pss = public.windows(RSASSA_PSS.len()).take(16).any(|window| window == RSASSA_PSS);
    Ok(if is_for_pss { Arc::new(PssKey(known)) } else { known })
}

/// The number stands in PKCS#8 as an octet string of 66 bytes.
fn p521(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, Error> {
    let der = key.secret_der();
    let start = der.windows(2).position(|window| window == [0x04, 66]).map(|at| at + 2);
    let number = start.and_then(|start| der.get(start..start + 66));
    let key = number.and_then(|number| P521::from_slice(number).ok());
    key.map_or_else(
        || Err(Error::General("neither RSA, ECDSA on P-256, P-384 or P-521, nor Ed25519".to_owned())),
        |key| Ok(Arc::new(P521Key(key)) as Arc<dyn SigningKey>),
    )
}

#[derive(Clone)]
struct P521Key(P521);

impl std::fmt::Debug for P521Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("P521Key")
    }
}

impl SigningKey for P521Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let is_offered = offered.contains(&SignatureScheme::ECDSA_NISTP521_SHA512);
        is_offered.then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for P521Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature: Signature = self.0.try_sign(message).map_err(|error| Error::General(error.to_string()))?;
        Ok(signature.to_der().as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP521_SHA512
    }
}

/// The same signatures as any RSA key's, under the name that says whose they are.
#[derive(Debug)]
struct PssKey(Arc<dyn SigningKey>);

#[derive(Debug)]
struct PssSigner(Box<dyn Signer>);

impl SigningKey for PssKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer =
            offered.contains(&RSA_PSS_PSS_SHA256).then(|| self.0.choose_scheme(&[SignatureScheme::RSA_PSS_SHA256]));
        Some(Box::new(PssSigner(signer??)))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

impl Signer for PssSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.0.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        RSA_PSS_PSS_SHA256
    }
}
