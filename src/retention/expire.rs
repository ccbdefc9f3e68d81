//! Applying the rules: planning, and doing what was planned.
//!
//! The order is what makes it safe to be killed anywhere. Backups are marked first, so that none is
//! listed whose WAL or packs have begun to go; then the floor is written, what is there is looked at
//! once more, WAL goes, and packs that nobody refers to. Whoever runs it next finds the marks and the
//! floor, comes to the same plan for the rest, and finishes.

use std::collections::BTreeSet;

use chrono::Utc;
use serde::Serialize;

use super::{
    amount::Amount,
    clean::{clean_up, crashed},
    cut,
    delete::{remove_pins, restoring_lease},
    drills,
    facts::Facts,
    plan::{Cut, Plan, Reason, RemainingWindow, Verdict, harmless_cuts, plan},
    references::References,
    sweep::{Swept, preview},
};
use crate::{
    config::RetentionSettings,
    error::Result,
    postgres::Timeline,
    progress::Progress,
    repo::{
        BackupId, Repository, SystemId, layout::ClusterLayout, lease::leases, pin::pins,
        tombstone::mark_deleted,
    },
};

/// What an expiry did, or would do.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Expiry {
    /// The repository.
    pub repository: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// The rules.
    pub rules: RetentionSettings,
    /// What becomes of each backup, the newest last.
    pub backups: Vec<Verdict>,
    /// Backups whose commit object can't be read. They are left alone, and so is all WAL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<BackupId>,
    /// What goes of backups: of these ones, of older ones, and of crashed ones.
    pub swept: Vec<Swept>,
    /// What goes of the WAL.
    pub wal: Vec<WalCut>,
    /// What goes of the results of drills.
    pub drills: Amount,
    /// From where on all WAL stays.
    pub windows: Vec<RemainingWindow>,
    /// All that goes.
    pub freed: Amount,
    /// All that should go, and is held by object lock.
    pub held: Amount,
}

/// What goes of a timeline's WAL.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct WalCut {
    /// The system.
    pub system: SystemId,
    /// The timeline.
    pub timeline: Timeline,
    /// The first segment that stays, unless a backup needs older ones for itself.
    pub first_kept: String,
    /// What goes.
    pub freed: Amount,
    /// What should go, and is held by object lock.
    pub held: Amount,
}

/// Removes what the rules don't keep, and what crashed processes have left. Without a rule only the
/// latter.
///
/// # Errors
///
/// Whatever can't be read stops it before anything that may depend on it is removed. What object
/// lock holds is no error.
pub async fn expire(
    repository: &Repository,
    layout: &ClusterLayout,
    rules: &RetentionSettings,
    dry_run: bool,
    progress: &dyn Progress,
) -> Result<Expiry> {
    progress.step("looking at backups and WAL");
    let now = Utc::now();
    let facts = Facts::read(repository, layout, &leases(repository, layout).await?, now).await?;
    let planned = plan(rules, &facts);
    let mut expiry = Expiry {
        repository: repository.name().to_owned(),
        dry_run,
        rules: *rules,
        backups: planned.backups.clone(),
        damaged: facts.damaged.iter().cloned().collect(),
        swept: Vec::new(),
        wal: Vec::new(),
        drills: Amount::default(),
        windows: planned.windows.clone(),
        freed: Amount::default(),
        held: Amount::default(),
    };
    if dry_run {
        expiry.foresee(repository, layout, &facts, &planned).await?;
    } else {
        // What nobody can say the use of stops it now, and not when its base and its WAL are gone.
        let goes: Vec<_> = goes(&expiry.backups).collect();
        if !goes.is_empty() || !planned.cuts.is_empty() {
            References::read(repository, layout, &goes).await?;
        }
        expiry.mark(repository, layout, progress).await?;
        expiry.cut_wal(repository, layout, &facts, &planned, progress).await?;
        expiry.swept = clean_up(repository, layout, progress).await?;
        let removed = drills::remove(repository, layout).await?;
        (expiry.drills, expiry.held) = (removed.freed, removed.held);
    }
    expiry.freed = expiry.drills;
    let swept = expiry.swept.iter().map(|swept| (swept.freed, swept.held));
    for (freed, held) in swept.chain(expiry.wal.iter().map(|cut| (cut.freed, cut.held))) {
        expiry.freed += freed;
        expiry.held += held;
    }
    Ok(expiry)
}

