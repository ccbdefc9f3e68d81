//! Two restored directories, compared page by page.
//!
//! Both are of backups of one quiet server, one taken right after the other, and neither was started.
//! So they are the same, but for what two backups at two moments must differ in:
//!
//! - `backup_label` and `global/pg_control`: each backup begins with a checkpoint of its own. What
//!   isn't a position or a time must agree.
//! - `postgresql.auto.conf`: a comment in it names the backup.
//! - `backup_manifest`: lists the two, with the time of the restore.
//! - `tablespace_map` and the links in `pg_tblspc`, where tablespaces were put in different places.
//! - *Hints* in pages, if the cluster has neither checksums nor `wal_log_hints`: what a server notes
//!   on a page while reading, writes to disk sometime, and loses without harm
//!   (`MarkBufferDirtyHint`). An incremental backup by WAL summaries doesn't know of them. They are
//!   listed in [`without_hints`], after `access/common/bufmask.c`. With checksums each is in the WAL.
//! - The cache in the first page of an SP-GiST index, with checksums too: pages where there was room
//!   lately. It is written without WAL (`SpGistUpdateMetaPage`), and a page is looked at before it
//!   is believed to have room.
//!
//! Nothing else may differ. Free space maps, visibility maps, commit logs, relation maps, and
//! initial forks are sent or compared whole and nothing writes to them meanwhile; content of
//! unlogged tables isn't in a backup.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use pgkeep::postgres::{
    backup_label::BackupLabel,
    control::ControlFile,
    page::{self, Fork, RelationFile},
};

/// The size of a page, as all builds have it.
pub const BLOCK: usize = 8192;

/// What differs between two restored directories: a path and what it is, a line each. `hints` says
/// whether hints may.
pub fn differences(one: &Path, other: &Path, hints: bool) -> Vec<String> {
    let (one, other) = (entries(one), entries(other));
    let mut found = Vec::new();
    for path in one.keys().chain(other.keys().filter(|path| !one.contains_key(*path))) {
        let difference = match (one.get(path), other.get(path)) {
            (Some(one), Some(other)) => match (one.is_dir(), other.is_dir()) {
                (true, true) => None,
                (false, false) => in_file(path, one, other, hints),
                _ => Some("is a file in one and a directory in the other".to_owned()),
            },
            (Some(_), None) => Some("is only in the first".to_owned()),
            _ => Some("is only in the second".to_owned()),
        };
        found.extend(difference.map(|difference| format!("{path} {difference}")));
    }
    found
}

/// Everything below a directory, through the links of tablespaces, by relative path.
pub fn entries(root: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            // A link counts as what it leads to: there are none but those of tablespaces.
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.insert(name, path);
        }
    }
    found
}

/// What differs between two files that have the same path in their directories.
pub fn in_file(path: &str, one: &Path, other: &Path, hints: bool) -> Option<String> {
    let read = |path: &Path| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    match path {
        "backup_manifest" | "tablespace_map" => None,
        "postgresql.auto.conf" => {
            let settings = |path| {
                let text = String::from_utf8(read(path)).unwrap();
                let named = |line: &&str| line.starts_with("# Written by pgkeep, restoring backup");
                text.lines().filter(|line| !named(line)).map(str::to_owned).collect::<Vec<_>>()
            };
            (settings(one) != settings(other)).then(|| "differs".to_owned())
        }
        "backup_label" => {
            let facts = |path| {
                let label = BackupLabel::parse(&read(path)).unwrap();
                (label.method, label.from_standby, label.timeline)
            };
            (facts(one) != facts(other)).then(|| "differs in what it is of".to_owned())
        }
        "global/pg_control" => {
            let facts = |path| {
                let control = ControlFile::parse(&read(path)).unwrap();
                let sizes = (control.block_size, control.segment_blocks, control.segment_size);
                let versions = (control.version, control.catalog_version, control.data_checksums);
                (control.system_identifier, versions, sizes, control.timeline, control.state)
            };
            (facts(one) != facts(other)).then(|| "differs in what it is of".to_owned())
        }
        _ => match RelationFile::parse(path) {
            Some(file) => in_relation(file, one, other, hints),
            None => (read(one) != read(other)).then(|| "differs".to_owned()),
        },
    }
}

