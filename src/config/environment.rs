//! Keys from the environment, by one rule: `PGKEEP_`, then the key's path in upper case, its parts
//! joined by `__`, with `_` for `-`. So `cluster.main.archive-timeout` is
//! `PGKEEP_CLUSTER__MAIN__ARCHIVE_TIMEOUT`. The environment goes over the file.
//!
//! A list or a table is written as in the file: `PGKEEP_DRILL__SETTINGS='{ work_mem = "64MB" }'`.
//!
//! A variable that begins with `PGKEEP_` and isn't a key is refused: a misspelt key that is
//! ignored is worse than a command that doesn't run.

use std::ffi::OsString;

use super::{
    file::{self, PATH_VARIABLE},
    keys::Scope,
    source::{Entry, Origin, Raw, Value},
};
use crate::error::{Error, Kind, Result};

/// What the variables begin with.
pub(super) const PREFIX: &str = "PGKEEP_";

/// Sets what the environment sets, in the order of the variables' names.
pub(super) fn overlay(
    raw: &mut Raw,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<()> {
    let mut ours: Vec<(String, OsString)> = variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| is_ours(name))
        .collect();
    ours.sort();
    for (variable, value) in ours {
        set(raw, &variable, value)?;
    }
    Ok(())
}

/// Whether Kubernetes puts it into each container of a namespace that has a service whose name begins with `pgkeep`
/// (its documentation, "Environment variables" of services): `PGKEEP_SERVICE_HOST`, `PGKEEP_S3_PORT_9000_TCP_ADDR`.
fn is_of_kubernetes(variable: &str) -> bool {
    let is_port = |rest: &str| {
        let mut words = rest.split('_').skip(1);
        rest.is_empty()
            || words.next().is_some_and(|n| n.parse::<u16>().is_ok())
                && words.next().is_some_and(|p| matches!(p, "TCP" | "UDP" | "SCTP"))
    };
    !variable.contains("__")
        && (variable.ends_with("_SERVICE_HOST")
            || variable.contains("_SERVICE_PORT")
            || variable
                .match_indices("_PORT")
                .any(|(at, port)| is_port(&variable[at + port.len()..])))
}

/// The names of those variables that set a key.
pub fn environment_names(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = String> {
    variables.filter_map(|(name, _)| name.into_string().ok()).filter(|name| is_ours(name))
}

/// Whether it has to be a key's name.
fn is_ours(variable: &str) -> bool {
    variable.starts_with(PREFIX) && variable != PATH_VARIABLE && !is_of_kubernetes(variable)
}

fn set(raw: &mut Raw, variable: &str, value: OsString) -> Result<()> {
    let origin = Origin::Environment(variable.to_owned());
    let unknown = || {
        Error::new(Kind::Usage, format!("unknown environment variable {variable}")).hint(
            "PGKEEP_ is followed by a key's path in upper case, joined by __, as in \
             PGKEEP_CLUSTER__MAIN__PGDATA",
        )
    };
    let rest = variable.strip_prefix(PREFIX).ok_or_else(unknown)?;
    if rest.bytes().any(|b| b.is_ascii_lowercase() || b == b'-') {
        return Err(unknown());
    }
    let text = value.into_string().map_err(|_| {
        Error::new(Kind::Usage, format!("the environment variable {variable} isn't UTF-8"))
    })?;
    let parts: Vec<String> =
        rest.split("__").map(|part| part.to_ascii_lowercase().replace('_', "-")).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (scope, section, name) = match parts.as_slice() {
        [name] => (Scope::Top, None, *name),
        ["repository", section, name] => (Scope::Repository, Some(*section), *name),
        ["drill", name] => (Scope::Drill, None, *name),
        ["cluster", section, name] => (Scope::Cluster, Some(*section), *name),
        [word @ ("repository" | "cluster"), section, table, name] => {
            let around = if *word == "cluster" { Scope::Cluster } else { Scope::Repository };
            let within = around.within(table).ok_or_else(unknown)?;
            (within, Some(*section), *name)
        }
        _ => return Err(unknown()),
    };
    let key = scope.key(name).ok_or_else(|| unknown().hint(scope.takes()))?;
    let path = parts.join(".");
    let value = if key.is_structured() {
        file::value(&text).ok_or_else(|| {
            Error::new(Kind::Usage, format!("{path} ({variable}): it isn't a value in TOML"))
                .hint(format!("{name} takes {}", key.takes))
        })?
    } else {
        Value::Text(text)
    };
    let entry = Entry { path, key, value, origin: origin.clone() };
    match section {
        None => raw.set(entry),
        Some(section) => raw.section(scope, section, &origin)?.set(entry),
    }
    Ok(())
}
