//! A server whose certificate is of an authority of its own.

use std::time::{Duration, Instant};

use crate::support::{
    Pgkeep,
    pgkeep::Output,
    s3::{
        Server,
        tls::{Authority, Tls},
    },
    scratch,
};

/// `init` by TLS, with this `ca-file` if there is one.
fn init(pgkeep: &Pgkeep, tls: &Tls, authority: Option<&Authority>) -> Output {
    let server = pgkeep.server().expect("a server");
    let config = std::fs::read_to_string(pgkeep.config()).expect("read the configuration");
    let by_tls = config.replace(&server.endpoint(), &tls.endpoint());
    scratch::write(pgkeep.config(), by_tls);
    if let Some(authority) = authority {
        let file = pgkeep.scratch().file("authority.pem", &authority.pem);
        pgkeep.set("repository.main.s3", &format!("ca-file = \"{}\"", file.display()));
    }
    let output = pgkeep.run(["init"]);
    scratch::write(pgkeep.config(), config);
    output
}

#[test]
fn a_certificate_is_trusted_by_the_ca_file_alone() {
    let authority = Authority::new("ours");
    let pgkeep = Pgkeep::without_cluster_on(Server::start());
    let address = pgkeep.server().expect("a server").address();
    let tls = Tls::before(address, &authority, "localhost");
    let elsewhere = Tls::before(address, &authority, "elsewhere.example");
    let other = Authority::new("another");
    for (tls, given, says) in [
        (&tls, None, "UnknownIssuer"),
        (&tls, Some(&other), "UnknownIssuer"),
        (&elsewhere, Some(&authority), "localhost"),
    ] {
        let began = Instant::now();
        let refused = init(&pgkeep, tls, given);
        assert_eq!(refused.code, 3, "{refused}");
        assert!(refused.stderr.contains("certificate"), "{refused}");
        assert!(refused.stderr.contains(says), "{refused}");
        assert!(refused.stderr.contains("ca-file"), "it says what to do: {refused}");
        assert!(!refused.stderr.contains("attempts"), "a second try is of no use: {refused}");
        assert!(began.elapsed() < Duration::from_secs(20));
        assert!(!pgkeep.repository().join("repo.json").exists());
    }
    let made = init(&pgkeep, &tls, Some(&authority));
    assert_eq!(made.code, 0, "{made}");
    assert!(pgkeep.repository().join("repo.json").exists());
}
