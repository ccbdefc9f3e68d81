//! `pgkeep restore`.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};

use super::{Global, human, restore_command, runtime, table, time};
use crate::{
    config::environment_names,
    error::{Context, Error, Kind, Result},
    postgres::{Lsn, Timeline},
    repo::{self, BackupId, layout::ClusterLayout, wal::WalStore},
    restore::{RestoreReport, RestoreRequest, Target, TargetAction, TargetTimeline, restore},
};

/// Make a data directory from a backup and the WAL after it
///
/// The backup and the timeline are chosen from what the repository holds, and the WAL up to the
/// target is proven to be there, before anything is written. The directory has to be empty, or one
/// whose restore was interrupted. When it is done, start the server: it replays the WAL to the
/// target.
///
/// Without a target everything that was archived is replayed. A time needs its zone. Times are those
/// of commits: what committed up to the target is there, what committed later isn't.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep restore --pgdata /var/lib/postgresql/17/main
  pgkeep restore --pgdata /srv/pg --target-time '2026-11-20 20:12:27+00' --target-action promote
  pgkeep restore --pgdata /srv/pg --target-name before-upgrade
  pgkeep restore --pgdata /srv/pg --backup 20261120T195812Z-full --target-immediate
  pgkeep restore --pgdata /srv/pg --tablespace-map /mnt/fast/ts=/srv/ts --set port=5433
  pgkeep restore --pgdata /srv/standby --standby --set primary_conninfo='host=db1 user=replicator'")]
pub(super) struct Restore {
    /// The data directory to make
    #[arg(long, value_name = "DIR")]
    pgdata: PathBuf,
    /// The backup to begin with, instead of the one that fits
    #[arg(long, value_name = "ID")]
    backup: Option<BackupId>,
    #[command(flatten)]
    target: TargetArgs,
    /// What the server does at the target; PostgreSQL pauses if nothing is said
    #[arg(long, value_name = "ACTION")]
    target_action: Option<Action>,
    /// Make a standby, which goes on replaying
    #[arg(long)]
    standby: bool,
    /// Whether the restored server archives: as it did, or not at all, for a copy to look at
    #[arg(long, value_name = "keep|off", default_value = "keep", hide_possible_values = true)]
    archive_mode: ArchiveMode,
    /// Where a tablespace goes, by its object id or its directory; may be repeated
    #[arg(long, value_name = "OID-or-PATH=NEW", value_parser = tablespace)]
    tablespace_map: Vec<(String, PathBuf)>,
    /// A setting for postgresql.auto.conf; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
}

/// Up to where a recovery goes.
#[derive(Debug, Args)]
pub(super) struct TargetArgs {
    #[command(flatten)]
    one: OneTarget,
    /// Along which timeline: the newest one that comes from the backup's, the backup's own, or this
    /// one (a number)
    #[arg(long, value_name = "latest|current|N", value_parser = timeline)]
    target_timeline: Option<TargetTimeline>,
    /// Stop just before the target, not just after it
    #[arg(long)]
    pub target_exclusive: bool,
}

/// At most one of these.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct OneTarget {
    /// Up to a time, with its zone: '2026-11-20 20:12:27+00'
    #[arg(long, value_name = "T", value_parser = time::parse)]
    target_time: Option<DateTime<Utc>>,
    /// Up to a position in the WAL: 16/B374D848
    #[arg(long, value_name = "L")]
    target_lsn: Option<Lsn>,
    /// Up to a transaction, by its id
    #[arg(long, value_name = "X", value_parser = xid)]
    target_xid: Option<u32>,
    /// Up to a restore point, by the name given to pg_create_restore_point()
    #[arg(long, value_name = "N", value_parser = restore_point)]
    target_name: Option<String>,
    /// Only until the backup is consistent
    #[arg(long)]
    target_immediate: bool,
}

impl TargetArgs {
    /// The timeline.
    pub fn timeline(&self) -> TargetTimeline {
        self.target_timeline.unwrap_or(TargetTimeline::Unspecified)
    }

