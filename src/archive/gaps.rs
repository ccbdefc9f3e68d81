//! What `check` says of the WAL that is stored: whether any is missing behind the newest backup.

use std::time::Duration;

use super::check::{CheckReport, StepState};
use crate::{
    error::{Kind, Result},
    repo::{
        Repository, SystemId, catalog,
        layout::ClusterLayout,
        timelines::WalInventory,
        wal::WalStore,
        wal_gaps::{self, Gap, gaps},
    },
};

/// How long what is missing may be on its way: segments are stored several at a time.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many gaps a step tells of one by one.
const TOLD: usize = 3;

/// Looks for gaps behind the system's newest backup in one repository.
pub async fn report_gaps(
    repository: &Repository,
    layout: &ClusterLayout,
    system: SystemId,
    report: &mut CheckReport,
) {
    let step = match look(repository, layout, system).await {
        Ok(None) => report.step("gaps", StepState::Ok, "no backup needs WAL yet"),
        Ok(Some(found)) if found.is_empty() => {
            let text = "no WAL is missing behind the newest backup, up to the last that is stored";
            report.step("gaps", StepState::Ok, text)
        }
        Ok(Some(found)) => {
            let mut texts = found.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>();
            let rest = format!("and {} gaps more", found.len().saturating_sub(TOLD));
            if found.len() > TOLD {
                texts.push(&rest);
            }
            let text = format!(
                "WAL is missing behind the newest backup, which can't be restored to what comes \
                 after: {}",
                texts.join("; ")
            );
            report.step("gaps", StepState::Problem, text).hint(wal_gaps::HINT)
        }
        Err(e) if e.kind() == Kind::Denied => {
            report.step("gaps", StepState::Skipped, format!("gaps can't be looked for here: {e}"))
        }
        Err(e) => report.failed("gaps", &e),
    };
    step.of(repository.name());
}

/// What is missing, in words; `None` where there is no backup.
async fn look(
    repository: &Repository,
    layout: &ClusterLayout,
    system: SystemId,
) -> Result<Option<Vec<String>>> {
    let mut backups = catalog::backups(repository, layout).await?;
    backups.retain(|record| record.system == system);
    let Some(newest) = backups.last() else { return Ok(None) };
    let store = WalStore::new(repository, layout, system);
    let inventory = WalInventory::read(&store, newest.segment_size).await?;
    let newest = std::slice::from_ref(newest);
    let found = gaps(&store, &inventory, newest, PATIENCE).await?;
    Ok(Some(found.iter().map(|gap| text(&inventory, gap)).collect()))
}

fn text(inventory: &WalInventory, gap: &Gap) -> String {
    let name = |number| inventory.segment_size.name(gap.timeline, number);
    let first = name(gap.first);
    match (gap.segments(), gap.hole) {
        (_, Some((from, to))) => format!("bytes {from} to {to} of {first}"),
        (1, None) => first.to_string(),
        (n, None) => format!("{first} to {}, {n} segments", name(gap.last)),
    }
}
