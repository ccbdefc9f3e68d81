//! `pgkeep archive-push`, PostgreSQL's `archive_command`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Global, runtime::Guarded, wal_path};
use crate::{
    archive::{self, PushOutcome, Stored},
    error::{Error, Kind, Result},
};

/// Store a file of pg_wal in every repository: PostgreSQL's archive_command
///
/// It succeeds when every configured repository holds the file durably. Storing the same file again
/// is a success; other content under the same name is refused, and what is stored stays.
///
/// A failure makes the server try again and keep its WAL meanwhile. The exit code is never above
/// 125, which would end the server's archiver.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example, in postgresql.conf:
  archive_command = 'pgkeep archive-push %p'")]
pub(super) struct ArchivePush {
    /// The file, as PostgreSQL gives it for %p
    path: PathBuf,
}

#[derive(Serialize)]
struct Pushed {
    file: String,
    size: u64,
    system: String,
    repositories: Vec<PushedTo>,
}

#[derive(Serialize)]
struct PushedTo {
    name: String,
    /// `stored`, `already-there` or `repaired`.
    outcome: &'static str,
}

impl ArchivePush {
    pub fn run(&self, global: &Global, guarded: Guarded) -> Result<u8> {
        let outcome = guarded.run(async {
            if global.repo.is_some() {
                let message = "archive-push stores in every repository: --repo can't be used";
                return Err(Error::new(Kind::Usage, message));
            }
            let settings = global.settings()?;
            let repositories = settings.selected_repositories(None)?;
            let cluster = wal_path::cluster(global, &settings, &self.path)?;
            archive::push(&repositories, cluster, &settings.state_dir, &self.path).await
        })?;
        let pushed = pushed(&outcome);
        for to in &pushed.repositories {
            tracing::info!("{} in repository {}: {}", pushed.file, to.name, to.outcome);
        }
        // The server's log needs no line for each segment.
        global.output.done(format!("{} is stored", pushed.file), &pushed, String::new);
        Ok(0)
    }
}

fn pushed(outcome: &PushOutcome) -> Pushed {
    let to = |(name, stored): &(String, Stored)| PushedTo {
        name: name.clone(),
        outcome: match stored {
            Stored::New => "stored",
            Stored::Already => "already-there",
            Stored::Repaired => "repaired",
        },
    };
    Pushed {
        file: outcome.file.to_string(),
        size: outcome.size,
        system: outcome.system.to_string(),
        repositories: outcome.stored.iter().map(to).collect(),
    }
}
