//! The settings of a drill's server: its own, and none of the original's.
//!
//! The original's `postgresql.conf` isn't read (Debian keeps it elsewhere anyway), and what
//! `ALTER SYSTEM` has set there doesn't come back. So nothing it preloads, archives, connects to or
//! listens on is the drill's.

use std::{fmt::Write, fs, path::PathBuf};

use super::home::Home;
use crate::{
    error::{Context, Kind, Result},
    postgres::control::ControlFile,
};

/// The port, which only names the socket: nothing listens on the network.
pub const PORT: &str = "5432";

/// So many prepared transactions and replication origins find room, where the original may have had
/// more of them in the WAL to come than its control file says. Each costs some kilobytes.
const ROOM: u32 = 1000;

/// Where the configuration file is.
pub fn path(home: &Home) -> PathBuf {
    home.path().join("postgresql.conf")
}

/// Writes the configuration, for a restored data directory of this major version.
pub fn write(
    home: &Home,
    major: u32,
    control: &ControlFile,
    more: &[(String, String)],
) -> Result<()> {
    let hba = home.path().join("pg_hba.conf");
    let ident = home.path().join("pg_ident.conf");
    // Only who can enter the directory reaches the socket: this user, and root.
    let files = [
        (&hba, "local all all trust\n".to_owned()),
        (&ident, String::new()),
        (&path(home), text(&own(home, major, control), more)),
    ];
    for (path, content) in files {
        fs::write(path, content).context(Kind::Local, || format!("write {}", path.display()))?;
    }
    Ok(())
}

fn text(own: &[(&str, String)], more: &[(String, String)]) -> String {
    let mut text = String::from("# Written by pgkeep drill\n");
    let more = more.iter().map(|(name, value)| (name.as_str(), value));
    for (name, value) in own.iter().map(|(name, value)| (*name, value)).chain(more) {
        let value = value.replace('\\', "\\\\").replace('\'', "''");
        let _ = writeln!(text, "{name} = '{value}'");
    }
    text
}

fn own(home: &Home, major: u32, control: &ControlFile) -> Vec<(&'static str, String)> {
    let file = |name: &str| home.path().join(name).display().to_string();
    let limits = control.limits;
    let mib = |bytes: u64| format!("{}MB", bytes >> 20);
    let segment = control.segment_size.bytes();
    let fixed = |value: &str| value.to_owned();
    let mut own = vec![
        ("listen_addresses", fixed("")),
        ("port", fixed(PORT)),
        ("unix_socket_directories", home.sockets().display().to_string()),
        ("unix_socket_permissions", fixed("0700")),
        ("hba_file", file("pg_hba.conf")),
        ("ident_file", file("pg_ident.conf")),
        ("external_pid_file", fixed("")),
        ("ssl", fixed("off")),
        ("cluster_name", fixed("pgkeep-drill")),
        // Nothing goes out: no WAL, no subscription, which would use up the publisher's slot.
        ("archive_mode", fixed("off")),
        ("archive_command", fixed("")),
        ("archive_library", fixed("")),
        ("max_logical_replication_workers", fixed("0")),
        ("primary_conninfo", fixed("")),
        ("shared_preload_libraries", fixed("")),
        ("session_preload_libraries", fixed("")),
        ("local_preload_libraries", fixed("")),
        ("autovacuum", fixed("off")),
        // Whoever lets sessions in during recovery has to have each limit as high as the original had
        // it at any time in the WAL, and waits for ever if not.
        ("hot_standby", fixed("off")),
        ("max_connections", limits.max_connections.max(20).to_string()),
        ("max_worker_processes", limits.max_worker_processes.max(8).to_string()),
        ("max_wal_senders", limits.max_wal_senders.max(10).to_string()),
        ("max_locks_per_transaction", limits.max_locks_per_transaction.max(64).to_string()),
        ("max_prepared_transactions", limits.max_prepared_transactions.max(ROOM).to_string()),
        ("max_replication_slots", ROOM.to_string()),
        // Nothing is read beyond where replay is: what comes behind a target isn't asked for.
        ("recovery_prefetch", fixed("off")),
        ("min_wal_size", mib((2 * segment).max(80 << 20))),
        ("max_wal_size", mib((4 * segment).max(1 << 30))),
        // The log is how replay is followed.
        ("logging_collector", fixed("off")),
        ("log_destination", fixed("stderr")),
        ("log_line_prefix", fixed("%n ")),
        ("log_min_messages", fixed("warning")),
        ("log_checkpoints", fixed("on")),
        ("log_startup_progress_interval", fixed("2s")),
        ("lc_messages", fixed("C")),
        ("timezone", fixed("UTC")),
        ("log_timezone", fixed("UTC")),
    ];
    if major >= 17 {
        // A trigger on login is the original's code, and might do anything.
        own.push(("event_triggers", fixed("off")));
    }
    if major >= 18 {
        own.push(("max_active_replication_origins", ROOM.to_string()));
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_sets_comes_after_and_is_quoted() {
        let more = [("shared_buffers".to_owned(), "1GB".to_owned())];
        let own = [("listen_addresses", String::new()), ("hba_file", r"/it's\x".to_owned())];
        insta::assert_snapshot!(text(&own, &more), @r"
        # Written by pgkeep drill
        listen_addresses = ''
        hba_file = '/it''s\\x'
        shared_buffers = '1GB'
        ");
    }
}
