//! `BASE_BACKUP` as a source: one tar archive for each tablespace, and one for the data directory.
//!
//! The server leaves out what a backup doesn't need (`backup/basebackup.c`, `excludeDirContents`,
//! `excludeFiles`); nothing is added to that in silence. What it sends of `pg_wal` beyond the empty
//! directories isn't kept: WAL comes from the archive.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::source::{Fed, FileSink, Source, SourceEnd};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        Lsn, Timeline,
        backup_label::BackupLabel,
        client::ServerError,
        replication::{BaseBackup, BaseBackupEvent},
        tar::{Entry, TarEvent, TarParser},
    },
};

/// The largest `backup_label` that is looked at, in bytes; real ones have some 300.
const LABEL_LIMIT: usize = 64 << 10;

/// The stream of a base backup.
pub struct BaseBackupSource<'a> {
    stream: BaseBackup<'a>,
    start_lsn: Lsn,
    timeline: Timeline,
    directory_mode: u32,
    archive: Option<Archive>,
    /// The archives that are still to come: `<oid>.tar` for tablespaces, `base.tar`.
    missing: BTreeSet<String>,
    label: Option<Vec<u8>>,
    has_control_file: bool,
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
#[derive(Clone, Copy, PartialEq, Eq)]
enum Member {
    Kept,
    Label,
    Dropped,
}

impl<'a> BaseBackupSource<'a> {
    /// The source over a backup that has been started and of which no data was read yet.
    /// `directory_mode` is the data directory's.
    pub fn new(stream: BaseBackup<'a>, directory_mode: u32) -> Self {
        let archive = |oid: Option<u32>| match oid {
            Some(oid) => format!("{oid}.tar"),
            None => "base.tar".to_owned(),
        };
        let missing = stream.tablespaces().iter().map(|row| archive(row.oid)).collect();
        BaseBackupSource {
            start_lsn: stream.start_lsn(),
            timeline: stream.timeline(),
            stream,
            directory_mode,
            archive: None,
            missing,
            label: None,
            has_control_file: false,
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
                    let member = match path.as_slice() {
                        b"backup_label" => {
                            self.label = Some(Vec::new());
                            Member::Label
                        }
                        path if is_dropped(path) => Member::Dropped,
                        _ => Member::Kept,
                    };
                    self.has_control_file |= path == b"global/pg_control" && size > 0;
                    if member != Member::Dropped {
                        sink.begin_file(&path, entry.mode, size)?;
                    }
                    archive.file = Some(member);
                }
                Some(TarEvent::Data(data)) => match archive.file {
                    Some(Member::Kept) => sink.data(data)?,
                    Some(Member::Label) => {
                        let label = self.label.get_or_insert_default();
                        if label.len() < LABEL_LIMIT {
                            label.extend_from_slice(data);
                        }
                        sink.data(data)?;
                    }
                    Some(Member::Dropped) | None => {}
                },
                Some(TarEvent::FileEnd) => {
                    if archive.file.take() != Some(Member::Dropped) {
                        sink.end_file()?;
                    }
                }
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
