//! `backup_manifest`: the list of files that `pg_verifybackup` goes by.
//!
//! JSON in one exact shape (documentation, "Backup Manifest Format"; `backup/backup_manifest.c`),
//! closed by the SHA-256 of everything before the last line. Clusters have up to millions of files,
//! so it is written as they come and never held.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::{Lsn, Timeline, history::TimelineHistory};

/// The name of the manifest, in the data directory.
pub const BACKUP_MANIFEST: &str = "backup_manifest";

/// A stretch of WAL that a backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: Timeline,
    /// Where replay begins.
    pub start: Lsn,
    /// Where it may end.
    pub end: Lsn,
}

impl WalRange {
    /// The stretches that a backup needs which started at `start` on `start_timeline` and stopped
    /// at `end` on the timeline of `history`: newest timeline first, as the server lists them
    /// (`AddWALInfoToBackupManifest`). More than one only if it was taken from a standby whose
    /// upstream was promoted meanwhile. `None` if that history has no such way.
    pub fn of_backup(
        history: &TimelineHistory,
        start_timeline: Timeline,
        start: Lsn,
        end: Lsn,
    ) -> Option<Vec<WalRange>> {
        let mut ranges = Vec::new();
        let mut range_end = end;
        for (timeline, begin, _) in history.path().rev() {
            let is_first = timeline == start_timeline;
            let range_start = if is_first { start } else { begin };
            if range_start > range_end {
                return None;
            }
            ranges.push(WalRange { timeline, start: range_start, end: range_end });
            if is_first {
                return (begin <= start).then_some(ranges);
            }
            range_end = begin;
        }
        None
    }
}

/// The manifest's version, by the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestVersion {
    /// Up to PostgreSQL 16.
    One,
    /// From PostgreSQL 17 on: says which system it is of.
    Two,
}

impl ManifestVersion {
    /// The version that servers of this major version write.
    pub fn of_major(major: u32) -> Self {
        if major < 17 { ManifestVersion::One } else { ManifestVersion::Two }
    }
}

/// Writes a manifest file by file.
pub struct ManifestWriter<W> {
    out: W,
    hash: Sha256,
    /// What stands before the next entry.
    separator: &'static str,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins a manifest. Give a writer that buffers.
    pub fn new(out: W, version: ManifestVersion, system_identifier: u64) -> io::Result<Self> {
        let mut writer = ManifestWriter { out, hash: Sha256::new(), separator: "\n" };
        match version {
            ManifestVersion::One => {
                writer.put("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n")?;
            }
            ManifestVersion::Two => {
                writer.put("{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n")?;
                writer.put(&format!("\"System-Identifier\": {system_identifier},\n"))?;
            }
        }
        writer.put("\"Files\": [")?;
        Ok(writer)
    }

    /// Adds a file, in any order. `path` is relative to the data directory.
    pub fn file(
        &mut self,
        path: &[u8],
        size: u64,
        modified: DateTime<Utc>,
        crc32c: u32,
    ) -> io::Result<()> {
        let path = path_member(path);
        let modified = modified.format("%Y-%m-%d %H:%M:%S GMT");
        // The checksum's bytes as they lie in memory, not the number.
        let checksum = hex::encode(crc32c.to_le_bytes());
        let line = format!(
            "{}{{ {path}, \"Size\": {size}, \"Last-Modified\": \"{modified}\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}",
            self.separator
        );
        self.separator = ",\n";
        self.put(&line)
    }

    /// Adds a file with nothing but its size. That is no entry for `pg_verifybackup` to go by; it is
    /// all that a server asks of a manifest that is uploaded to it (`common/parse_manifest.c`,
    /// `json_manifest_finalize_file`).
    pub fn file_name_only(&mut self, path: &[u8], size: u64) -> io::Result<()> {
        let line = format!("{}{{ {}, \"Size\": {size} }}", self.separator, path_member(path));
        self.separator = ",\n";
        self.put(&line)
    }

    /// Where the manifest is written to, so that what was written so far can be taken out.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Ends the manifest with the WAL that the backup needs, newest timeline first, and returns the
    /// writer, flushed.
    pub fn finish(mut self, ranges: &[WalRange]) -> io::Result<W> {
        self.put("\n],\n\"WAL-Ranges\": [")?;
        let mut separator = "\n";
        for WalRange { timeline, start, end } in ranges {
            self.put(&format!(
                "{separator}{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \
                 \"End-LSN\": \"{end}\" }}"
            ))?;
            separator = ",\n";
        }
        self.put("\n],\n")?;
        let hash = hex::encode(self.hash.finalize());
        self.out.write_all(format!("\"Manifest-Checksum\": \"{hash}\"}}\n").as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.hash.update(text.as_bytes());
        self.out.write_all(text.as_bytes())
    }
}

/// The member of an entry that has its path.
fn path_member(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => format!("\"Path\": \"{}\"", escape(text)),
        Err(_) => format!("\"Encoded-Path\": \"{}\"", hex::encode(path)),
    }
}

