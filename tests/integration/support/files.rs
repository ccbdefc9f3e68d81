//! Comparing the files of data directories.

use std::{collections::BTreeMap, fs, path::Path};

/// Files by name, with a hash of what is in them.
pub type Files = BTreeMap<String, blake3::Hash>;

/// The files below a folder of a data directory, without those that say when they were written or
/// by which configuration.
pub fn files_of(pgdata: &Path, folder: &str) -> Files {
    let mut files = Files::new();
    collect(pgdata, &pgdata.join(folder), &mut files);
    files
}

fn collect(pgdata: &Path, folder: &Path, files: &mut Files) {
    for entry in fs::read_dir(folder).expect("read a folder").flatten() {
        let path = entry.path();
        let name = path.strip_prefix(pgdata).expect("below").display().to_string();
        let file = path.file_name().expect("a name");
        if path.is_dir() {
            collect(pgdata, &path, files);
        } else if !["backup_manifest", "postgresql.auto.conf", "pg_internal.init", "pg_control"]
            .iter()
            .any(|changing| file == *changing)
        {
            files.insert(name, blake3::hash(&fs::read(&path).expect("read a file")));
        }
    }
}
