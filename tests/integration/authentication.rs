//! Connecting and saying who we are: every method and sslmode, against real servers.

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use pgkeep::postgres::{
    client::{Client, ConnInfo, Environment, Mode, PgError},
    replication,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P384_SHA384,
};

use crate::support::{
    Cluster, Scratch, Stop,
    install::{command, run},
    on_each_version,
    scratch::write,
};

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

on_each_version!(trust_peer_and_passwords);

fn trust_peer_and_passwords(version: u32) {
    let place = Place::new(version, None);
    let system_identifier = place.cluster.system_identifier();
    let password = password();

    assert_eq!(whoami(&place.socket("user=trusty")).unwrap(), "trusty plain");
    assert_eq!(system(&place.socket("user=trusty")).unwrap(), system_identifier);
    assert_eq!(whoami(&place.tcp("user=trusty")).unwrap(), "trusty plain");
    assert_eq!(system(&place.tcp("user=trusty")).unwrap(), system_identifier);
    assert_eq!(whoami(&place.socket("user=peerly")).unwrap(), "peerly plain");
    assert_eq!(system(&place.socket("user=peerly")).unwrap(), system_identifier);
    for role in ["md5ly", "scramly"] {
        let with = format!("user={role} {password}");
        assert_eq!(whoami(&place.socket(&with)).unwrap(), format!("{role} plain"));
        assert_eq!(whoami(&place.tcp(&with)).unwrap(), format!("{role} plain"));
        assert_eq!(system(&place.tcp(&with)).unwrap(), system_identifier);
    }
    assert_eq!(
        whoami(&place.socket(&format!("user=clearly {password}"))).unwrap(),
        "clearly plain"
    );

    // What is refused by us.
    let with = |role: &str, rest: &str| place.tcp(&format!("user={role} {password} {rest}"));
    fails_with(whoami(&with("clearly", "")), "Auth", "sslmode=require");
    fails_with(whoami(&with("scramly", "sslmode=require")), "Tls", "ssl = on");
    fails_with(whoami(&with("scramly", "channel_binding=require")), "Auth", "needs TLS");
    fails_with(whoami(&with("md5ly", "channel_binding=require")), "Auth", "channel_binding");
    fails_with(whoami(&with("md5ly", "require_auth=scram-sha-256")), "Auth", "require_auth");
    fails_with(whoami(&with("scramly", "require_auth=!scram-sha-256")), "Auth", "require_auth");
    fails_with(whoami(&with("trusty", "require_auth=md5,scram-sha-256")), "Auth", "require_auth");
    assert!(whoami(&with("scramly", "require_auth=scram-sha-256")).is_ok());
    assert!(whoami(&with("trusty", "require_auth=none")).is_ok());

    // What is refused by the server, in its own words.
    for role in ["md5ly", "scramly"] {
        let wrong = place.tcp(&format!("user={role} password=wrong"));
        assert_eq!(code_of(whoami(&wrong)), "28P01");
        fails_with(whoami(&wrong), "Server", "password authentication failed");
    }
    fails_with(system(&place.socket("user=nobody")), "Server", "pg_hba.conf");
    fails_with(whoami(&place.tcp("user=reject")), "Server", "pg_hba.conf rejects");
    fails_with(whoami(&place.socket("user=trusty dbname=none")), "Server", "\"none\"");
    assert_eq!(code_of(whoami(&place.socket("user=trusty dbname=none"))), "3D000");
    assert_eq!(code_of(system(&place.socket("user=plainly"))), "42501");
    fails_with(system(&place.socket("user=plainly")), "Server", "REPLICATION");
    place.cluster.sql("DROP ROLE trusty");
    fails_with(whoami(&place.socket("user=trusty")), "Server", "role \"trusty\" does not exist");
}

#[test]
fn passwords_come_from_the_password_file() {
    let place = Place::new(15, None);
    let info = place.tcp("user=scramly");
    fails_with(whoami(&info), "Auth", "line 127.0.0.1:");
    let escaped = PASSWORD.replace('\\', r"\\").replace(':', r"\:");
    let port = place.port();
    let line = |database: &str| format!("127.0.0.1:{port}:{database}:scramly:{escaped}\n");
    let file = place.home.file(".pgpass", line("postgres"));
    assert_eq!(whoami(&info).unwrap(), "scramly plain");
    fails_with(system(&info), "Auth", ":replication:scramly:");
    write(&file, line("replication"));
    assert_eq!(system(&info).unwrap(), place.cluster.system_identifier());
    let socket =
        format!("localhost:*:*:*:no\n{}:*:*:*:{escaped}\n", place.cluster.socket_dir().display());
    write(&file, socket);
    assert_eq!(whoami(&place.socket("user=scramly")).unwrap(), "scramly plain");

    use std::os::unix::fs::PermissionsExt;
    write(&file, line("*"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o604)).unwrap();
    fails_with(whoami(&info), "Auth", "0604");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let elsewhere = place.home.path().join("elsewhere");
    std::fs::rename(&file, &elsewhere).unwrap();
    fails_with(whoami(&info), "Auth", "none is given");
    let info = place.tcp(&format!("user=scramly passfile={}", elsewhere.display()));
    assert_eq!(whoami(&info).unwrap(), "scramly plain");
}

