//! Looking for new tablespaces in a segment before a server gets it.
//!
//! Replay of a `CREATE TABLESPACE` makes the directory that the record names, or takes the one that is
//! there (`create_tablespace_directories` in `tablespace.c`): on the original's host that is the original's
//! own, and the files in it are written to.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::data_directory::DataDirectory;
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        Lsn, SegmentName, SegmentSize, WalFile,
        backup_label::{BACKUP_LABEL, BackupLabel, TABLESPACE_MAP, parse_tablespace_map},
        wal::{Event, RecordHead, SegmentScanner, trailing_head},
    },
    repo::wal::REFUSES_TABLESPACE,
};

/// Which segments in which a tablespace is made aren't handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tablespaces {
    /// Each is.
    Any,
    /// Those whose tablespace would lie in a directory in which another server has, or had, one.
    OfAnother,
    /// None is.
    New,
}

/// Refuses a segment for a server with this data directory, if a tablespace is made in it that mustn't be.
pub fn check(
    file: &mut File,
    segment: SegmentName,
    directory: &DataDirectory,
    refused: Tablespaces,
) -> Result<()> {
    if refused == Tablespaces::Any {
        return Ok(());
    }
    let size = directory.control.segment_size;
    let what = || format!("look for new tablespaces in {segment}");
    let head = head(segment, size, &directory.path.join("pg_wal")).context(Kind::Local, what)?;
    let mut scanner = SegmentScanner::new(segment, size, head);
    let mut made = Vec::new();
    let mut buffer = vec![0; 1 << 18];
    file.seek(SeekFrom::Start(0)).context(Kind::Local, what)?;
    loop {
        let read = file.read(&mut buffer).context(Kind::Local, what)?;
        if read == 0 {
            break;
        }
        scanner.feed(&buffer[..read], &mut |event| {
            if let Event::NewTablespace { start, oid, path, .. } = event {
                made.push((*start, *oid, path.clone()));
            }
        });
    }
    let begin = replay_begins(directory).context(Kind::Local, what)?;
    for (start, oid, path) in made.into_iter().filter(|(start, ..)| *start >= begin) {
        let is_refused = refused == Tablespaces::New
            || is_anothers(Path::new(&path), directory).context(Kind::Local, || path.clone())?;
        if is_refused {
            let message =
                format!("at {start} is tablespace {oid} made, at {path}, {REFUSES_TABLESPACE}");
            let error = Error::new(Kind::Conflict, message);
            return Err(match refused {
                Tablespaces::OfAnother => error
                    .hint(format!(
                        "beside the server that has its files there: take a backup, which has the tablespace, and \
                         restore that one with --tablespace-map {path}=..."
                    ))
                    .hint(format!(
                        "where no server has them any more, this one neither: remove what is in {path}, and start again"
                    )),
                _ => error,
            });
        }
    }
    Ok(())
}

/// Where replay begins, or goes on: records before that are never replayed.
fn replay_begins(directory: &DataDirectory) -> io::Result<Lsn> {
    // Until the server has begun to recover from a backup, its label says it, and then the control file.
    match fs::read(directory.path.join(BACKUP_LABEL)) {
        Ok(label) => Ok(BackupLabel::parse(&label).map_or(Lsn::INVALID, |label| label.start_lsn)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(directory.control.redo),
        Err(e) => Err(e),
    }
}

/// Whether a tablespace at `path` would be in the midst of files that aren't this server's: of one of the same version,
/// and the data directory has no tablespace there.
fn is_anothers(path: &Path, directory: &DataDirectory) -> io::Result<bool> {
    // `TABLESPACE_VERSION_DIRECTORY` in `common/relpath.h`.
    let (major, catalog) = (directory.system.major, directory.control.catalog_version);
    let mut inside = match fs::read_dir(path.join(format!("PG_{major}_{catalog}"))) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        inside => inside?,
    };
    if inside.next().transpose()?.is_none() {
        return Ok(false);
    }
    let place = fs::canonicalize(path)?;
    // One that is dropped before the new one is made may be there still: replay is behind what is handed over.
    let links = fs::read_dir(directory.path.join("pg_tblspc"))?;
    let mut own: Vec<PathBuf> = links.map(|link| Ok(link?.path())).collect::<io::Result<_>>()?;
    // Those of a backup that another tool has restored are links only when the first segments are there.
    if let Ok(map) = fs::read(directory.path.join(TABLESPACE_MAP)) {
        let mapped = parse_tablespace_map(&map).unwrap_or_default();
        own.extend(mapped.into_iter().map(|link| OsString::from_vec(link.path).into()));
    }
    Ok(!own.into_iter().any(|own| fs::canonicalize(own).is_ok_and(|own| own == place)))
}

/// The unfinished record at the end of the segment before, if that is here.
fn head(segment: SegmentName, size: SegmentSize, wal: &Path) -> io::Result<Option<RecordHead>> {
    let before = segment.number(size).and_then(|number| number.checked_sub(1));
    for entry in fs::read_dir(wal)? {
        let entry = entry?;
        let Some(Ok(WalFile::Segment(name))) = entry.file_name().to_str().map(str::parse) else {
            continue;
        };
        // Of whichever timeline: the server has followed one path.
        if name.timeline <= segment.timeline && name.number(size) == before {
            let head = trailing_head(&mut File::open(entry.path())?, size)?.into_head();
            if head.is_some() {
                return Ok(head);
            }
        }
    }
    Ok(None)
}
