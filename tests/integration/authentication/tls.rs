//! Certificates, the server's and ours.

use super::{Pki, Place, code_of, conninfo, fails_with, password, system, whoami};
use crate::support::{
    Scratch,
    install::{command, run},
    on_each_version,
    scratch::write,
};

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
