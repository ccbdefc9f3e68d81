//! `global/pg_control`: what a cluster is, and where its recovery begins.
//!
//! One C structure, `ControlFileData` (`catalog/pg_control.h`), on x86-64 and its kin, closed by a
//! CRC-32C of what is before it. Up to version 18 only the end of it moved. The server overwrites it
//! in place, so an outside reader may find it torn; [`ControlFile::read`] reads again then, as the
//! server's own tools do (`common/controldata_utils.c`).

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    thread,
    time::Duration,
};

use crc_fast::crc32_iscsi;

use super::{Lsn, SegmentSize, Timeline};

/// Where the file lies, relative to the data directory.
pub const CONTROL_FILE: &str = "global/pg_control";

/// How much of the file matters; the rest is padding (`PG_CONTROL_MAX_SAFE_SIZE`).
const SAFE_SIZE: usize = 512;

/// How often a file with a wrong checksum is read again, and how long to wait in between.
const RETRIES: usize = 10;
const RETRY_WAIT: Duration = Duration::from_millis(10);

/// The parts of the control file that a backup or a restore asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The number that initdb gave the cluster.
    pub system_identifier: u64,
    /// The control file's version (`PG_CONTROL_VERSION`).
    pub version: u32,
    /// The catalog version (`CATALOG_VERSION_NO`).
    pub catalog_version: u32,
    /// What the server was doing when it last wrote the file.
    pub state: ClusterState,
    /// Where the latest checkpoint's record is.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of the checkpoint.
    pub timeline: Timeline,
    /// In recovery: how far replay has to come at least.
    pub min_recovery: Lsn,
    /// The timeline of `min_recovery`; `None` where that is unset.
    pub min_recovery_timeline: Option<Timeline>,
    /// In the recovery of a base backup that hasn't come to the end of the backup: where that began.
    pub backup_start: Option<Lsn>,
    /// Bytes in a page.
    pub block_size: u32,
    /// Pages in a segment of a relation (`RELSEG_SIZE`).
    pub segment_blocks: u32,
    /// Bytes in a page of WAL.
    pub wal_block_size: u32,
    /// Bytes in a WAL segment.
    pub segment_size: SegmentSize,
    /// Whether pages carry checksums that may be verified.
    pub data_checksums: bool,
    /// What a server that recovers this has to allow at least.
    pub limits: Limits,
}

/// The settings that a standby has to have as high as its primary (documentation, "Administrator's
/// Overview" of "Hot Standby"); whoever recovers prepared transactions needs room for them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

/// Where the limits begin, before the size of a page: five numbers, then whether commits carry
/// times, the alignment and a floating-point number.
const LIMITS_BEFORE_BLOCK_SIZE: usize = 36;

/// `DBState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Starting up.
    StartingUp,
    /// Shut down.
    ShutDown,
    /// A standby that was shut down.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// In crash recovery.
    InCrashRecovery,
    /// In archive recovery: a standby, or a point-in-time recovery.
    InArchiveRecovery,
    /// A running primary.
    InProduction,
}

/// The control file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It can't be read.
    #[error("read {path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is shorter than a control file.
    #[error("the control file has {0} bytes, too few")]
    TooShort(usize),
    /// A version this doesn't know, or bytes in another order.
    #[error("the control file has version {0}, which isn't supported")]
    Version(u32),
    /// It is damaged, or was torn at every attempt to read it.
    #[error("the control file has a wrong checksum")]
    Checksum,
    /// A field can't be what it is.
    #[error("the control file has an impossible {0}")]
    Field(&'static str),
    /// `PG_VERSION` doesn't hold a major version.
    #[error("{path} holds {content:?}, not a major version")]
    MajorVersion {
        /// Which file.
        path: String,
        /// What is in it.
        content: String,
    },
}

/// Where the fields are that moved.
struct Offsets {
    min_recovery: usize,
    block_size: usize,
    wal_block_size: usize,
    checksums: usize,
    crc: usize,
}

impl Offsets {
    fn of(version: u32) -> Option<Self> {
        let (min_recovery, block_size, wal_block_size, checksums, crc) = match version {
            1300 | 1700 => (136, 216, 224, 252, 288),
            1800 => (136, 216, 224, 252, 292),
            1902 => (144, 224, 236, 264, 304),
            _ => return None,
        };
        Some(Offsets { min_recovery, block_size, wal_block_size, checksums, crc })
    }
}

