//! TLS: what to trust, what to show, and the handshake (documentation, "SSL Support").

use std::{io, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use rustls::{
    ClientConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    conninfo::{CertMode, Host, RootCert, SslMode, TlsOptions},
    error::PgError,
    socket::{self, Address},
    verify::{Roots, Verifier},
};

/// What servers from 17 on want to hear about the protocol inside, when TLS begins at once.
pub(super) const PROTOCOL: &[u8] = b"postgresql";

/// Something about TLS that can't be done, before it is known for which server.
struct Refusal {
    reason: String,
    hint: Option<String>,
}

impl Refusal {
    fn new(reason: String) -> Self {
        Refusal { reason, hint: None }
    }

    fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }
}

/// Shakes hands over `socket`.
pub(super) async fn handshake(
    socket: TcpStream,
    options: &TlsOptions,
    host: &Host,
    address: &Address,
) -> Result<TlsStream<TcpStream>, PgError> {
    let refused = |refusal: Refusal| PgError::Tls {
        target: socket::target(host, address),
        reason: refusal.reason,
        hint: refusal.hint,
    };
    let config = config(options, host).map_err(refused)?;
    let name = host.name.clone().and_then(|name| ServerName::try_from(name).ok());
    let name = match (name, socket::ip(address)) {
        (Some(name), _) => name,
        // A name that isn't one in DNS: it is only left out of the hello.
        (None, Some(ip)) => ServerName::IpAddress(ip.into()),
        (None, None) => return Err(refused(Refusal::new("there is no TLS over it".to_owned()))),
    };
    TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .map_err(|e| error(e, host, address))
}

/// An I/O error of a TLS stream: TLS' own errors are told from broken connections.
pub(super) fn error(error: io::Error, host: &Host, address: &Address) -> PgError {
    use rustls::{AlertDescription as Alert, CertificateError as Cert, Error};
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => PgError::Closed,
            _ => PgError::Io(error),
        };
    };
    let hint = match tls {
        Error::InvalidCertificate(Cert::UnknownIssuer | Cert::BadSignature) => Some(
            "sslrootcert must be the certificate of the authority that signed the server's \
             certificate",
        ),
        Error::InvalidCertificate(Cert::Expired | Cert::ExpiredContext { .. }) => {
            Some("renew the server's certificate, or check this machine's clock")
        }
        Error::General(_) => {
            Some("say the host name that the certificate is for, or use sslmode=verify-ca")
        }
        Error::AlertReceived(Alert::CertificateRequired) => {
            Some("the server wants a client certificate: set sslcert and sslkey")
        }
        Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::DecryptError
            | Alert::CertificateExpired,
        ) => Some(
            "the server doesn't accept the client certificate: check sslcert and its ssl_ca_file",
        ),
        Error::AlertReceived(Alert::ProtocolVersion) => {
            Some("the server speaks no TLS 1.2 or 1.3, or not the version that was asked for")
        }
        _ => None,
    };
    PgError::Tls {
        target: socket::target(host, address),
        reason: match tls {
            Error::General(text) => text.clone(),
            tls => tls.to_string(),
        },
        hint: hint.map(str::to_owned),
    }
}

fn config(options: &TlsOptions, host: &Host) -> Result<ClientConfig, Refusal> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut versions = Vec::new();
    if options.tls13 {
        versions.push(&rustls::version::TLS13);
    }
    if options.tls12 {
        versions.push(&rustls::version::TLS12);
    }
    let verifier = Verifier {
        roots: roots(options)?,
        host: match options.mode {
            SslMode::VerifyFull => Some(host.name.clone().ok_or_else(|| {
                Refusal::new("sslmode=verify-full needs a host name to compare with".to_owned())
                    .hint("say host= besides hostaddr=")
            })?),
            _ => None,
        },
        algorithms: provider.signature_verification_algorithms,
    };
    let key = client_key(options, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|e| Refusal::new(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = options.server_name_indication;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// The certificates to trust, or `None` if the mode asks for no check and no file is there. As in
/// libpq, a root certificate file that is there is used whatever the mode.
fn roots(options: &TlsOptions) -> Result<Option<Roots>, Refusal> {
    let must_verify = options.mode >= SslMode::VerifyCa;
    let without = || match must_verify {
        false => Ok(None),
        true => Err(Refusal::new("there is no root certificate to check the server's with".into())
            .hint(
                "set sslrootcert to the authority's certificate, or to system for the operating \
                 system's, or put it into ~/.postgresql/root.crt",
            )),
    };
    let certificates = match &options.root_cert {
        RootCert::None => return without(),
        RootCert::System => {
            let found = rustls_native_certs::load_native_certs();
            if let (true, Some(e)) = (found.certs.is_empty(), found.errors.first()) {
                return Err(Refusal::new(format!("no system root certificates: {e}")));
            }
            found.certs
        }
        RootCert::File { path, required } => {
            if !required && !path.exists() {
                return without();
            }
            certificates(path, "root certificate file")?
        }
    };
    let roots = Roots::new(certificates);
    match roots.is_empty() {
        true => Err(Refusal::new("there is no certificate among the root certificates".into())),
        false => Ok(Some(roots)),
    }
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect())
        .map_err(|e| Refusal::new(format!("the {what} {} can't be read: {e}", path.display())))
}

/// The client's certificate and key, if there are any.
fn client_key(
    options: &TlsOptions,
    provider: &CryptoProvider,
) -> Result<Option<CertifiedKey>, Refusal> {
    let Some((path, required)) = &options.cert else { return Ok(None) };
    if options.cert_mode == CertMode::Disable || (!required && !path.exists()) {
        return Ok(None);
    }
    let chain = certificates(path, "client certificate")?;
    let Some(key_path) = &options.key else {
        return Err(Refusal::new("there is a client certificate but no key".to_owned())
            .hint("set sslkey to the key's file"));
    };
    let name = key_path.display();
    let metadata = std::fs::metadata(key_path)
        .map_err(|e| Refusal::new(format!("the client key {name} can't be read: {e}")))?;
    // As libpq has it: ours and private, or root's and at most readable by its group.
    let allowed = if metadata.uid() == 0 { 0o740 } else { 0o700 };
    if metadata.mode() & 0o777 & !allowed != 0 {
        return Err(Refusal::new(format!("the client key {name} can be read by others"))
            .hint("make its mode 0600"));
    }
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(|e| {
        Refusal::new(format!("the client key {name} can't be used: {e}"))
            .hint("it has to be an unencrypted PEM file")
    })?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|e| Refusal::new(format!("the client key {name} can't be used: {e}")))?;
    Ok(Some(CertifiedKey::new(chain, key)))
}
