//! `backup_label` and `tablespace_map`: what a backup has that a data directory hasn't.
//!
//! `backup_label` says where recovery begins (`access/xlogbackup.c`, `build_backup_content`); without
//! it the server would start from the control file's checkpoint and end up silently corrupt.
//! `tablespace_map` has a line for each tablespace's link, which the server makes when it starts.

use super::{Lsn, SegmentName, Timeline};

/// The name of the label file, in the data directory.
pub const BACKUP_LABEL: &str = "backup_label";

/// The name of the tablespace map, in the data directory.
pub const TABLESPACE_MAP: &str = "tablespace_map";

/// A parsed `backup_label`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// The WAL segment that `start_lsn` is in.
    pub start_segment: SegmentName,
    /// Where the checkpoint's record is.
    pub checkpoint: Lsn,
    /// How it was made: `streamed`, or `pg_rewind`.
    pub method: String,
    /// Whether the backup was taken from a standby.
    pub from_standby: bool,
    /// When it began, in the server's log time zone: for people, it can't be read back safely.
    pub start_time: String,
    /// The label given by whoever took it.
    pub label: String,
    /// The timeline at its start.
    pub timeline: Timeline,
}

/// A label or a map isn't what the server writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A line is missing, or what it says isn't possible.
    #[error("backup_label has no valid line {0:?}")]
    Line(&'static str),
    /// The segment's name and the timeline disagree.
    #[error("backup_label names timeline {0}, but a segment of timeline {1}")]
    Timeline(Timeline, Timeline),
    /// It belongs to a part of a backup: a data directory made of it can't start.
    #[error("backup_label is of an incremental backup, which is no data directory by itself")]
    Incremental,
    /// A line of the tablespace map isn't `<oid> <path>`.
    #[error("tablespace_map has an invalid line {0:?}")]
    Map(String),
}

impl BackupLabel {
    /// Reads a `backup_label`. The label itself may hold any bytes but a newline.
    pub fn parse(bytes: &[u8]) -> Result<Self, LabelError> {
        let text = String::from_utf8_lossy(bytes);
        let value = |name: &'static str| {
            text.split('\n')
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .ok_or(LabelError::Line(name))
        };
        let position = |name: &'static str, text: &str| -> Result<Lsn, LabelError> {
            text.parse().map_err(|_| LabelError::Line(name))
        };
        const START: &str = "START WAL LOCATION";
        let (start, file) = value(START)?.split_once(" (file ").ok_or(LabelError::Line(START))?;
        let start_segment: SegmentName = file
            .strip_suffix(')')
            .and_then(|name| name.parse().ok())
            .ok_or(LabelError::Line(START))?;
        const CHECKPOINT: &str = "CHECKPOINT LOCATION";
        const FROM: &str = "BACKUP FROM";
        const TIMELINE: &str = "START TIMELINE";
        let from_standby = match value(FROM)? {
            "primary" => false,
            "standby" => true,
            _ => return Err(LabelError::Line(FROM)),
        };
        let timeline = value(TIMELINE)?.parse().map_err(|_| LabelError::Line(TIMELINE))?;
        let timeline = Timeline(timeline);
        if start_segment.timeline != timeline {
            return Err(LabelError::Timeline(timeline, start_segment.timeline));
        }
        if value("INCREMENTAL FROM LSN").is_ok() {
            return Err(LabelError::Incremental);
        }
        Ok(BackupLabel {
            start_lsn: position(START, start)?,
            start_segment,
            checkpoint: position(CHECKPOINT, value(CHECKPOINT)?)?,
            method: value("BACKUP METHOD")?.to_owned(),
            from_standby,
            start_time: value("START TIME")?.to_owned(),
            label: value("LABEL")?.to_owned(),
            timeline,
        })
    }
}

/// The label of a backup that was sent as an incremental one, for the files it makes with those of the
/// earlier backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletedLabel {
    /// The label without the lines that keep a server from starting on it.
    pub label: Vec<u8>,
    /// The earlier backup's start and its timeline, as those lines say; `None` where there are none.
    pub base: Option<(Lsn, Timeline)>,
}

/// Reads what a label says of the earlier backup, and takes it out.
pub fn complete_label(bytes: &[u8]) -> Result<CompletedLabel, LabelError> {
    const LSN: &str = "INCREMENTAL FROM LSN";
    const TIMELINE: &str = "INCREMENTAL FROM TLI";
    let (mut label, mut lsn, mut timeline) = (Vec::new(), None, None);
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let text = String::from_utf8_lossy(line);
        let value = |name: &str| text.trim_end().strip_prefix(name)?.strip_prefix(": ");
        if let Some(value) = value(LSN) {
            lsn = Some(value.parse().map_err(|_| LabelError::Line(LSN))?);
        } else if let Some(value) = value(TIMELINE) {
            timeline = Some(Timeline(value.parse().map_err(|_| LabelError::Line(TIMELINE))?));
        } else {
            label.extend_from_slice(line);
        }
    }
    match (lsn, timeline) {
        (Some(_), None) => Err(LabelError::Line(TIMELINE)),
        (None, Some(_)) => Err(LabelError::Line(LSN)),
        (lsn, timeline) => Ok(CompletedLabel { label, base: lsn.zip(timeline) }),
    }
}

/// A line of `tablespace_map`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceLink {
    /// The tablespace's id.
    pub oid: u32,
    /// Where its link leads: an absolute path, or `pg_tblspc/<oid>` for one that lies in place.
    pub path: Vec<u8>,
}

