//! `BASE_BACKUP` as a source: one tar archive for each tablespace, and one for the data directory.
//!
//! The server leaves out what a backup doesn't need (`backup/basebackup.c`, `excludeDirContents`,
//! `excludeFiles`); nothing is added to that in silence. What it sends of `pg_wal` beyond the empty
//! directories isn't kept: WAL comes from the archive.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::{
    server::{Facts, ONE_SERVER},
    source::{Fed, FileSink, Source, SourceEnd},
};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        Lsn, Timeline,
        backup_label::{BackupLabel, complete_label},
        client::ServerError,
        incremental::{
            BLOCK_SIZE, IncrementalEvent, IncrementalParser, Origin, Run, original_path,
        },
        replication::{BaseBackup, BaseBackupEvent},
        tar::{Entry, TarEvent, TarParser},
    },
    repo::record,
};

/// The largest `backup_label` that is looked at, in bytes; real ones have some 300.
const LABEL_LIMIT: usize = 64 << 10;

/// The stream of a base backup.
pub struct BaseBackupSource<'a> {
    stream: BaseBackup<'a>,
    start_lsn: Lsn,
    timeline: Timeline,
    directory_mode: u32,
    /// Whether the server is one, as it said over SQL.
    is_standby: bool,
    archive: Option<Archive>,
    /// The archives that are still to come: `<oid>.tar` for tablespaces, `base.tar`.
    missing: BTreeSet<String>,
    label: Option<Vec<u8>>,
    has_control_file: bool,
    /// Where only changes are sent.
    changes: Option<ChangesOf>,
}

/// The backup that the server was asked to send the changes of.
#[derive(Debug, Clone, Copy)]
pub struct ChangesOf {
    /// Where it starts.
    pub start_lsn: Lsn,
    /// Its timeline.
    pub timeline: Timeline,
    /// How many blocks a relation's file has at most.
    pub segment_blocks: u32,
}

/// The archive that is being read.
struct Archive {
    name: String,
    /// What its members' paths begin with: nothing, or `pg_tblspc/<oid>/`.
    prefix: Vec<u8>,
    parser: TarParser,
    file: Option<Member>,
}

/// What is done with the file that is being read.
enum Member {
    Kept,
    /// It is passed on at its end, as it has to be in the restored directory.
    Label {
        mode: u32,
    },
    Changes(Box<ChangedFile>),
    Dropped,
}

/// A file of which the changes are sent.
struct ChangedFile {
    path: String,
    mode: u32,
    parser: IncrementalParser,
    /// What hasn't been passed on, the first last.
    runs: Vec<Run>,
}

impl ChangedFile {
    fn data(&mut self, mut bytes: &[u8], sink: &mut dyn FileSink) -> Result<()> {
        loop {
            let event = self.parser.next(&mut bytes);
            let event = event.context(Kind::Postgres, || {
                format!("the backup stream is broken: the changes of {}", self.path)
            })?;
            match event {
                None => return Ok(()),
                Some(IncrementalEvent::Header(header)) => {
                    let size = u64::from(header.length()) * BLOCK_SIZE as u64;
                    sink.begin_file(self.path.as_bytes(), self.mode, size)?;
                    // Past the end of the base's file, blocks of its are zeros to the sink.
                    self.runs = header.runs(u32::MAX).collect();
                    self.runs.reverse();
                    pass_on(&mut self.runs, sink)?;
                }
                Some(IncrementalEvent::Page { page, .. }) => {
                    sink.data(page)?;
                    if let Some(run) = self.runs.last_mut() {
                        run.count -= 1;
                    }
                    self.runs.pop_if(|run| run.count == 0);
                    pass_on(&mut self.runs, sink)?;
                }
            }
        }
    }

    fn end(&self, sink: &mut dyn FileSink) -> Result<()> {
        if !self.parser.is_complete() || !self.runs.is_empty() {
            return Err(broken(format!("the changes of {} end too early", self.path)));
        }
        sink.end_file()
    }
}

/// Passes on what comes before the next page that is sent.
fn pass_on(runs: &mut Vec<Run>, sink: &mut dyn FileSink) -> Result<()> {
    while let Some(run) = runs.pop_if(|run| run.origin != Origin::Increment) {
        match run.origin {
            Origin::Base => sink.unchanged(run.count.into())?,
            _ => {
                for _ in 0..run.count {
                    sink.data(&[0; BLOCK_SIZE])?;
                }
            }
        }
    }
    Ok(())
}

