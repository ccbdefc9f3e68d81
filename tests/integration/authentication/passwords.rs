//! Trust, peer, and passwords by each method, in clear and over TLS.

use super::{PASSWORD, Pki, Place, code_of, fails_with, password, system, whoami};
use crate::support::{on_each_version, scratch::write};

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
