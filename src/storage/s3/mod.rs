//! A bucket as storage.
//!
//! An object is created with the condition that there be none of its name, in one request or in
//! parts that become an object with the last one, so a name appears with all its content or not at
//! all. A server that has answered holds the object durably.
//!
//! Requests that fail for a reason that may pass are tried again, with growing pauses. What the
//! server says is kept apart: no such object, no such bucket, no permission, or no sensible answer.
//!
//! Nothing is connected or read before the first request.

mod bounded;
mod buffers;
mod client;
mod create;
mod engine;
mod errors;
mod list;
mod owner;
mod probe;
mod read;
mod send_queue;
mod settings;
mod versions;
mod watch;
mod writer;

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::future::join_all;

use self::{create::Taken, engine::Engine, owner::Owner, writer::S3Writer};
use super::{
    Capabilities, CreateOnly, Fetched, Listed, ObjectName, ObjectWriter, Range, Result, Storage,
    failure_of_all,
};

pub use settings::{
    CLASSED, Checksums, DEFAULT_ATTEMPTS, DEFAULT_FIRST_PAUSE, DEFAULT_STALL, S3Settings, Sse,
};

/// How many questions are asked at once: each takes some 20 to 50 ms, and servers answer many.
const QUESTIONS_AT_ONCE: usize = 16;

/// How many bytes of neighbours are worth fetching together: a request costs as much time as some
/// megabytes, and more money.
const READ_TOGETHER: u64 = 8 << 20;

/// A repository in a bucket.
#[derive(Debug)]
pub struct S3 {
    owner: Arc<Owner>,
}

impl S3 {
    /// The storage with these settings. Whether they lead anywhere shows with the first request.
    pub fn new(settings: S3Settings) -> Self {
        S3 { owner: Arc::new(Owner::new(settings)) }
    }

    async fn run<T, F>(
        &self,
        operation: &'static str,
        object: &str,
        work: impl FnOnce(Arc<Engine>) -> F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let engine = self.owner.engine().clone();
        let about = engine.about(operation, object);
        self.owner.run(&about, work(engine)).await
    }
}

#[async_trait]
impl Storage for S3 {
    fn address(&self) -> &str {
        &self.owner.engine().address
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_together: READ_TOGETHER, questions_at_once: QUESTIONS_AT_ONCE }
    }

    async fn create_only(&self) -> Result<CreateOnly> {
        self.run("probe", "", |engine| async move { engine.probe().await }).await
    }

    fn create_without_condition(&self) {
        self.owner.engine().without_conditions();
    }

    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(S3Writer::new(self.owner.clone(), name.clone())))
    }

    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes> {
        let of = name.clone();
        self.run("read", name.as_str(), |e| async move { e.read(&of, range).await }).await
    }

    async fn fetch(&self, name: &ObjectName, range: Range) -> Result<Fetched> {
        let of = name.clone();
        self.run("read", name.as_str(), |e| async move { e.fetch(&of, range).await }).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64> {
        let of = name.clone();
        self.run("look at", name.as_str(), |e| async move { e.size(&of).await }).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        let (begin, after) = (prefix.to_owned(), after.map(str::to_owned));
        let list = |e: Arc<Engine>| async move { e.list(&begin, after.as_deref(), limit).await };
        self.run("list", prefix, list).await
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let of = folder.to_owned();
        self.run("list", folder, |e| async move { e.folders(&of).await }).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let of = name.clone();
        self.run("delete", name.as_str(), |e| async move { e.delete(&of).await }).await
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(names.len());
        for some in names.chunks(QUESTIONS_AT_ONCE) {
            let answers = join_all(some.iter().map(|name| self.delete(name))).await;
            let failed = answers.iter().find_map(failure_of_all).cloned();
            results.extend(answers);
            if let Some(failure) = failed {
                results.resize(names.len(), Err(failure));
                break;
            }
        }
        results
    }

    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        let of = name.clone();
        let put = |e: Arc<Engine>| async move { e.put(&of, bytes, Taken::Replace).await };
        self.run("replace", name.as_str(), put).await
    }

    /// What has been answered is durable, so that it is there is enough.
    async fn ensure_durable(&self, name: &ObjectName) -> Result<()> {
        self.size(name).await.map(drop)
    }

    async fn retained_until(&self, name: &ObjectName) -> Result<Option<DateTime<Utc>>> {
        let of = name.clone();
        self.run("look at", name.as_str(), |e| async move { e.retained_until(&of).await }).await
    }

    async fn extend_retention(&self, name: &ObjectName, until: DateTime<Utc>) -> Result<bool> {
        let of = name.clone();
        let extend = |e: Arc<Engine>| async move { e.extend_retention(&of, until).await };
        self.run("lock", name.as_str(), extend).await
    }

    async fn remove_leftovers(&self, prefix: &str, older_than: Duration) -> Result<u64> {
        let begin = prefix.to_owned();
        let remove = |e: Arc<Engine>| async move { e.remove_leftovers(&begin, older_than).await };
        self.run("list", prefix, remove).await
    }
}
