//! Opening several repositories of which one may be silent: a connection that takes everything and answers
//! nothing. It is given up only after minutes, and keeps nobody from the others.

use std::{pin::pin, time::Duration};

use futures_util::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt},
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Repository,
    open::{last_waited_for_passphrase, open},
};
use crate::{
    config::RepositorySettings,
    error::{Error, Kind, Result},
};

/// How long a repository may hold up the others. Its passphrase command, which has a limit of its own, isn't counted.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Opens all of them at once, each by `open`, and has the results in their order. Where one of them is open, those
/// that haven't answered within [`PATIENCE`] are errors ([`Kind::Repository`]).
pub async fn open_each<'s, T, F>(
    repositories: &[&'s RepositorySettings],
    open: impl Fn(&'s RepositorySettings) -> F,
) -> Vec<Result<T>>
where
    F: Future<Output = Result<T>>,
{
    open_each_within(PATIENCE, repositories, open).await
}

async fn open_each_within<'s, T, F>(
    patience: Duration,
    repositories: &[&'s RepositorySettings],
    open: impl Fn(&'s RepositorySettings) -> F,
) -> Vec<Result<T>>
where
    F: Future<Output = Result<T>>,
{
    let silent = |_| {
        let what = format!("it hasn't answered for {} s", patience.as_secs());
        Err(Error::new(Kind::Repository, what))
    };
    let mut results: Vec<Result<T>> = repositories.iter().map(silent).collect();
    let mut opening = FuturesUnordered::new();
    for (index, settings) in repositories.iter().enumerate() {
        let open = open(settings);
        opening.push(async move { (index, open.await) });
    }
    let mut patience = pin!(over(patience));
    loop {
        let is_any_open = results.iter().any(Result::is_ok);
        tokio::select! {
            biased;
            opened = opening.next() => match opened {
                Some((index, opened)) => results[index] = opened,
                None => break,
            },
            () = &mut patience, if is_any_open => break,
        }
    }
    results
}

/// What comes of it, unless that takes longer than [`PATIENCE`].
pub async fn within_patience<T>(asked: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        answer = asked => Some(answer),
        () = over(PATIENCE) => None,
    }
}

/// Returns when so much time has passed since now, and since the last passphrase command.
async fn over(patience: Duration) {
    let mut end = Instant::now() + patience;
    loop {
        sleep_until(end).await;
        match last_waited_for_passphrase().map(|last| last + patience) {
            Some(later) if later > Instant::now() => end = later,
            _ => return,
        }
    }
}

/// Repositories that are opened one after the other, as far as they are wanted: another one begins
/// when the one before hasn't answered within [`PATIENCE`], and then whichever answers is the next.
pub struct Openings<'a> {
    repositories: &'a [&'a RepositorySettings],
    /// Those that are open, for whoever asks again.
    opened: &'a mut [Option<Repository>],
    begun: usize,
    opening: FuturesUnordered<BoxFuture<'a, (usize, Result<Repository>)>>,
}

impl<'a> Openings<'a> {
    /// None has begun. `opened` has as many places as there are `repositories`.
    pub fn of(
        repositories: &'a [&'a RepositorySettings],
        opened: &'a mut [Option<Repository>],
    ) -> Self {
        Openings { repositories, opened, begun: 0, opening: FuturesUnordered::new() }
    }

    /// The next one that is open or can't be opened; `None` behind the last.
    pub async fn next(&mut self) -> Option<(&'a RepositorySettings, Result<Repository>)> {
        self.begin();
        loop {
            tokio::select! {
                biased;
                opened = self.opening.next() => {
                    let (index, opened) = opened?;
                    self.opened[index] = opened.as_ref().ok().cloned();
                    return Some((self.repositories[index], opened));
                }
                () = sleep(PATIENCE), if self.begun < self.repositories.len() => self.begin(),
            }
        }
    }

    fn begin(&mut self) {
        let Some(settings) = self.repositories.get(self.begun).copied() else { return };
        let (index, opened) = (self.begun, self.opened[self.begun].clone());
        self.begun += 1;
        self.opening.push(Box::pin(async move {
            match opened {
                Some(opened) => (index, Ok(opened)),
                None => (index, open(settings).await),
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{KeySource, Location, RetentionSettings},
        repo::open::init,
    };

    fn named(name: &str) -> RepositorySettings {
        RepositorySettings {
            name: name.into(),
            location: Location::Directory("/nowhere".into()),
            key: KeySource::Unencrypted,
            compression_level: 1,
            retention: RetentionSettings::NONE,
        }
    }

    /// Does what its name says.
    async fn answered(settings: &RepositorySettings) -> Result<()> {
        match settings.name.as_str() {
            "open" => return Ok(()),
            "late" => sleep(LATE).await,
            "shut" => return Err(Error::new(Kind::Denied, "no")),
            _ => std::future::pending().await,
        }
        Ok(())
    }

    const SOON: Duration = Duration::from_millis(100);
    const LATE: Duration = Duration::from_millis(400);

    #[tokio::test]
    async fn the_time_that_a_passphrase_command_takes_is_not_silence() {
        let folder = tempfile::tempdir().unwrap();
        let opened_by = |name: &str, key: KeySource| RepositorySettings {
            location: Location::Directory(folder.path().join(name)),
            key,
            ..named(name)
        };
        let quick = opened_by("quick", KeySource::Unencrypted);
        let phrase =
            |command: &str| opened_by("slow", KeySource::PassphraseCommand(command.into()));
        init(&quick).await.unwrap();
        init(&phrase("echo correct horse battery")).await.unwrap();
        let slow = phrase("sleep 5; echo correct horse battery");
        let opened = open_each_within(Duration::from_secs(4), &[&quick, &slow], open).await;
        let failed: Vec<_> = opened.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    #[tokio::test]
    async fn a_silent_one_holds_up_none_that_is_open() {
        for (names, expected) in [
            (vec!["open", "shut", "open"], vec![Ok(()), Err(Kind::Denied), Ok(())]),
            (
                vec!["silent", "open", "shut"],
                vec![Err(Kind::Repository), Ok(()), Err(Kind::Denied)],
            ),
            // As long as none is open, nobody is held up.
            (vec!["late", "shut"], vec![Ok(()), Err(Kind::Denied)]),
            (vec!["silent", "late"], vec![Err(Kind::Repository), Ok(())]),
            (vec!["open", "late"], vec![Ok(()), Err(Kind::Repository)]),
        ] {
            let all: Vec<_> = names.iter().map(|name| named(name)).collect();
            let opened = open_each_within(SOON, &all.iter().collect::<Vec<_>>(), answered).await;
            let opened: Vec<_> = opened.into_iter().map(|o| o.map_err(|e| e.kind())).collect();
            assert_eq!(opened, expected, "{names:?}");
        }
    }
}