on_each_version!(every_sslmode_does_what_it_says);

fn every_sslmode_does_what_it_says(version: u32) {
    let pki = Pki::new("authority");
    let place = Place::new(version, Some(&pki));
    let right = format!("sslrootcert={}", pki.root(&place.home).display());
    let other = place.home.file("other.crt", Pki::new("another authority").authority_pem);
    let wrong = format!("sslrootcert={}", other.display());
    let at = |host: &str, rest: &str| {
        let text = format!("host='{host}' hostaddr=127.0.0.1 port={} {rest}", place.port());
        conninfo(&format!("{text} user=trusty"), &place.home)
    };
    let tls = "trusty tls";

    for (mode, expected) in
        [("disable", "trusty plain"), ("allow", "trusty plain"), ("prefer", tls), ("require", tls)]
    {
        assert_eq!(
            whoami(&at("anything", &format!("sslmode={mode}"))).unwrap(),
            expected,
            "{mode}"
        );
    }
    assert_eq!(whoami(&at("localhost", "")).unwrap(), tls, "prefer is the default");

    // Without a root certificate only the modes that ask for no check work; with one, require
    // checks the chain.
    for mode in ["verify-ca", "verify-full"] {
        fails_with(whoami(&at("localhost", &format!("sslmode={mode}"))), "Tls", "sslrootcert");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        assert_eq!(whoami(&at("localhost", &format!("sslmode={mode} {right}"))).unwrap(), tls);
        let result = whoami(&at("localhost", &format!("sslmode={mode} {wrong}")));
        fails_with(result, "Tls", "sslrootcert must be");
    }
    for mode in ["require", "verify-ca"] {
        assert_eq!(whoami(&at("elsewhere", &format!("sslmode={mode} {right}"))).unwrap(), tls);
    }
    let full = format!("sslmode=verify-full {right}");
    fails_with(
        whoami(&at("elsewhere", &full)),
        "Tls",
        "localhost, 127.0.0.1, not for \"elsewhere\"",
    );
    fails_with(whoami(&at("", &full)), "Tls", "host name");
    assert_eq!(whoami(&at("127.0.0.1", &full)).unwrap(), tls);
    fails_with(whoami(&at("127.0.0.2", &full)), "Tls", "127.0.0.2");
    fails_with(whoami(&at("localhost", "sslrootcert=system")), "Tls", "");
    let missing = "sslmode=require sslrootcert=/nonexistent";
    fails_with(whoami(&at("localhost", missing)), "Tls", "/nonexistent");

    // prefer goes on without TLS where the certificate isn't trusted, as libpq does.
    assert_eq!(whoami(&at("localhost", &wrong)).unwrap(), "trusty plain");

    // An authority of the right name with another key.
    let namesake = place.home.file("namesake.crt", Pki::new("authority").authority_pem);
    let namesake = format!("sslmode=verify-ca sslrootcert={}", namesake.display());
    fails_with(whoami(&at("localhost", &namesake)), "Tls", "sslrootcert must be");

    // The default root certificate counts for require too.
    let folder = place.home.folder(".postgresql");
    std::fs::copy(&other, folder.join("root.crt")).unwrap();
    fails_with(whoami(&at("localhost", "sslmode=require")), "Tls", "UnknownIssuer");
    write(&folder.join("root.crt"), &pki.authority_pem);
    assert_eq!(whoami(&at("localhost", "sslmode=verify-full")).unwrap(), tls);

    for versions in ["ssl_max_protocol_version=TLSv1.2", "ssl_min_protocol_version=TLSv1.3"] {
        assert_eq!(whoami(&at("localhost", &format!("{full} {versions}"))).unwrap(), tls);
    }
    // pg_hba.conf decides too, and the second attempt of allow and prefer finds the other line.
    let with = |role: &str, rest: &str| place.tcp(&format!("user={role} {} {rest}", password()));
    assert_eq!(whoami(&with("tlsonly", "sslmode=allow")).unwrap(), "tlsonly tls");
    assert_eq!(whoami(&with("plainonly", "sslmode=prefer")).unwrap(), "plainonly plain");
    assert_eq!(code_of(whoami(&with("tlsonly", "sslmode=disable"))), "28000");
    assert_eq!(code_of(whoami(&with("plainonly", "sslmode=require"))), "28000");

    let direct = whoami(&at("localhost", &format!("{full} sslnegotiation=direct")));
    match version {
        17.. => assert_eq!(direct.unwrap(), tls),
        _ => assert!(direct.is_err()),
    }
}

