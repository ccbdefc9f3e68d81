//! One backup, from the first question to the commit.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;

use super::{
    BackupOptions,
    base_backup::{BaseBackupSource, is_in_place},
    commit,
    pipeline::{self, Setup, Stored},
    prove::Proof,
    server::{Facts, Server, connect, promoted},
    source::SourceEnd,
};
use crate::{
    config::ClusterSettings,
    error::{Context, Error, Kind, Result},
    postgres::{
        Lsn, Timeline,
        client::{Client, ConnInfo, Mode},
        replication::{self, BaseBackup, BaseBackupOptions, SystemIdentity, TablespaceRow},
    },
    progress::Progress,
    repo::{
        BackupId, Repository, SystemId, catalog,
        layout::ClusterLayout,
        lease::{HeldLease, Lease},
        manifest::{ClusterFacts, Manifest, Reference},
        record::{BackupRecord, BadPages, Sizes, Source, Tablespace},
        tree::BLOCK,
        wal::WalStore,
    },
};

/// A backup being taken, and what has to be undone when it fails.
pub struct Run<'a> {
    repository: &'a Repository,
    layout: ClusterLayout,
    cluster: &'a ClusterSettings,
    options: &'a BackupOptions,
    progress: Arc<dyn Progress>,
    id: Option<BackupId>,
    lease: Option<HeldLease>,
    /// Once the commit object may exist, others may refer to what is stored.
    committing: Arc<AtomicBool>,
    /// Every thread that may still write an object holds a sender.
    writing: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

/// How a backup began.
struct Begin {
    id: BackupId,
    label: String,
    system: SystemId,
    start_lsn: Lsn,
    timeline: Timeline,
    started_at: DateTime<Utc>,
    tablespaces: Vec<Tablespace>,
}

impl<'a> Run<'a> {
    /// A backup that hasn't begun.
    pub fn new(
        repository: &'a Repository,
        cluster: &'a ClusterSettings,
        options: &'a BackupOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Self> {
        Ok(Run {
            repository,
            layout: ClusterLayout::new(&cluster.name)?,
            cluster,
            options,
            progress,
            id: None,
            lease: None,
            committing: Arc::default(),
            writing: mpsc::channel(1),
        })
    }

    /// Becomes true when the commit begins.
    pub fn committing(&self) -> Arc<AtomicBool> {
        self.committing.clone()
    }

    /// Takes it.
    pub async fn take(&mut self) -> Result<BackupRecord> {
        let conninfo = ConnInfo::parse(&self.cluster.conninfo)
            .context(Kind::Usage, || format!("conninfo of cluster {}", self.cluster.name))?
            .with_application_name("pgkeep");
        let mut server = Server::connect(&conninfo).await?;
        let mut client = connect(&conninfo, Mode::Replication).await?;
        let identity = replication::identify_system(&mut client)
            .await
            .map_err(|e| Error::of_server("ask which system this is", e))?;
        let system = SystemId { major: server.facts.major, identifier: identity.system_identifier };
        self.check_system(system).await?;
        server.check_archiving().await?;
        catalog::register_system(self.repository, &self.layout, system).await?;
        self.say_what_is_outside(&server.facts);
        let store = WalStore::new(self.repository, &self.layout, system);
        store_history(&store, &mut client, identity.timeline).await?;

        let repositories = [self.repository.clone()];
        let id =
            catalog::reserve(&repositories, &self.layout, self.options.kind, Utc::now()).await?;
        self.id = Some(id.clone());
        let lease = Lease::new("backup", Some(id.clone()))?;
        self.lease = Some(HeldLease::take(self.repository, &self.layout, lease).await?);

        let label = self.options.label.clone().unwrap_or_else(|| format!("pgkeep {id}"));
        let started_at = server.now().await?;
        if server.facts.source == Source::Primary {
            server.write_a_record().await;
        }
        let stream = self.start(&mut client, &label).await?;
        let rows = stream.tablespaces();
        check_tablespaces(&mut server, rows).await?;
        let begin = Begin {
            id,
            label,
            system,
            start_lsn: stream.start_lsn(),
            timeline: stream.timeline(),
            started_at,
            tablespaces: rows.iter().filter_map(tablespace).collect(),
        };
        check_timeline(&identity, begin.timeline)?;
        if let Some(lease) = &mut self.lease {
            lease.needs_wal_from(begin.start_lsn).await?;
        }
        self.proof(&store, &mut server, &begin).early(identity.position).await?;

        let (stored, end) = self.read(stream, &mut server, &begin).await?;
        let stopped_at = server.now().await?;
        if end.timeline != begin.timeline {
            return Err(promoted());
        }
        client.close().await;
        self.proof(&store, &mut server, &begin).whole(end.stop_lsn).await?;
        let record = self.finish(&server.facts, begin, stored, end, stopped_at).await?;
        server.close().await;
        Ok(record)
    }

