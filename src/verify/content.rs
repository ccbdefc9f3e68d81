//! Reading the content of what isn't sealed, and of all packs with their trees.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Run,
    findings::{Finding, damage},
    lost_pack,
    packs::{Pack, ReadPack, read},
    pool::Pool,
    report::{Notice, ProblemKind},
    tree::{PackId, Trees, Used, Wanted},
};
use crate::{
    error::Result,
    repo::{
        BackupId, Repository,
        lease::Lease,
        named::Named,
        record::{BackupRecord, BadPages},
        tree::BlockHasher,
    },
    storage::{Listed, Range},
};

/// Of each backup, how many places that a damaged frame has are looked for.
const PLACES: usize = 10_000;

/// Looks at an object that isn't sealed.
pub async fn plain(
    repository: &Repository,
    kind: &Named,
    object: &Listed,
) -> Result<Option<Finding>> {
    let damaged = |what: String| Finding::of(ProblemKind::Damaged, &object.name, what);
    Ok(match kind {
        Named::Keys(number) => repository
            .check_keys_object(&object.name, *number)
            .await?
            .map(damaged)
            .map(|finding| finding.hint("restore it from a copy of the repository")),
        Named::Lease(id) => {
            let bytes = match repository.storage().read(&object.name, Range::All).await {
                Ok(bytes) => bytes,
                Err(e) if e.is_not_found() => return Ok(None),
                Err(e) => return Err(e.into()),
            };
            let wrong = match serde_json::from_slice::<Lease>(&bytes) {
                Err(e) => Some(e.to_string()),
                Ok(lease) if lease.id != *id => Some(format!("it is lease {}", lease.id)),
                Ok(_) => None,
            };
            wrong.map(damaged).map(|finding| {
                finding.hint("nothing is lost with a lease; remove it if no backup is being taken")
            })
        }
        _ => None,
    })
}