impl Expiry {
    /// Counts what would go.
    async fn foresee(
        &mut self,
        repository: &Repository,
        layout: &ClusterLayout,
        facts: &Facts,
        planned: &Plan,
    ) -> Result<()> {
        // A claimed one may turn out not to have crashed; that can't be tried here.
        let (crashed, _) = crashed(repository, layout).await?;
        let goes: Vec<&BackupId> = goes(&self.backups).chain(&crashed).collect();
        let references = References::read(repository, layout, &goes).await?;
        let all: BTreeSet<&BackupId> = goes.into_iter().chain(references.deleted()).collect();
        for id in all {
            self.swept.push(preview(repository, layout, &references, id).await?);
        }
        self.drills = drills::preview(repository, layout).await?;
        self.swept.retain(|swept| swept.freed.objects > 0);
        for cut in &planned.cuts {
            let size = facts.systems[&cut.system].segment_size;
            let freed = cut::preview(repository, layout, cut, size).await?;
            self.wal.extend(WalCut::of(cut, facts, freed, Amount::default()));
        }
        Ok(())
    }

    /// Marks the backups that go as deleted.
    async fn mark(
        &mut self,
        repository: &Repository,
        layout: &ClusterLayout,
        progress: &dyn Progress,
    ) -> Result<()> {
        for verdict in self.backups.iter_mut().filter(|verdict| !verdict.stays()) {
            let id = &verdict.backup;
            if let Some(reason) = taken_up(repository, layout, id).await? {
                progress.warn(&format!("backup {id} stays: since just now it is {reason}"));
                verdict.keep(reason);
                continue;
            }
            progress.step(&format!("backup {id} expires"));
            mark_deleted(repository, layout, id).await?;
            remove_pins(repository, layout, id).await?;
        }
        Ok(())
    }

    /// Removes WAL that no backup needs, by what was planned and by what is there now.
    async fn cut_wal(
        &mut self,
        repository: &Repository,
        layout: &ClusterLayout,
        facts: &Facts,
        planned: &Plan,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut needed = Vec::new();
        for cut in &planned.cuts {
            let size = facts.systems[&cut.system].segment_size;
            if cut::preview(repository, layout, cut, size).await?.objects > 0 {
                needed.push(cut);
            }
        }
        if needed.is_empty() {
            return Ok(());
        }
        for system in facts.systems.keys() {
            let of_system: Vec<_> =
                needed.iter().copied().filter(|cut| cut.system == *system).collect();
            if !of_system.is_empty() {
                cut::write_floor(repository, layout, *system, &of_system).await?;
            }
        }
        // A backup that was committed before the floor could be seen is seen here. No rule may keep
        // it, but it isn't marked: its WAL stays until an expiry does that.
        let leases = leases(repository, layout).await?;
        let again = Facts::read(repository, layout, &leases, facts.now).await?;
        let harmless = harmless_cuts(&self.rules, &again);
        for cut in needed {
            let same = |other: &&Cut| (other.system, other.timeline) == (cut.system, cut.timeline);
            let Some(other) = harmless.iter().find(same) else { continue };
            let cut = cut::both(cut, other);
            progress
                .step(&format!("removing WAL of timeline {} before {}", cut.timeline, cut.floor));
            let size = facts.systems[&cut.system].segment_size;
            let removed = cut::remove(repository, layout, &cut, size).await?;
            self.wal.extend(WalCut::of(&cut, facts, removed.freed, removed.held));
        }
        Ok(())
    }
}

/// Why a backup has to stay that could go when all was looked at.
async fn taken_up(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<Option<Reason>> {
    let now = Utc::now();
    if pins(repository, layout).await?.iter().any(|pin| pin.backup == *id && pin.holds(now)) {
        return Ok(Some(Reason::Pinned));
    }
    let leases = leases(repository, layout).await?;
    Ok(restoring_lease(&leases, id).map(|_| Reason::Restoring))
}

fn goes(backups: &[Verdict]) -> impl Iterator<Item = &BackupId> {
    backups.iter().filter(|verdict| !verdict.stays()).map(|verdict| &verdict.backup)
}

impl WalCut {
    /// `None` when nothing goes or would go.
    fn of(cut: &Cut, facts: &Facts, freed: Amount, held: Amount) -> Option<Self> {
        let size = facts.systems[&cut.system].segment_size;
        (freed.objects + held.objects > 0).then(|| WalCut {
            system: cut.system,
            timeline: cut.timeline,
            first_kept: size.name(cut.timeline, cut.first_kept).to_string(),
            freed,
            held,
        })
    }
}
