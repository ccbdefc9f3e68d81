//! The settings of a restored server: `postgresql.auto.conf` and the signal file.
//!
//! A backup may carry settings of an earlier recovery, or of a standby it was taken from. They must
//! go: two recovery targets keep a server from starting, an old `restore_command` feeds it WAL of
//! another repository, a leftover `standby.signal` keeps it in recovery for ever.

use std::collections::BTreeMap;

use crate::error::{Error, Kind, Result};

/// The file that `ALTER SYSTEM` writes, which wins over `postgresql.conf`.
pub const AUTO_CONF: &[u8] = b"postgresql.auto.conf";

/// Starts a recovery that ends.
pub const RECOVERY_SIGNAL: &[u8] = b"recovery.signal";

/// Starts a standby.
pub const STANDBY_SIGNAL: &[u8] = b"standby.signal";

/// What the restored server does when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Recovers up to a target or the end of the archive, and then is a primary: `recovery.signal`.
    Recovery,
    /// Follows a primary or the archive: `standby.signal`.
    Standby,
    /// Recovers from what is in `pg_wal` alone.
    None,
}

impl Signal {
    /// The name of the signal file.
    pub fn file(self) -> Option<&'static [u8]> {
        match self {
            Signal::Recovery => Some(RECOVERY_SIGNAL),
            Signal::Standby => Some(STANDBY_SIGNAL),
            Signal::None => None,
        }
    }
}

/// What a restore sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySettings {
    /// The signal file to write.
    pub signal: Signal,
    /// Names and values for `postgresql.auto.conf`. They replace lines of the same name that are
    /// there, and whatever is left of another recovery is removed.
    pub lines: Vec<(String, String)>,
    /// Whether all other lines are left out, whatever they set.
    pub alone: bool,
}

/// Settings of a recovery or a standby beside all that begin with `recovery_target`
/// (documentation, "Archive Recovery", "Recovery Target", "Standby Servers").
const LEFTOVERS: [&str; 7] = [
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
];

/// The recovery targets, of which a server takes one only. One that is set to nothing is none.
const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// Settings of `postgresql.conf` that lead to another server's files.
const PLACES: [&str; 4] = ["data_directory", "external_pid_file", "hba_file", "ident_file"];

/// What the comment above our lines begins with; older ones are removed.
const COMMENT: &str = "# Written by pgkeep, restoring backup";

/// Whether a setting names a recovery target.
fn is_target(name: &str) -> bool {
    name.starts_with("recovery_target")
}

impl RecoverySettings {
    /// Checks that names are names of settings, and that values fit on a line.
    pub fn check(&self) -> Result<()> {
        for (name, value) in &self.lines {
            let first_ok = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            let rest_ok = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.$".contains(&b));
            if !first_ok || !rest_ok {
                let message = format!("{name:?} can't be the name of a PostgreSQL setting");
                return Err(Error::new(Kind::Usage, message));
            }
            if value.contains(['\n', '\r', '\0']) {
                let message = format!("the value for {name} has a line break or a NUL in it");
                return Err(Error::new(Kind::Usage, message));
            }
        }
        Ok(())
    }

    /// The new content of `postgresql.auto.conf`, from the old one. A comment says that the new lines
    /// are of the restore of `backup`.
    pub fn apply(&self, old: &[u8], backup: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(old.len() + 256);
        let stale = |line: &[u8]| {
            line.starts_with(COMMENT.as_bytes())
                || name_of(line).is_some_and(|name| {
                    is_target(&name)
                        || LEFTOVERS.contains(&name.as_str())
                        || self.lines.iter().any(|(ours, _)| ours.eq_ignore_ascii_case(&name))
                })
        };
        let old = if self.alone { &[] } else { old };
        for line in old.split_inclusive(|b| *b == b'\n').filter(|line| !stale(line)) {
            out.extend_from_slice(line);
        }
        if out.last().is_some_and(|last| *last != b'\n') {
            out.push(b'\n');
        }
        if !self.lines.is_empty() || self.signal != Signal::None {
            out.extend_from_slice(
                format!("{COMMENT} {backup}; it wins over postgresql.conf\n").as_bytes(),
            );
        }
        // Before the one that is set, as each that comes says anew what the target is (`assign_recovery_target` and its
        // like, in `xlogrecovery.c` since 16): `postgresql.conf`, or what it
        // includes, may set another one.
        let is_ours = |name: &str| self.lines.iter().any(|(ours, _)| ours == name);
        if self.signal != Signal::None {
            for name in TARGETS.into_iter().filter(|name| !is_ours(name)) {
                out.extend_from_slice(format!("{name} = ''\n").as_bytes());
            }
        }
        for (name, value) in &self.lines {
            out.extend_from_slice(format!("{name} = '{}'\n", quoted(value)).as_bytes());
        }
        out
    }
}

/// A value as it stands between single quotes in a configuration file (`utils/misc/guc-file.l`):
/// quotes and backslashes doubled.
fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