impl ControlFile {
    /// Reads the file's bytes and checks their checksum.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let word = |at| {
            let found = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
            found.map(u32::from_le_bytes).ok_or(ControlError::TooShort(bytes.len()))
        };
        let long = |at| Ok(u64::from(word(at)?) | u64::from(word(at + 4)?) << 32);
        let lsn = |at| long(at).map(Lsn);
        let version = word(8)?;
        let offsets = Offsets::of(version).ok_or(ControlError::Version(version))?;
        let covered = bytes.get(..offsets.crc).ok_or(ControlError::TooShort(bytes.len()))?;
        if crc32_iscsi(covered) != word(offsets.crc)? {
            return Err(ControlError::Checksum);
        }
        let state = match word(16)? {
            0 => ClusterState::StartingUp,
            1 => ClusterState::ShutDown,
            2 => ClusterState::ShutDownInRecovery,
            3 => ClusterState::ShuttingDown,
            4 => ClusterState::InCrashRecovery,
            5 => ClusterState::InArchiveRecovery,
            6 => ClusterState::InProduction,
            _ => return Err(ControlError::Field("state")),
        };
        let limit = |i: usize| word(offsets.block_size - LIMITS_BEFORE_BLOCK_SIZE + 4 * i);
        let nonzero = |n, field| if n == 0 { Err(ControlError::Field(field)) } else { Ok(n) };
        Ok(ControlFile {
            system_identifier: long(0)?,
            version,
            catalog_version: word(12)?,
            state,
            checkpoint: lsn(32)?,
            redo: lsn(40)?,
            timeline: Timeline(nonzero(word(48)?, "timeline")?),
            min_recovery: lsn(offsets.min_recovery)?,
            min_recovery_timeline: Some(word(offsets.min_recovery + 8)?)
                .filter(|t| *t != 0)
                .map(Timeline),
            backup_start: Some(lsn(offsets.min_recovery + 16)?).filter(|lsn| *lsn != Lsn::INVALID),
            block_size: nonzero(word(offsets.block_size)?, "block size")?,
            segment_blocks: nonzero(word(offsets.block_size + 4)?, "relation segment size")?,
            wal_block_size: nonzero(word(offsets.wal_block_size)?, "WAL block size")?,
            segment_size: SegmentSize::new(word(offsets.wal_block_size + 4)?.into())
                .ok_or(ControlError::Field("WAL segment size"))?,
            // 19 has 2 and 3 for being switched off and on: not every page has one then.
            data_checksums: word(offsets.checksums)? == 1,
            limits: Limits {
                max_connections: limit(0)?,
                max_worker_processes: limit(1)?,
                max_wal_senders: limit(2)?,
                max_prepared_transactions: limit(3)?,
                max_locks_per_transaction: limit(4)?,
            },
        })
    }

    /// Reads the control file of a data directory. While its checksum is wrong it is read again, up
    /// to ten times: the server may be writing it.
    pub fn read(pgdata: &Path) -> Result<Self, ControlError> {
        let path = pgdata.join(CONTROL_FILE);
        let mut before = None;
        for _ in 0..RETRIES {
            let bytes = read_start(&path)?;
            match ControlFile::parse(&bytes) {
                // The same wrong bytes twice aren't torn, they are wrong.
                Err(ControlError::Checksum) if before.as_ref() != Some(&bytes) => {
                    before = Some(bytes);
                    thread::sleep(RETRY_WAIT);
                }
                result => return result,
            }
        }
        Err(ControlError::Checksum)
    }

    /// The server's major version: from the control file's version, and where several share one,
    /// the catalog version. `None` for one that was never released.
    pub fn major(&self) -> Option<u32> {
        match (self.version, self.catalog_version) {
            (1300, 202007201) => Some(13),
            (1300, 202107181) => Some(14),
            (1300, 202209061) => Some(15),
            (1300, 202307071) => Some(16),
            (1700, _) => Some(17),
            (1800, _) => Some(18),
            (1902, _) => Some(19),
            _ => None,
        }
    }
}

fn read_start(path: &Path) -> Result<Vec<u8>, ControlError> {
    let mut bytes = Vec::with_capacity(SAFE_SIZE);
    File::open(path)
        .and_then(|file| file.take(SAFE_SIZE as u64).read_to_end(&mut bytes))
        .map_err(|source| ControlError::Io { path: path.display().to_string(), source })?;
    Ok(bytes)
}

