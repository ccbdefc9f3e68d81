//! One repository's part in a backup: everything that can fail in one and not in another.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    base::Base,
    choose::Choice,
    commit,
    pipeline::{self, Stored},
    protect::protect,
    tree::TreeBuilder,
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{
        Lsn, Timeline,
        client::Client,
        replication::{self, SystemIdentity},
    },
    progress::Progress,
    repo::{
        BackupId, Repository, SystemId, catalog,
        layout::ClusterLayout,
        lease::{HeldLease, Lease},
        manifest::{ClusterFacts, Manifest},
        record::BackupRecord,
        tree::BackupTable,
        wal::WalStore,
    },
};

/// How long removing what a failed backup has stored may take.
const UNDO: Duration = Duration::from_secs(60);

/// A repository that a backup goes to.
pub struct Lane {
    /// The repository.
    pub repository: Repository,
    /// The cluster's WAL in it.
    pub store: WalStore,
    layout: ClusterLayout,
    /// What the backup is compared with, and what the numbers of backups in it mean.
    base: Option<(Option<Base>, BackupTable)>,
    /// What the reading has stored here.
    stored: Option<Stored>,
    /// What has to be undone when it fails.
    id: Option<BackupId>,
    lease: Option<HeldLease>,
    /// Once the commit object may exist, others may refer to what is stored.
    committing: bool,
    /// Every thread that may still write an object holds a sender.
    writing: (mpsc::Sender<()>, mpsc::Receiver<()>),
    state: State,
}

enum State {
    /// It takes part.
    In,
    /// It has failed.
    Failed(Error),
    /// The failure was told.
    Told(Error),
    /// The backup is there.
    Done(Box<BackupRecord>),
}

impl Lane {
    /// A repository that takes part.
    pub fn new(repository: &Repository, layout: &ClusterLayout, system: SystemId) -> Self {
        Lane {
            repository: repository.clone(),
            store: WalStore::new(repository, layout, system),
            layout: layout.clone(),
            base: None,
            stored: None,
            id: None,
            lease: None,
            committing: false,
            writing: mpsc::channel(1),
            state: State::In,
        }
    }

    /// Whether it still takes part.
    pub fn is_in(&self) -> bool {
        matches!(self.state, State::In)
    }

    /// Whether the backup is there.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// Its failure, if it has failed and nobody took it before.
    pub fn take_failure(&mut self) -> Option<Error> {
        match std::mem::replace(&mut self.state, State::In) {
            State::Failed(e) | State::Told(e) => Some(e),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Notes what came of something that was done for this repository alone: after a failure it is
    /// out.
    pub fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(e) => {
                self.state = State::Failed(e);
                None
            }
        }
    }

    /// Tells of a failure that nobody has heard of, while the backup goes on elsewhere.
    pub fn tell(&mut self, progress: &dyn Progress) {
        match std::mem::replace(&mut self.state, State::In) {
            State::Failed(e) => {
                progress.warn(&format!(
                    "the backup goes on without repository {}: {e}",
                    self.repository.name()
                ));
                self.state = State::Told(e);
            }
            other => self.state = other,
        }
    }

    /// Makes sure that the system is one of the cluster's, or will be its first: another one may be
    /// a mistake in the configuration, and would mix two clusters up.
    pub async fn check_system(&self, system: SystemId) -> Result<()> {
        let known = catalog::systems(&self.repository, &self.layout).await?;
        if !known.is_empty() && !known.contains(&system) {
            let known: Vec<String> = known.iter().map(SystemId::to_string).collect();
            let message = format!(
                "the server is {system}, but cluster {} in repository {} is of {}",
                self.layout.cluster(),
                self.repository.name(),
                known.join(", ")
            );
            return Err(Error::new(Kind::Conflict, message)
                .hint("after pg_upgrade or initdb, run `pgkeep check --new-system` first")
                .hint("if it is another cluster, give it another name in the configuration"));
        }
        Ok(())
    }

    /// Registers the system, and stores the history of the server's timeline, without which nobody
    /// could tell how it came about.
    pub async fn prepare(
        &mut self,
        client: &mut Client,
        system: SystemId,
        identity: &SystemIdentity,
    ) -> Result<()> {
        catalog::register_system(&self.repository, &self.layout, system).await?;
        self.store_history(client, identity.timeline).await
    }

    async fn store_history(&self, client: &mut Client, timeline: Timeline) -> Result<()> {
        if timeline == Timeline(1) {
            return Ok(());
        }
        // Also where there is one: two servers may have promoted to the same timeline.
        let content = replication::timeline_history(client, timeline)
            .await
            .map_err(|e| Error::of_server("ask for the timeline's history", e))?;
        self.store.store_history(timeline, &content).await
    }

