//! Whether commits wait for the stream.
//!
//! The server doesn't tell a receiver. Its setting `synchronous_standby_names` does: it is asked at the
//! beginning over the stream's own connection, and from then on over an ordinary one, since a reload
//! may change it. Where only replication connections are permitted, it stays at what it was.

use std::time::Duration;

use tokio::{sync::watch, time::sleep};

use crate::postgres::client::{Client, ConnInfo, Mode};

/// How often the setting is asked for: so long may commits be slow after it was changed.
const EVERY: Duration = Duration::from_secs(2);

/// How long it isn't asked for after it couldn't be: each attempt is a line in the server's log.
const AFTER_REFUSAL: Duration = Duration::from_secs(60);

/// Whether `synchronous_standby_names` names a receiver (`syncrep.c`: names are compared without case,
/// and `*` is everybody). A receiver that is named but not among the ones that count at the moment may
/// be, as soon as another goes.
pub fn names(setting: &str, application_name: &str) -> bool {
    let mut rest = setting;
    let mut found = false;
    while let Some(c) = rest.chars().next() {
        let (word, after) = match c {
            '"' => rest[1..].split_once('"').unwrap_or((&rest[1..], "")),
            c if c.is_alphanumeric() || c == '_' || c == '*' || !c.is_ascii() => {
                let ends = |c: char| c.is_whitespace() || "(),\"".contains(c);
                rest.split_at(rest.find(ends).unwrap_or(rest.len()))
            }
            c => {
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        found |= word == "*" || word.eq_ignore_ascii_case(application_name);
        rest = after;
    }
    found
}

/// Asks again and again, and tells when the answer changes, as long as somebody listens.
pub async fn watch_setting(info: ConnInfo, answer: watch::Sender<bool>) {
    let mut client: Option<Client> = None;
    while !answer.is_closed() {
        sleep(EVERY).await;
        let connected = match client.take() {
            Some(client) => Ok(client),
            None => Client::connect(&info, Mode::Sql).await,
        };
        let asked = async {
            let mut connected = connected?;
            let rows = connected.query("SHOW synchronous_standby_names").await?;
            let setting = rows.first().and_then(|row| row.get(0)).unwrap_or_default().to_owned();
            Ok::<_, crate::postgres::client::PgError>((connected, setting))
        };
        match asked.await {
            Ok((connected, setting)) => {
                client = Some(connected);
                let now = names(&setting, info.application_name());
                answer.send_if_modified(|before| std::mem::replace(before, now) != now);
            }
            Err(e) => {
                tracing::debug!("ask for synchronous_standby_names: {e}");
                sleep(AFTER_REFUSAL).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_is_found_among_the_standbys() {
        for setting in [
            "pgkeep",
            "PGKEEP",
            "*",
            "ANY 1 (one, pgkeep)",
            "FIRST 2 (\"other one\", \"pgkeep\", x)",
            "1(pgkeep)",
        ] {
            assert!(names(setting, "pgkeep"), "{setting}");
        }
        for setting in ["", "pgkeep2", "ANY 1 (one, two)", "\"my pgkeep\"", "FIRST 1 (x)"] {
            assert!(!names(setting, "pgkeep"), "{setting}");
        }
    }
}