    /// Makes sure that the system is one of the cluster's, or will be its first: another one may be
    /// a mistake in the configuration, and would mix two clusters up.
    async fn check_system(&self, system: SystemId) -> Result<()> {
        let known = catalog::systems(self.repository, &self.layout).await?;
        if known.is_empty() || known.contains(&system) {
            return Ok(());
        }
        let known: Vec<String> = known.iter().map(SystemId::to_string).collect();
        let message = format!(
            "the server is {system}, but cluster {} in repository {} is of {}",
            self.cluster.name,
            self.repository.name(),
            known.join(", ")
        );
        Err(Error::new(Kind::Conflict, message)
            .hint("after pg_upgrade or initdb, run `pgkeep check --new-system` first")
            .hint("if it is another cluster, give it another name in the configuration"))
    }

    fn say_what_is_outside(&self, facts: &Facts) {
        if !facts.outside.is_empty() {
            self.progress.warn(&format!(
                "{} are outside the data directory and not in the backup",
                facts.outside.join(", ")
            ));
        }
    }

    async fn start<'c>(&self, client: &'c mut Client, label: &str) -> Result<BaseBackup<'c>> {
        self.progress.step(if self.options.fast_checkpoint {
            "waiting for the checkpoint"
        } else {
            "waiting for the checkpoint, which the server spreads over minutes"
        });
        let options = BaseBackupOptions {
            label: label.to_owned(),
            fast_checkpoint: self.options.fast_checkpoint,
            max_rate: self.options.max_rate,
            wait_for_archive: false,
            verify_checksums: true,
        };
        BaseBackup::start(client, &options)
            .await
            .map_err(|e| Error::of_server("start the backup", e))
    }

    fn proof<'p>(
        &'p self,
        store: &'p WalStore,
        server: &'p mut Server,
        begin: &Begin,
    ) -> Proof<'p> {
        Proof {
            store,
            server,
            timeline: begin.timeline,
            start_lsn: begin.start_lsn,
            within: self.cluster.archive_wait,
            progress: self.progress.as_ref(),
        }
    }

    /// Reads everything into packs. A standby is watched meanwhile: a promotion would only be
    /// noticed at the end.
    async fn read(
        &self,
        stream: BaseBackup<'_>,
        server: &mut Server,
        begin: &Begin,
    ) -> Result<(Stored, SourceEnd)> {
        let setup = Setup {
            repository: self.repository.clone(),
            layout: self.layout.clone(),
            id: begin.id.clone(),
            threads: self.options.threads,
            start_lsn: begin.start_lsn,
            segment_blocks: server.facts.data_checksums.then_some(server.facts.segment_blocks),
            writing: self.writing.0.clone(),
        };
        self.progress.step("reading the cluster");
        self.progress.total(stream.tablespaces().iter().map(|row| row.size).sum());
        let mut source = BaseBackupSource::new(stream, server.facts.directory_mode);
        let reading = pipeline::run(&mut source, setup, &self.progress);
        if server.facts.source == Source::Primary {
            return reading.await;
        }
        tokio::select! {
            read = reading => read,
            gone = server.watch() => Err(gone),
        }
    }

    /// Writes the manifest and the commit object.
    async fn finish(
        &mut self,
        facts: &Facts,
        begin: Begin,
        stored: Stored,
        end: SourceEnd,
        stopped_at: DateTime<Utc>,
    ) -> Result<BackupRecord> {
        let Stored { tree, packs, stored, warnings } = stored;
        // What the server read twice and found good was only being written.
        let bad_pages = if end.checksum_failures { tree.suspects } else { BadPages::default() };
        self.warn_of(&bad_pages, end.checksum_failures);
        let raw = packs.values().sum();
        let references = packs
            .into_iter()
            .map(|(pack, live)| Reference { backup: begin.id.clone(), pack, live })
            .collect();
        let manifest = Manifest {
            facts: ClusterFacts {
                format: 1,
                backup: begin.id.clone(),
                block_size: BLOCK as u32,
                directory_mode: facts.directory_mode,
                tablespaces: begin.tablespaces.clone(),
                entries: tree.entries,
                bytes: tree.bytes,
            },
            leaves: tree.leaves,
            table: tree.table,
            references,
        };
        let manifest_size = manifest.create(self.repository, &self.layout).await?;
        let record = BackupRecord {
            format: 1,
            id: begin.id,
            cluster: self.cluster.name.clone(),
            kind: self.options.kind,
            asked: self.options.kind,
            why: None,
            base: None,
            label: begin.label,
            system: begin.system,
            server_version: facts.version.clone(),
            source: facts.source,
            timeline: begin.timeline,
            start_lsn: begin.start_lsn,
            stop_lsn: end.stop_lsn,
            segment_size: facts.segment_size,
            started_at: begin.started_at,
            stopped_at,
            data_checksums: facts.data_checksums,
            bad_pages,
            warnings,
            sizes: Sizes {
                files: tree.files,
                cluster: tree.bytes,
                raw,
                stored: stored + manifest_size,
            },
            tablespaces: begin.tablespaces,
            pgkeep: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.progress.step("committing");
        self.committing.store(true, Ordering::Relaxed);
        commit::commit(self.repository, &self.layout, &record).await?;
        Ok(record)
    }

    fn warn_of(&self, bad: &BadPages, failures: bool) {
        if !failures {
            return;
        }
        let some: Vec<String> = bad
            .pages
            .iter()
            .take(3)
            .map(|page| format!("{} page {}", page.path, page.page))
            .collect();
        self.progress.warn(&format!(
            "{} pages of the cluster have a wrong checksum ({}{}); they are in the backup as they \
             are, and its record lists them",
            bad.count,
            some.join(", "),
            if bad.count > some.len() as u64 { ", …" } else { "" }
        ));
    }

    /// Ends it: a failed one is undone, and the lease is given back.
    pub async fn end(mut self, success: bool) {
        drop(self.writing.0);
        // Until nobody can write any more.
        while self.writing.1.recv().await.is_some() {}
        if let Some(id) =
            self.id.take().filter(|_| !success && !self.committing.load(Ordering::Relaxed))
        {
            commit::undo(self.repository, &self.layout, &id).await;
        }
        if let Some(lease) = self.lease.take() {
            lease.release().await;
        }
    }
}

