//! `pgkeep init`.

use clap::Args;
use serde::Serialize;

use super::{Global, runtime, table};
use crate::{
    config::{KeySource, RepositorySettings},
    error::{Kind, Result},
    repo::{self, repository::Names},
};

/// Make a repository, and its key file unless there is one
///
/// The place is the repository's url: a directory, which is made with mode 0700 unless it is there,
/// or a bucket, which has to be there. A new key file is written before anything else. It opens
/// everything that will be stored: keep a copy of it on another machine. An existing repository is
/// never touched.
///
/// With several repositories those that aren't there yet are made, or the one that --repo names.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep init
  pgkeep --repo offsite init")]
pub(super) struct Init {}

#[derive(Serialize)]
struct Made {
    repositories: Vec<MadeOne>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct MadeOne {
    name: String,
    url: String,
    id: String,
    encrypted: bool,
    /// `plain`, or `content` where the storage overwrites what is there.
    names: Names,
    /// The key file, if it was made now.
    key_file: Option<String>,
    /// The key file, if it was there and is used.
    used_key_file: Option<String>,
}

impl Init {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let settings = global.settings()?;
        let selected = settings.selected_repositories(global.repo.as_deref())?;
        let made = runtime::alone(make(&selected))?;
        if rustix::process::geteuid().is_root() {
            tracing::warn!(
                "repository and key belong to root now: a server archives as its own user, and can \
                 only if both are handed to it (chown -R)"
            );
        }
        let text = || made.repositories.iter().map(text).collect();
        global.output.done("the repository is made", &made, text);
        Ok(0)
    }
}

/// One that is there already is an error only if there is nothing else to make.
async fn make(selected: &[&RepositorySettings]) -> Result<Made> {
    let mut repositories = Vec::new();
    let mut there = None;
    for repository in selected {
        match repo::open::init(repository).await {
            Ok(new) => {
                let key_file = new.key_file.map(|path| path.display().to_string());
                let (key_file, used_key_file) = match new.key_file_made {
                    true => (key_file, None),
                    false => (None, key_file),
                };
                repositories.push(MadeOne {
                    name: repository.name.clone(),
                    url: repository.location.to_string(),
                    id: new.id.to_string(),
                    encrypted: repository.key != KeySource::Unencrypted,
                    names: new.names,
                    key_file,
                    used_key_file,
                });
            }
            Err(e) if e.kind() == Kind::Conflict => {
                if selected.len() > 1 {
                    tracing::warn!("{e}");
                }
                there = Some(e);
            }
            Err(e) => return Err(e),
        }
    }
    match there {
        Some(e) if repositories.is_empty() => Err(e),
        _ => Ok(Made { repositories }),
    }
}

fn text(made: &MadeOne) -> String {
    let encryption = if made.encrypted { "AES-256-GCM" } else { "none" };
    let mut rows = vec![
        ("url", made.url.clone()),
        ("id", made.id.clone()),
        ("encryption", encryption.to_owned()),
    ];
    if made.names == Names::Content {
        rows.push(("names", "hold checksums, since this server overwrites what is there".into()));
    }
    if let Some(path) = &made.key_file {
        rows.push(("key file", path.clone()));
    }
    if let Some(path) = &made.used_key_file {
        rows.push(("key file", format!("{path}, which was there and is used")));
    }
    let mut out = format!("made the repository {}\n", made.name);
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
        let made = MadeOne {
            name: "main".into(),
            url: "file:///var/lib/pgkeep".into(),
            id: "00112233445566778899aabbccddeeff".into(),
            encrypted: true,
            names: Names::Plain,
            key_file: Some("/etc/pgkeep/main.key".into()),
            used_key_file: None,
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