    /// The target.
    pub fn target(&self) -> Result<Target> {
        let target = match &self.one {
            OneTarget { target_time: Some(time), .. } => Target::Time(*time),
            OneTarget { target_lsn: Some(lsn), .. } => Target::Lsn(*lsn),
            OneTarget { target_xid: Some(xid), .. } => Target::Xid(*xid),
            OneTarget { target_name: Some(name), .. } => Target::Name(name.clone()),
            OneTarget { target_immediate: true, .. } => Target::Immediate,
            _ => Target::Latest,
        };
        if self.target_exclusive
            && !matches!(target, Target::Time(_) | Target::Lsn(_) | Target::Xid(_))
        {
            return Err(Error::new(
                Kind::Usage,
                "--target-exclusive needs --target-time, --target-lsn or --target-xid: nothing \
                 else can be stopped before",
            ));
        }
        Ok(target)
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    Pause,
    Promote,
    Shutdown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArchiveMode {
    Keep,
    Off,
}

impl Restore {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let target = self.target()?;
        let settings = global.settings()?;
        let repositories = settings.selected_repositories(global.repo.as_deref())?;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        let pgdata = std::path::absolute(&self.pgdata)
            .context(Kind::Usage, || format!("find {}", self.pgdata.display()))?;
        let request = RestoreRequest {
            pgdata,
            backup: self.backup.clone(),
            target,
            timeline: self.target.timeline(),
            exclusive: self.target.target_exclusive,
            action: self.target_action.map(|action| match action {
                Action::Pause => TargetAction::Pause,
                Action::Promote => TargetAction::Promote,
                Action::Shutdown => TargetAction::Shutdown,
            }),
            standby: self.standby,
            keep_archive_mode: self.archive_mode == ArchiveMode::Keep,
            tablespace_map: self.tablespace_map.clone(),
            tablespaces_below: None,
            set: self.set.clone(),
            forget_alter_system: false,
            threads: settings.threads,
            restore_command: restore_command::for_server(global, &settings, &cluster.name)?,
        };
        let progress = global.progress();
        if settings.file.is_none() {
            progress.warn(
                "there is no configuration file: the restored server needs the same PGKEEP_ \
                 variables in its environment, or its restore_command fails",
            );
        } else {
            let set = environment_names(std::env::vars_os()).collect::<Vec<_>>();
            if !set.is_empty() {
                progress.warn(&format!(
                    "{} goes over the configuration file here: the restored server needs the same in its environment, \
                     or its restore_command asks something else",
                    set.join(", ")
                ));
            }
        }
        let report = runtime::together(
            settings.threads,
            runtime::until_signal(async {
                let mut opened = Vec::with_capacity(repositories.len());
                let (mut failed, mut unopened) = (None, Vec::new());
                for repository in &repositories {
                    match repo::open::open(repository).await {
                        Ok(repository) => opened.push(repository),
                        Err(e) => {
                            if repositories.len() > 1 {
                                progress.warn(&format!("{e}; trying the other repositories"));
                            }
                            failed = Some(e);
                            unopened.push(repository.name.as_str());
                        }
                    }
                }
                if opened.is_empty()
                    && let Some(e) = failed
                {
                    return Err(e);
                }
                let restored = restore(&opened, cluster, &request, progress.clone()).await;
                let report = match (restored, failed) {
                    // The one that can't be asked may have it.
                    (Err(e), Some(failed)) if e.is_an_answer() => {
                        return Err(failed.hint(format!("also: {e}")));
                    }
                    (restored, _) => restored?,
                };
                if !unopened.is_empty() {
                    progress.warn(&format!(
                        "the server asks all repositories for WAL, and its recovery won't end before {} can be opened; \
                         restore with --repo to have it ask another one alone",
                        unopened.join(", ")
                    ));
                }
                let layout = ClusterLayout::new(&cluster.name)?;
                for repository in opened.iter().filter(|opened| opened.name() != report.repository)
                {
                    let store = WalStore::new(repository, &layout, report.system);
                    if store.timelines().await.is_ok_and(|timelines| timelines.is_empty()) {
                        progress.warn(&format!(
                            "the server asks all repositories for WAL, and its recovery won't end, as {} has none of \
                             system {}: restore with --repo {} to have it ask that one alone",
                            repository.name(),
                            report.system,
                            report.repository
                        ));
                    }
                }
                Ok(report)
            }),
        )?;
        global.output.done("the restore is complete", &report, || text(&report));
        Ok(0)
    }

    fn target(&self) -> Result<Target> {
        let target = self.target.target()?;
        let usage = |message| Err(Error::new(Kind::Usage, message));
        if self.target_action.is_some() && target == Target::Latest {
            return usage("--target-action needs a target: without one the server just starts");
        }
        Ok(target)
    }
}

/// `latest`, `current`, or an id in decimal, or in hexadecimal with 0x. Leading zeros are refused:
/// file names have hexadecimal ids with leading zeros.
pub(super) fn timeline(text: &str) -> Result<TargetTimeline, String> {
    let id = match text {
        "latest" => return Ok(TargetTimeline::Latest),
        "current" => return Ok(TargetTimeline::Current),
        _ => match text.strip_prefix("0x") {
            Some(hex) if !hex.starts_with('+') => u32::from_str_radix(hex, 16).ok(),
            _ if text.starts_with(['0', '+']) => None,
            _ => text.parse().ok(),
        },
    };
    id.filter(|id| *id > 0).map(|id| TargetTimeline::Id(Timeline(id))).ok_or_else(|| {
        "expected latest, current, or a timeline's id as in 26 or 0x1A, which is 0000001A in file \
         names"
            .into()
    })
}

/// A transaction id. What `pg_current_xact_id()` gives has an epoch above 32 bits, which PostgreSQL
/// ignores in a target as well; 0 to 2 are no transactions (`access/transam.h`).
fn xid(text: &str) -> Result<u32, String> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let id = plain.then(|| text.parse::<u64>().ok()).flatten().map(|id| id as u32);
    id.filter(|id| *id >= 3).ok_or_else(|| "expected a transaction's id, a number from 3".into())
}

