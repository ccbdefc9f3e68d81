//! From the keys of `[drill]` to what a drill does.

use std::{path::PathBuf, time::Duration};

use super::{
    resolve,
    source::{Entry, Nested, Raw, Value},
};
use crate::error::{Error, Result};

/// The keys of `[drill]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillSettings {
    /// `queries`: what a restored cluster has to answer.
    pub queries: Vec<DrillQuery>,
    /// `user`: as whom to connect.
    pub user: Option<String>,
    /// `bin-dir`: where the server's programs are, an absolute path.
    pub bin_dir: Option<PathBuf>,
    /// `directory`: where a drill makes its directory, an absolute path.
    pub directory: Option<PathBuf>,
    /// `timeout`: after how long without progress the server is given up.
    pub timeout: Duration,
    /// `amcheck`: whether `pg_amcheck` is run.
    pub amcheck: bool,
    /// `settings`: of the restored server, by name, in the order of the file.
    pub settings: Vec<(String, String)>,
}

/// One of `queries`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillQuery {
    /// In drills of which cluster; of all, if it isn't said.
    pub cluster: Option<String>,
    /// In which database.
    pub database: String,
    /// What is run.
    pub sql: String,
    /// What has to come.
    pub expect: String,
}

/// What a drill sets itself: a server that could be told otherwise might touch what isn't its own, or
/// couldn't be reached.
const OWN: [&str; 31] = [
    "allow_alter_system",
    "archive_cleanup_command",
    "archive_command",
    "archive_library",
    "archive_mode",
    "cluster_name",
    "config_file",
    "data_directory",
    "event_triggers",
    "external_pid_file",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "log_destination",
    "log_directory",
    "log_filename",
    "log_line_prefix",
    "log_min_messages",
    "log_startup_progress_interval",
    "logging_collector",
    "max_logical_replication_workers",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "restore_command",
    "ssl",
    "unix_socket_directories",
    "unix_socket_permissions",
];

/// The settings of `[drill]`.
pub(super) fn settings(raw: &Raw) -> Result<DrillSettings> {
    let user = raw.drill("user").map(|entry| entry.text().map(str::to_owned)).transpose()?;
    let timeout = match raw.drill("timeout") {
        Some(entry) => {
            resolve::duration(entry, Duration::from_secs(10), Duration::from_secs(86_400))?
        }
        None => Duration::from_secs(600),
    };
    Ok(DrillSettings {
        queries: raw.drill("queries").map_or_else(|| Ok(Vec::new()), queries)?,
        user,
        bin_dir: raw.drill("bin-dir").map(resolve::path).transpose()?,
        directory: raw.drill("directory").map(resolve::path).transpose()?,
        timeout,
        amcheck: raw.drill("amcheck").map_or(Ok(true), Entry::truth)?,
        settings: raw.drill("settings").map_or_else(|| Ok(Vec::new()), server_settings)?,
    })
}

fn queries(entry: &Entry) -> Result<Vec<DrillQuery>> {
    let Value::List(list) = &entry.value else {
        return Err(entry.refuse("it isn't a list"));
    };
    list.iter().enumerate().map(|(i, one)| query(entry, &format!("[{i}]"), one)).collect()
}

fn query(entry: &Entry, path: &str, one: &Nested) -> Result<DrillQuery> {
    let Value::Table(pairs) = &one.value else {
        let kind = one.value.kind();
        return Err(entry.refuse_within(
            path,
            one.line,
            format!("it is of type {kind}, not a table"),
        ));
    };
    let known = ["cluster", "database", "sql", "expect"];
    if let Some((name, value)) = pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        let path = format!("{path}.{name}");
        return Err(entry.refuse_within(&path, value.line, "a query has no such key"));
    }
    let get = |name: &str| -> Result<Option<String>> {
        let Some((_, found)) = pairs.iter().find(|(known, _)| known == name) else {
            return Ok(None);
        };
        text(&found.value)
            .map(Some)
            .map_err(|why| entry.refuse_within(&format!("{path}.{name}"), found.line, why))
    };
    let must = |name: &str| -> Result<String> {
        get(name)?.ok_or_else(|| entry.refuse_within(path, one.line, format!("{name} isn't set")))
    };
    let not_empty = |name: &str| -> Result<String> {
        let value = must(name)?;
        if value.trim().is_empty() {
            return Err(entry.refuse_within(path, one.line, format!("{name} is empty")));
        }
        Ok(value)
    };
    Ok(DrillQuery {
        cluster: get("cluster")?,
        database: not_empty("database")?,
        sql: not_empty("sql")?,
        expect: must("expect")?,
    })
}

/// A text, or a number as it is written.
fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) if text.contains('\0') => Err("it has a zero byte".into()),
        Value::Text(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("a value of type {} where a text is expected", other.kind())),
    }
}

fn server_settings(entry: &Entry) -> Result<Vec<(String, String)>> {
    let Value::Table(pairs) = &entry.value else {
        return Err(entry.refuse("it isn't a table"));
    };
    let refuse = |name: &str, line, why: String| -> Error {
        entry.refuse_within(&format!(".{name}"), line, why)
    };
    let mut settings: Vec<(String, String)> = Vec::new();
    for (name, found) in pairs {
        // A table stands for a name with a point in it: { auto_explain.log_analyze = "on" }.
        if let Value::Table(inner) = &found.value {
            for (rest, found) in inner {
                let name = format!("{name}.{rest}");
                settings.push(
                    server_setting(&name, found).map_err(|why| refuse(&name, found.line, why))?,
                );
            }
            continue;
        }
        settings.push(server_setting(name, found).map_err(|why| refuse(name, found.line, why))?);
    }
    Ok(settings)
}

fn server_setting(name: &str, found: &Nested) -> Result<(String, String), String> {
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b));
    if !is_name {
        return Err("that isn't the name of a setting".into());
    }
    let lower = name.to_ascii_lowercase();
    if OWN.contains(&lower.as_str()) || lower.starts_with("recovery_target") {
        return Err("a drill sets this itself".into());
    }
    let value = match &found.value {
        Value::Truth(truth) => if *truth { "on" } else { "off" }.to_owned(),
        other => text(other)?,
    };
    if value.contains(['\n', '\r']) {
        return Err("a setting's value is one line".into());
    }
    Ok((lower, value))
}
