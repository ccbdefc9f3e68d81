//! The configuration: a file, and an environment variable beside it.
//!
//! The input is the file's text, and behind a NUL byte, if there is one, the name and the value of a variable,
//! separated by `=`.

use std::{cell::OnceCell, ffi::OsString, os::unix::ffi::OsStringExt};

use pgkeep::config::{Overrides, Settings};
use tempfile::TempDir;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

pub fn run(bytes: &[u8]) {
    let (text, variable) = match bytes.iter().position(|b| *b == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    let mut environment = Vec::new();
    if let Some(equals) = variable.iter().position(|b| *b == b'=') {
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let (name, value) = (text(&variable[..equals]), text(&variable[equals + 1..]));
        // Where the file is found is said below.
        if name != "PGKEEP_CONFIG" {
            environment.push((name, value));
        }
    }
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect("a directory"));
        let path = folder.path().join("pgkeep.toml");
        std::fs::write(&path, text).expect("a file");
        let overrides = Overrides { config: Some(path), cluster: None };
        match Settings::load_with(&overrides, environment) {
            Ok(settings) => {
                let _ = format!("{settings:?}");
                let _ = settings.cluster(None).map(|cluster| cluster.name.clone());
                let _ = settings.cluster(Some("main"));
                let _ = settings.repository(None);
                let _ = settings.selected_repositories(None);
            }
            Err(e) => assert!(!e.to_string().is_empty()),
        }
    });
}