/// Reads a `tablespace_map` (`access/transam/xlogrecovery.c`, `read_tablespace_map`): newlines,
/// carriage returns and backslashes in a path stand behind a backslash; the first space ends the id.
pub fn parse_tablespace_map(bytes: &[u8]) -> Result<Vec<TablespaceLink>, LabelError> {
    let mut links = Vec::new();
    let mut line = Vec::new();
    let mut escaped = false;
    for &byte in bytes {
        match byte {
            _ if escaped => {
                line.push(byte);
                escaped = false;
            }
            b'\\' => escaped = true,
            b'\n' | b'\r' if line.is_empty() => {}
            b'\n' | b'\r' => links.push(parse_link(&std::mem::take(&mut line))?),
            _ => line.push(byte),
        }
    }
    if escaped || !line.is_empty() {
        return Err(LabelError::Map(String::from_utf8_lossy(&line).into_owned()));
    }
    Ok(links)
}

fn parse_link(line: &[u8]) -> Result<TablespaceLink, LabelError> {
    let parse = || {
        let space = line.iter().position(|b| *b == b' ')?;
        let oid = std::str::from_utf8(&line[..space]).ok()?;
        let digits = oid.bytes().all(|b| b.is_ascii_digit());
        let oid = oid.parse().ok().filter(|oid| digits && *oid != 0)?;
        let path = line[space + 1..].to_vec();
        (!path.is_empty() && !path.contains(&0)).then_some(TablespaceLink { oid, path })
    };
    parse().ok_or_else(|| LabelError::Map(String::from_utf8_lossy(line).into_owned()))
}

/// A `tablespace_map` with these links, as `do_pg_backup_start` writes it.
pub fn format_tablespace_map(links: &[TablespaceLink]) -> Vec<u8> {
    let mut out = Vec::new();
    for link in links {
        out.extend_from_slice(link.oid.to_string().as_bytes());
        out.push(b' ');
        for &byte in &link.path {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                out.push(b'\\');
            }
            out.push(byte);
        }
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/6000028 (file 000000010000000000000006)
CHECKPOINT LOCATION: 0/06000080
BACKUP METHOD: streamed
BACKUP FROM: standby
START TIME: 2026-11-20 20:11:42 UTC
LABEL: a label: with START TIMELINE: 7
START TIMELINE: 1
";

    #[test]
    fn a_label_is_read() {
        let label = BackupLabel::parse(LABEL.as_bytes()).unwrap();
        assert_eq!((label.start_lsn, label.checkpoint), (Lsn(0x600_0028), Lsn(0x600_0080)));
        assert_eq!(label.start_segment.to_string(), "000000010000000000000006");
        assert_eq!((label.method.as_str(), label.from_standby), ("streamed", true));
        assert_eq!(label.start_time, "2026-11-20 20:11:42 UTC");
        assert_eq!(label.label, "a label: with START TIMELINE: 7");
        assert_eq!(label.timeline, Timeline(1));
    }

    #[test]
    fn a_label_that_would_not_start_is_refused() {
        let with =
            |from: &str, to: &str| BackupLabel::parse(LABEL.replacen(from, to, 1).as_bytes());
        assert_eq!(with("CHECKPOINT L", "x"), Err(LabelError::Line("CHECKPOINT LOCATION")));
        assert_eq!(with("0/6000028", "6000028"), Err(LabelError::Line("START WAL LOCATION")));
        assert_eq!(
            with("\nSTART TIMELINE: 1", "\nSTART TIMELINE: 2"),
            Err(LabelError::Timeline(Timeline(2), Timeline(1)))
        );
        assert_eq!(with("standby", "elsewhere"), Err(LabelError::Line("BACKUP FROM")));
        let incremental =
            format!("{LABEL}INCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 1\n");
        assert_eq!(BackupLabel::parse(incremental.as_bytes()), Err(LabelError::Incremental));
    }

    #[test]
    fn an_incremental_label_is_completed() {
        let lines = "INCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 12\n";
        let completed = complete_label(format!("{LABEL}{lines}").as_bytes()).unwrap();
        let base = Some((Lsn(0x200_0028), Timeline(12)));
        assert_eq!(completed, CompletedLabel { label: LABEL.into(), base });
        let own = LABEL.replace("a label", "INCREMENTAL FROM LSN: 0/1").into_bytes();
        let completed = complete_label(&own).unwrap();
        assert_eq!(completed, CompletedLabel { label: own, base: None });
        for bad in
            ["INCREMENTAL FROM LSN: 0/1\n", "INCREMENTAL FROM TLI: 1", "INCREMENTAL FROM LSN: 1"]
        {
            assert!(complete_label(format!("{LABEL}{bad}").as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn maps_are_read_as_the_server_does() {
        let map = b"16384 /srv/a b\n16385  /lead\\\ning\\\\\n\n";
        let links = parse_tablespace_map(map).unwrap();
        assert_eq!(links[0], TablespaceLink { oid: 16384, path: b"/srv/a b".into() });
        assert_eq!(links[1], TablespaceLink { oid: 16385, path: b" /lead\ning\\".into() });
        for bad in ["16384\n", "x /srv\n", "16384 /srv", "0 /srv\n", "16384 \n", "16384 /srv\\"] {
            assert!(parse_tablespace_map(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn maps_come_back(paths in prop::collection::vec("[^\0]{1,20}", 0..5)) {
            let links: Vec<_> = (1..).zip(paths)
                .map(|(oid, path)| TablespaceLink { oid, path: path.into_bytes() })
                .collect();
            prop_assert_eq!(parse_tablespace_map(&format_tablespace_map(&links)), Ok(links));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = (BackupLabel::parse(&bytes), complete_label(&bytes));
            let _ = parse_tablespace_map(&bytes);
        }
    }
}
