//! `pgkeep init`.

use clap::Args;
use serde::Serialize;

use super::{Global, runtime, table};
use crate::{config::KeySource, error::Result, repo};

/// Make a repository, and its key file unless there is one
///
/// The place is the repository's url, a directory that is made with mode 0700 unless it is there. A
/// new key file is written before anything else. It opens everything that will be stored: keep a
/// copy of it on another machine. An existing repository is never touched.
///
/// With several repositories, --repo says which one.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep init
  pgkeep --repo offsite init")]
pub(super) struct Init {}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Made {
    repository: String,
    url: String,
    id: String,
    encrypted: bool,
    /// The key file, if it was made now.
    key_file: Option<String>,
}

impl Init {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let settings = global.settings()?;
        let repository = settings.repository(global.repo.as_deref())?;
        let new = runtime::alone(repo::open::init(repository))?;
        let made = Made {
            repository: repository.name.clone(),
            url: repository.location.to_string(),
            id: new.id.to_string(),
            encrypted: repository.key != KeySource::Unencrypted,
            key_file: new.key_file.map(|path| path.display().to_string()),
        };
        global.output.result(&made, || text(&made))?;
        Ok(0)
    }
}

fn text(made: &Made) -> String {
    let encryption = if made.encrypted { "AES-256-GCM" } else { "none" };
    let mut rows = vec![
        ("url", made.url.clone()),
        ("id", made.id.clone()),
        ("encryption", encryption.to_owned()),
    ];
    if let Some(path) = &made.key_file {
        rows.push(("key file", path.clone()));
    }
    let mut out = format!("made the repository {}\n", made.repository);
    out += &table::pairs(2, &rows);
    if made.key_file.is_some() {
        out += "Copy the key file to another machine now: without it nothing can be restored.\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_file_is_to_be_copied() {
        let made = Made {
            repository: "main".into(),
            url: "file:///var/lib/pgkeep".into(),
            id: "00112233445566778899aabbccddeeff".into(),
            encrypted: true,
            key_file: Some("/etc/pgkeep/main.key".into()),
        };
        insta::assert_snapshot!(text(&made), @r"
        made the repository main
          url         file:///var/lib/pgkeep
          id          00112233445566778899aabbccddeeff
          encryption  AES-256-GCM
          key file    /etc/pgkeep/main.key
        Copy the key file to another machine now: without it nothing can be restored.
        ");
    }
}