impl<'a> BaseBackupSource<'a> {
    /// The source over a backup that has been started and of which no data was read yet.
    /// `facts` are those of the server; `changes` is there if only changes are sent.
    pub fn new(stream: BaseBackup<'a>, facts: &Facts, changes: Option<ChangesOf>) -> Self {
        let archive = |oid: Option<u32>| match oid {
            Some(oid) => format!("{oid}.tar"),
            None => "base.tar".to_owned(),
        };
        let missing = stream.tablespaces().iter().map(|row| archive(row.oid)).collect();
        BaseBackupSource {
            start_lsn: stream.start_lsn(),
            timeline: stream.timeline(),
            stream,
            directory_mode: facts.directory_mode,
            is_standby: facts.source == record::Source::Standby,
            archive: None,
            missing,
            label: None,
            has_control_file: false,
            changes,
        }
    }

    fn end_archive(&mut self) -> Result<()> {
        match self.archive.take() {
            Some(archive) if !archive.parser.is_complete() => {
                Err(broken(format!("{} ends too early", archive.name)))
            }
            _ => Ok(()),
        }
    }

    fn begin_archive(&mut self, name: String, sink: &mut dyn FileSink) -> Result<()> {
        self.end_archive()?;
        if !self.missing.remove(&name) {
            return Err(broken(format!("there is an archive {name} that wasn't announced")));
        }
        let mut prefix = Vec::new();
        if name != "base.tar" {
            let oid = name.trim_end_matches(".tar");
            prefix = format!("pg_tblspc/{oid}/").into_bytes();
            let row = self
                .stream
                .tablespaces()
                .iter()
                .find(|row| row.oid.is_some_and(|number| number.to_string() == oid));
            // One that lies in pg_tblspc itself is a directory there; others are links, which a
            // restore makes where it is told to.
            if row.and_then(|row| row.location.as_deref()).is_some_and(is_in_place) {
                let path = prefix.strip_suffix(b"/").unwrap_or(&prefix);
                sink.directory(path, self.directory_mode)?;
            }
        }
        self.archive = Some(Archive { name, prefix, parser: TarParser::new(), file: None });
        Ok(())
    }

    fn data(&mut self, mut bytes: &[u8], sink: &mut dyn FileSink) -> Result<()> {
        let archive =
            self.archive.as_mut().ok_or_else(|| broken("data come before an archive".into()))?;
        loop {
            let event = archive.parser.next(&mut bytes);
            let event = event.context(Kind::Postgres, || "read the backup stream")?;
            match event {
                None => return Ok(()),
                Some(TarEvent::Directory(entry)) => {
                    sink.directory(&archive.path(&entry), entry.mode)?;
                }
                Some(TarEvent::File { entry, size }) => {
                    let path = archive.path(&entry);
                    let changed = self.changes.and_then(|of| Some((of, original_path(&path)?)));
                    let member = match (path.as_slice(), changed) {
                        (b"backup_label", _) => {
                            self.label = Some(Vec::new());
                            Member::Label { mode: entry.mode }
                        }
                        (path, _) if is_dropped(path) => Member::Dropped,
                        (_, Some((of, path))) => {
                            let parser = IncrementalParser::new(size, of.segment_blocks);
                            let parser = parser.context(Kind::Postgres, || {
                                format!("the backup stream is broken: the changes of {path}")
                            })?;
                            let (mode, runs) = (entry.mode, Vec::new());
                            Member::Changes(Box::new(ChangedFile { path, mode, parser, runs }))
                        }
                        (path, None) => {
                            self.has_control_file |= path == b"global/pg_control" && size > 0;
                            sink.begin_file(path, entry.mode, size)?;
                            Member::Kept
                        }
                    };
                    archive.file = Some(member);
                }
                Some(TarEvent::Data(data)) => match &mut archive.file {
                    Some(Member::Kept) => sink.data(data)?,
                    Some(Member::Changes(file)) => file.data(data, sink)?,
                    Some(Member::Label { .. }) => {
                        let label = self.label.get_or_insert_default();
                        if label.len() + data.len() > LABEL_LIMIT {
                            return Err(broken("backup_label is too long".into()));
                        }
                        label.extend_from_slice(data);
                    }
                    Some(Member::Dropped) | None => {}
                },
                Some(TarEvent::FileEnd) => match archive.file.take() {
                    Some(Member::Kept) => sink.end_file()?,
                    Some(Member::Changes(file)) => file.end(sink)?,
                    Some(Member::Label { mode }) => {
                        let label = self.label.as_deref().unwrap_or_default();
                        let completed = complete_label(label)
                            .context(Kind::Postgres, || "read the backup's label")?;
                        let expected = self.changes.map(|of| (of.start_lsn, of.timeline));
                        if completed.base != expected {
                            return Err(broken(
                                "backup_label doesn't say that it is over our base".into(),
                            ));
                        }
                        sink.begin_file(b"backup_label", mode, completed.label.len() as u64)?;
                        sink.data(&completed.label)?;
                        sink.end_file()?;
                        check_sender(&completed.label, self.is_standby)?;
                        self.label = Some(completed.label);
                    }
                    Some(Member::Dropped) | None => {}
                },
                Some(TarEvent::Symlink { entry, .. }) => {
                    let path = String::from_utf8_lossy(&archive.path(&entry)).into_owned();
                    sink.warning(format!("the link {path} isn't in the backup"));
                }
            }
        }
    }

