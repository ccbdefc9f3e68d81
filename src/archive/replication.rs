//! What `check` says of replication: a backup is read over such a connection, which the server
//! grants on other conditions than the one that questions are asked over.

use super::{
    check::{CheckReport, StepState},
    server::Server,
};
use crate::{
    error::{Error, Kind},
    postgres::{
        client::{Client, Mode, PgError, quote_ident},
        replication::identify_system,
    },
};

/// Opens a replication connection and asks over it who is there.
pub async fn report_replication(server: &Server, report: &mut CheckReport) {
    match ask(server).await {
        Ok(()) => {
            let text = "a replication connection opens, as backup needs one";
            report.step("replication", StepState::Ok, text);
        }
        Err(e) => {
            let hint = hint(server, &e);
            let what = "backup needs a replication connection, which doesn't open";
            report.failed("replication", &Error::new(Kind::Postgres, what).because(e).hint(hint));
        }
    }
}

async fn ask(server: &Server) -> Result<(), PgError> {
    let mut client = Client::connect(&server.info, Mode::Replication).await?;
    identify_system(&mut client).await?;
    client.close().await;
    Ok(())
}

/// What to do about it (`walsender.c`, `postinit.c`, `hba.c`).
fn hint(server: &Server, e: &PgError) -> String {
    let user = quote_ident(server.info.user());
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
