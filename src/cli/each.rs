//! Doing the same in each repository: one that fails doesn't keep the others from theirs.

use super::runtime;
use crate::{
    config::RepositorySettings,
    error::{Error, Kind, Result},
    repo::{self, BackupId, Repository},
};

/// What came of it: the results of those repositories that have the backup, and the first failure.
pub struct Each<T> {
    /// In the order of the configuration.
    pub results: Vec<T>,
    failure: Option<Error>,
}

/// Does `work` with each repository. It says `None` where the repository has nothing to do with it.
pub fn each<T>(
    selected: &[&RepositorySettings],
    work: impl AsyncFn(&Repository) -> Result<Option<T>>,
) -> Result<Each<T>> {
    runtime::alone(runtime::until_signal(async {
        let (mut results, mut failure) = (Vec::new(), None);
        for settings in selected {
            let one = async {
                let repository = repo::open::open(settings).await?;
                work(&repository).await
            };
            match one.await {
                Ok(result) => results.extend(result),
                Err(e) if failure.is_none() => failure = Some(e),
                Err(e) => tracing::error!("{e}"),
            }
        }
        Ok(Each { results, failure })
    }))
}

impl<T> Each<T> {
    /// When no repository has a result to show: the failure, or that none has the backup.
    pub fn or_missing(self, id: &BackupId, cluster: &str) -> Result<Self> {
        match (self.results.is_empty(), self.failure) {
            (true, Some(failure)) => Err(failure),
            (true, None) => {
                Err(Error::new(Kind::No, format!("there is no backup {id} of cluster {cluster}"))
                    .hint("`pgkeep info` lists the backups; is --cluster right?"))
            }
            (false, failure) => Ok(Each { failure, ..self }),
        }
    }

    /// The exit code of a success, or the failure of a repository.
    pub fn end(self) -> Result<u8> {
        self.failure.map_or(Ok(0), Err)
    }
}
