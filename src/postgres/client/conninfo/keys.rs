//! The keys of a connection string, each with its environment variable, and those that are refused.
//!
//! The list is libpq's (documentation, "Parameter Key Words" and "Environment Variables", up to
//! version 18). A key that isn't supported is an error by name: ignoring one could mean to connect
//! less safely than was asked for.

use super::ConnInfoError;

/// Supported keys and their variables.
const SUPPORTED: [(&str, Option<&str>); 38] = [
    ("application_name", Some("PGAPPNAME")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("client_encoding", Some("PGCLIENTENCODING")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("dbname", Some("PGDATABASE")),
    ("fallback_application_name", None),
    ("gssencmode", Some("PGGSSENCMODE")),
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("keepalives", None),
    ("keepalives_count", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    ("options", Some("PGOPTIONS")),
    ("passfile", Some("PGPASSFILE")),
    ("password", Some("PGPASSWORD")),
    ("port", Some("PGPORT")),
    ("require_auth", Some("PGREQUIREAUTH")),
    ("service", Some("PGSERVICE")),
    ("servicefile", Some("PGSERVICEFILE")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslcertmode", Some("PGSSLCERTMODE")),
    ("sslcompression", Some("PGSSLCOMPRESSION")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslsni", Some("PGSSLSNI")),
    ("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    ("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("tcp_user_timeout", None),
    ("user", Some("PGUSER")),
    // Accepted as long as they ask for what happens anyway.
    ("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    ("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
    ("gssdelegation", Some("PGGSSDELEGATION")),
    ("replication", None),
];

/// Keys of libpq that are refused, their variables, and why.
const REFUSED: [(&str, Option<&str>, &str); 14] = [
    ("gsslib", Some("PGGSSLIB"), NO_GSS),
    ("krbsrvname", Some("PGKRBSRVNAME"), NO_GSS),
    ("oauth_client_id", None, NO_OAUTH),
    ("oauth_client_secret", None, NO_OAUTH),
    ("oauth_issuer", None, NO_OAUTH),
    ("oauth_scope", None, NO_OAUTH),
    ("requirepeer", Some("PGREQUIREPEER"), "the server's user can't be checked"),
    ("requiressl", None, "it is obsolete: use sslmode=require"),
    ("scram_client_key", None, "use a password"),
    ("scram_server_key", None, "use a password"),
    ("sslcrl", Some("PGSSLCRL"), NO_REVOCATION),
    ("sslcrldir", Some("PGSSLCRLDIR"), NO_REVOCATION),
    ("sslkeylogfile", None, "session keys are never written to a file"),
    ("sslpassword", None, "the key file must not be encrypted: protect it by its mode"),
];

const NO_GSS: &str = "GSSAPI and SSPI authentication aren't supported";
const NO_OAUTH: &str = "OAuth authentication isn't supported";
const NO_REVOCATION: &str = "certificate revocation lists aren't supported";

/// Refuses a key that isn't supported. `place` says where it was found.
pub(super) fn check(key: &str, place: &str) -> Result<(), ConnInfoError> {
    if SUPPORTED.iter().any(|(name, _)| *name == key) {
        return Ok(());
    }
    match REFUSED.iter().find(|(name, ..)| *name == key) {
        Some((_, _, why)) => Err(ConnInfoError::new(format!(
            "the connection parameter {key} in {place} isn't supported: {why}"
        ))),
        None => Err(ConnInfoError::new(format!(
            "there is no connection parameter {key:?} (in {place})"
        ))),
    }
}

/// The keys that can come from the environment, as (variable, key).
pub(super) fn variables() -> impl Iterator<Item = (&'static str, &'static str)> {
    let refused = REFUSED.iter().map(|(key, variable, _)| (key, variable));
    SUPPORTED
        .iter()
        .map(|(key, variable)| (key, variable))
        .chain(refused)
        .filter_map(|(key, variable)| Some(((*variable)?, *key)))
}
