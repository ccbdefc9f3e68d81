//! What a backup is taken over: from what is asked for and what there is.

use crate::{
    error::{Error, Kind, Result},
    repo::{BackupType, SystemId, record::BackupRecord},
};

/// What is going to be taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The type.
    pub kind: BackupType,
    /// Why it isn't what was asked for.
    pub why: Option<String>,
    /// The base; none for a full backup.
    pub base: Option<BackupRecord>,
}

/// Chooses the base of a backup of `system`: for a differential one the newest full backup, for an
/// incremental one the newest of any type, that is in every repository. `backups` are the committed
/// ones of each repository, the newest last. Nothing `asked` for is an incremental one, or what
/// comes nearest.
///
/// Where there is nothing to compare with, a full backup is taken instead, and the choice says why.
/// But the backups of another system are no reason for one: a server that was made anew or upgraded
/// is told so when a type was asked for that can't be had.
pub fn choose(
    asked: Option<BackupType>,
    system: SystemId,
    backups: &[Vec<BackupRecord>],
) -> Result<Choice> {
    let kind = asked.unwrap_or(BackupType::Incr);
    let full = |why: Option<String>| Choice { kind: BackupType::Full, why, base: None };
    if kind == BackupType::Full {
        return Ok(full(None));
    }
    let (first, others) = match backups {
        [] => (&[][..], &[][..]),
        [first, others @ ..] => (first.as_slice(), others),
    };
    // Ids are times: two runs into one repository each may have the same.
    let is_same = |one: &BackupRecord, other: &BackupRecord| {
        let what = |r: &BackupRecord| (r.system, r.timeline, r.start_lsn, r.stop_lsn, r.started_at);
        one.id == other.id && what(one) == what(other)
    };
    let everywhere = |record: &&BackupRecord| {
        others.iter().all(|backups| backups.iter().any(|other| is_same(record, other)))
    };
    let of_system = || first.iter().filter(|record| record.system == system);
    let suits =
        |record: &&BackupRecord| kind == BackupType::Incr || record.kind == BackupType::Full;
    if let Some(base) = of_system().filter(suits).rfind(everywhere) {
        return Ok(Choice { kind, why: None, base: Some(base.clone()) });
    }
    let mut all = backups.iter().flatten();
    if let Some(other) = all.find(|record| record.system != system)
        && of_system().next().is_none()
    {
        let why = format!("there is no backup of system {system} yet, only of {}", other.system);
        if asked.is_some() {
            return Err(Error::new(
                Kind::Conflict,
                format!("can't take a backup of type {kind}: {why}"),
            )
            .hint("the server was upgraded, or made anew; take a full backup: --type full"));
        }
        return Ok(full(Some(why)));
    }
    let what = if kind == BackupType::Diff { "full backup" } else { "backup" };
    let why = if of_system().any(|record| suits(&record)) {
        format!("no {what} is in all {} repositories", backups.len())
    } else {
        format!("there is no {what} to compare with")
    };
    Ok(full(Some(why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(identifier: u64) -> SystemId {
        SystemId { major: 17, identifier }
    }

    fn record(id: &str, identifier: u64) -> BackupRecord {
        let kind = id.rsplit('-').next().unwrap();
        serde_json::from_value(serde_json::json!({
            "format": 1, "id": id, "cluster": "main", "kind": kind, "asked": kind, "label": "",
            "system": system(identifier).to_string(), "server-version": "17.1",
            "source": "primary", "timeline": 1, "start-lsn": "0/1", "stop-lsn": "0/2",
            "segment-size": 16777216, "started-at": "2026-01-01T00:00:00Z",
            "stopped-at": "2026-01-01T00:00:01Z", "data-checksums": false,
            "sizes": { "files": 1, "cluster": 1, "raw": 1, "stored": 1 }, "pgkeep": "0",
        }))
        .unwrap()
    }

    fn base_of(choice: &Choice) -> Option<&str> {
        choice.base.as_ref().map(|base| base.id.as_str())
    }

    const FULL: &str = "20260101T000000Z-full";
    const DIFF: &str = "20260102T000000Z-diff";
    const INCR: &str = "20260103T000000Z-incr";

    #[test]
    fn the_newest_that_is_everywhere_is_the_base() {
        let all: Vec<_> = [FULL, DIFF, INCR].map(|id| record(id, 1)).into();
        let two = all[..2].to_vec();
        let choose =
            |asked, backups: &[Vec<BackupRecord>]| choose(asked, system(1), backups).unwrap();
        let one = [all.clone()];
        assert_eq!(base_of(&choose(None, &one)), Some(INCR));
        assert_eq!(base_of(&choose(Some(BackupType::Diff), &one)), Some(FULL));
        assert_eq!(base_of(&choose(Some(BackupType::Full), &one)), None);
        let both = [all.clone(), two];
        assert_eq!(base_of(&choose(Some(BackupType::Incr), &both)), Some(DIFF));
        let apart = choose(Some(BackupType::Incr), &[all, vec![]]);
        assert_eq!((apart.kind, base_of(&apart)), (BackupType::Full, None));
        assert_eq!(apart.why.as_deref(), Some("no backup is in all 2 repositories"));
        let first = choose(Some(BackupType::Diff), &[vec![]]);
        assert_eq!(first.why.as_deref(), Some("there is no full backup to compare with"));
    }

    #[test]
    fn an_id_that_two_runs_have_is_not_one_backup() {
        let one: Vec<_> = [FULL, INCR].map(|id| record(id, 1)).into();
        let mut other = one.clone();
        other[1].start_lsn.0 += 0x1000;
        let choice = choose(None, system(1), &[one, other]).unwrap();
        assert_eq!(base_of(&choice), Some(FULL));
    }

    #[test]
    fn another_system_needs_a_full_backup_of_its_own() {
        let old = [vec![record(FULL, 1)]];
        for asked in [BackupType::Diff, BackupType::Incr] {
            let refused = choose(Some(asked), system(2), &old).unwrap_err();
            assert_eq!(refused.kind(), Kind::Conflict);
        }
        let choice = choose(None, system(2), &old).unwrap();
        assert_eq!(choice.kind, BackupType::Full);
        assert!(choice.why.unwrap().contains("17-1"));
        let both = [vec![record(FULL, 1), record(DIFF, 2)]];
        let choice = choose(Some(BackupType::Incr), system(2), &both).unwrap();
        assert_eq!(base_of(&choice), Some(DIFF));
    }
}
