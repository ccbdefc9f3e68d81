//! A restore point's name that was used more than once.
//!
//! PostgreSQL stops at the first record of that name behind the backup it starts from. Which one
//! that is depends on the backup, so where several can be reached and nobody said from which
//! backup, nobody said which one is meant.

use std::collections::BTreeMap;

use super::{Holdings, refuse};
use crate::{
    error::Result,
    postgres::{Lsn, Timeline, history::TimelineHistory},
    repo::{
        BackupId,
        replay::{PointOnPath, Replay},
    },
};

/// A restore point that can be reached.
#[derive(Debug, Clone)]
pub(super) struct Named {
    /// Which one.
    pub point: PointOnPath,
    /// The newest backup behind which it is the first of its name.
    pub from: Option<BackupId>,
}

/// Refuses a name that several restore points have which can be reached along `paths` from one of
/// the backups.
pub(super) async fn refuse_several(
    holdings: &Holdings,
    paths: &[TimelineHistory],
    name: &str,
) -> Result<()> {
    let mut all = BTreeMap::new();
    for path in paths {
        along(holdings, path, name, &mut all).await?;
    }
    match all.len() {
        0 | 1 => Ok(()),
        _ => Err(refuse::named_several(name, &all.into_values().collect::<Vec<_>>())),
    }
}

/// Adds those along one path, by the position and timeline that tell them apart.
async fn along(
    holdings: &Holdings,
    path: &TimelineHistory,
    name: &str,
    all: &mut BTreeMap<(Lsn, Timeline), Named>,
) -> Result<()> {
    let replay = Replay { store: &holdings.store, inventory: &holdings.inventory, path };
    // What recovery from the backup before, a newer one, comes by.
    let mut behind: Vec<PointOnPath> = Vec::new();
    let mut until = None;
    for record in holdings.on_path(path) {
        let (mut points, leads_on) = replay.points_named(name, record.start_lsn, until).await?;
        if leads_on {
            points.extend(behind.into_iter().filter(|point| point.end > record.start_lsn));
        }
        for (i, point) in points.iter().enumerate() {
            // Recovery can't stop before the backup is consistent.
            if point.end < record.stop_lsn {
                continue;
            }
            let named = Named { point: *point, from: None };
            let named = all.entry((point.end, point.timeline)).or_insert(named);
            if i == 0 && named.from.is_none() {
                named.from = Some(record.id.clone());
            }
        }
        behind = points;
        until = Some(record.start_lsn);
    }
    Ok(())
}
