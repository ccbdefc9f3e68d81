//! The names in a directory, a page at a time.

use std::{collections::BinaryHeap, fs, io, path::Path};

use super::{
    super::{Listed, ObjectName},
    is_nothing,
};

/// The entries of a folder that may be part of an object's name, and whether each is a folder.
/// A folder that isn't there has none.
pub fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<(String, bool)>>> {
    let read = match fs::read_dir(folder) {
        Err(e) if is_nothing(&e) => None,
        result => Some(result?),
    };
    Ok(read.into_iter().flatten().filter_map(|entry| {
        let named = |entry: fs::DirEntry| -> io::Result<Option<(String, bool)>> {
            let is_folder = entry.file_type()?.is_dir();
            Ok(entry.file_name().into_string().ok().map(|name| (name, is_folder)))
        };
        entry
            .and_then(named)
            .transpose()
            .filter(|entry| !entry.as_ref().is_ok_and(|(name, _)| name.starts_with('.')))
    }))
}

/// One listing: the names with `prefix` that come after `after`, at most `limit`.
///
/// A folder is read once for each page of results and only its `limit` smallest names are kept, so
/// that memory doesn't grow with the archive.
pub struct Walk<'a> {
    /// Where names begin.
    pub root: &'a Path,
    pub prefix: &'a str,
    pub after: &'a str,
    pub limit: usize,
}

impl Walk<'_> {
    /// What is found, in byte order of the names.
    pub fn objects(&self) -> io::Result<Vec<Listed>> {
        let folder = self.prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut found = Vec::new();
        self.folder(folder, &mut found)?;
        Ok(found)
    }

    fn folder(&self, folder: &str, found: &mut Vec<Listed>) -> io::Result<()> {
        let mut done = None;
        loop {
            let limit = self.limit - found.len();
            let (smallest, more) = self.smallest(folder, done.as_deref(), limit)?;
            done = smallest.last().cloned();
            for full in smallest {
                if found.len() >= self.limit {
                    return Ok(());
                }
                match full.strip_suffix('/') {
                    Some(folder) => self.folder(folder, found)?,
                    None => self.object(full, found)?,
                }
            }
            // Folders may turn out empty, so that there is room for what was cut off.
            if !more || found.len() >= self.limit {
                return Ok(());
            }
        }
    }

    /// The first `limit` entries of a folder that may lead to matches, from the first one after the
    /// entry `done` on, folders with a slash at their end; and whether there are more.
    fn smallest(
        &self,
        folder: &str,
        done: Option<&str>,
        limit: usize,
    ) -> io::Result<(Vec<String>, bool)> {
        let mut smallest = BinaryHeap::new();
        let mut more = false;
        for entry in entries(&self.root.join(folder))? {
            let (name, is_folder) = entry?;
            let mut full = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if is_folder {
                // With its slash a folder stands in the order where its objects do.
                full.push('/');
            }
            let may_match = full.starts_with(self.prefix)
                || (is_folder && self.prefix.starts_with(full.as_str()));
            let ahead = full.as_str() > self.after || (is_folder && self.after.starts_with(&full));
            if may_match && ahead && done.is_none_or(|done| full.as_str() > done) {
                smallest.push(full);
                if smallest.len() > limit {
                    smallest.pop();
                    more = true;
                }
            }
        }
        Ok((smallest.into_sorted_vec(), more))
    }

    fn object(&self, name: String, found: &mut Vec<Listed>) -> io::Result<()> {
        let size = match fs::metadata(self.root.join(&name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            meta => meta?.len(),
        };
        if let Ok(name) = ObjectName::new(name) {
            found.push(Listed { name, size });
        }
        Ok(())
    }
}
