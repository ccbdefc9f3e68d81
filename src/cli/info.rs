//! `pgkeep info`.

use clap::Args;
use serde::Serialize;

use super::{
    Global, archiving, human, runtime,
    table::{Align, Table},
};
use crate::{
    error::Result,
    info::{Archiving, ClusterInfo, SystemInfo, Window, info},
    repo::{self, record::BackupRecord, repository::Names, wal_gaps},
};

/// Show backups, recovery windows, WAL ranges and gaps, and how archiving is doing
///
/// A recovery window says from when until when one can restore: from the end of a backup to the last
/// transaction that was archived without a gap. It is shown for each timeline.
///
/// All repositories are shown, or the one that --repo names. Then the cluster's server is asked how its
/// archiving is doing; where it can't be asked, that is said, and is no failure.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep info
  pgkeep --cluster billing --output json info")]
pub(super) struct Info {}

#[derive(Serialize)]
struct Infos {
    repositories: Vec<ClusterInfo>,
    archiving: Archiving,
}

impl Info {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let settings = global.settings()?;
        let selected = settings.selected_repositories(global.repo.as_deref())?;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        let infos = runtime::alone(runtime::until_signal(async {
            let (mut repositories, mut failure) = (Vec::new(), None);
            let archiving = Archiving::ask(cluster).await;
            for settings in selected {
                let look = async {
                    let repository = repo::open::open(settings).await?;
                    info(&repository, cluster, archiving.server.as_ref()).await
                };
                match look.await {
                    Ok(info) => repositories.push(info),
                    // What the others hold is the more worth knowing.
                    Err(e) if failure.is_none() => failure = Some(e),
                    Err(e) => tracing::error!("{e}"),
                }
            }
            Ok((Infos { repositories, archiving }, failure))
        }))?;
        let (infos, failure) = infos;
        if infos.repositories.is_empty()
            && let Some(failure) = failure
        {
            return Err(failure);
        }
        global.output.result(&infos, || {
            let mut parts: Vec<_> = infos.repositories.iter().map(text).collect();
            parts.push(archiving::archiving(&infos.archiving));
            parts.join("\n")
        })?;
        failure.map_or(Ok(0), Err)
    }
}

fn text(info: &ClusterInfo) -> String {
    let encryption = if info.encrypted { "encrypted" } else { "not encrypted" };
    let names = match info.names {
        Names::Plain => "",
        Names::Content => ", names hold checksums since the server overwrites",
    };
    let mut out = format!(
        "cluster {} in repository {} ({}, {encryption}{names})\n",
        info.cluster, info.repository, info.address
    );
    if info.systems.is_empty() {
        out += "  nothing is stored yet: `pgkeep check` and `pgkeep backup` begin\n";
    }
    for system in &info.systems {
        out += &system_text(system);
    }
    if !info.unusable.is_empty() {
        out += "\n  not usable\n";
        let mut table = Table::new(&[("backup", Align::Left), ("state", Align::Left)]);
        for backup in &info.unusable {
            let why = backup.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            table.row([backup.id.to_string(), format!("{}{why}", backup.state)]);
        }
        out += &table.show(4);
    }
    if !info.pinned.is_empty() {
        out += "\n  pinned\n";
        let mut table = Table::new(&[("backup", Align::Left), ("until", Align::Left)]);
        for backup in &info.pinned {
            let until = backup.until.map_or("for ever".to_owned(), human::time);
            table.row([backup.id.to_string(), until]);
        }
        out += &table.show(4);
    }
    if !info.drills.is_empty() {
        out += "\n  last drills\n";
        let mut table = Table::new(&[
            ("backup", Align::Left),
            ("when", Align::Left),
            ("verdict", Align::Left),
            ("RTO", Align::Right),
            ("RPO", Align::Right),
        ]);
        for drill in &info.drills {
            let verdict = match drill.passed {
                true => "passed".to_owned(),
                false => format!("FAILED: {}", drill.failed.join(", ")),
            };
            let rto = drill.rto.total.map_or("-".to_owned(), human::seconds);
            let rpo = drill.rpo.and_then(|rpo| rpo.age).map_or("-".to_owned(), human::seconds);
            table.row([drill.backup.to_string(), human::time(drill.began), verdict, rto, rpo]);
        }
        out += &table.show(4);
    }
    out
}

