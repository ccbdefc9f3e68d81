//! Whether a server's certificate is to be trusted.
//!
//! rustls' own verifier (webpki) is for the web: it takes no certificates of version 1 and none
//! that is its own authority, and looks at alternative names only. But PostgreSQL's documentation
//! ("Secure TCP/IP Connections with SSL") has people make just these with openssl: a self-signed
//! certificate, or one of version 1 with a common name alone. So chains are webpki's business, with
//! two more ways to be trusted (see [`Verifier::trusted`]), and names are compared as libpq does.
//!
//! The signature of the handshake is always checked, even if the certificate isn't: channel binding
//! rests on it.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{
        WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::ParsedCertificate,
};
use x509_cert::{
    Certificate, Version,
    der::{Decode, Encode},
    spki::AlgorithmIdentifierOwned,
};

use super::certificate::Names;

/// What is asked of the server's certificate.
#[derive(Debug)]
pub(super) struct Verifier {
    /// The trusted certificates; `None` trusts anybody.
    pub(super) roots: Option<Roots>,
    /// The host name that has to be in it, for verify-full.
    pub(super) host: Option<String>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Trusted certificates.
#[derive(Debug)]
pub(super) struct Roots {
    store: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// Those that can be used; the others are left out, as OpenSSL does it.
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates.iter().cloned());
        Roots { store: Arc::new(store), certificates }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }
}

impl Verifier {
    /// The chain to one of the roots. Besides what webpki accepts:
    ///
    /// - the very certificate is among the roots, and valid now (self-signed servers);
    /// - it is of version 1, valid now, and signed by one of the roots.
    fn trusted(
        &self,
        roots: &Roots,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let by_chain = ParsedCertificate::try_from(end_entity).and_then(|parsed| {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &roots.store,
                intermediates,
                now,
                self.algorithms.all,
            )
        });
        let Err(reason) = by_chain else { return Ok(()) };
        let Ok(certificate) = Certificate::from_der(end_entity) else { return Err(reason) };
        let itself = roots.certificates.iter().any(|root| root == end_entity);
        let version_1 = certificate.tbs_certificate().version() == Version::V1
            && roots.certificates.iter().any(|root| self.signed_by(&certificate, root));
        if !itself && !version_1 {
            return Err(reason);
        }
        let validity = certificate.tbs_certificate().validity();
        let now = now.as_secs();
        if now < validity.not_before.to_unix_duration().as_secs() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > validity.not_after.to_unix_duration().as_secs() {
            return Err(CertificateError::Expired.into());
        }
        Ok(())
    }

    /// Whether `certificate` names `root` as its issuer and has its signature.
    fn signed_by(&self, certificate: &Certificate, root: &CertificateDer<'_>) -> bool {
        let Ok(root) = Certificate::from_der(root) else { return false };
        if root.tbs_certificate().subject() != certificate.tbs_certificate().issuer() {
            return false;
        }
        let Ok(signed) = certificate.tbs_certificate().to_der() else { return false };
        let key = root.tbs_certificate().subject_public_key_info();
        let (Some(key_algorithm), Some(signature_algorithm), Some(key), Some(signature)) = (
            identifier(&key.algorithm),
            identifier(certificate.signature_algorithm()),
            key.subject_public_key.as_bytes(),
            certificate.signature().as_bytes(),
        ) else {
            return false;
        };
        self.algorithms
            .all
            .iter()
            .filter(|a| a.public_key_alg_id().as_ref() == key_algorithm)
            .filter(|a| a.signature_alg_id().as_ref() == signature_algorithm)
            .any(|a| a.verify_signature(key, &signed, signature).is_ok())
    }
}

/// The content of an algorithm identifier's SEQUENCE, as rustls names algorithms.
fn identifier(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let mut bytes = algorithm.oid.to_der().ok()?;
    if let Some(parameters) = &algorithm.parameters {
        bytes.extend(parameters.to_der().ok()?);
    }
    Some(bytes)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            self.trusted(roots, end_entity, intermediates, now)?;
        }
        if let Some(host) = &self.host {
            let certificate = Certificate::from_der(end_entity)
                .map_err(|_| Error::from(CertificateError::BadEncoding))?;
            let names = Names::of(&certificate);
            if !names.fit(host) {
                return Err(Error::General(format!(
                    "the server's certificate is for {}, not for {host:?}",
                    names.list()
                )));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Some(certificate) = of_version_1(cert) else {
            return verify_tls12_signature(message, cert, signed, &self.algorithms);
        };
        let candidates = self.algorithms.mapping.iter().filter(|(s, _)| *s == signed.scheme);
        let key_algorithm =
            identifier(&certificate.tbs_certificate().subject_public_key_info().algorithm);
        let key =
            certificate.tbs_certificate().subject_public_key_info().subject_public_key.as_bytes();
        let valid = candidates
            .flat_map(|(_, algorithms)| algorithms.iter())
            .filter(|a| key_algorithm.as_deref() == Some(a.public_key_alg_id().as_ref()))
            .any(|a| {
                key.is_some_and(|key| a.verify_signature(key, message, signed.signature()).is_ok())
            });
        match valid {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Some(certificate) = of_version_1(cert) else {
            return verify_tls13_signature(message, cert, signed, &self.algorithms);
        };
        let key = certificate
            .tbs_certificate()
            .subject_public_key_info()
            .to_der()
            .map_err(|_| Error::from(CertificateError::BadEncoding))?;
        let key = SubjectPublicKeyInfoDer::from(key);
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The certificate, if it is of a version that webpki doesn't read.
fn of_version_1(cert: &CertificateDer<'_>) -> Option<Certificate> {
    let certificate = Certificate::from_der(cert).ok()?;
    (certificate.tbs_certificate().version() == Version::V1).then_some(certificate)
}