    /// That nothing is missing without which the backup couldn't be used.
    fn check_complete(&mut self) -> Result<()> {
        self.end_archive()?;
        if let Some(name) = self.missing.first() {
            return Err(broken(format!("{name} is missing")));
        }
        if !self.has_control_file {
            return Err(broken("global/pg_control is missing".into()));
        }
        let label =
            self.label.as_deref().ok_or_else(|| broken("backup_label is missing".into()))?;
        let label =
            BackupLabel::parse(label).context(Kind::Postgres, || "read the backup's label")?;
        if label.start_lsn != self.start_lsn || label.timeline != self.timeline {
            return Err(broken(format!(
                "backup_label says that it starts at {} on timeline {}, the server said {} on {}",
                label.start_lsn, label.timeline, self.start_lsn, self.timeline
            )));
        }
        Ok(())
    }
}

/// That the server which sends the backup may be the one that was asked over SQL.
fn check_sender(label: &[u8], is_standby: bool) -> Result<()> {
    let label = BackupLabel::parse(label).context(Kind::Postgres, || "read the backup's label")?;
    if label.from_standby == is_standby {
        return Ok(());
    }
    let (sends, asked) = match label.from_standby {
        true => ("standby", "primary"),
        false => ("primary", "standby"),
    };
    let what = format!("a {sends} sends the backup, and a {asked} was asked about it");
    Err(Error::new(Kind::Postgres, what).hint(ONE_SERVER))
}

impl Archive {
    fn path(&self, entry: &Entry) -> Vec<u8> {
        [self.prefix.as_slice(), &entry.path].concat()
    }
}

#[async_trait]
impl Source for BaseBackupSource<'_> {
    async fn feed(&mut self, sink: &mut dyn FileSink) -> Result<Fed> {
        let event = self.stream.next().await;
        match event.map_err(|e| Error::of_server("read the backup stream", e))? {
            BaseBackupEvent::Archive { name, .. } => self.begin_archive(name, sink)?,
            BaseBackupEvent::Data(bytes) => {
                self.data(&bytes, sink)?;
                return Ok(Fed::More(bytes.len() as u64));
            }
            BaseBackupEvent::Progress(_) => {}
            BaseBackupEvent::Notice(notice) => notice_to(sink, &notice),
            BaseBackupEvent::End(end) => {
                self.check_complete()?;
                return Ok(Fed::End(SourceEnd {
                    stop_lsn: end.stop_lsn,
                    timeline: end.stop_timeline,
                    checksum_failures: end.checksum_failures,
                }));
            }
        }
        Ok(Fed::More(0))
    }
}

/// Passes on what the server says beside the data. What it says for information only is logged.
fn notice_to(sink: &mut dyn FileSink, notice: &ServerError) {
    if notice.severity == "WARNING" {
        sink.warning(format!("PostgreSQL warns: {notice}"));
    } else {
        tracing::debug!("PostgreSQL: {notice}");
    }
}

/// Files that the server may send and that aren't kept.
fn is_dropped(path: &[u8]) -> bool {
    path.starts_with(b"pg_wal/") || path == b"backup_manifest"
}

/// Whether a tablespace's location is a directory in `pg_tblspc` itself
/// (`allow_in_place_tablespaces`).
pub fn is_in_place(location: &str) -> bool {
    location.starts_with("pg_tblspc/")
}

fn broken(what: String) -> Error {
    Error::new(Kind::Postgres, format!("the backup stream is broken: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_of_another_kind_of_server_than_was_asked_is_refused() {
        let label = |from: &str| {
            format!(
                "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n\
                 BACKUP METHOD: streamed\nBACKUP FROM: {from}\nSTART TIME: 2026-11-20 20:12:27 UTC\n\
                 LABEL: x\nSTART TIMELINE: 1\n"
            )
        };
        check_sender(label("primary").as_bytes(), false).unwrap();
        check_sender(label("standby").as_bytes(), true).unwrap();
        for (from, is_standby) in [("primary", true), ("standby", false)] {
            let e = check_sender(label(from).as_bytes(), is_standby).unwrap_err();
            assert_eq!(e.kind(), Kind::Postgres);
            assert!(e.to_string().starts_with(&format!("a {from} sends the backup")), "{e}");
            assert!(e.hints()[0].contains("target_session_attrs"), "{:?}", e.hints());
        }
    }
}