impl Run<'_> {
    /// Walks the trees and reads the packs.
    pub(super) async fn read_packs(&mut self, packs: Vec<(BackupId, u32, u64)>) -> Result<()> {
        let mut trees = Trees::new(self.repository, self.layout, self.request.blocks_at_once);
        for (record, manifest) in &self.backups.whole {
            trees.rule(record);
            trees.add(record.clone(), manifest.clone());
        }
        self.backups.others.iter().for_each(|record| trees.rule(record));
        let (findings, mut all) = trees.check().await?;
        self.done.findings.extend(findings);
        let mut ids = BTreeMap::new();
        for (id, pack, size) in packs {
            ids.insert((trees.table.number(&id), pack), size);
        }
        let mut read = Vec::new();
        for group in groups(&ids, &trees.blocks, self.request.blocks_at_once as u64) {
            let mut wanted = match all.take() {
                Some(all) => all,
                None => {
                    let (wanted, findings) = trees.collect(&group).await?;
                    self.done.findings.extend(findings);
                    wanted
                }
            };
            wanted.sort_unstable();
            wanted.dedup();
            self.read_group(&trees, &ids, &group, Arc::new(wanted), &mut read).await?;
        }
        self.tell(&mut trees, read).await
    }

    async fn read_group(
        &mut self,
        trees: &Trees,
        sizes: &BTreeMap<PackId, u64>,
        group: &BTreeSet<PackId>,
        wanted: Arc<Vec<Wanted>>,
        found: &mut Vec<ReadPack>,
    ) -> Result<()> {
        let hasher = BlockHasher::new(self.repository.keyring());
        let mut pool = Pool::new(self.reads_at_once());
        for id in group {
            let Some(name) = trees.pack(*id) else { continue };
            let pack = Pack {
                id: Some(*id),
                name,
                stored: sizes.get(id).copied().unwrap_or_default(),
                wanted: wanted.clone(),
                rule: trees.rules.get(&id.0).copied(),
            };
            let (repository, hasher) = (self.repository.clone(), hasher.clone());
            found.extend(pool.add(read(repository, hasher, pack, self.progress.clone())).await?);
        }
        while let Some(pack) = pool.next().await? {
            found.push(pack);
        }
        Ok(())
    }

    /// Tells what is wrong in the packs, and whom that costs what.
    async fn tell(&mut self, trees: &mut Trees, read: Vec<ReadPack>) -> Result<()> {
        let mut frames = BTreeSet::new();
        for pack in &read {
            let Some((backup, number)) = pack.id else { continue };
            let bad = pack.wrong.frames.iter().flatten();
            frames.extend(bad.map(|frame| (backup, number, *frame)));
            let pages = pack.wrong.pages.iter().map(|wanted| wanted.place);
            frames.extend(pages.map(|place| (place.backup, place.pack, place.frame)));
        }
        let used = match frames.is_empty() {
            true => Vec::new(),
            false => match trees.users(&frames, PLACES).await {
                Ok(used) => used,
                // A tree that could be read before can't be read any more: it is being deleted.
                Err(e) => damage(e).map(|_| Vec::new())?,
            },
        };
        for pack in read {
            self.done.checked.add(pack.done.checked);
            self.tell_one(trees, &pack, &used);
        }
        Ok(())
    }

    fn tell_one(&mut self, trees: &Trees, pack: &ReadPack, used: &[Used]) {
        let Some((number, id)) =
            pack.id.and_then(|(number, pack)| Some((pack, trees.table.get(number)?.clone())))
        else {
            return;
        };
        let of_list = self.backups.users.get(&(id.clone(), number)).cloned().unwrap_or_default();
        if pack.gone {
            if !of_list.is_empty() {
                let finding = Finding::missing(&pack.name, "this pack is missing");
                self.done.findings.push(lost_pack(finding, &id, of_list));
            }
            return;
        }
        let here = |used: &&Used| Some((used.place.backup, used.place.pack)) == pack.id;
        if let Some(what) = &pack.wrong.damaged {
            let mut users: BTreeSet<BackupId> = match &pack.wrong.frames {
                // Only those whose files have something in what is damaged.
                Some(frames) => used
                    .iter()
                    .filter(here)
                    .filter(|used| frames.contains(&used.place.frame))
                    .map(|used| used.backup.clone())
                    .collect(),
                None => of_list.clone(),
            };
            // And those of which that isn't known.
            let unknown =
                trees.roots.iter().filter(|root| !root.walked).map(|root| &root.record.id);
            users.extend(unknown.filter(|id| of_list.contains(id)).cloned());
            let text = match &pack.wrong.frames {
                Some(frames) if frames.len() > 1 => {
                    format!("{what}; {} of its frames are damaged", frames.len())
                }
                _ => what.clone(),
            };
            let finding = Finding::of(ProblemKind::Damaged, &pack.name, text);
            self.done.findings.push(lost_pack(finding, &id, users));
        }
        self.tell_pages(pack, &id, used);
    }

    /// Pages whose checksum is wrong: known from the backup, or not.
    fn tell_pages(&mut self, pack: &ReadPack, id: &BackupId, used: &[Used]) {
        // What the backup knew that stored them, or one that uses them and knew it from there.
        let known: Vec<&BadPages> = used
            .iter()
            .map(|used| &used.backup)
            .chain([id])
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter_map(|id| self.record(id).map(|record| &record.bad_pages))
            .collect();
        let unnamed = known.iter().any(|known| known.count > known.pages.len() as u64);
        let (mut first, mut count, mut touches) = (None, 0u64, BTreeSet::new());
        let mut recorded = 0u64;
        for wanted in &pack.wrong.pages {
            let of_page: Vec<&Used> =
                used.iter().filter(|used| used.place == wanted.place).collect();
            let is_known = unnamed
                || of_page.iter().any(|used| {
                    let mut pages = known.iter().flat_map(|known| &known.pages);
                    pages.any(|page| page.path == used.path && page.page == used.block)
                });
            if is_known {
                recorded += 1;
                continue;
            }
            count += 1;
            first = first.or(of_page.first().map(|used| (used.path.clone(), used.block)));
            touches.extend(of_page.into_iter().map(|used| used.backup.clone()));
        }
        if recorded > 0 {
            let text = format!(
                "{} a wrong checksum, as was known when the backup was taken",
                pages_have(recorded)
            );
            self.done.notices.push(Notice { object: pack.name.to_string(), text });
        }
        if count == 0 {
            return;
        }
        let first = first.map(|(path, block)| format!(", the first is page {block} of {path}"));
        let text = format!(
            "{} a wrong checksum{}; that is how the server sent it",
            pages_have(count),
            first.unwrap_or_default()
        );
        let finding =
            Finding { touches, ..Finding::of(ProblemKind::PageChecksum, &pack.name, text) };
        self.done.findings.push(finding.in_folder(id).hint(
            "the cluster itself may be damaged: run pg_amcheck and `pg_checksums --check` on it, and keep \
             older backups",
        ));
    }

    fn record(&self, id: &BackupId) -> Option<&BackupRecord> {
        let whole = self.backups.whole.iter().map(|(record, _)| record);
        whole.chain(&self.backups.others).find(|record| record.id == *id)
    }
}

/// So many pages of a pack, as a sentence begins.
fn pages_have(count: u64) -> String {
    match count {
        1 => "1 page in it has".to_owned(),
        n => format!("{n} pages in it have"),
    }
}

/// Packs in groups whose blocks can be known at a time.
fn groups(
    packs: &BTreeMap<PackId, u64>,
    blocks: &BTreeMap<PackId, u64>,
    most: u64,
) -> Vec<BTreeSet<PackId>> {
    let mut groups: Vec<BTreeSet<PackId>> = Vec::new();
    let mut room = 0u64;
    for pack in packs.keys() {
        let needs = blocks.get(pack).copied().unwrap_or_default();
        match groups.last_mut() {
            Some(group) if needs <= room => {
                group.insert(*pack);
                room -= needs;
            }
            _ => {
                groups.push(BTreeSet::from([*pack]));
                room = most.saturating_sub(needs);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_are_grouped_by_what_has_to_be_known_of_them() {
        let most = 100;
        let packs =
            BTreeMap::from([((0, 0), 1), ((0, 1), 1), ((0, 2), 1), ((1, 0), 1), ((1, 1), 1)]);
        let blocks = BTreeMap::from([
            ((0, 0), most / 2),
            ((0, 1), most / 2),
            ((0, 2), 1),
            ((1, 1), 3 * most),
        ]);
        let groups: Vec<Vec<PackId>> =
            groups(&packs, &blocks, most).into_iter().map(|g| g.into_iter().collect()).collect();
        assert_eq!(groups, [vec![(0, 0), (0, 1)], vec![(0, 2), (1, 0)], vec![(1, 1)]]);
    }
}