/// Page by page, without holding a whole segment.
fn in_relation(file: RelationFile, one: &Path, other: &Path, hints: bool) -> Option<String> {
    let open = |path: &Path| {
        let file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let length = file.metadata().unwrap().len();
        (file, length)
    };
    let ((one, length), (other, other_length)) = (open(one), open(other));
    if length != other_length {
        return Some(format!("is {length} bytes long in one and {other_length} in the other"));
    }
    const MANY: usize = 128 * BLOCK;
    let (mut a, mut b) = (vec![0; MANY], vec![0; MANY]);
    let mut at = 0;
    while at < length {
        let count = (length - at).min(MANY as u64) as usize;
        one.read_exact_at(&mut a[..count], at).unwrap();
        other.read_exact_at(&mut b[..count], at).unwrap();
        if a[..count] != b[..count] {
            let pages = a[..count].chunks(BLOCK).zip(b[..count].chunks(BLOCK));
            for (block, (a, b)) in (at / BLOCK as u64..).zip(pages) {
                let lasting = |page| match (file.fork, hints) {
                    (Fork::Main, true) => without_hints(without_cache(page)),
                    (Fork::Main, false) => without_cache(page),
                    _ => page.to_vec(),
                };
                if a == b {
                    continue;
                }
                // What is named is the first byte that may not differ, past any that may.
                let (a, b) = (lasting(a), lasting(b));
                if let Some(byte) = a.iter().zip(&b).position(|(a, b)| a != b) {
                    return Some(format!("differs in block {block} at byte {byte}"));
                }
            }
        }
        at += count as u64;
    }
    None
}

/// A page with its hints taken out.
///
/// - In a heap page: who set a row's transaction ids aside as committed or aborted already
///   (`HEAP_XMIN_COMMITTED` and the three beside it, but not both of xmin's at once, which is
///   "frozen" and logged), `pd_prune_xid`, and of `pd_flags` "has free lines" and "is full".
/// - In a page of a B-tree, a hash or a GiST index: entries known to be dead (`LP_DEAD`), and the
///   page's flag that it has some.
fn without_hints(mut page: Vec<u8>) -> Vec<u8> {
    let special = usize::from(u16_at(&page, 16));
    if page.len() != BLOCK || page::is_new(&page) || special > BLOCK {
        return page;
    }
    let lower = usize::from(u16_at(&page, 12)).min(special);
    let lines = (24..lower.saturating_sub(3)).step_by(4);
    if special == BLOCK {
        page[10] &= !0x3;
        page[20..24].fill(0);
        for line in lines {
            let (offset, flags, length) = line_pointer(&page, line);
            // LP_NORMAL, and long enough for a row's header.
            if flags == 1 && length >= 23 && offset + length <= BLOCK {
                let mut infomask = u16_at(&page, offset + 20) & !0x0C00;
                if infomask & 0x0300 != 0x0300 {
                    infomask &= !0x0300;
                }
                page[offset + 20..offset + 22].copy_from_slice(&infomask.to_le_bytes());
            }
        }
        return page;
    }
    // The kind of the index stands in the last two bytes; a B-tree has a small number there. Of each
    // the flag "has dead entries", and those of pages that have no entries.
    let (has_dead, none) = match (BLOCK - special, u16_at(&page, BLOCK - 2)) {
        (16, 0xFF80) => (0x80, 0x0C),
        (16, 0xFF81) => (0x10, 0),
        (16, 0..=0xFF7F) => (0x40, 0x08),
        _ => return page,
    };
    let flags = u16_at(&page, special + 12);
    if flags & none != 0 {
        return page;
    }
    page[special + 12..special + 14].copy_from_slice(&(flags & !has_dead).to_le_bytes());
    for line in lines {
        let (_, flags, length) = line_pointer(&page, line);
        // LP_DEAD back to LP_NORMAL: 3 to 1, in bits 15 and 16.
        if flags == 3 && length > 0 {
            page[line + 2] &= !0x01;
        }
    }
    page
}

/// The first page of an SP-GiST index without its cache (`SpGistLUPCache`), and without its checksum,
/// which differs with it; any other page as it is.
fn without_cache(page: &[u8]) -> Vec<u8> {
    let mut page = page.to_vec();
    let is_meta = u16_at(&page, BLOCK - 2) == 0xFF82 && u16_at(&page, BLOCK - 8) & 1 != 0;
    if usize::from(u16_at(&page, 16)) == BLOCK - 8 && is_meta {
        page[8..10].fill(0);
        page[28..92].fill(0);
    }
    page
}

fn u16_at(page: &[u8], at: usize) -> u16 {
    page.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Offset, flags and length (`storage/itemid.h`).
fn line_pointer(page: &[u8], at: usize) -> (usize, u32, usize) {
    let bits = u32::from(u16_at(page, at)) | u32::from(u16_at(page, at + 2)) << 16;
    ((bits & 0x7FFF) as usize, bits >> 15 & 3, (bits >> 17) as usize)
}