/// The major version in a data directory's `PG_VERSION`.
pub fn read_major(pgdata: &Path) -> Result<u32, ControlError> {
    let path = pgdata.join("PG_VERSION");
    let bytes = read_start(&path)?;
    let content = String::from_utf8_lossy(&bytes);
    content.trim_end().parse().map_err(|_| ControlError::MajorVersion {
        path: path.display().to_string(),
        content: content.into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A control file of this version with plausible fields.
    fn control(version: u32, catalog: u32) -> Vec<u8> {
        let o = Offsets::of(version).unwrap();
        let mut bytes = vec![0; 8192];
        let mut put = |at: usize, word: u32| bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        put(0, 7);
        put(4, 1);
        put(8, version);
        put(12, catalog);
        put(16, 6);
        put(32, 0x80);
        put(36, 2);
        put(40, 0x28);
        put(44, 2);
        put(48, 3);
        put(o.block_size, 8192);
        put(o.block_size + 4, 131_072);
        put(o.wal_block_size, 8192);
        put(o.wal_block_size + 4, 64 << 20);
        put(o.checksums, 1);
        for i in 0..5 {
            put(o.block_size - LIMITS_BEFORE_BLOCK_SIZE + 4 * i, 100 + i as u32);
        }
        seal(&mut bytes);
        bytes
    }

    fn seal(bytes: &mut [u8]) {
        let version = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
        let Some(o) = Offsets::of(version) else { return };
        let crc = crc32_iscsi(&bytes[..o.crc]);
        bytes[o.crc..o.crc + 4].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn every_layout_is_read() {
        for (version, catalog, major) in [
            (1300, 202007201, 13),
            (1300, 202209061, 15),
            (1300, 202307071, 16),
            (1700, 202406281, 17),
            (1800, 202506291, 18),
            (1902, 202606301, 19),
        ] {
            let control = ControlFile::parse(&control(version, catalog)).unwrap();
            assert_eq!(control.major(), Some(major));
            assert_eq!(control.system_identifier, 1 << 32 | 7);
            assert_eq!(control.state, ClusterState::InProduction);
            assert_eq!(
                (control.checkpoint, control.redo),
                (Lsn(2 << 32 | 0x80), Lsn(2 << 32 | 0x28))
            );
            assert_eq!((control.timeline, control.min_recovery_timeline), (Timeline(3), None));
            assert_eq!((control.block_size, control.segment_blocks), (8192, 131_072));
            assert_eq!(control.segment_size.bytes(), 64 << 20);
            assert!(control.data_checksums);
            assert_eq!(control.limits.max_connections, 100);
            assert_eq!(control.limits.max_locks_per_transaction, 104);
        }
    }

    #[test]
    fn a_changed_byte_is_seen() {
        let good = control(1300, 202209061);
        for at in 12..292 {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(matches!(ControlFile::parse(&bad), Err(ControlError::Checksum)), "{at}");
        }
        assert!(matches!(ControlFile::parse(&good[..200]), Err(ControlError::TooShort(200))));
    }

    #[test]
    fn a_file_that_stays_wrong_is_refused_soon() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("global")).unwrap();
        let mut bytes = control(1800, 202506291);
        std::fs::write(dir.path().join(CONTROL_FILE), &bytes).unwrap();
        assert!(ControlFile::read(dir.path()).is_ok());
        bytes[60] ^= 1;
        std::fs::write(dir.path().join(CONTROL_FILE), &bytes).unwrap();
        assert!(matches!(ControlFile::read(dir.path()), Err(ControlError::Checksum)));
        std::fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        assert_eq!(read_major(dir.path()).unwrap(), 15);
        std::fs::write(dir.path().join("PG_VERSION"), "9.6\n").unwrap();
        assert!(read_major(dir.path()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..600),
            version in prop::sample::select(vec![1300u32, 1700, 1800, 1902, 9]),
        ) {
            let _ = ControlFile::parse(&bytes);
            if bytes.len() > 400 {
                bytes[8..12].copy_from_slice(&version.to_le_bytes());
                seal(&mut bytes);
                let _ = ControlFile::parse(&bytes);
            }
        }
    }
}
