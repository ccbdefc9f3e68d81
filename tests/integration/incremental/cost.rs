//! What an incremental backup has to cost, from how two restored directories differ.

use std::{fs, path::Path};

use pgkeep::postgres::page::{Fork, RelationFile};
use serde_json::Value;

use super::compare::{BLOCK, entries};

/// What has to be sent and stored of a directory to somebody who has an earlier one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of a stream that has changed pages only, if the server knows exactly which those are
    /// (documentation, "Incremental Backup"; `GetFileBackupMethod`).
    pub sent: u64,
    /// Bytes of pages that the earlier directory doesn't have in the same place.
    pub changed: u64,
}

impl Cost {
    /// Of the restored directory `now`, beside `before`.
    pub fn between(before: &Path, now: &Path) -> Self {
        let before = entries(before);
        let mut cost = Cost::default();
        for (name, path) in entries(now) {
            // A header and padding in the tar stream.
            cost.sent += 512;
            // Made by the restore.
            if path.is_dir() || name == "backup_manifest" || name == "recovery.signal" {
                continue;
            }
            let now = fs::read(path).unwrap();
            let earlier = before.get(&name).filter(|path| path.is_file());
            let earlier = earlier.map(|path| fs::read(path).unwrap());
            let pages = now.chunks(BLOCK).enumerate();
            let changed: Vec<_> = pages
                .filter(|(number, page)| {
                    let there = earlier.as_ref().and_then(|file| file.get(number * BLOCK..));
                    !there.is_some_and(|there| there.starts_with(page))
                })
                .map(|(_, page)| page)
                .collect();
            let zero = |page: &&&[u8]| page.iter().all(|byte| *byte == 0);
            let bytes: usize =
                changed.iter().filter(|page| !zero(page)).map(|page| page.len()).sum();
            cost.changed += bytes as u64;
            let in_pages = RelationFile::parse(&name)
                .is_some_and(|file| matches!(file.fork, Fork::Main | Fork::Init));
            let few = changed.len() * 10 <= now.len() / BLOCK * 9;
            cost.sent += match changed.len() {
                _ if earlier.is_none() || !in_pages || !few => now.len().next_multiple_of(512),
                0 => 512,
                count => (count + 1) * BLOCK,
            } as u64;
        }
        cost
    }

    /// That the backup of this record cost what it had to, and not much more: of pages that were
    /// written and came out as they had been nobody knows.
    pub fn assert_paid(&self, record: &Value) {
        let sizes = &record["sizes"];
        let said = |what: &str| sizes[what].as_u64().unwrap();
        let within = |paid: u64, due: u64| paid <= due + due / 100 + (32 << 10);
        assert!(within(said("changed"), self.changed), "{self:?}: {record}");
        if record["way"] == "summaries" {
            assert!(within(said("sent"), self.sent), "{self:?}: {record}");
        }
    }
}