    /// The committed backups, the newest last.
    pub async fn backups(&self) -> Result<Vec<BackupRecord>> {
        catalog::backups(&self.repository, &self.layout).await
    }

    /// Notes that the id is reserved here.
    pub fn reserved(&mut self, id: &BackupId) {
        self.id = Some(id.clone());
    }

    /// Takes the lease that says that the backup is running.
    pub async fn take_lease(&mut self, id: &BackupId) -> Result<()> {
        let lease = Lease::new("backup", Some(id.clone()))?;
        self.lease = Some(HeldLease::take(&self.repository, &self.layout, lease).await?);
        Ok(())
    }

    /// Says in the lease from where on WAL is needed.
    pub async fn needs_wal_from(&mut self, lsn: Lsn) -> Result<()> {
        match &mut self.lease {
            Some(lease) => lease.needs_wal_from(lsn).await,
            None => Ok(()),
        }
    }

    /// Reads the tree that the backup is going to be over.
    pub async fn read_base(&mut self, id: &BackupId, choice: &Choice) -> Result<()> {
        let mut table = TreeBuilder::table(id);
        let base = match &choice.base {
            None => None,
            Some(record) => Some(
                Base::read(&self.repository, &self.layout, &record.id, &mut table)
                    .await
                    .map_err(|e| e.while_doing(format!("read the base backup {}", record.id)))?
                    .with_bad_pages(record.bad_pages.clone()),
            ),
        };
        self.base = Some((base, table));
        Ok(())
    }

    /// The base's tree, and what backup numbers mean in it.
    pub fn base(&self) -> Option<(&Base, &BackupTable)> {
        self.base.as_ref().and_then(|(base, table)| Some((base.as_ref()?, table)))
    }

    /// The pipeline's lane for this repository. The base is given away with it.
    pub fn pipeline(&mut self) -> Result<pipeline::Lane> {
        let (base, table) = self
            .base
            .take()
            .ok_or_else(|| Error::new(Kind::Internal, "the base of the backup wasn't read"))?;
        let (repository, writing) = (self.repository.clone(), self.writing.0.clone());
        Ok(pipeline::Lane { repository, base, table, writing })
    }

    /// Keeps what the reading has stored here; after a failure it is out.
    pub fn keep(&mut self, stored: Result<Stored>) {
        self.stored = self.note(stored);
    }

    /// What the reading has stored here.
    pub fn take_stored(&mut self) -> Option<Stored> {
        self.stored.take()
    }

    /// Writes the manifest, has what it refers to be held where objects are, and commits. The
    /// manifest's size and how long it is held are added to the record.
    pub async fn commit(
        &mut self,
        stored: Stored,
        facts: ClusterFacts,
        mut record: BackupRecord,
        progress: &dyn Progress,
    ) -> Result<()> {
        let manifest = Manifest {
            facts,
            leaves: stored.tree.leaves,
            table: stored.tree.table,
            references: stored.tree.references,
        };
        record.sizes.stored += manifest.create(&self.repository, &self.layout).await?;
        match protect(&self.repository, &self.layout, &manifest).await {
            Ok(until) => record.held_until = until,
            // Of use all the same, but who relies on the lock has to know.
            Err(e) => {
                let hints: String = e.hints().iter().map(|h| format!(" (hint: {h})")).collect();
                let warning =
                    format!("the backup isn't known to be protected by object lock: {e}{hints}");
                progress.warn(&warning);
                record.warnings.push(warning);
            }
        }
        self.committing = true;
        commit::commit(&self.repository, &self.layout, &record).await?;
        self.state = State::Done(Box::new(record));
        Ok(())
    }

    /// Ends its part: a backup that isn't there is undone, and the lease is given back. What came of
    /// it; a repository that was still in when another thing failed has nothing to say.
    pub async fn end(mut self) -> Option<Result<BackupRecord>> {
        if tokio::time::timeout(UNDO, self.clean_up()).await.is_err() {
            tracing::warn!(
                "removing what the backup has stored in repository {} took too long; a part of it stays",
                self.repository.name()
            );
        }
        match self.state {
            State::In => None,
            State::Failed(e) | State::Told(e) => Some(Err(e)),
            State::Done(record) => Some(Ok(*record)),
        }
    }

    async fn clean_up(&mut self) {
        // Until nobody can write any more.
        let (_, mut writing) = std::mem::replace(&mut self.writing, mpsc::channel(1));
        while writing.recv().await.is_some() {}
        if let Some(id) = self.id.take().filter(|_| !self.is_done() && !self.committing) {
            commit::undo(&self.repository, &self.layout, &id).await;
        }
        if let Some(lease) = self.lease.take() {
            lease.release().await;
        }
    }
}
