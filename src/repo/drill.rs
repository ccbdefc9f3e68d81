//! Results of drills: what restoring a backup has really come to.
//!
//! Each is an object of its own, `drills/<time>-<random>`, which nobody changes. Nothing rests on them:
//! one that can't be read is left out, and expiry keeps the newest [`KEPT`].

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    BackupId, Repository, SystemId,
    catalog::PAGE,
    id::RandomId,
    layout::ClusterLayout,
    sealed::{put_sealed, read_whole},
};
use crate::{
    error::{Context, Kind, Result},
    postgres::{Lsn, Timeline},
    storage::{Listed, ObjectName},
};

/// How many results of a cluster stay when it is expired.
pub const KEPT: usize = 20;

/// How a time is written in a result's name.
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// What came of a drill. Times are by the clock of the host that did it, durations in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DrillRecord {
    /// Its format, 1.
    pub format: u32,
    /// The repository's name in the configuration.
    pub repository: String,
    /// The cluster.
    pub cluster: String,
    /// The backup that was restored.
    pub backup: BackupId,
    /// Its system; `None` when the backup's own record can't be read.
    pub system: Option<SystemId>,
    /// The host that did it.
    pub host: String,
    /// When it began.
    pub began: DateTime<Utc>,
    /// Whether nothing failed.
    pub passed: bool,
    /// Up to where was replayed, in words.
    pub target: String,
    /// The timeline that recovery followed; `None` when it didn't come so far.
    pub timeline: Option<Timeline>,
    /// What was written; `None` when it wasn't whole.
    pub restored: Option<Restored>,
    /// What a restore costs in time.
    pub rto: Rto,
    /// What it costs in data; `None` when the server didn't open.
    pub rpo: Option<Rpo>,
    /// Who did it, with what.
    pub versions: Versions,
    /// What was looked at, in order.
    pub checks: Vec<Check>,
}

/// What a restore has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Restored {
    /// Files.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
}

/// How long a restore takes, by phase; a phase that wasn't finished has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rto {
    /// Choosing, fetching, writing and syncing all files.
    pub fetch: Option<f64>,
    /// From the server's start to the end of replay, WAL fetched meanwhile.
    pub replay: Option<f64>,
    /// From there to the first answer to a query.
    pub open: Option<f64>,
    /// All of it.
    pub total: Option<f64>,
}

/// How much of the past comes back.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rpo {
    /// When the last transaction that came back had ended, by the clock of the original; `None` when
    /// none was replayed.
    pub last_transaction: Option<DateTime<Utc>>,
    /// How old that was when the drill began.
    pub age: Option<f64>,
    /// How far was replayed.
    pub replayed_lsn: Lsn,
    /// Where the WAL ends that the repository had when the drill began, along the same timeline.
    pub archive_lsn: Option<Lsn>,
    /// When the last transaction in that had ended.
    pub archive_transaction: Option<DateTime<Utc>>,
    /// How much later that is than `last-transaction`: what a target left out.
    pub behind: Option<f64>,
}

/// Versions, as the programs write them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Versions {
    /// The pgkeep that did the drill.
    pub pgkeep: String,
    /// The pgkeep that took the backup.
    pub taken_by: Option<String>,
    /// The server that was backed up.
    pub backed_up: Option<String>,
    /// The server that was started.
    pub server: Option<String>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    /// `restore`, `recovery`, `amcheck`, `query 1` and so on, `page-checksums`.
    pub name: String,
    /// What came of it.
    pub outcome: CheckOutcome,
    /// In a sentence.
    pub text: String,
    /// How long it took.
    pub seconds: f64,
    /// More of it, a line each: what was found, the server's last words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckOutcome {
    /// It is as it should be.
    Passed,
    /// It isn't.
    Failed,
    /// It couldn't be looked at, which isn't the backup's fault.
    Skipped,
}

/// The time and the number in a result's name.
pub fn parts_of_name(name: &str) -> Option<(DateTime<Utc>, RandomId)> {
    let (time, random) = name.split_once('-')?;
    let time = NaiveDateTime::parse_from_str(time, TIME).ok()?.and_utc();
    Some((time, random.parse().ok()?))
}

/// The name of a result within its folder.
pub fn file_name(began: DateTime<Utc>, id: RandomId) -> String {
    format!("{}-{id}", began.format(TIME))
}

/// Keeps a result.
pub async fn put_drill(
    repository: &Repository,
    layout: &ClusterLayout,
    record: &DrillRecord,
) -> Result<ObjectName> {
    let json = serde_json::to_vec(record).context(Kind::Internal, || "write a drill's result")?;
    let name = layout.drill(record.began, RandomId::random()?);
    put_sealed(repository, &name, &json).await?;
    Ok(name)
}

/// The objects with results, the newest last. What has another name isn't one.
pub async fn listed(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<Listed>> {
    let storage = repository.storage();
    let mut found: Vec<Listed> = Vec::new();
    loop {
        let after = found.last().map(|object| object.name.as_str().to_owned());
        let page = storage.list(&layout.drills_folder(), after.as_deref(), PAGE).await?;
        if page.is_empty() {
            found.retain(|object| parts_of_name(object.name.file_name()).is_some());
            return Ok(found);
        }
        found.extend(page);
    }
}

/// The newest results, [`KEPT`] at most, the newest last. One that can't be read is warned about and
/// left out.
pub async fn drills(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<DrillRecord>> {
    let mut records = Vec::new();
    let listed = listed(repository, layout).await?;
    for object in listed.iter().skip(listed.len().saturating_sub(KEPT)) {
        let bytes = match read_whole(repository, &object.name).await {
            Ok(object) => object.into_bytes(),
            // It may also have expired since it was listed.
            Err(e) if e.kind() == Kind::Damaged => {
                tracing::warn!("{e}");
                continue;
            }
            Err(e) => return Err(e),
        };
        match serde_json::from_slice::<DrillRecord>(&bytes) {
            Ok(record) if record.format == 1 => records.push(record),
            _ => tracing::warn!("{} isn't a result that this version reads", object.name),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_time_and_are_read_back() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let (early, late) = (at("2026-09-30T23:59:59Z"), at("2026-11-20T19:58:12Z"));
        let id = RandomId([0xAB; 16]);
        assert!(file_name(early, id) < file_name(late, RandomId([0; 16])));
        assert_eq!(parts_of_name(&file_name(late, id)), Some((late, id)));
        for bad in ["", "20261120T195812Z", "20261120T195812Z-1", "2026-11-20-x"] {
            assert_eq!(parts_of_name(bad), None, "{bad}");
        }
    }
}
