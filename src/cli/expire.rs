//! `pgkeep expire`.

use clap::Args;
use serde::Serialize;

use super::{
    Global,
    each::each,
    human,
    table::{Align, Table},
};
use crate::{
    error::Result,
    repo::layout::ClusterLayout,
    retention::{
        self, Expiry,
        amount::Amount,
        plan::{Follows, Verdict},
    },
};

/// Apply the retention policy
///
/// Removes the backups that no rule of the repository keeps, the WAL that no backup needs any more,
/// and what crashed processes have left. The rules are the keys of [repository.NAME.retention];
/// without one, no backup and no WAL goes. The newest backup that can be restored stays in any case,
/// and so do pinned ones.
///
/// Where there are rules, each backup is followed by this, unless after-backup = false.
///
/// It is done in all repositories, each by its own rules, or in the one that --repo names.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep expire --dry-run
  pgkeep --repo offsite expire")]
pub(super) struct Expire {
    /// Say what would go, what would stay and why, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Expiries<'a> {
    repositories: &'a [Expiry],
}

impl Expire {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let settings = global.settings()?;
        let selected = settings.selected_repositories(global.repo.as_deref())?;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        let layout = ClusterLayout::new(&cluster.name)?;
        let progress = global.progress();
        let done = each(&selected, async |repository| {
            let rules = settings.repository(Some(repository.name()))?.retention;
            let progress = progress.as_ref();
            if !self.dry_run {
                retention::may_remove(repository, &layout).await?;
            }
            retention::expire(repository, &layout, &rules, self.dry_run, progress).await.map(Some)
        })?;
        if !done.results.is_empty() {
            let expiries = Expiries { repositories: &done.results };
            global.output.result(&expiries, || done.results.iter().map(text).collect())?;
        }
        done.end()
    }
}

/// What an expiry comes to, for people.
pub(super) fn text(expiry: &Expiry) -> String {
    let Expiry { repository, dry_run, backups, freed, held, .. } = expiry;
    let goes = if *dry_run { "would go" } else { "is gone" };
    let mut out = match freed.objects {
        0 => format!("repository {repository}: nothing had to go\n"),
        _ => format!("repository {repository}: {} {goes}\n", amount(freed)),
    };
    if !expiry.rules.has_rules() {
        out += "  no rule is configured in [repository.NAME.retention]: backups and WAL stay\n";
        return out + &leftovers(expiry, goes);
    }
    let mut table = Table::new(&[
        ("backup", Align::Left),
        ("complete", Align::Left),
        ("kept by", Align::Left),
        ("WAL", Align::Left),
    ]);
    for verdict in backups {
        table.row(row(expiry, verdict));
    }
    out += &table.show(2);
    for id in &expiry.damaged {
        out += &format!(
            "  {id} can't be read: it and all WAL are left alone until it is deleted (`pgkeep delete {id}`)\n"
        );
    }
    for cut in &expiry.wal {
        out += &format!(
            "  WAL of timeline {} before {}: {} {goes}\n",
            cut.timeline,
            cut.first_kept,
            amount(&cut.freed)
        );
    }
    for window in &expiry.windows {
        out += &format!(
            "  all WAL stays that follows {} on timeline {}\n",
            window.backup, window.timeline
        );
    }
    if held.objects > 0 {
        out += &format!(
            "  {} can't go yet, since object lock holds it; a later expire removes it\n",
            amount(held)
        );
    }
    out + &leftovers(expiry, goes)
}

fn row(expiry: &Expiry, verdict: &Verdict) -> [String; 4] {
    let kept_by = match verdict.stays() {
        true => verdict.kept_by.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        false if expiry.dry_run => "nothing: would go".to_owned(),
        false => "nothing: gone".to_owned(),
    };
    let wal = match verdict.wal {
        Follows::All => "all since",
        Follows::Own => "its own",
        Follows::None => "",
    };
    let time = human::time(verdict.stopped_at);
    [verdict.backup.to_string(), time, kept_by, wal.to_owned()]
}

/// What goes of backups that aren't in the list (crashed ones, and ones that were deleted before), and of
/// drills.
fn leftovers(expiry: &Expiry, goes: &str) -> String {
    let others = expiry.swept.iter().filter(|swept| {
        swept.freed.objects > 0
            && !expiry.backups.iter().any(|verdict| verdict.backup == swept.backup)
    });
    let line = |swept: &retention::sweep::Swept| {
        format!(
            "  {} of {}, which is no backup any more, {goes}\n",
            amount(&swept.freed),
            swept.backup
        )
    };
    let mut out: String = others.map(line).collect();
    if expiry.drills.objects > 0 {
        out += &format!("  {} of old drills' results {goes}\n", amount(&expiry.drills));
    }
    out
}

fn amount(amount: &Amount) -> String {
    human::objects(amount.objects, amount.bytes)
}
