//! What `check` asks the server.

use std::{collections::BTreeMap, fs, io};

use super::{
    check::{CheckReport, StepState},
    data_directory::DataDirectory,
    diagnose::Archiver,
};
use crate::{
    config::ClusterSettings,
    error::{Error, Kind, Result},
    postgres::{
        SUPPORTED, SegmentName,
        client::{Client, ConnInfo, Mode, Row, quote_literal},
    },
    repo::SystemId,
};

/// SQLSTATE insufficient_privilege.
const NOT_PERMITTED: &str = "42501";

/// The settings that decide about archiving.
const SETTINGS: [&str; 6] = [
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "data_directory",
    "wal_level",
];

/// A connection, and what was asked first.
pub struct Server {
    client: Client,
    user: String,
    /// Its system.
    pub system: SystemId,
    /// Whether it is a standby.
    pub in_recovery: bool,
    settings: BTreeMap<String, String>,
}

impl Server {
    /// Connects and asks who is there.
    pub async fn connect(cluster: &ClusterSettings) -> Result<Self> {
        let info = ConnInfo::parse(&cluster.conninfo)
            .map_err(|e| {
                let hint = e.hint_text().map(str::to_owned);
                let what = format!("read conninfo of [cluster.{}]", cluster.name);
                with_hint(Error::new(Kind::Usage, what).because(e), hint)
            })?
            .with_application_name("pgkeep check");
        let user = info.user().to_owned();
        let mut client =
            Client::connect(&info, Mode::Sql).await.map_err(|e| Error::of_server("connect", e))?;
        let version = client.server_version().clone();
        if !SUPPORTED.contains(&version.major()) {
            let message = format!("the server is PostgreSQL {version}");
            return Err(Error::new(Kind::Postgres, message).hint(format!(
                "this pgkeep is for PostgreSQL {} to {}",
                SUPPORTED.start(),
                SUPPORTED.end()
            )));
        }
        let names = SETTINGS.map(|name| format!("'{name}'")).join(", ");
        let sql =
            format!("SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({names})");
        let rows =
            client.query(&sql).await.map_err(|e| Error::of_server("read its settings", e))?;
        let setting = |row: &Row| Some((row.get(0)?.to_owned(), row.get(1)?.to_owned()));
        let settings = rows.iter().filter_map(setting).collect();
        let sql = "SELECT system_identifier, pg_catalog.pg_is_in_recovery() \
                   FROM pg_catalog.pg_control_system()";
        let rows = client.query(sql).await.map_err(|e| {
            let denied = e.code() == Some(NOT_PERMITTED);
            let error = Error::of_server("read its system identifier", e);
            match denied {
                true => error.hint(grant("pg_control_system()", &user)),
                false => error,
            }
        })?;
        let answer = rows.first().and_then(|row| {
            // The identifier is shown as a signed number.
            Some((row.get(0)?.parse::<i64>().ok()?.cast_unsigned(), row.get(1)? == "t"))
        });
        let (identifier, in_recovery) = answer.ok_or_else(|| {
            Error::new(Kind::Postgres, "the server doesn't say its system identifier")
        })?;
        let system = SystemId { major: version.major(), identifier };
        Ok(Server { client, user, system, in_recovery, settings })
    }

    fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    /// Says who answered.
    pub fn report(&self, report: &mut CheckReport) {
        let text = format!(
            "PostgreSQL {}, system {}, {}",
            self.client.server_version(),
            self.system.identifier,
            if self.in_recovery { "a standby" } else { "a primary" }
        );
        report.step("server", StepState::Ok, text);
    }

    /// Checks the settings. Whether the server archives at all.
    pub fn report_settings(&self, report: &mut CheckReport) -> bool {
        use StepState::{Ok, Problem, Skipped, Warning};
        let level = self.setting("wal_level");
        if level == "minimal" {
            report
                .step("wal-level", Problem, "wal_level is minimal: such WAL can't be replayed")
                .hint("set wal_level = replica in postgresql.conf and restart the server");
        } else {
            report.step("wal-level", Ok, format!("wal_level is {level}"));
        }
        let mode = self.setting("archive_mode");
        if !matches!(mode, "on" | "always") {
            // The server doesn't even say what archive_command is then.
            report
                .step("archive-mode", Problem, format!("archive_mode is {mode}"))
                .hint("set archive_mode = on in postgresql.conf and restart the server");
            return false;
        }
        if self.in_recovery && mode == "on" {
            let text = "archive_mode is on: a standby archives only after its promotion";
            report.step("archive-mode", Skipped, text);
        } else {
            report.step("archive-mode", Ok, format!("archive_mode is {mode}"));
        }
        let archives = self.report_command(report);
        if self.setting("archive_timeout") == "0" {
            let text = "archive_timeout is 0: what a quiet server writes isn't archived before \
                        its segment is full";
            report
                .step("archive-timeout", Warning, text)
                .hint("set archive_timeout = 60 to lose at most a minute");
        }
        archives
    }

