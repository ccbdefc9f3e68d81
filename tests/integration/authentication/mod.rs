//! Connecting and saying who we are: every method and sslmode, against real servers.

mod passwords;
mod servers;
mod tls;

use std::path::{Path, PathBuf};

use pgkeep::postgres::{
    client::{Client, ConnInfo, Environment, Mode, PgError},
    replication,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P384_SHA384,
};

use crate::support::{Cluster, Scratch, install::run, scratch::write};

/// Reads a connection string in surroundings where only `home` has something in it.
fn conninfo(text: &str, home: &Path) -> ConnInfo {
    let environment = Environment::new(&[], Some(home), Some("tester"));
    ConnInfo::parse_in(text, &environment).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// Connects for SQL: who we are to the server, and `tls` or `plain`.
fn whoami(info: &ConnInfo) -> Result<String, PgError> {
    block_on(async {
        let mut client = Client::connect(info, Mode::Sql).await?;
        let sql = "SELECT current_user, CASE WHEN ssl THEN 'tls' ELSE 'plain' END \
                   FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let rows = client.query(sql).await?;
        client.close().await;
        Ok(format!("{} {}", rows[0].get(0).expect("a user"), rows[0].get(1).expect("a word")))
    })
}

/// Connects for replication: the system identifier.
fn system(info: &ConnInfo) -> Result<u64, PgError> {
    block_on(async {
        let mut client = Client::connect(info, Mode::Replication).await?;
        let identity = replication::identify_system(&mut client).await?;
        client.close().await;
        Ok(identity.system_identifier)
    })
}

/// A server on socket and TCP with roles for each method, and a home directory for the client.
struct Place {
    cluster: Cluster,
    home: Scratch,
}

/// Passwords of the roles with one; it has what needs quoting in most places.
const PASSWORD: &str = r"pa:ss\w'ö rd";

const ROLES: &str = r"
    CREATE ROLE trusty LOGIN REPLICATION;
    CREATE ROLE reject LOGIN REPLICATION;
    CREATE ROLE peerly LOGIN REPLICATION;
    CREATE ROLE certly LOGIN REPLICATION;
    CREATE ROLE plainly LOGIN;
    CREATE ROLE scramly LOGIN REPLICATION PASSWORD 'pa:ss\w''ö rd';
    CREATE ROLE clearly LOGIN REPLICATION PASSWORD 'pa:ss\w''ö rd';
    CREATE ROLE tlsonly LOGIN REPLICATION PASSWORD 'pa:ss\w''ö rd';
    CREATE ROLE plainonly LOGIN REPLICATION PASSWORD 'pa:ss\w''ö rd';
";

const MD5_ROLE: &str = r"CREATE ROLE md5ly LOGIN REPLICATION PASSWORD 'pa:ss\w''ö rd'";

const HBA: &str = "
    local   all,replication postgres                trust
    local   all,replication trusty,plainly          trust
    local   all,replication peerly                  peer map=ours
    host    all,replication trusty,plainly 0.0.0.0/0 trust
    local   all,replication clearly                 password
    host    all,replication clearly      0.0.0.0/0  password
    local   all,replication md5ly                   md5
    host    all,replication md5ly        0.0.0.0/0  md5
    local   all,replication scramly                 scram-sha-256
    host    all,replication scramly      0.0.0.0/0  scram-sha-256
    hostssl all,replication tlsonly      0.0.0.0/0  scram-sha-256
    hostnossl all,replication plainonly  0.0.0.0/0  scram-sha-256
    hostssl all,replication certly       0.0.0.0/0  cert
    host    all,replication reject       0.0.0.0/0  reject
";

impl Place {
    /// With TLS if `pki` is given.
    fn new(version: u32, pki: Option<&Pki>) -> Self {
        let mut cluster = match pki {
            None => Cluster::builder(version).tcp().make(),
            Some(_) => Cluster::builder(version).tcp().conf("ssl = on").make(),
        };
        if let Some(pki) = pki {
            write(&cluster.pgdata().join("server.crt"), pki.server.0.as_bytes());
            write(&cluster.pgdata().join("server.key"), pki.server.1.as_bytes());
            write(&cluster.pgdata().join("ca.crt"), pki.authority_pem.as_bytes());
            cluster.conf("ssl_ca_file = 'ca.crt'");
        }
        cluster.hba(HBA);
        let me = run(std::process::Command::new("id").arg("-un"));
        write(&cluster.pgdata().join("pg_ident.conf"), format!("ours {} peerly\n", me.trim()));
        cluster.start();
        cluster.sql(ROLES);
        let quiet = if version >= 18 { "SET md5_password_warnings = off;" } else { "" };
        cluster.sql(&format!("SET password_encryption = 'md5'; {quiet} {MD5_ROLE}"));
        Place { cluster, home: Scratch::new("home") }
    }

    fn socket(&self, rest: &str) -> ConnInfo {
        let at = format!("host={} port={}", self.cluster.socket_dir().display(), self.port());
        conninfo(&format!("{at} {rest}"), &self.home)
    }

    fn tcp(&self, rest: &str) -> ConnInfo {
        conninfo(&format!("host=127.0.0.1 port={} {rest}", self.port()), &self.home)
    }

    fn port(&self) -> u16 {
        self.cluster.port()
    }
}

/// `PASSWORD` as a connection string has it.
fn password() -> String {
    format!("password='{}'", PASSWORD.replace('\\', r"\\").replace('\'', r"\'"))
}

/// Certificates of one authority.
struct Pki {
    authority_pem: String,
    issuer: Issuer<'static, KeyPair>,
    /// Certificate and key for `localhost` and 127.0.0.1.
    server: (String, String),
}

impl Pki {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let authority_pem = params.self_signed(&key).expect("an authority").pem();
        let issuer = Issuer::new(params, key);
        // SHA-384: what SCRAM binds to follows the certificate.
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).expect("parameters");
        let certificate = certificate.signed_by(&key, &issuer).expect("a certificate");
        let server = (certificate.pem(), key.serialize_pem());
        Pki { authority_pem, issuer, server }
    }

    /// A client certificate for a role, in files.
    fn client(&self, role: &str, folder: &Scratch) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, role);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = folder.file(&format!("{role}.key"), key.serialize_pem());
        (folder.file(&format!("{role}.crt"), certificate.pem()), key)
    }

    fn root(&self, folder: &Scratch) -> PathBuf {
        folder.file("authority.crt", &self.authority_pem)
    }
}

#[track_caller]
fn code_of<T: std::fmt::Debug>(result: Result<T, PgError>) -> String {
    match result {
        Err(PgError::Server(e)) => e.code,
        other => panic!("not an error of the server: {other:?}"),
    }
}

/// Asserts the kind of a failure and words in its message or hint.
#[track_caller]
fn fails_with<T: std::fmt::Debug>(result: Result<T, PgError>, kind: &str, words: &str) {
    let error = result.expect_err("it should fail");
    let debug = format!("{error:?}");
    assert!(debug.starts_with(kind), "expected {kind}: {debug}");
    let told = format!("{error} / {}", error.hint().unwrap_or("no hint"));
    assert!(told.contains(words), "{words:?} isn't in: {told}");
    assert!(!told.contains("pa:ss") && !debug.contains("pa:ss"), "a password is told: {told}");
}