on_each_version!(passwords_over_tls);

fn passwords_over_tls(version: u32) {
    let pki = Pki::new("authority");
    let place = Place::new(version, Some(&pki));
    let with = |role: &str, rest: &str| {
        place.tcp(&format!("user={role} {} sslmode=require {rest}", password()))
    };
    for role in ["clearly", "md5ly", "scramly"] {
        assert_eq!(whoami(&with(role, "")).unwrap(), format!("{role} tls"));
    }
    // prefer has TLS here, so the password may go.
    assert!(whoami(&place.tcp(&format!("user=clearly {}", password()))).is_ok());
    for binding in ["disable", "prefer", "require"] {
        for tls in ["TLSv1.2", "TLSv1.3"] {
            let rest = format!("channel_binding={binding} ssl_max_protocol_version={tls}");
            assert_eq!(whoami(&with("scramly", &rest)).unwrap(), "scramly tls", "{rest}");
        }
    }
    assert!(system(&with("scramly", "channel_binding=require")).is_ok());
    for role in ["clearly", "md5ly", "trusty"] {
        let info = with(role, "channel_binding=require");
        fails_with(whoami(&info), "Auth", "channel_binding=require");
    }
    let wrong = place.tcp("user=scramly password=wrong sslmode=require channel_binding=require");
    assert_eq!(code_of(whoami(&wrong)), "28P01");
}

on_each_version!(client_certificates);

fn client_certificates(version: u32) {
    let pki = Pki::new("authority");
    let place = Place::new(version, Some(&pki));
    let with = |rest: &str| place.tcp(&format!("user=certly sslmode=require {rest}"));
    let (crt, key) = pki.client("certly", &place.home);
    let own = format!("sslcert={} sslkey={}", crt.display(), key.display());
    assert_eq!(whoami(&with(&own)).unwrap(), "certly tls");
    assert!(system(&with(&own)).is_ok());
    let tls12 = format!("{own} ssl_max_protocol_version=TLSv1.2");
    assert_eq!(whoami(&with(&tls12)).unwrap(), "certly tls");

    fails_with(whoami(&with("")), "Server", "certificate");
    fails_with(whoami(&with(&format!("{own} sslcertmode=disable"))), "Server", "certificate");
    let (crt, key) = pki.client("trusty", &place.home);
    let another = format!("sslcert={} sslkey={}", crt.display(), key.display());
    fails_with(whoami(&with(&another)), "Server", "certificate authentication failed");
    let stranger = Pki::new("stranger");
    let strangers = Scratch::new("stranger");
    let (crt, key) = stranger.client("certly", &strangers);
    let forged = format!("sslcert={} sslkey={}", crt.display(), key.display());
    fails_with(whoami(&with(&forged)), "Tls", "doesn't accept the client certificate");

    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    fails_with(whoami(&with(&forged)), "Tls", "0600");
    fails_with(whoami(&with("sslcert=/nonexistent")), "Tls", "/nonexistent");
    fails_with(whoami(&with(&format!("sslcert={}", crt.display()))), "Tls", "postgresql.key");

    // The default files.
    let folder = place.home.folder(".postgresql");
    let (crt, key) = pki.client("certly", &place.home);
    std::fs::copy(crt, folder.join("postgresql.crt")).unwrap();
    std::fs::copy(key, folder.join("postgresql.key")).unwrap();
    assert_eq!(whoami(&with("")).unwrap(), "certly tls");
}