    fn report_command(&self, report: &mut CheckReport) -> bool {
        use StepState::{Ok, Problem, Warning};
        const NAME: &str = "archive-command";
        let (command, library) = (self.setting("archive_command"), self.setting("archive_library"));
        let set = "set archive_command = 'pgkeep archive-push %p' in postgresql.conf and reload";
        if !library.is_empty() {
            let text = format!("archive_library is {library}, so archive_command isn't used");
            report.step(NAME, Problem, text).hint("set archive_library = ''").hint(set);
            return false;
        }
        if command.is_empty() {
            report.step(NAME, Problem, "archive_command isn't set").hint(set);
            return false;
        }
        if !command.contains("archive-push") {
            // It isn't shown: it may have a secret in it.
            let text = "archive_command doesn't call pgkeep archive-push, unless it is a script \
                        that does";
            report.step(NAME, Warning, text).hint(set);
        } else if !command.contains("%p") {
            let text = "archive_command has no %p, so pgkeep isn't told which file to push";
            report.step(NAME, Problem, text).hint(set);
        } else {
            report.step(NAME, Ok, "archive_command calls pgkeep archive-push");
        }
        true
    }

    /// Compares the configured data directory with the server's.
    pub fn report_data_directory(&self, cluster: &ClusterSettings, report: &mut CheckReport) {
        const NAME: &str = "data-directory";
        let section = format!("[cluster.{}]", cluster.name);
        let Some(pgdata) = &cluster.pgdata else {
            let text = format!("pgdata isn't set in {section}, so it can't be compared");
            report.step(NAME, StepState::Skipped, text);
            return;
        };
        match fs::metadata(pgdata.join("global/pg_control")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !pgdata.exists() => {
                let text = format!("{} isn't on this host", pgdata.display());
                report.step(NAME, StepState::Skipped, text);
                return;
            }
            _ => {}
        }
        match DataDirectory::read(pgdata) {
            Err(e) => {
                report
                    .step(NAME, StepState::Problem, e.to_string())
                    .hint("run pgkeep as the user that the server runs as");
            }
            Ok(directory) if directory.system != self.system => {
                let text = format!(
                    "pgdata in {section}, {}, is of system {}, the server is system {}",
                    pgdata.display(),
                    directory.system,
                    self.system
                );
                report
                    .step(NAME, StepState::Problem, text)
                    .hint(format!("make conninfo and pgdata in {section} the same server's"));
            }
            Ok(_) => self.report_place(pgdata, &section, report),
        }
    }

    /// The same system may have a copy elsewhere: is it the same directory, too?
    fn report_place(&self, pgdata: &std::path::Path, section: &str, report: &mut CheckReport) {
        const NAME: &str = "data-directory";
        let servers = self.setting("data_directory");
        let same = fs::canonicalize(servers)
            .and_then(|servers| Ok(servers == fs::canonicalize(pgdata)?))
            // Only privileged users are told, and it may be a path on another host.
            .unwrap_or(true);
        if same {
            report.step(NAME, StepState::Ok, format!("{} is the server's", pgdata.display()));
        } else {
            let text = format!(
                "the server's data directory is {servers}, pgdata in {section} is {}",
                pgdata.display()
            );
            report
                .step(NAME, StepState::Problem, text)
                .hint(format!("make conninfo and pgdata in {section} the same server's"));
        }
    }

    /// Writes `mark` into the WAL and closes the segment that it is in, which is returned.
    ///
    /// The mark is written several times over: a page's header may stand in the middle of one.
    pub async fn close_segment(&mut self, mark: &str) -> Result<SegmentName> {
        let message = quote_literal(&[mark; 3].join(" "));
        let write = format!(
            "SELECT pg_catalog.pg_walfile_name(\
             pg_catalog.pg_logical_emit_message(false, 'pgkeep', {message}))"
        );
        let rows =
            self.client.query(&write).await.map_err(|e| Error::of_server("write to the WAL", e))?;
        let switch = "SELECT pg_catalog.pg_switch_wal()";
        self.client.execute(switch).await.map_err(|e| {
            let denied = e.code() == Some(NOT_PERMITTED);
            let error = Error::of_server("close a WAL segment", e);
            match denied {
                true => error.hint(grant("pg_switch_wal()", &self.user)),
                false => error,
            }
        })?;
        let name = rows.first().and_then(|row| row.get(0)).unwrap_or_default();
        name.parse().map_err(|e| Error::new(Kind::Postgres, "close a WAL segment").because(e))
    }

    /// What the archiver has done so far.
    pub async fn archiver(&mut self) -> Result<Archiver> {
        let sql = "SELECT archived_count, last_archived_wal, last_archived_time, failed_count, \
                   last_failed_wal, last_failed_time FROM pg_catalog.pg_stat_archiver";
        let rows = self
            .client
            .query(sql)
            .await
            .map_err(|e| Error::of_server("read pg_stat_archiver", e))?;
        let text = |name: &str| rows.first()?.named(name).map(str::to_owned);
        let count = |name: &str| text(name).and_then(|n| n.parse().ok()).unwrap_or(0);
        Ok(Archiver {
            archived_count: count("archived_count"),
            last_archived: text("last_archived_wal"),
            failed_count: count("failed_count"),
            last_failed: text("last_failed_wal").zip(text("last_failed_time")),
        })
    }
}

fn with_hint(error: Error, hint: Option<String>) -> Error {
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn grant(function: &str, user: &str) -> String {
    let user = crate::postgres::client::quote_ident(user);
    format!("as a superuser: GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {user}")
}
