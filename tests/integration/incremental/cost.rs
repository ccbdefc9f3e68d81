//! What an incremental backup has to cost, from how two restored directories differ.

use std::{fs, os::unix::fs::FileExt, path::Path};

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
            let earlier = before.get(&name).filter(|path| path.is_file());
            let Changed { len, pages, bytes } =
                Changed::between(earlier.map(|path| &**path), &path);
            cost.changed += bytes;
            let in_pages = RelationFile::parse(&name)
                .is_some_and(|file| matches!(file.fork, Fork::Main | Fork::Init));
            // The summaries aren't relied on for what was made shorter.
            let shorter = earlier.is_some_and(|path| fs::metadata(path).unwrap().len() > len);
            let few = !shorter && pages * 10 <= len / BLOCK as u64 * 9;
            cost.sent += match pages {
                _ if earlier.is_none() || !in_pages || !few => len.next_multiple_of(512),
                0 => 512,
                count => (count + 1) * BLOCK as u64,
            };
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

/// How a file differs from an earlier one.
struct Changed {
    /// How long it is.
    len: u64,
    /// How many pages the earlier one doesn't have in the same place.
    pages: u64,
    /// The bytes of those that hold anything.
    bytes: u64,
}

impl Changed {
    /// Page by page, without holding a whole segment.
    fn between(before: Option<&Path>, now: &Path) -> Self {
        const MANY: usize = 128 * BLOCK;
        let open = |path: &Path| fs::File::open(path).unwrap();
        let (before, now) = (before.map(open), open(now));
        let size = |file: &fs::File| file.metadata().unwrap().len();
        let (earlier, len) = (before.as_ref().map_or(0, size), size(&now));
        let mut changed = Changed { len, pages: 0, bytes: 0 };
        let (mut a, mut b) = (vec![0; MANY], vec![0; MANY]);
        for at in (0..len).step_by(MANY) {
            let there = earlier.saturating_sub(at).min(MANY as u64) as usize;
            let count = (len - at).min(MANY as u64) as usize;
            if let Some(before) = &before {
                before.read_exact_at(&mut a[..there], at).unwrap();
            }
            now.read_exact_at(&mut b[..count], at).unwrap();
            if a[..there].starts_with(&b[..count]) {
                continue;
            }
            for (number, page) in b[..count].chunks(BLOCK).enumerate() {
                let there = a[..there].get(number * BLOCK..).unwrap_or_default();
                if !there.starts_with(page) {
                    changed.pages += 1;
                    let holds = page.iter().any(|byte| *byte != 0);
                    changed.bytes += if holds { page.len() as u64 } else { 0 };
                }
            }
        }
        changed
    }
}
