//! Someone who writes while the backup runs.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::task::JoinHandle;

use super::server::Server;
use crate::error::{Context, Kind, Result};

/// A connection that inserts one row after the other, each a transaction of its own.
pub(super) struct Writers {
    written: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl Writers {
    /// Begins to write.
    pub async fn start(server: &Server) -> Result<Self> {
        let (written, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut client = server.connect().await?;
        let (counter, stop) = (written.clone(), enough.clone());
        let task = tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let insert =
                    "insert into public.account (owner, cents) values ('written meanwhile', 1)";
                client.execute(insert).await.context(Kind::Postgres, || "write to the demo")?;
                counter.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Writers { written, enough, task })
    }

    /// How many rows the server has acknowledged.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Stops writing, and returns how many rows the server has acknowledged.
    pub async fn stop(self) -> Result<u64> {
        self.enough.store(true, Ordering::Relaxed);
        self.task.await.context(Kind::Internal, || "wait for the writer")??;
        Ok(self.written.load(Ordering::Relaxed))
    }
}
