//! Connection strings as libpq reads them.

use super::*;

fn parse(text: &str) -> ConnInfo {
    parse_with(text, &[])
}

fn parse_with(text: &str, variables: &[(&str, &str)]) -> ConnInfo {
    let environment = Environment::new(variables, Some(Path::new("/home/me")), Some("me"));
    ConnInfo::parse_in(text, &environment).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn refusal(text: &str) -> String {
    let environment = Environment::new(&[], None, Some("me"));
    match ConnInfo::parse_in(text, &environment) {
        Ok(info) => panic!("{text}: {info:?}"),
        Err(e) => e.to_string(),
    }
}

fn shown(text: &str) -> Vec<String> {
    parse(text).hosts.iter().map(Host::to_string).collect()
}

#[test]
fn defaults_are_what_the_documentation_says() {
    let info = parse("");
    assert_eq!(info.user, "me");
    assert_eq!(info.dbname, "postgres");
    assert_eq!(info.connect_timeout, Some(Duration::from_secs(30)));
    assert_eq!(info.application_name, "pgkeep");
    assert_eq!(info.tls.mode, SslMode::Prefer);
    assert_eq!(info.passfile.as_deref(), Some(Path::new("/home/me/.pgpass")));
    assert!(info.hosts[0].is_socket());
    assert_eq!(info.hosts[0].port, 5432);
    assert_eq!(parse("host=/var/run/postgresql").hosts[0].in_password_file(), "localhost");
    assert_eq!(parse("host=/elsewhere").hosts[0].in_password_file(), "/elsewhere");
}

#[test]
fn the_string_wins_over_the_service_which_wins_over_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("services");
    std::fs::write(&file, "[s]\nhost=service\nuser=service\nport=1\n").unwrap();
    let variables = [
        ("PGHOST", "variable"),
        ("PGUSER", "variable"),
        ("PGDATABASE", "variable"),
        ("PGSERVICE", "s"),
        ("PGSERVICEFILE", file.to_str().unwrap()),
    ];
    let info = parse_with("host=string", &variables);
    assert_eq!(info.hosts[0].to_string(), "string:1");
    assert_eq!(info.user, "service");
    assert_eq!(info.dbname, "variable");
    std::fs::write(&file, "[s]\nnonsense=1\n").unwrap();
    let environment = Environment::new(&variables, None, Some("me"));
    let error = ConnInfo::parse_in("", &environment).unwrap_err().to_string();
    assert!(error.contains("\"nonsense\"") && error.contains("service file"), "{error}");
}

#[test]
fn several_hosts_have_one_port_or_one_each() {
    assert_eq!(shown("host=a,b port=1,2"), ["a:1", "b:2"]);
    assert_eq!(shown("host=a,b port=7"), ["a:7", "b:7"]);
    assert_eq!(shown("host=a,b port=,7"), ["a:5432", "b:7"]);
    assert_eq!(shown("hostaddr=::1,10.0.0.1"), ["::1:5432", "10.0.0.1:5432"]);
    assert_eq!(shown("host=a,b hostaddr=10.0.0.1,"), ["a (10.0.0.1):5432", "b:5432"]);
    assert_eq!(
        shown("host=/run,@pg,c"),
        ["socket /run/.s.PGSQL.5432", "socket @pg/.s.PGSQL.5432", "c:5432"]
    );
    assert!(refusal("host=a,b,c port=1,2").contains("port"));
    assert!(refusal("host=a,b hostaddr=::1").contains("hostaddr"));
    assert!(refusal("port=0").contains("port"));
    assert!(refusal("port=65536").contains("port"));
    assert!(refusal("hostaddr=localhost").contains("hostaddr"));
}

#[test]
fn keys_that_are_not_supported_are_named() {
    for (text, name) in [
        ("sslcrl=/x", "sslcrl"),
        ("requirepeer=postgres", "requirepeer"),
        ("krbsrvname=x", "krbsrvname"),
        ("sslpassword=x", "sslpassword"),
        ("gssencmode=require", "gssencmode"),
        ("client_encoding=latin1", "client_encoding"),
        ("replication=database", "replication"),
        ("nonsense=1", "nonsense"),
        ("postgresql:///?Host=a", "Host"),
    ] {
        assert!(refusal(text).contains(name), "{text}");
    }
    let environment = Environment::new(&[("PGSSLCRL", "/x")], None, Some("me"));
    let error = ConnInfo::parse_in("", &environment).unwrap_err().to_string();
    assert!(error.contains("sslcrl") && error.contains("environment"), "{error}");
    for fine in ["client_encoding=UTF8", "gssencmode=prefer", "sslcompression=0", "replication=0"] {
        parse(fine);
    }
}

#[test]
fn impossible_values_are_refused() {
    for (text, name) in [
        ("sslmode=on", "sslmode"),
        ("sslmode=require sslrootcert=system", "sslrootcert"),
        ("sslnegotiation=direct", "sslnegotiation"),
        ("connect_timeout=soon", "connect_timeout"),
        ("keepalives_idle=1h", "keepalives_idle"),
        ("target_session_attrs=master", "target_session_attrs"),
        ("load_balance_hosts=1", "load_balance_hosts"),
        ("channel_binding=yes", "channel_binding"),
        ("require_auth=scram-sha-256,!md5", "require_auth"),
        ("require_auth=trust", "require_auth"),
        ("ssl_max_protocol_version=TLSv1.1", "ssl_max_protocol_version"),
        ("ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", "ssl_min"),
    ] {
        assert!(refusal(text).contains(name), "{text}");
    }
    let nobody = Environment::new(&[], None, None);
    assert!(ConnInfo::parse_in("", &nobody).unwrap_err().hint_text().is_some());
}

#[test]
fn settings_arrive_typed() {
    let info = parse("sslrootcert=system connect_timeout=0 keepalives=0 keepalives_idle=5");
    assert_eq!(info.tls.mode, SslMode::VerifyFull);
    assert_eq!(info.connect_timeout, None);
    assert!(!info.keep_alive.enabled);
    assert_eq!(info.keep_alive.idle, Some(Duration::from_secs(5)));
    let info = parse("require_auth=!password,!md5 ssl_min_protocol_version=TLSv1.3");
    let required = info.require_auth.unwrap();
    assert!(required.allows(AuthMethod::Scram) && !required.allows(AuthMethod::Md5));
    assert!(!info.tls.tls12 && info.tls.tls13);
    let named = parse("application_name=mine").with_application_name("other");
    assert_eq!(named.application_name, "mine");
    assert_eq!(parse("").with_application_name("other").application_name, "other");
}

#[test]
fn the_password_is_never_shown() {
    for text in ["password=hush user=u host=h", "postgresql://u:hush@h/d"] {
        let info = parse(text);
        assert_eq!(info.password.as_ref().map(Secret::reveal), Some("hush"));
        let shown = format!("{info} {info:?}");
        assert!(!shown.contains("hush"), "{shown}");
    }
    let environment = Environment::new(&[("PGPASSWORD", "hush")], None, Some("me"));
    assert!(!format!("{environment:?}").contains("hush"));
}
