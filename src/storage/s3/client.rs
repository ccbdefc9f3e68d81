//! The SDK's client, made from the settings when it is first needed.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

use aws_config::{
    BehaviorVersion, Region,
    environment::EnvironmentVariableRegionProvider,
    meta::region::RegionProviderChain,
    profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider},
    retry::RetryConfig,
    stalled_stream_protection::StalledStreamProtectionConfig,
    timeout::TimeoutConfig,
};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::{
    Client,
    config::{RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient},
};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::{
    settings::{Checksums, S3Settings},
    watch,
};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a connection is kept that nobody uses.
const LONGEST_IDLE: Duration = Duration::from_secs(60);

/// The region where none is known. Servers that aren't AWS mostly take any.
const DEFAULT_REGION: &str = "us-east-1";

/// Makes the client. Says in a sentence why it can't be.
pub(super) async fn connect(settings: &S3Settings) -> Result<Client, String> {
    let http = watch::watched(http_client(settings)?, settings.stall);
    let chain = RegionProviderChain::first_try(settings.region.clone().map(Region::new));
    let chain = match settings.endpoint {
        // The region of the machine this runs on, if it is one of AWS, says nothing of a server
        // that isn't, and asking for it takes seconds on any other.
        Some(_) => chain
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new()),
        None => chain.or_default_provider(),
    };
    let chain = chain.or_else(DEFAULT_REGION);
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .region(chain)
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build());
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(path) = &settings.credentials_file {
        check_secrecy(path)?;
        let files =
            EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, path).build();
        let mut provider = ProfileFileCredentialsProvider::builder().profile_files(files);
        if let Some(profile) = &settings.profile {
            provider = provider.profile_name(profile);
        }
        loader = loader.credentials_provider(provider.build());
    }
    let shared = loader.load().await;
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        // Attempts are counted here, since an answer may be lost while its body comes.
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(
            // What is sent is watched by `watch`, which also sees that no answer comes.
            StalledStreamProtectionConfig::enabled()
                .upload_enabled(false)
                .grace_period(settings.stall)
                .build(),
        )
        .force_path_style(settings.path_style.unwrap_or(settings.endpoint.is_some()));
    config = match settings.checksums {
        Checksums::WhenSupported => config
            .request_checksum_calculation(RequestChecksumCalculation::WhenSupported)
            .response_checksum_validation(ResponseChecksumValidation::WhenSupported),
        Checksums::WhenRequired => config
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired),
    };
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

fn http_client(settings: &S3Settings) -> Result<SharedHttpClient, String> {
    let mut trust = TrustStore::default();
    if let Some(path) = &settings.ca_file {
        let pem = fs::read(path).map_err(|e| format!("the ca-file {}: {e}", path.display()))?;
        check_certificates(&pem).map_err(|why| format!("the ca-file {} {why}", path.display()))?;
        trust = trust.with_pem_certificate(pem);
    }
    let tls = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|e| format!("prepare TLS: {e}"))?;
    Ok(Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(tls)
        // Those that died together with one that was silent for as long are not tried after it.
        .pool_idle_timeout(settings.stall.min(LONGEST_IDLE))
        .build_https())
}

/// Refuses what the HTTP client would panic at: it takes for granted that there are certificates, and that all of
/// them can be read.
fn check_certificates(pem: &[u8]) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| format!("isn't in PEM form: {e}"))?;
        let added = roots.add(certificate);
        added.map_err(|e| format!("has a certificate that can't be read: {e}"))?;
    }
    if roots.is_empty() { Err("has no certificate in PEM form".to_owned()) } else { Ok(()) }
}

/// Refuses a file of credentials that everybody on this host may read.
fn check_secrecy(path: &Path) -> Result<(), String> {
    let named = || format!("the credentials-file {}", path.display());
    let meta = fs::metadata(path).map_err(|e| format!("{} can't be read: {e}", named()))?;
    if meta.mode() & 0o007 != 0 {
        return Err(format!("{} may be used by everybody on this host: chmod 600 it", named()));
    }
    Ok(())
}