/// The certificates that PostgreSQL's documentation has people make: self-signed, and of version 1
/// with a common name alone.
#[test]
fn certificates_made_by_the_book_are_trusted() {
    let made = Scratch::new("openssl");
    let path = |name: &str| made.path().join(name).display().to_string();
    let openssl = |arguments: &str| {
        let arguments: Vec<String> = arguments
            .split_whitespace()
            .map(|a| a.strip_prefix('@').map_or(a.to_owned(), path))
            .collect();
        run(command("openssl").args(arguments));
    };
    openssl("req -new -x509 -days 9 -nodes -out @self.crt -keyout @self.key -subj /CN=db.example");
    openssl("req -new -nodes -out @root.csr -keyout @root.key -subj /CN=root.example");
    openssl(
        "x509 -req -in @root.csr -days 9 -extfile /etc/ssl/openssl.cnf -extensions v3_ca \
         -signkey @root.key -out @root.crt",
    );
    openssl("req -new -nodes -out @server.csr -keyout @server.key -subj /CN=db.example");
    openssl(
        "x509 -req -in @server.csr -days 9 -CA @root.crt -CAkey @root.key -CAcreateserial \
         -out @server.crt",
    );
    let pki = Pki::new("authority");
    let mut place = Place::new(15, Some(&pki));
    for (certificate, root) in [("self", "self"), ("server", "root")] {
        let copy = |extension: &str| {
            let from = std::fs::read(path(&format!("{certificate}.{extension}"))).unwrap();
            write(&place.cluster.pgdata().join(format!("server.{extension}")), from);
        };
        copy("crt");
        copy("key");
        place.cluster.restart();
        for tls in ["TLSv1.2", "TLSv1.3"] {
            let at = |host: &str, root: &str| {
                conninfo(
                    &format!(
                        "host={host} hostaddr=127.0.0.1 port={} user=scramly {} sslrootcert={} \
                         sslmode=verify-full channel_binding=require ssl_max_protocol_version={tls}",
                        place.port(),
                        password(),
                        path(root)
                    ),
                    &place.home,
                )
            };
            let right = at("db.example", &format!("{root}.crt"));
            assert_eq!(whoami(&right).unwrap(), "scramly tls", "{certificate} {tls}");
            let elsewhere = at("elsewhere", &format!("{root}.crt"));
            fails_with(whoami(&elsewhere), "Tls", "is for db.example");
            let other = if root == "self" { "root.crt" } else { "self.crt" };
            fails_with(whoami(&at("db.example", other)), "Tls", "");
        }
    }
}

#[test]
fn several_hosts_are_tried_in_turn() {
    let mut primary = Cluster::builder(15).start();
    let standby = Cluster::standby_of(&primary);
    let home = Scratch::new("home");
    let sockets = [&standby, &primary].map(|c| c.socket_dir().display().to_string());
    let both =
        format!("host=/nonexistent,{},{} port=1,5432,5432 user=postgres", sockets[0], sockets[1]);
    let recovers = |rest: &str| {
        block_on(async {
            let info = conninfo(&format!("{both} {rest}"), &home);
            let mut client = Client::connect(&info, Mode::Sql).await?;
            let rows = client.query("SELECT pg_is_in_recovery()").await?;
            Ok::<_, PgError>(rows[0].get(0) == Some("t"))
        })
    };
    assert!(recovers("").unwrap());
    for (wanted, standby) in [
        ("any", true),
        ("read-write", false),
        ("primary", false),
        ("read-only", true),
        ("standby", true),
        ("prefer-standby", true),
    ] {
        let rest = format!("target_session_attrs={wanted}");
        assert_eq!(recovers(&rest).unwrap(), standby, "{wanted}");
        let rest = format!("{rest} load_balance_hosts=random");
        assert!(wanted == "any" || recovers(&rest).unwrap() == standby, "{wanted}");
    }
    primary.stop(Stop::Immediate);
    fails_with(
        recovers("target_session_attrs=primary"),
        "NoServer",
        "target_session_attrs=primary",
    );
    // A wrong name is no reason to try the next server, nor is a refusal.
    drop(primary);
    let refused = recovers("dbname=none");
    assert_eq!(code_of(refused), "3D000");
}

#[test]
fn a_server_that_is_down_is_told_so() {
    let home = Scratch::new("home");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let down = conninfo(&format!("host=127.0.0.1 port={free}"), &home);
    fails_with(whoami(&down), "Connect", "listen_addresses");
    fails_with(whoami(&conninfo("host=/nonexistent", &home)), "Connect", "/nonexistent/.s.PGSQL");
    fails_with(whoami(&conninfo("host=no.such.name.invalid", &home)), "Connect", "looked up");

    let mut cluster = Cluster::builder(15).make();
    cluster.conf("hot_standby = off");
    write(&cluster.pgdata().join("standby.signal"), "");
    cluster.spawn();
    let info = conninfo(&cluster.conninfo(), &home);
    crate::support::wait_until(
        "the server says that it isn't ready",
        20,
        || matches!(whoami(&info), Err(e) if e.code() == Some("57P03") && e.is_unreachable()),
    );
}

