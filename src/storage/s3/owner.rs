//! The runtime that requests run on.
//!
//! A storage has its own: a connection belongs to the runtime that made it, and callers come from
//! several, some of which end early or can't do input and output. It is made at the first request.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::{JoinError, JoinHandle},
};

use super::{engine::Engine, errors::About, settings::S3Settings};
use crate::storage::{ErrorKind, ObjectName, Result};

/// Threads of the runtime: checksums, signatures and TLS take some time of a processor.
const THREADS: usize = 2;

/// How long the end of a storage waits until what was begun is removed.
const ABORT_WAIT: Duration = Duration::from_secs(10);

/// Holds the runtime. The last one to go waits for uploads that are being aborted.
#[derive(Debug)]
pub(super) struct Owner {
    engine: Arc<Engine>,
    runtime: Mutex<Option<Runtime>>,
}

impl Owner {
    pub fn new(settings: S3Settings) -> Self {
        Owner { engine: Arc::new(Engine::new(settings)), runtime: Mutex::new(None) }
    }

    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    fn handle(&self, about: &About) -> Result<Handle> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtime.as_ref() {
            return Ok(runtime.handle().clone());
        }
        let made = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(|e| about.error(ErrorKind::Unavailable, format!("start a runtime: {e}")))?;
        Ok(runtime.insert(made).handle().clone())
    }

    /// Starts something beside the caller.
    pub fn spawn<T: Send + 'static>(
        &self,
        about: &About,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        Ok(self.handle(about)?.spawn(work))
    }

    /// Does something here and waits for it. If nobody waits any more, it ends.
    pub async fn run<T: Send + 'static>(
        &self,
        about: &About,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut waited = Waited(self.spawn(about, work)?);
        joined(about, (&mut waited.0).await)
    }

    /// Ends an upload in parts in the background.
    pub fn abort(
        &self,
        name: ObjectName,
        upload: String,
        sending: Vec<JoinHandle<Result<aws_sdk_s3::types::CompletedPart>>>,
    ) {
        let engine = self.engine.clone();
        let about = engine.about("abort", name.as_str());
        for part in &sending {
            part.abort();
        }
        engine.abort_begins();
        let aborting = async move {
            for part in sending {
                let _ = part.await;
            }
            if let Err(e) = engine.abort(&name, &upload).await {
                tracing::warn!("{e}; a later backup removes what was sent of it");
            }
            engine.abort_ends();
        };
        if self.spawn(&about, aborting).is_err() {
            self.engine.abort_ends();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let runtime = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            self.engine.wait_for_aborts(ABORT_WAIT);
            runtime.shutdown_background();
        }
    }
}

/// A task that ends when nobody waits for it.
struct Waited<T>(JoinHandle<T>);

impl<T> Drop for Waited<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The result of a task, or that it died.
pub(super) fn joined<T>(
    about: &About,
    task: std::result::Result<Result<T>, JoinError>,
) -> Result<T> {
    task.unwrap_or_else(|e| Err(about.error(ErrorKind::Unavailable, format!("a task died: {e}"))))
}