/// A text as it stands in a JSON string.
fn escape(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| b < 0x20 || matches!(b, b'"' | b'\\')) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn manifest(version: ManifestVersion, files: &[(Vec<u8>, u64, u32)]) -> String {
        let mut writer =
            ManifestWriter::new(Vec::new(), version, 7_450_000_000_000_000_001).unwrap();
        for (path, size, crc) in files {
            writer.file(path, *size, DateTime::UNIX_EPOCH, *crc).unwrap();
        }
        let range =
            WalRange { timeline: Timeline(3), start: Lsn(0x200_0028), end: Lsn(1 << 32 | 0x100) };
        String::from_utf8(writer.finish(&[range]).unwrap()).unwrap()
    }

    #[test]
    fn a_manifest_has_the_servers_shape() {
        let files = [(b"PG_VERSION".to_vec(), 3, 0xe27b_4e99), (b"a\xFF".to_vec(), 0, 0)];
        let text = manifest(ManifestVersion::Two, &files);
        let (body, last) = text.trim_end().rsplit_once('\n').unwrap();
        let hash = hex::encode(Sha256::digest(format!("{body}\n")));
        assert_eq!(last, format!("\"Manifest-Checksum\": \"{hash}\"}}"));
        insta::assert_snapshot!(body, @r#"
        { "PostgreSQL-Backup-Manifest-Version": 2,
        "System-Identifier": 7450000000000000001,
        "Files": [
        { "Path": "PG_VERSION", "Size": 3, "Last-Modified": "1970-01-01 00:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "994e7be2" },
        { "Encoded-Path": "61ff", "Size": 0, "Last-Modified": "1970-01-01 00:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "00000000" }
        ],
        "WAL-Ranges": [
        { "Timeline": 3, "Start-LSN": "0/2000028", "End-LSN": "1/100" }
        ],
        "#);
        assert!(!manifest(ManifestVersion::of_major(16), &files).contains("System-Identifier"));
    }

    #[test]
    fn an_entry_may_be_a_name() {
        let mut writer = ManifestWriter::new(Vec::new(), ManifestVersion::Two, 7).unwrap();
        writer.file_name_only(b"base/5/1259", 8192).unwrap();
        let first = std::mem::take(writer.get_mut());
        writer.file_name_only(b"a\xFF", 0).unwrap();
        let rest = writer.finish(&[]).unwrap();
        let text = String::from_utf8([first, rest].concat()).unwrap();
        assert!(text.contains(
            "[\n{ \"Path\": \"base/5/1259\", \"Size\": 8192 },\n{ \"Encoded-Path\": \"61ff\", \"Size\": 0 }\n]"
        ));
        // The checksum is over all, wherever it was taken out.
        let (body, last) = text.trim_end().rsplit_once('\n').unwrap();
        let hash = hex::encode(Sha256::digest(format!("{body}\n")));
        assert_eq!(last, format!("\"Manifest-Checksum\": \"{hash}\"}}"));
    }

    #[test]
    fn the_wal_of_a_backup_is_listed_by_timeline() {
        let history = TimelineHistory::parse(Timeline(3), b"1\t0/100\n2\t0/200\n").unwrap();
        let ranges = |timeline, start, end| {
            let found = WalRange::of_backup(&history, Timeline(timeline), Lsn(start), Lsn(end))?;
            Some(found.iter().map(|r| (r.timeline.0, r.start.0, r.end.0)).collect::<Vec<_>>())
        };
        assert_eq!(ranges(3, 0x210, 0x220), Some(vec![(3, 0x210, 0x220)]));
        assert_eq!(ranges(2, 0x150, 0x220), Some(vec![(3, 0x200, 0x220), (2, 0x150, 0x200)]));
        assert_eq!(
            ranges(1, 0x50, 0x220),
            Some(vec![(3, 0x200, 0x220), (2, 0x100, 0x200), (1, 0x50, 0x100)])
        );
        // Not on the way: another timeline, a start behind the switch, an end before it.
        for (timeline, start, end) in
            [(4, 0x210, 0x220), (2, 0x210, 0x220), (2, 0x150, 0x180), (3, 0x150, 0x220)]
        {
            assert_eq!(ranges(timeline, start, end), None, "{timeline} {start:x} {end:x}");
        }
    }

    proptest! {
        #[test]
        fn any_names_make_valid_json(paths in prop::collection::vec(any::<Vec<u8>>(), 0..6)) {
            let files: Vec<_> = paths.into_iter().map(|p| (p, 1, 2)).collect();
            let text = manifest(ManifestVersion::One, &files);
            let json: Value = serde_json::from_str(&text).unwrap();
            for ((path, ..), entry) in files.iter().zip(json["Files"].as_array().unwrap()) {
                let found = match entry["Path"].as_str() {
                    Some(text) => text.as_bytes().to_vec(),
                    None => hex::decode(entry["Encoded-Path"].as_str().unwrap()).unwrap(),
                };
                prop_assert_eq!(path, &found);
            }
        }
    }
}
