//! What `check` says of replication: a backup is read over such a connection, which the server
//! grants on other conditions than the one that questions are asked over. So is the stream.

use super::{
    check::{CheckReport, StepState},
    server::Server,
    stream,
};
use crate::{
    config::ClusterSettings,
    error::{Error, Kind, Result},
    postgres::{
        archiving::Slot,
        client::{Client, ConnInfo, Mode, PgError, quote_ident},
        replication::identify_system,
    },
};

/// The step that is about the stream.
const STREAM: &str = "stream";

/// Opens a replication connection and asks over it who is there.
pub async fn report_replication(server: &Server, report: &mut CheckReport) {
    match ask(&server.info).await {
        Ok(()) => {
            let text = "a replication connection opens, as backup needs one";
            report.step("replication", StepState::Ok, text);
        }
        Err(e) => {
            let hint = hint(server, &server.info, &e);
            let what = "backup needs a replication connection, which doesn't open";
            report.failed("replication", &Error::new(Kind::Postgres, what).because(e).hint(hint));
        }
    }
}

/// Looks at the connection and the slot of `pgkeep stream`. Where it has neither a conninfo of its own nor a slot on this
/// server, nobody streams, and there is nothing to say.
pub async fn report_stream(
    server: &mut Server,
    cluster: &ClusterSettings,
    report: &mut CheckReport,
) -> Result<()> {
    let info = stream::conninfo(cluster)?;
    let slot = match server.slot(&cluster.stream.slot).await {
        Ok(slot) => slot,
        Err(e) => {
            report.failed(STREAM, &e);
            return Ok(());
        }
    };
    if cluster.stream.conninfo.is_some()
        && let Err(e) = ask(&info).await
    {
        let hint = hint(server, &info, &e);
        let what = "stream needs a replication connection, which doesn't open";
        report.failed(STREAM, &Error::new(Kind::Postgres, what).because(e).hint(hint));
    }
    if let Some(slot) = slot {
        let setting = server.setting("synchronous_standby_names");
        let waits = stream::synchronous::names(setting, info.application_name());
        report_slot(&cluster.stream.slot, &slot, waits.then_some(setting), report);
    } else if cluster.stream.conninfo.is_some() {
        let text =
            format!("the stream's slot {} isn't there: stream makes it", cluster.stream.slot);
        report.step(STREAM, StepState::Ok, text);
    }
    Ok(())
}

/// `named` is `synchronous_standby_names` where that has the stream's name.
fn report_slot(name: &str, slot: &Slot, named: Option<&str>, report: &mut CheckReport) {
    let waits = match named {
        Some(setting) => format!("synchronous_standby_names names it ({setting})"),
        None => {
            "no commit waits for it, since synchronous_standby_names doesn't name it".to_owned()
        }
    };
    if slot.active {
        let text = format!("the stream uses the replication slot {name}; {waits}");
        report.step(STREAM, StepState::Ok, text);
        return;
    }
    let held = match slot.restart_lsn {
        Some(_) => "the server keeps WAL for it",
        None => "the server keeps no WAL for it",
    };
    let text = format!("nobody uses the stream's replication slot {name}; {held}; {waits}");
    report
        .step(STREAM, StepState::Warning, text)
        .hint("start `pgkeep stream`")
        .hint(format!("or give the slot up: SELECT pg_drop_replication_slot('{name}')"));
}

async fn ask(info: &ConnInfo) -> Result<(), PgError> {
    let mut client = Client::connect(info, Mode::Replication).await?;
    identify_system(&mut client).await?;
    client.close().await;
    Ok(())
}

/// What to do about it (`walsender.c`, `postinit.c`, `hba.c`).
fn hint(server: &Server, info: &ConnInfo, e: &PgError) -> String {
    let user = quote_ident(info.user());
    match e.code() {
        Some("42501") => format!("as a superuser: ALTER ROLE {user} REPLICATION"),
        Some("53300") if server.setting("max_wal_senders") == "0" => {
            "set max_wal_senders = 10 in postgresql.conf and restart the server".to_owned()
        }
        Some("53300") => "all connections that max_wal_senders and max_connections allow are \
                          taken: raise them and restart the server"
            .to_owned(),
        Some("28000") => {
            let line = match server.is_local() {
                true => format!("local replication {user} peer"),
                false => format!("host replication {user} ADDRESS scram-sha-256"),
            };
            format!(
                "pg_hba.conf needs a line whose database is the word replication, which `all` \
                 doesn't mean, as `{line}`; then reload"
            )
        }
        _ => e.hint().unwrap_or("the server's log says more").to_owned(),
    }
}