/// `MAXFNAMELEN` in `access/xlog_internal.h`: at most 63 bytes.
fn restore_point(text: &str) -> Result<String, String> {
    if (1..=63).contains(&text.len()) && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("expected the name of a restore point, 1 to 63 bytes".into())
    }
}

/// `OLD=NEW`, where NEW is absolute and OLD an object id or absolute. A `=` within the paths is fine
/// as long as there is only one way to read it.
fn tablespace(text: &str) -> Result<(String, PathBuf), String> {
    let old_ok = |old: &str| {
        old.starts_with('/') || (!old.is_empty() && old.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut ways = text
        .match_indices("=/")
        .map(|(at, _)| (&text[..at], &text[at + 1..]))
        .filter(|(old, _)| old_ok(old));
    match (ways.next(), ways.next()) {
        (Some((old, new)), None) => Ok((old.to_owned(), PathBuf::from(new))),
        (Some(_), Some(_)) => Err("it can be split in several ways; use the object id".into()),
        (None, _) => Err("expected as in 16401=/new/place or /old/place=/new/place".into()),
    }
}

/// `NAME=VALUE` with a name as PostgreSQL's settings have (`guc-file.l`).
fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let (name, value) = (name.trim(), value.trim());
    let ok = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b))
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !ok {
        return Err(format!("{name:?} isn't the name of a setting"));
    }
    if value.contains(['\n', '\r', '\0']) {
        return Err("a setting's value is one line".into());
    }
    Ok((name.to_owned(), value.to_owned()))
}

fn text(report: &RestoreReport) -> String {
    let mut rows = vec![
        ("system", report.system.to_string()),
        ("size", format!("{} in {} files", human::bytes(report.bytes), human::count(report.files))),
        (
            "recovery",
            match report.timeline {
                Some(_) => format!("to {}", report.target),
                None => "as a standby, along the newest timeline".to_owned(),
            },
        ),
    ];
    if let Some(lsn) = report.stop_lsn {
        rows.push(("stops at", lsn.to_string()));
    }
    if let Some(time) = report.last_transaction {
        rows.push(("last transaction", human::exact_time(time)));
    }
    let mut out = format!(
        "restored {} from repository {} into {}\n",
        report.backup,
        report.repository,
        report.pgdata.display()
    );
    out += &table::pairs(2, &rows);
    out += "Start the server now: it replays the WAL from the archive.\n";
    if report.pauses {
        out += "At the target it pauses, read-only: `select pg_wal_replay_resume()` makes it a primary.\n\
                A table that was being dropped there stays locked until then.\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timelines_are_decimal_or_say_that_they_arent() {
        let id = |n| Ok(TargetTimeline::Id(Timeline(n)));
        assert_eq!(timeline("latest"), Ok(TargetTimeline::Latest));
        assert_eq!(timeline("current"), Ok(TargetTimeline::Current));
        assert_eq!(timeline("26"), id(26));
        assert_eq!(timeline("0x1A"), id(26));
        for bad in
            ["0", "", "0000001A", "00000010", "010", "-1", "+1", "0x", "0x+1", "1A", "Latest"]
        {
            assert!(timeline(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn transaction_ids_lose_their_epoch() {
        assert_eq!(xid("731"), Ok(731));
        assert_eq!(xid("4294968027"), Ok(731));
        for bad in ["", "0", "2", "4294967296", "-5", "+5", "0x10", "99999999999999999999"] {
            assert!(xid(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tablespace_mapping_has_one_reading() {
        let map = |old: &str, new: &str| Ok((old.to_owned(), PathBuf::from(new)));
        assert_eq!(tablespace("16401=/new"), map("16401", "/new"));
        assert_eq!(tablespace("/old=/new"), map("/old", "/new"));
        assert_eq!(tablespace("/a=b=/new=x"), map("/a=b", "/new=x"));
        for bad in ["", "16401", "16401=new", "=/new", "old=/new", "/a=/b=/c"] {
            assert!(tablespace(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_have_a_name_and_one_line() {
        let set = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(setting("port=5433"), set("port", "5433"));
        assert_eq!(
            setting("primary_conninfo=host=a user=b"),
            set("primary_conninfo", "host=a user=b")
        );
        assert_eq!(setting("my.option="), set("my.option", ""));
        for bad in ["port", "=1", "a b=1", "x=1\ny=2", "1a=b", "a'=b"] {
            assert!(setting(bad).is_err(), "{bad}");
        }
    }
}
