//! The signatures that are understood: ring's, and two kinds that osquery's OpenSSL verifies and ring doesn't know:
//! ECDSA on the curve P-521, and keys that say of themselves that they are for RSASSA-PSS alone.
//!
//! Verifying handles nothing that is secret, so that P-521 needs no arithmetic in constant time: it comes from a crate
//! in plain Rust (docs/architecture.md has what was weighed).

use p521::ecdsa::signature::hazmat::PrehashVerifier;
use p521::ecdsa::{Signature, VerifyingKey};
use ring::digest;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use webpki::EndEntityCert;
use webpki::ring as known;

type Algorithm = &'static dyn SignatureVerificationAlgorithm;

/// What `rsa_pss_pss_*` are in TLS 1.3 (RFC 8446, 4.2.3): signatures by keys for PSS alone.
const RSA_PSS_PSS: [SignatureScheme; 3] =
    [SignatureScheme::Unknown(0x0809), SignatureScheme::Unknown(0x080a), SignatureScheme::Unknown(0x080b)];

/// id-RSASSA-PSS without parameters: a key for PSS, whatever the hash.
const PSS_KEY: AlgorithmIdentifier =
    AlgorithmIdentifier::from_slice(&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a]);

/// All of them, and what TLS calls them, the preferred ones first.
pub(super) static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        known::ECDSA_P256_SHA256,
        known::ECDSA_P256_SHA384,
        known::ECDSA_P384_SHA256,
        known::ECDSA_P384_SHA384,
        P521_SHA256,
        P521_SHA384,
        P521_SHA512,
        known::ED25519,
        known::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        known::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        known::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        PSS_SHA256[0],
        PSS_SHA256[1],
        PSS_SHA384[0],
        PSS_SHA384[1],
        PSS_SHA512[0],
        PSS_SHA512[1],
        known::RSA_PKCS1_2048_8192_SHA256,
        known::RSA_PKCS1_2048_8192_SHA384,
        known::RSA_PKCS1_2048_8192_SHA512,
        known::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
        known::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
        known::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
    ],
    // TLS 1.3 takes the first of each, TLS 1.2 the one that the key is for.
    mapping: &[
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[known::ECDSA_P384_SHA384, known::ECDSA_P256_SHA384, P521_SHA384]),
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[known::ECDSA_P256_SHA256, known::ECDSA_P384_SHA256, P521_SHA256]),
        (SignatureScheme::ECDSA_NISTP521_SHA512, &[P521_SHA512]),
        (SignatureScheme::ED25519, &[known::ED25519]),
        (SignatureScheme::RSA_PSS_SHA512, &[known::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA384, &[known::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA256, &[known::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (RSA_PSS_PSS[2], &PSS_SHA512),
        (RSA_PSS_PSS[1], &PSS_SHA384),
        (RSA_PSS_PSS[0], &PSS_SHA256),
        (SignatureScheme::RSA_PKCS1_SHA512, &[known::RSA_PKCS1_2048_8192_SHA512]),
        (SignatureScheme::RSA_PKCS1_SHA384, &[known::RSA_PKCS1_2048_8192_SHA384]),
        (SignatureScheme::RSA_PKCS1_SHA256, &[known::RSA_PKCS1_2048_8192_SHA256]),
    ],
};

const P521_SHA256: Algorithm = &P521 { signature: alg_id::ECDSA_SHA256, hash: &digest::SHA256 };
const P521_SHA384: Algorithm = &P521 { signature: alg_id::ECDSA_SHA384, hash: &digest::SHA384 };
const P521_SHA512: Algorithm = &P521 { signature: alg_id::ECDSA_SHA512, hash: &digest::SHA512 };

/// By a key for PSS with any hash, and by one for PSS with this hash alone.
static PSS_SHA256: [Algorithm; 2] = [
    &Pss { key: PSS_KEY, known: &known::RSA_PSS_2048_8192_SHA256_LEGACY_KEY },
    &Pss { key: alg_id::RSA_PSS_SHA256, known: &known::RSA_PSS_2048_8192_SHA256_LEGACY_KEY },
];
static PSS_SHA384: [Algorithm; 2] = [
    &Pss { key: PSS_KEY, known: &known::RSA_PSS_2048_8192_SHA384_LEGACY_KEY },
    &Pss { key: alg_id::RSA_PSS_SHA384, known: &known::RSA_PSS_2048_8192_SHA384_LEGACY_KEY },
];
static PSS_SHA512: [Algorithm; 2] = [
    &Pss { key: PSS_KEY, known: &known::RSA_PSS_2048_8192_SHA512_LEGACY_KEY },
    &Pss { key: alg_id::RSA_PSS_SHA512, known: &known::RSA_PSS_2048_8192_SHA512_LEGACY_KEY },
];

/// Whether a handshake's signature is one by a key for PSS alone, and if so, whether it is right. rustls would try the
/// first algorithm of a scheme only.
pub(super) fn verify_by_pss_key(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Option<Result<(), rustls::Error>> {
    if !RSA_PSS_PSS.contains(&signature.scheme) {
        return None;
    }
    let (_, algorithms) = ALGORITHMS.mapping.iter().find(|(scheme, _)| *scheme == signature.scheme)?;
    let is_right = EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
        algorithms
            .iter()
            .any(|&algorithm| certificate.verify_signature(algorithm, message, signature.signature()).is_ok())
    });
    Some(if is_right { Ok(()) } else { Err(CertificateError::BadSignature.into()) })
}

/// ECDSA on P-521 with one hash, which ring does not have.
#[derive(Debug)]
struct P521 {
    signature: AlgorithmIdentifier,
    hash: &'static digest::Algorithm,
}

impl SignatureVerificationAlgorithm for P521 {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }

    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
        let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        let hash = digest::digest(self.hash, message);
        // The number that the hash is, as long as the curve's: the crate takes no hash that is much shorter.
        let mut number = [0; 66];
        for (place, byte) in number.iter_mut().rev().zip(hash.as_ref().iter().rev()) {
            *place = *byte;
        }
        key.verify_prehash(&number, &signature).map_err(|_| InvalidSignature)
    }
}

/// RSASSA-PSS by a key that is for nothing else: ring's own verification, under the key's own name.
#[derive(Debug)]
struct Pss {
    key: AlgorithmIdentifier,
    known: &'static Algorithm,
}

impl SignatureVerificationAlgorithm for Pss {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.known.signature_alg_id()
    }

    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        self.known.verify_signature(key, message, signature)
    }
}
