//! The checksums of all pages of a stopped cluster.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        control::ControlFile,
        page::{self, RelationFile},
    },
    progress::Progress,
};

/// How many bad pages are named.
const NAMED: usize = 20;

/// What was found.
#[derive(Debug, Default)]
pub struct Pages {
    /// Pages that have a checksum.
    pub checked: u64,
    /// Pages whose checksum is wrong, and files that end within a page.
    pub bad: u64,
    /// The first of those.
    pub named: Vec<String>,
}

/// Tells the threads to stop when nobody waits for them any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Reads every file of every relation. The server must not run.
pub async fn check(
    data: PathBuf,
    control: ControlFile,
    threads: usize,
    progress: Arc<dyn Progress>,
) -> Result<Pages> {
    let stop = StopOnDrop(Arc::default());
    let stopped = stop.0.clone();
    let work = move || {
        let files = relation_files(&data)?;
        progress.total(Some(files.iter().map(|(_, _, size)| size).sum()));
        let reader = Reader {
            data: &data,
            files: &files,
            control: &control,
            progress: progress.as_ref(),
            next: AtomicUsize::new(0),
            checked: AtomicU64::new(0),
            bad: AtomicU64::new(0),
            named: Mutex::default(),
            stop: &stopped,
        };
        reader.run(threads.max(1))
    };
    tokio::task::spawn_blocking(work)
        .await
        .context(Kind::Internal, || "the check of pages panicked")?
}

/// The files of relations, by their path in the data directory, with their sizes.
fn relation_files(data: &Path) -> Result<Vec<(String, RelationFile, u64)>> {
    let mut found = Vec::new();
    for top in ["base", "global", "pg_tblspc"] {
        collect(data, top, &mut found)
            .context(Kind::Local, || format!("list the files in {}", data.join(top).display()))?;
    }
    Ok(found)
}

fn collect(
    data: &Path,
    folder: &str,
    found: &mut Vec<(String, RelationFile, u64)>,
) -> io::Result<()> {
    for entry in fs::read_dir(data.join(folder))? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let path = format!("{folder}/{name}");
        // A tablespace is a link.
        let meta = fs::metadata(entry.path())?;
        if meta.is_dir() {
            collect(data, &path, found)?;
        } else if let Some(relation) = RelationFile::parse(&path) {
            found.push((path, relation, meta.len()));
        }
    }
    Ok(())
}

struct Reader<'a> {
    data: &'a Path,
    files: &'a [(String, RelationFile, u64)],
    control: &'a ControlFile,
    progress: &'a dyn Progress,
    next: AtomicUsize,
    checked: AtomicU64,
    bad: AtomicU64,
    named: Mutex<Vec<String>>,
    stop: &'a AtomicBool,
}

impl Reader<'_> {
    fn run(self, threads: usize) -> Result<Pages> {
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(file) = self.files.get(self.next.fetch_add(1, Ordering::Relaxed))
                    {
                        let read = self.file(file).context(Kind::Local, || {
                            format!("read {} of the restored cluster", file.0)
                        });
                        if let Err(e) = read {
                            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                        }
                        if self.stop.load(Ordering::Acquire) {
                            return;
                        }
                    }
                });
            }
        });
        if let Some(e) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(e);
        }
        let mut named = self.named.into_inner().unwrap_or_else(PoisonError::into_inner);
        named.sort();
        Ok(Pages { checked: self.checked.into_inner(), bad: self.bad.into_inner(), named })
    }

    fn file(&self, (path, relation, _): &(String, RelationFile, u64)) -> io::Result<()> {
        let mut file = File::open(self.data.join(path))?;
        let size = self.control.block_size as usize;
        let mut buffer = vec![0; size * 32];
        let mut block = relation.first_block(self.control.segment_blocks);
        let first = block;
        loop {
            let mut have = 0;
            while have < buffer.len() {
                match file.read(&mut buffer[have..])? {
                    0 => break,
                    n => have += n,
                }
            }
            let pages = buffer[..have].chunks_exact(size);
            if !pages.remainder().is_empty() {
                self.bad(format!("{path} ends within a page"));
            }
            let mut checked = 0;
            for page in pages {
                if !page::is_new(page) {
                    checked += 1;
                    if page::checksum(page, block) != page::stored_checksum(page) {
                        let at = block.wrapping_sub(first);
                        self.bad(format!("page {at} of {path}"));
                    }
                }
                block = block.wrapping_add(1);
            }
            self.checked.fetch_add(checked, Ordering::Relaxed);
            self.progress.advance(have as u64);
            if have < buffer.len() || self.stop.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }

    fn bad(&self, what: String) {
        self.bad.fetch_add(1, Ordering::Relaxed);
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < NAMED {
            named.push(what);
        }
    }
}