/// The name of the setting on a line of a configuration file, in lower case; `None` for a comment
/// or an empty line.
fn name_of(line: &[u8]) -> Option<String> {
    let line = line.trim_ascii_start();
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"_.$".contains(b) || *b >= 0x80;
    let end = line.iter().position(|b| !is_name(b)).unwrap_or(line.len());
    let name = std::str::from_utf8(&line[..end]).ok().filter(|name| !name.is_empty())?;
    Some(name.to_ascii_lowercase())
}

/// Settings on the lines of a configuration file that lead to other files than those that were restored, with what they
/// are set to.
pub fn places_in(conf: &[u8]) -> Vec<(String, String)> {
    let lines = conf.split(|b| *b == b'\n');
    let places = lines.filter_map(|line| {
        let name = name_of(line).filter(|name| PLACES.contains(&name.as_str()))?;
        let line = String::from_utf8_lossy(line.trim_ascii_start());
        let value = line.get(name.len()..)?.trim_start().trim_start_matches('=').trim_start();
        let value = match value.strip_prefix('\'') {
            Some(quoted) => quoted.split('\'').next(),
            None => value.split(|c: char| c.is_whitespace() || c == '#').next(),
        };
        Some((name, value.unwrap_or_default().to_owned()))
    });
    // The last one counts, and nothing is none.
    let last: BTreeMap<String, String> = places.collect();
    last.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(lines: &[(&str, &str)]) -> RecoverySettings {
        let lines = lines.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        RecoverySettings { signal: Signal::Recovery, lines, alone: false }
    }

    #[test]
    fn leftovers_go_and_the_rest_stays() {
        let old = b"# Do not edit this file manually!\n\
            work_mem = '64MB'\n\
            restore_command = 'cp /old/%f %p'\n\
            \tRecovery_Target_Time='2026-01-01 00:00:00+00'\n\
            recovery_target_timeline 7\n\
            primary_conninfo = 'host=old'\n\
            # restore_command = 'a comment'\n\
            archive_mode = 'on'\n\
            Archive_Command = 'old'\n\
            recovery_init_sync_method = 'fsync'";
        let new = settings(&[
            ("restore_command", r"it's 'pgkeep' \ %f"),
            ("recovery_target_lsn", "0/3000028"),
            ("archive_command", "new"),
        ]);
        let text = String::from_utf8(new.apply(old, "20261120T195812Z-full")).unwrap();
        insta::assert_snapshot!(text, @r"
        # Do not edit this file manually!
        work_mem = '64MB'
        # restore_command = 'a comment'
        archive_mode = 'on'
        recovery_init_sync_method = 'fsync'
        # Written by pgkeep, restoring backup 20261120T195812Z-full; it wins over postgresql.conf
        recovery_target = ''
        recovery_target_name = ''
        recovery_target_time = ''
        recovery_target_xid = ''
        restore_command = 'it''s ''pgkeep'' \\ %f'
        recovery_target_lsn = '0/3000028'
        archive_command = 'new'
        ");
        let again = new.apply(text.as_bytes(), "20261120T195812Z-full");
        assert_eq!(String::from_utf8(again).unwrap(), text, "nothing piles up");
        let none = RecoverySettings { signal: Signal::None, ..settings(&[]) };
        assert_eq!(none.apply(b"", "x"), b"");
    }

    #[test]
    fn what_alter_system_has_set_may_be_left_out() {
        let alone = RecoverySettings {
            alone: true,
            signal: Signal::None,
            ..settings(&[("restore_command", "get")])
        };
        let new = alone.apply(b"archive_command = 'x'\nshared_preload_libraries = 'y'\n", "b");
        let text = String::from_utf8(new).unwrap();
        let comment = "# Written by pgkeep, restoring backup b; it wins over postgresql.conf";
        assert_eq!(text, format!("{comment}\nrestore_command = 'get'\n"));
    }

    #[test]
    fn what_could_become_another_line_is_refused() {
        assert!(settings(&[("a.b_c", "x y")]).check().is_ok());
        for (name, value) in [("", "x"), ("a b", "x"), ("a\n", "x"), ("1a", "x"), ("a", "x\ny = 1")]
        {
            assert!(settings(&[(name, value)]).check().is_err(), "{name:?}");
        }
    }

    #[test]
    fn places_in_the_users_file_are_found() {
        let conf = b"#hba_file = 'x'\n Data_Directory='/old/data' # here\nident_file /etc/ident # there\n\
            hba_files = 'y'\nexternal_pid_file='/p'\nexternal_pid_file=\nhba_file = a\nhba_file = 'b'\n";
        let found = places_in(conf);
        let found: Vec<(&str, &str)> =
            found.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let expected =
            [("data_directory", "/old/data"), ("hba_file", "b"), ("ident_file", "/etc/ident")];
        assert_eq!(found, expected);
    }
}
