//! Work that is done several at a time, and never more than so many.

use std::future::Future;

use tokio::task::JoinSet;

use crate::error::{Error, Kind, Result};

/// Tasks at work. The first error ends all: dropping this stops them.
pub struct Pool<T> {
    tasks: JoinSet<Result<T>>,
    at_once: usize,
}

impl<T: Send + 'static> Pool<T> {
    /// A pool of so many at a time.
    pub fn new(at_once: usize) -> Self {
        Pool { tasks: JoinSet::new(), at_once: at_once.max(1) }
    }

    /// Begins with `work` as soon as there is room. Returns what was done meanwhile, if it had to
    /// wait for that.
    pub async fn add(
        &mut self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<Option<T>> {
        let done = if self.tasks.len() >= self.at_once { self.next().await? } else { None };
        self.tasks.spawn(work);
        Ok(done)
    }

    /// What is done next; `None` when nothing is left to do.
    pub async fn next(&mut self) -> Result<Option<T>> {
        match self.tasks.join_next().await {
            None => Ok(None),
            Some(Ok(done)) => done.map(Some),
            Some(Err(e)) => {
                Err(Error::new(Kind::Internal, format!("a task of the verification died: {e}")))
            }
        }
    }
}