/// Stores the history of the server's timeline, unless it is there: without it nobody can tell how
/// the timeline came about.
async fn store_history(store: &WalStore, client: &mut Client, timeline: Timeline) -> Result<()> {
    if timeline == Timeline(1) || store.history(timeline).await?.is_some() {
        return Ok(());
    }
    let content = replication::timeline_history(client, timeline)
        .await
        .map_err(|e| Error::of_server("ask for the timeline's history", e))?;
    store.store_history(timeline, &content).await
}

/// That every tablespace comes in the stream. PostgreSQL 15 leaves those out that lie in `pg_tblspc`
/// itself.
async fn check_tablespaces(server: &mut Server, rows: &[TablespaceRow]) -> Result<()> {
    let sent: BTreeSet<u32> = rows.iter().filter_map(|row| row.oid).collect();
    let before: Vec<u32> = server.facts.tablespaces.keys().copied().collect();
    if before.iter().all(|oid| sent.contains(oid)) {
        return Ok(());
    }
    // One may have been dropped since it was looked for.
    let now = server.tablespaces().await?;
    let left_out = before.iter().filter(|oid| !sent.contains(oid)).find_map(|oid| now.get(oid));
    let Some(name) = left_out else { return Ok(()) };
    Err(Error::new(Kind::Postgres, format!("the server leaves tablespace {name} out of the backup"))
        .hint("PostgreSQL 15 does so with tablespaces in pg_tblspc itself (allow_in_place_tablespaces); give it a directory of its own"))
}

/// That the backup starts on the timeline that the server is on.
fn check_timeline(identity: &SystemIdentity, start: Timeline) -> Result<()> {
    if identity.timeline == start {
        return Ok(());
    }
    let message = format!(
        "the backup would start on timeline {start}, but the standby follows timeline {} already",
        identity.timeline
    );
    Err(Error::new(Kind::Postgres, message)
        .hint("run CHECKPOINT on the primary, wait until the standby has replayed it, and run the backup again"))
}

fn tablespace(row: &TablespaceRow) -> Option<Tablespace> {
    let location = row.location.clone()?;
    Some(Tablespace { oid: row.oid?, in_place: is_in_place(&location), location })
}