fn system_text(system: &SystemInfo) -> String {
    let mut out =
        format!("\n  PostgreSQL {}, system {}\n", system.system.major, system.system.identifier);
    out += "\n  backups\n";
    if system.backups.is_empty() {
        out += "    none: `pgkeep backup` takes one\n";
    } else {
        let mut table = Table::new(&[
            ("backup", Align::Left),
            ("complete at", Align::Left),
            ("timeline", Align::Right),
            ("start", Align::Left),
            ("stop", Align::Left),
            ("cluster", Align::Right),
            ("stored", Align::Right),
        ]);
        for backup in &system.backups {
            table.row([
                backup.id.to_string(),
                human::time(backup.stopped_at),
                backup.timeline.to_string(),
                backup.start_lsn.to_string(),
                backup.stop_lsn.to_string(),
                human::bytes(backup.sizes.cluster),
                human::bytes(backup.sizes.stored),
            ]);
        }
        out += &table.show(4);
        out += &over_others(&system.backups);
    }
    out += "\n  can be restored to any time\n";
    if system.windows.is_empty() {
        out += "    none\n";
    } else {
        let mut table = Table::new(&[
            ("timeline", Align::Right),
            ("from", Align::Left),
            ("until", Align::Left),
            ("LSN", Align::Left),
            ("", Align::Left),
        ]);
        for window in &system.windows {
            table.row(window_cells(window));
        }
        out += &table.show(4);
    }
    if let Some(behind) = &system.behind {
        out += &format!("\n  not stored yet\n    {}\n", archiving::behind(behind));
    }
    if !system.gaps.is_empty() {
        out += "\n  missing\n";
        for gap in &system.gaps {
            out += &format!("    {}\n", archiving::gap(gap));
        }
        out += &format!("    {}\n", wal_gaps::HINT);
    }
    out += "\n  WAL\n";
    let mut table = Table::new(&[
        ("timeline", Align::Right),
        ("first", Align::Left),
        ("last", Align::Left),
        ("segments", Align::Right),
        ("stored", Align::Right),
        ("", Align::Left),
    ]);
    for timeline in &system.timelines {
        if timeline.history_missing {
            let file = timeline.timeline.history_file();
            table.row([
                timeline.timeline.to_string(),
                format!("{file} is missing: nothing can be restored along it"),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ]);
        }
        let origin = timeline
            .parent
            .as_ref()
            .map(|parent| format!("left timeline {} at {}", parent.timeline, parent.switch_lsn));
        let mut head = (timeline.timeline.to_string(), origin.unwrap_or_default());
        for (i, range) in timeline.ranges.iter().enumerate() {
            let (id, note) = std::mem::take(&mut head);
            let note = if i > 0 { "after a gap".to_owned() } else { note };
            let (segments, stored) = (range.segments.to_string(), human::bytes(range.stored));
            table.row([id, range.first.clone(), range.last.clone(), segments, stored, note]);
        }
        for partial in &timeline.partials {
            let (id, _) = std::mem::take(&mut head);
            let empty = String::new;
            table.row([id, partial.clone(), empty(), empty(), empty(), "partial".into()]);
        }
    }
    out += &table.show(4);
    out
}

/// What the backups that aren't full were compared with, and whose packs they use.
fn over_others(backups: &[BackupRecord]) -> String {
    let mut table = Table::new(&[
        ("backup", Align::Left),
        ("compared with", Align::Left),
        ("sent", Align::Right),
        ("changed", Align::Right),
        ("uses", Align::Left),
    ]);
    let mut any = false;
    for backup in backups {
        let note = match (&backup.base, &backup.why) {
            (Some(base), _) => base.to_string(),
            (None, Some(why)) => format!("nothing: {} was asked for, but {why}", backup.asked),
            (None, None) => continue,
        };
        any = true;
        let uses = backup.uses.iter().map(|(id, live)| format!("{} of {id}", human::bytes(*live)));
        table.row([
            backup.id.to_string(),
            note,
            human::bytes(backup.sizes.sent),
            human::bytes(backup.sizes.changed),
            uses.collect::<Vec<_>>().join(", "),
        ]);
    }
    if !any {
        return String::new();
    }
    let mut out = format!("\n  changes\n{}", table.show(4));
    for backup in backups {
        // Servers before 17 send everything in any case.
        if let Some(why) = backup.why_compared.as_ref().filter(|_| backup.system.major >= 17) {
            out += &format!("    {} was compared as a whole: {why}\n", backup.id);
        }
    }
    out
}

fn window_cells(window: &Window) -> [String; 5] {
    let until = match window.until {
        Some(until) => human::exact_time(until),
        None => "no transaction since".to_owned(),
    };
    let gap = window.missing.as_ref().map(|missing| format!("gap: {missing} is missing"));
    [
        window.timeline.to_string(),
        human::exact_time(window.from),
        until,
        format!("to {}", window.end_lsn),
        gap.unwrap_or_default(),
    ]
}
