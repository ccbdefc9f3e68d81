//! `pg_amcheck` on a drill's server, where it is installed (documentation, "pg_amcheck").

use std::process::{Output, Stdio};

use tokio::process::Command;

use super::{
    conf,
    session::{Access, value},
};
use crate::{
    error::{Context, Kind, Result},
    postgres::{client::Client, server::Binaries},
};

/// How many lines of what it found are told.
const LINES: usize = 20;

/// What it came to.
pub enum Amcheck {
    /// It found nothing.
    Sound,
    /// It found something, or failed: its first lines.
    Corrupt(Vec<String>),
    /// It couldn't be run, for this reason.
    Skipped(String),
}

/// Runs it over all databases: tables, indexes, and whether each row of a table is in its indexes.
pub async fn run(
    binaries: &Binaries,
    access: &Access,
    client: &mut Client,
    database: &str,
    threads: usize,
) -> Result<Amcheck> {
    let Some(program) = binaries.program("pg_amcheck") else {
        let folder = binaries.folder().display();
        return Ok(Amcheck::Skipped(format!("pg_amcheck isn't installed in {folder}")));
    };
    let available = "select 1 from pg_catalog.pg_available_extensions where name = 'amcheck'";
    if value(client, available).await?.is_none() {
        let why = "the extension amcheck isn't installed for this server (its package is mostly \
                   called postgresql-contrib)";
        return Ok(Amcheck::Skipped(why.to_owned()));
    }
    let is_superuser = "select rolsuper from pg_catalog.pg_roles where rolname = current_user";
    if value(client, is_superuser).await?.as_deref() != Some("t") {
        let why = format!("{} isn't a superuser; user in [drill] may name one", access.user());
        return Ok(Amcheck::Skipped(why));
    }
    let jobs = threads.to_string();
    let mut command = Command::from(binaries.command("pg_amcheck"));
    command
        .args(["--all", "--install-missing", "--heapallindexed", "--no-password"])
        .args(["--host", access.sockets(), "--port", conf::PORT, "--username", access.user()])
        .args(["--maintenance-db", database, "--jobs", &jobs])
        .env(
            "PGOPTIONS",
            "-c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off",
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = command
        .spawn()
        .context(Kind::Local, || format!("run {}", program.display()))?
        .wait_with_output()
        .await
        .context(Kind::Local, || "wait for pg_amcheck")?;
    Ok(match output.status.success() {
        true => Amcheck::Sound,
        false => Amcheck::Corrupt(lines(&output)),
    })
}

fn lines(output: &Output) -> Vec<String> {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let mut all = text.lines().filter(|line| !line.trim().is_empty());
    let mut lines: Vec<String> = all.by_ref().take(LINES).map(str::to_owned).collect();
    match all.count() {
        0 => {}
        more => lines.push(format!("and {more} more lines")),
    }
    if lines.is_empty() {
        lines.push(format!("it said nothing, and ended with {}", output.status));
    }
    lines
}
