//! What is read from a server's certificate: the names it is for, and its hash for channel binding.

use std::net::IpAddr;

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::{
    Certificate,
    der::{
        Decode, Reader, SliceReader, TagNumber,
        asn1::{ContextSpecific, ObjectIdentifier},
    },
    ext::pkix::{SubjectAltName, name::GeneralName},
    spki::AlgorithmIdentifierOwned,
};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// The hash of a certificate that `tls-server-end-point` binds to: by the hash function of its
/// signature, with SHA-256 in place of MD5 and SHA-1 (RFC 5929, section 4.1). `None` if the
/// signature has no hash function of its own, as Ed25519's.
pub fn end_point_hash(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(der).ok()?;
    let algorithm = certificate.signature_algorithm();
    let hash = match algorithm.oid == RSA_PSS {
        true => pss_hash(algorithm)?,
        false => algorithm.oid,
    };
    Some(match hash.to_string().as_str() {
        // With RSA: MD5, SHA-1; with DSA and ECDSA: SHA-1; as a plain hash (PSS): SHA-1, SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10040.4.3"
        | "1.2.840.10045.4.1"
        | "1.3.14.3.2.26"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2"
        | "2.16.840.1.101.3.4.3.2"
        | "2.16.840.1.101.3.4.2.1" => Sha256::digest(der).to_vec(),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.2.4" => {
            Sha224::digest(der).to_vec()
        }
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            Sha384::digest(der).to_vec()
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            Sha512::digest(der).to_vec()
        }
        _ => return None,
    })
}

/// The hash function in the parameters of an RSASSA-PSS signature: field 0, SHA-1 if it is left out
/// (RFC 4055, section 3.1).
fn pss_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<ObjectIdentifier> {
    let parameters = algorithm.parameters.as_ref()?.value();
    let mut reader = SliceReader::new(parameters).ok()?;
    if reader.is_finished() {
        return Some(ObjectIdentifier::new_unwrap("1.3.14.3.2.26"));
    }
    let hash =
        ContextSpecific::<AlgorithmIdentifierOwned>::decode_explicit(&mut reader, TagNumber(0));
    match hash.ok()? {
        Some(hash) => Some(hash.value.oid),
        None => Some(ObjectIdentifier::new_unwrap("1.3.14.3.2.26")),
    }
}

/// The names that a certificate is for.
#[derive(Debug, Default)]
pub struct Names {
    dns: Vec<String>,
    addresses: Vec<Vec<u8>>,
    common: Vec<String>,
}

impl Names {
    /// Those of a certificate in DER; `None` if it isn't one.
    pub fn read(der: &[u8]) -> Option<Self> {
        Certificate::from_der(der).ok().map(|certificate| Names::of(&certificate))
    }

    /// Those of a certificate.
    pub fn of(certificate: &Certificate) -> Self {
        let mut names = Names::default();
        let certificate = certificate.tbs_certificate();
        if let Ok(Some((_, SubjectAltName(alternatives)))) = certificate.get_extension() {
            for name in alternatives {
                match name {
                    GeneralName::DnsName(name) => names.dns.push(name.to_string()),
                    GeneralName::IpAddress(bytes) => names.addresses.push(bytes.as_bytes().into()),
                    _ => {}
                }
            }
        }
        names.common = certificate
            .subject()
            .as_ref()
            .iter()
            .flat_map(|rdn| rdn.iter())
            .filter(|attribute| attribute.oid == COMMON_NAME)
            .filter_map(|attribute| String::from_utf8(attribute.value.value().to_vec()).ok())
            .collect();
        names
    }

    /// Whether one of the names is `host`. As in libpq, the common name counts only where no
    /// alternative name of the same kind is given, and `*.` stands for one label.
    pub fn fit(&self, host: &str) -> bool {
        let by_dns = self.dns.iter().any(|name| dns_name_fits(name, host));
        let common = || self.common.last().is_some_and(|name| dns_name_fits(name, host));
        match host.parse::<IpAddr>() {
            Ok(address) => {
                let bytes = match address {
                    IpAddr::V4(a) => a.octets().to_vec(),
                    IpAddr::V6(a) => a.octets().to_vec(),
                };
                let by_address = self.addresses.contains(&bytes);
                by_dns || by_address || (self.addresses.is_empty() && common())
            }
            Err(_) => by_dns || (self.dns.is_empty() && common()),
        }
    }

    /// For people.
    pub fn list(&self) -> String {
        let shown = if self.dns.is_empty() { &self.common } else { &self.dns };
        let mut shown: Vec<String> = shown.clone();
        shown.extend(self.addresses.iter().filter_map(|bytes| match bytes.as_slice() {
            &[a, b, c, d] => Some(IpAddr::from([a, b, c, d]).to_string()),
            bytes => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
        }));
        if shown.is_empty() { "no name".to_owned() } else { shown.join(", ") }
    }
}

fn dns_name_fits(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(domain), Some((label, rest))) = (name.strip_prefix('*'), host.split_once('.')) else {
        return false;
    };
    // What follows the asterisk begins with the dot and has something after it.
    domain.len() > 1
        && !label.is_empty()
        && host.parse::<IpAddr>().is_err()
        && domain.strip_prefix('.').is_some_and(|domain| domain.eq_ignore_ascii_case(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dns: &[&str], addresses: &[&[u8]], common: &[&str]) -> Names {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Names {
            dns: owned(dns),
            addresses: addresses.iter().map(|a| a.to_vec()).collect(),
            common: owned(common),
        }
    }

    #[test]
    fn the_common_name_counts_only_alone() {
        assert!(names(&[], &[], &["Db.Example"]).fit("db.example"));
        assert!(!names(&["other"], &[], &["db.example"]).fit("db.example"));
        assert!(names(&[], &[&[10, 0, 0, 1]], &["db.example"]).fit("db.example"));
        assert!(!names(&[], &[&[10, 0, 0, 1]], &["10.0.0.2"]).fit("10.0.0.2"));
        assert!(names(&[], &[&[10, 0, 0, 2]], &[]).fit("10.0.0.2"));
        assert!(!names(&[], &[], &[]).fit(""));
    }

    #[test]
    fn an_asterisk_is_one_label() {
        let wild = names(&["*.example.com"], &[], &[]);
        assert!(wild.fit("db.example.com"));
        assert!(!wild.fit("a.db.example.com"));
        assert!(!wild.fit("example.com"));
        assert!(!wild.fit(".example.com"));
        assert!(!names(&["*"], &[], &[]).fit("db"));
        assert!(!names(&["*."], &[], &[]).fit("db."));
        assert!(!names(&["*.0.0.1"], &[], &[]).fit("127.0.0.1"));
    }

    #[test]
    fn the_hash_follows_the_signature() {
        use rcgen::{CertificateParams, KeyPair};
        let hash_length = |algorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let certificate =
                CertificateParams::new(vec!["db".to_owned()]).unwrap().self_signed(&key).unwrap();
            end_point_hash(certificate.der()).map(|hash| hash.len())
        };
        assert_eq!(hash_length(&rcgen::PKCS_ECDSA_P256_SHA256), Some(32));
        assert_eq!(hash_length(&rcgen::PKCS_ECDSA_P384_SHA384), Some(48));
        assert_eq!(hash_length(&rcgen::PKCS_ED25519), None);
        assert_eq!(end_point_hash(b"nonsense"), None);
    }
}