/// Nothing that answers like a server, or not at all, holds us for long.
#[test]
fn silence_and_nonsense_end_in_bounded_time() {
    let home = Scratch::new("home");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let info = |rest: &str| {
        conninfo(&format!("host=127.0.0.1 port={port} connect_timeout=2 {rest}"), &home)
    };
    // The kernel takes the connection, and nobody ever answers.
    for rest in ["sslmode=disable", "sslmode=prefer", "sslmode=require"] {
        let begun = Instant::now();
        fails_with(whoami(&info(rest)), "Connect", "within 2 seconds");
        assert!(begun.elapsed() < Duration::from_secs(8), "{rest}: {:?}", begun.elapsed());
    }
    let answers: [(&str, &[u8]); 6] = [
        ("sslmode=disable", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("sslmode=require", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("sslmode=require", b"Sin clear"),
        ("sslmode=disable", b""),
        ("sslmode=disable", b"R\0\0\0\x08\0\0\0\x0bR"),
        ("sslmode=disable", b"Efork failed\n\0"),
    ];
    for (rest, answer) in answers {
        // Those that connected before are still queued.
        listener.set_nonblocking(true).unwrap();
        while listener.accept().is_ok() {}
        listener.set_nonblocking(false).unwrap();
        let listener = listener.try_clone().unwrap();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 1024]);
            socket.write_all(answer).unwrap();
        });
        let error = whoami(&info(rest)).expect_err("nonsense");
        server.join().unwrap();
        if answer.starts_with(b"E") {
            assert!(error.to_string().contains("fork failed"), "{error}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn abstract_sockets_work() {
    let mut cluster = Cluster::builder(15).make();
    let name = format!("@pgkeep-test-{}", std::process::id());
    let directories = format!("{},{name}", cluster.socket_dir().display());
    cluster.option(&format!("unix_socket_directories={directories}"));
    cluster.start();
    let home = Scratch::new("home");
    let info = conninfo(&format!("host={name} port=5432 user=postgres"), &home);
    assert_eq!(whoami(&info).unwrap(), "postgres plain");
}

on_each_version!(sessions_are_fit_for_long_work);

fn sessions_are_fit_for_long_work(version: u32) {
    let cluster = Cluster::builder(version).start();
    cluster.sql("CREATE ROLE hasty SUPERUSER LOGIN");
    for setting in ["statement_timeout = 1", "lock_timeout = 1", "idle_session_timeout = 300"] {
        cluster.sql(&format!("ALTER ROLE hasty SET {setting}"));
    }
    let home = Scratch::new("home");
    let info = conninfo(&format!("{} user=hasty", cluster.conninfo()), &home);
    let info = info.with_application_name("pgkeep test");
    block_on(async {
        let mut client = Client::connect(&info, Mode::Sql).await.unwrap();
        assert_eq!(client.server_version().major(), version);
        assert_eq!(client.parameter("in_hot_standby"), Some("off"));
        client.query("SELECT pg_sleep(0.05)").await.unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        let name = client.query("SELECT current_setting('application_name') AS n").await.unwrap();
        assert_eq!(name[0].named("n"), Some("pgkeep test"));
        // After an error, the session goes on.
        let error = client.query("SELECT 1; SELECT 1/0; SELECT 2").await.unwrap_err();
        assert_eq!(error.code(), Some("22012"));
        let rows = client.query("SELECT NULL, ''; SELECT 'ö', 2 AS two, NULL").await.unwrap();
        assert_eq!((rows[0].get(0), rows[0].named("two")), (Some("ö"), Some("2")));
        assert_eq!((rows[0].get(2), rows[0].len()), (None, 3));
        // A notice with a hint of the server's, in the middle.
        client
            .execute("DO $$BEGIN RAISE WARNING 'look' USING HINT = 'there'; END$$")
            .await
            .unwrap();
        let raise =
            "DO $$BEGIN RAISE 'no' USING HINT = 'do', DETAIL = 'so', ERRCODE = 'P0999'; END$$";
        let error = client.execute(raise).await.unwrap_err();
        assert_eq!(error.to_string(), "ERROR: no: so (SQLSTATE P0999)");
        assert_eq!(error.hint(), Some("do"));
        // A server that ends the session says why.
        let pid = client.query("SELECT pg_backend_pid()").await.unwrap();
        let pid = pid[0].get(0).unwrap().to_owned();
        cluster.sql(&format!("SELECT pg_terminate_backend({pid}, 5000)"));
        let error = client.query("SELECT 1").await.unwrap_err();
        assert_eq!(error.code(), Some("57P01"), "{error}");

        let mut client = Client::connect(&info, Mode::Replication).await.unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(replication::show(&mut client, "wal_segment_size").await.unwrap(), "16MB");
    });
}
