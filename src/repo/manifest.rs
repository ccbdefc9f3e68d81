//! The manifest: the root of a backup's tree, and the list of what the tree refers to.
//!
//! Frame 0 has the facts (JSON), frame 1 the file leaves, frame 2 the reference list: backup, pack
//! and live bytes, sorted. The reference list is what expiry and deletion go by, so that they never
//! have to read a tree.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Repository,
    codec::{Malformed, Reader, put_bytes, put_varint},
    id::BackupId,
    layout::ClusterLayout,
    record::Tablespace,
    sealed::{SealedWriter, read_whole},
    tree::{BackupTable, Extent, put_extents, read_extents},
};
use crate::error::{Context, Error, Kind, Result};

/// What a restore has to know of the cluster beside its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterFacts {
    /// The manifest's format, 1.
    pub format: u32,
    /// The backup this is the manifest of.
    pub backup: BackupId,
    /// The cluster's page size in bytes.
    pub block_size: u32,
    /// Permission bits of the data directory: 0700 or 0750.
    pub directory_mode: u32,
    /// Tablespaces but the default ones.
    pub tablespaces: Vec<Tablespace>,
    /// Entries in the tree: files and directories.
    pub entries: u64,
    /// All files together, in bytes.
    pub bytes: u64,
}

/// How much of a pack a backup uses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// The backup that stored the pack.
    pub backup: BackupId,
    /// The pack's number.
    pub pack: u32,
    /// Raw bytes of it that the tree refers to.
    pub live: u64,
}

/// A backup's manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Facts of the cluster.
    pub facts: ClusterFacts,
    /// The file leaves, in order of the paths in them.
    pub leaves: Vec<Extent>,
    /// What the backup numbers in `leaves` mean.
    pub table: BackupTable,
    /// Every pack that the tree refers to, sorted.
    pub references: Vec<Reference>,
}

impl Manifest {
    /// Creates the manifest object. Returns its size in bytes.
    pub async fn create(&self, repository: &Repository, layout: &ClusterLayout) -> Result<u64> {
        let name = layout.of_backup(&self.facts.backup, "manifest");
        let facts =
            serde_json::to_vec(&self.facts).context(Kind::Internal, || "write the manifest")?;
        let mut leaves = Vec::new();
        put_extents(&mut leaves, &self.table, &self.leaves);
        let mut writer = SealedWriter::create(repository, &name).await?;
        writer.seal(&facts).await?;
        writer.seal(&leaves).await?;
        writer.seal(&encode_references(&self.references)).await?;
        writer.finish(&[]).await
    }

    /// Reads a backup's manifest.
    pub async fn read(
        repository: &Repository,
        layout: &ClusterLayout,
        backup: &BackupId,
    ) -> Result<Self> {
        let name = layout.of_backup(backup, "manifest");
        let object = read_whole(repository, &name).await?;
        let damaged = |what: String| {
            let address = repository.storage().address();
            Error::new(Kind::Damaged, format!("{name} in {address} is damaged: {what}"))
        };
        let [facts, leaves, references] = object.frames.as_slice() else {
            return Err(damaged(format!("it has {} frames", object.frames.len())));
        };
        let facts: ClusterFacts =
            serde_json::from_slice(facts).map_err(|e| damaged(e.to_string()))?;
        if facts.format != 1 || facts.backup != *backup {
            return Err(damaged(format!(
                "it says format {}, backup {}",
                facts.format, facts.backup
            )));
        }
        let mut table = BackupTable::default();
        let leaves = read_extents(leaves, &mut table).map_err(|e| damaged(e.to_string()))?;
        let references = decode_references(references).map_err(|e| damaged(e.to_string()))?;
        Ok(Manifest { facts, leaves, table, references })
    }
}

fn encode_references(references: &[Reference]) -> Vec<u8> {
    let mut by_backup: BTreeMap<&BackupId, Vec<&Reference>> = BTreeMap::new();
    for reference in references {
        by_backup.entry(&reference.backup).or_default().push(reference);
    }
    let mut out = Vec::new();
    put_varint(&mut out, by_backup.len() as u64);
    for (backup, references) in by_backup {
        put_bytes(&mut out, backup.as_str().as_bytes());
        put_varint(&mut out, references.len() as u64);
        for reference in references {
            put_varint(&mut out, reference.pack.into());
            put_varint(&mut out, reference.live);
        }
    }
    out
}

fn decode_references(bytes: &[u8]) -> Result<Vec<Reference>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut references = Vec::new();
    for _ in 0..reader.count("references")? {
        let malformed = reader.malformed("backup id");
        let backup: BackupId = reader.text("backup id")?.parse().map_err(|_| malformed)?;
        for _ in 0..reader.count("references")? {
            let (pack, live) = (reader.number("pack")?, reader.varint("live bytes")?);
            references.push(Reference { backup: backup.clone(), pack, live });
        }
    }
    reader.end("references")?;
    if !references.is_sorted() {
        return Err(reader.malformed("references"));
    }
    Ok(references)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_lists_come_back() {
        let id = |s: &str| s.parse::<BackupId>().unwrap();
        let reference = |backup: &str, pack, live| Reference { backup: id(backup), pack, live };
        let list = vec![
            reference("20261120T195812Z-full", 0, 7),
            reference("20261120T195812Z-full", 300, 1 << 40),
            reference("20261121T195812Z-incr", 1, 0),
        ];
        let bytes = encode_references(&list);
        assert_eq!(decode_references(&bytes), Ok(list));
        for cut in 0..bytes.len() {
            assert!(decode_references(&bytes[..cut]).is_err());
        }
    }
}
