//! One backup, from the first question to the commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use chrono::{DateTime, Utc};

use super::{
    BackupOptions, Outcome,
    base_backup::{BaseBackupSource, ChangesOf, is_in_place},
    choose::{Choice, choose},
    lane::Lane,
    native::{self, Offer},
    pipeline::{self, Read, Setup, Stored},
    prove::Proof,
    server::{Facts, Server, connect, promoted},
    source::SourceEnd,
};
use crate::{
    config::ClusterSettings,
    error::{Context, Error, Kind, Result},
    postgres::{
        Lsn, Timeline,
        client::{Client, ConnInfo, Mode, PgError},
        incremental::NativeRefusal,
        replication::{self, BaseBackup, BaseBackupOptions, SystemIdentity, TablespaceRow},
    },
    progress::Progress,
    repo::{
        BackupId, Repository, SystemId, catalog,
        layout::ClusterLayout,
        manifest::ClusterFacts,
        record::{BackupRecord, BadPages, Sizes, Source, Tablespace, Way},
        tree::BLOCK,
    },
    steps::reached,
};

/// How often a backup of changes is begun before everything is sent and compared.
const ATTEMPTS: u32 = 3;

/// A backup being taken.
pub struct Run<'a> {
    repositories: &'a [Repository],
    layout: ClusterLayout,
    cluster: &'a ClusterSettings,
    options: &'a BackupOptions,
    progress: Arc<dyn Progress>,
    lanes: Vec<Lane>,
    committing: Arc<AtomicBool>,
}

/// How a backup began.
struct Begin {
    id: BackupId,
    choice: Choice,
    /// Why the server doesn't send only what changed since the base.
    refusal: Option<NativeRefusal>,
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
        repositories: &'a [Repository],
        cluster: &'a ClusterSettings,
        options: &'a BackupOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Self> {
        Ok(Run {
            repositories,
            layout: ClusterLayout::new(&cluster.name)?,
            cluster,
            options,
            progress,
            lanes: Vec::new(),
            committing: Arc::default(),
        })
    }

    /// Becomes true when the commit begins.
    pub fn committing(&self) -> Arc<AtomicBool> {
        self.committing.clone()
    }

    /// Takes it. An error is one that leaves no repository with a backup.
    pub async fn take(&mut self) -> Result<()> {
        let conninfo = ConnInfo::parse(&self.cluster.conninfo)
            .context(Kind::Usage, || format!("conninfo of cluster {}", self.cluster.name))?
            .with_application_name("pgkeep")
            .with_stall_timeout(Some(self.cluster.stall_timeout));
        let mut server = Server::connect(&conninfo).await?;
        let mut client = connect(&conninfo, Mode::Replication).await?;
        let identity = replication::identify_system(&mut client)
            .await
            .map_err(|e| Error::of_server("ask which system this is", e))?;
        let system = SystemId { major: server.facts.major, identifier: identity.system_identifier };
        let new = |repository| Lane::new(repository, &self.layout, system);
        self.lanes = self.repositories.iter().map(new).collect();
        for lane in &mut self.lanes {
            let checked = lane.check_system(system).await;
            lane.note(checked);
        }
        self.any_left()?;
        server.check_archiving().await?;
        self.say_what_is_outside(&server.facts);
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_in()) {
            let prepared = lane.prepare(&mut client, system, &identity).await;
            lane.note(prepared);
        }
        self.any_left()?;
        let choice = self.choose(system).await?;
        let id = self.reserve(&choice).await?;
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_in()) {
            let taken = lane.take_lease(&id).await;
            lane.note(taken);
        }
        reached("backup: lease taken");
        self.read_base(&id, &choice).await?;

        let label = self.options.label.clone().unwrap_or_else(|| format!("pgkeep {id}"));
        let started_at = server.now().await?;
        let mut attempts = 0;
        let (stream, refusal) = loop {
            attempts += 1;
            if server.facts.source == Source::Primary {
                server.write_a_record().await;
            }
            let offer = if attempts > ATTEMPTS {
                Some(Offer::Refused(NativeRefusal::CutOff))
            } else {
                self.offer(&mut client, &mut server, &identity, &choice).await?
            };
            let (cut_off, mut refusal) = match offer {
                None => (None, None),
                Some(Offer::Made(cut_off)) => (Some(cut_off), None),
                Some(Offer::Refused(refusal)) => (None, Some(refusal)),
            };
            self.say_how(&choice, server.facts.major, refusal.as_ref());
            self.say_checkpoint();
            let mut options = self.base_backup_options(&label, cut_off.is_some());
            let started = begin(&mut client, &mut server, &options).await?;
            let stream = match (started, &choice.base, cut_off) {
                // A refusal leaves the connection usable.
                (Err(e), Some(_), Some(_)) => {
                    refusal = Some(native::refused(e)?);
                    self.say_how(&choice, server.facts.major, refusal.as_ref());
                    options.incremental = false;
                    begin(&mut client, &mut server, &options).await?
                }
                (Ok(stream), Some(base), Some(cut_off)) => {
                    let begun = stream.start_lsn();
                    if !native::holds(&mut server, base, &cut_off, begun).await? {
                        self.progress.step(
                            "beginning again: a relation was made shorter before the checkpoint",
                        );
                        // In the midst of a backup there is no other way to end it.
                        drop(stream);
                        client = connect(&conninfo, Mode::Replication).await?;
                        continue;
                    }
                    Ok(stream)
                }
                (started, ..) => started,
            };
            break (stream.map_err(|e| Error::of_server("start the backup", e))?, refusal);
        };
        let rows = stream.tablespaces();
        check_tablespaces(&mut server, rows).await?;
        let begin = Begin {
            id,
            refusal,
            choice,
            label,
            system,
            start_lsn: stream.start_lsn(),
            timeline: stream.timeline(),
            started_at,
            tablespaces: rows.iter().filter_map(tablespace).collect(),
        };
        check_timeline(&identity, begin.timeline)?;
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_in()) {
            let noted = lane.needs_wal_from(begin.start_lsn).await;
            lane.note(noted);
        }
        self.prove(&mut server, &begin, Part::Early(identity.position)).await?;

        let read = self.read(stream, &mut server, &begin).await?;
        self.keep(read.lanes);
        self.any_left()?;
        reached("backup: all received");
        let stopped_at = server.now().await?;
        if read.end.timeline != begin.timeline {
            return Err(promoted());
        }
        if read.end.stop_lsn < begin.start_lsn {
            let (start, stop) = (begin.start_lsn, read.end.stop_lsn);
            let what =
                format!("the server says that the backup from {start} ends before, at {stop}");
            return Err(Error::new(Kind::Postgres, what));
        }
        client.close().await;
        self.prove(&mut server, &begin, Part::Whole(read.end.stop_lsn)).await?;
        reached("backup: its WAL is archived");
        let Read { end, sent, warnings, .. } = read;
        self.finish(&server.facts, &begin, (end, sent, warnings), stopped_at).await?;
        server.close().await;
        Ok(())
    }

    /// Tells of new failures, as long as a repository is left; else the first failure is that of
    /// the backup.
    fn any_left(&mut self) -> Result<()> {
        if self.lanes.iter().any(Lane::is_in) {
            self.lanes.iter_mut().for_each(|lane| lane.tell(self.progress.as_ref()));
            return Ok(());
        }
        let first = self.lanes.iter_mut().find_map(Lane::take_failure);
        Err(first.unwrap_or_else(|| Error::new(Kind::Internal, "no repository to back up to")))
    }

    async fn choose(&mut self, system: SystemId) -> Result<Choice> {
        let mut backups = Vec::new();
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_in()) {
            let listed = lane.backups().await;
            backups.extend(lane.note(listed));
        }
        self.any_left()?;
        let choice = choose(self.options.kind, system, &backups)?;
        if let Some(why) = &choice.why {
            self.progress.warn(&format!("this is going to be a full backup: {why}"));
        }
        Ok(choice)
    }

    async fn reserve(&mut self, choice: &Choice) -> Result<BackupId> {
        let mut lanes: Vec<&mut Lane> = self.lanes.iter_mut().filter(|lane| lane.is_in()).collect();
        let repositories: Vec<Repository> =
            lanes.iter().map(|lane| lane.repository.clone()).collect();
        let (id, reserved) =
            catalog::reserve(&repositories, &self.layout, choice.kind, Utc::now()).await?;
        for (lane, reserved) in lanes.iter_mut().zip(reserved) {
            if lane.note(reserved).is_some() {
                lane.reserved(&id);
            }
        }
        self.any_left()?;
        Ok(id)
    }

    async fn read_base(&mut self, id: &BackupId, choice: &Choice) -> Result<()> {
        if let Some(base) = &choice.base {
            self.progress.step(&format!("reading what the base backup {} holds", base.id));
        }
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_in()) {
            let read = lane.read_base(id, choice).await;
            lane.note(read);
        }
        self.any_left()
    }

    fn say_what_is_outside(&self, facts: &Facts) {
        if !facts.outside.is_empty() {
            self.progress.warn(&format!(
                "{} are outside the data directory and not in the backup",
                facts.outside.join(", ")
            ));
        }
    }

    /// Offers the base, if there is one, to the server, that it may send what changed only.
    async fn offer(
        &mut self,
        client: &mut Client,
        server: &mut Server,
        identity: &SystemIdentity,
        choice: &Choice,
    ) -> Result<Option<Offer>> {
        let Some(base) = &choice.base else { return Ok(None) };
        let tree = self.lanes.iter().filter(|lane| lane.is_in()).find_map(Lane::base);
        let tree =
            tree.ok_or_else(|| Error::new(Kind::Internal, "the base of the backup wasn't read"))?;
        native::offer(client, server, identity, base, tree).await.map(Some)
    }

    /// What is asked of the server, once it is known whether only changes are.
    fn base_backup_options(&self, label: &str, incremental: bool) -> BaseBackupOptions {
        BaseBackupOptions {
            label: label.to_owned(),
            fast_checkpoint: self.options.fast_checkpoint,
            max_rate: self.options.max_rate,
            wait_for_archive: false,
            verify_checksums: true,
            incremental,
        }
    }

    fn say_how(&self, choice: &Choice, major: u32, refusal: Option<&NativeRefusal>) {
        match (&choice.base, refusal) {
            (None, _) => {}
            (Some(base), None) => {
                let step = format!("asking the server for what changed since {}", base.id);
                self.progress.step(&step);
            }
            // That is how these versions are; nothing is wrong.
            (Some(base), Some(_)) if major < 17 => {
                self.progress.step(&format!("everything is going to be compared with {}", base.id));
            }
            (Some(base), Some(why)) => self.progress.warn(&format!(
                "the server is going to send everything, and it is compared with {}: {why}",
                base.id
            )),
        }
    }

    fn say_checkpoint(&self) {
        self.progress.step(if self.options.fast_checkpoint {
            "waiting for the checkpoint"
        } else {
            "waiting for the checkpoint, which the server spreads over minutes"
        });
    }

    /// Proves that the WAL is in each repository.
    async fn prove(&mut self, server: &mut Server, begin: &Begin, part: Part) -> Result<()> {
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_in()) {
            let mut proof = Proof {
                store: &lane.store,
                server,
                timeline: begin.timeline,
                start_lsn: begin.start_lsn,
                within: self.cluster.archive_wait,
                progress: self.progress.as_ref(),
            };
            let proven = match part {
                Part::Early(received) => proof.early(received).await,
                Part::Whole(stop_lsn) => proof.whole(stop_lsn).await,
            };
            lane.note(proven);
        }
        self.any_left()
    }

    /// Reads everything into packs. A standby is watched meanwhile: a promotion would only be
    /// noticed at the end.
    async fn read(
        &mut self,
        stream: BaseBackup<'_>,
        server: &mut Server,
        begin: &Begin,
    ) -> Result<Read> {
        let setup = Setup {
            layout: self.layout.clone(),
            id: begin.id.clone(),
            threads: self.options.threads,
            start_lsn: begin.start_lsn,
            segment_blocks: server.facts.data_checksums.then_some(server.facts.segment_blocks),
        };
        self.progress.step("reading the cluster");
        let changes = begin.choice.base.as_ref().filter(|_| begin.refusal.is_none());
        let changes = changes.map(|base| ChangesOf {
            start_lsn: base.start_lsn,
            timeline: base.timeline,
            segment_blocks: server.facts.segment_blocks,
        });
        // How much has changed nobody knows.
        let sizes = stream.tablespaces().iter().map(|row| row.size);
        self.progress.total(sizes.sum::<Option<u64>>().filter(|_| changes.is_none()));
        let lanes = self
            .lanes
            .iter_mut()
            .filter(|lane| lane.is_in())
            .map(Lane::pipeline)
            .collect::<Result<_>>()?;
        let mut source = BaseBackupSource::new(stream, &server.facts, changes);
        let reading = pipeline::run(&mut source, &setup, lanes, &self.progress);
        if server.facts.source == Source::Primary {
            return reading.await;
        }
        tokio::select! {
            read = reading => read,
            gone = server.watch() => Err(gone),
        }
    }

    /// Gives each lane that took part in the reading what it has stored, at once: who is in when the
    /// backup is committed may be others.
    fn keep(&mut self, stored: Vec<Result<Stored>>) {
        for (lane, stored) in self.lanes.iter_mut().filter(|lane| lane.is_in()).zip(stored) {
            lane.keep(stored);
        }
    }

    /// Writes manifests and commit objects.
    async fn finish(
        &mut self,
        facts: &Facts,
        begin: &Begin,
        (end, sent, warnings): (SourceEnd, u64, Vec<String>),
        stopped_at: DateTime<Utc>,
    ) -> Result<()> {
        let mut told = false;
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_in()) {
            let Some(mut stored) = lane.take_stored() else { continue };
            // What the server read twice and found good was only being written.
            let suspects = std::mem::take(&mut stored.tree.suspects);
            let mut bad_pages = if end.checksum_failures { suspects } else { BadPages::default() };
            // The server reads only what changed, and says nothing of the others.
            bad_pages.add(std::mem::take(&mut stored.tree.inherited));
            if bad_pages.count > 0 && !std::mem::replace(&mut told, true) {
                warn_of(&bad_pages, self.progress.as_ref());
            }
            self.progress.step(&format!("committing to repository {}", lane.repository.name()));
            let cluster_facts = ClusterFacts {
                format: 1,
                backup: begin.id.clone(),
                block_size: BLOCK as u32,
                directory_mode: facts.directory_mode,
                tablespaces: begin.tablespaces.clone(),
                entries: stored.tree.entries,
                bytes: stored.tree.bytes,
            };
            let record = BackupRecord {
                format: 1,
                id: begin.id.clone(),
                cluster: self.cluster.name.clone(),
                kind: begin.choice.kind,
                asked: self.options.kind.unwrap_or(begin.choice.kind),
                why: begin.choice.why.clone(),
                base: begin.choice.base.as_ref().map(|base| base.id.clone()),
                way: begin.choice.base.as_ref().map(|_| match begin.refusal {
                    Some(_) => Way::Comparison,
                    None => Way::Summaries,
                }),
                why_compared: begin.refusal.as_ref().map(NativeRefusal::to_string),
                uses: uses(&stored, &begin.id),
                label: begin.label.clone(),
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
                held_until: None,
                warnings: warnings.clone(),
                sizes: Sizes {
                    files: stored.tree.files,
                    cluster: stored.tree.bytes,
                    sent,
                    changed: stored.tree.changed,
                    raw: stored.packs.raw,
                    stored: stored.packs.stored,
                },
                tablespaces: begin.tablespaces.clone(),
                pgkeep: env!("CARGO_PKG_VERSION").to_owned(),
            };
            self.committing.store(true, Ordering::Relaxed);
            let committed =
                lane.commit(stored, cluster_facts, record, self.progress.as_ref()).await;
            lane.note(committed);
        }
        if self.lanes.iter().any(Lane::is_done) { Ok(()) } else { self.any_left() }
    }

    /// Ends it, and says what came of it in each repository.
    pub async fn end(self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for lane in self.lanes {
            let repository = lane.repository.name().to_owned();
            if let Some(result) = lane.end().await {
                outcomes.push(Outcome { repository, result });
            }
        }
        outcomes
    }
}

/// Begins the backup. The checkpoint may take long, and nothing comes meanwhile: whether the server is
/// still there is asked beside it.
async fn begin<'a>(
    client: &'a mut Client,
    server: &mut Server,
    options: &BaseBackupOptions,
) -> Result<Result<BaseBackup<'a>, PgError>> {
    tokio::select! {
        started = BaseBackup::start(client, options) => Ok(started),
        gone = server.watch() => Err(gone),
    }
}

/// What is proven of the WAL.
#[derive(Clone, Copy)]
enum Part {
    /// That archiving works; the server's position when it was asked first.
    Early(Lsn),
    /// All from the start to here.
    Whole(Lsn),
}

/// Raw bytes of older backups' packs that a tree refers to.
fn uses(stored: &Stored, own: &BackupId) -> BTreeMap<BackupId, u64> {
    let mut uses = BTreeMap::new();
    for reference in stored.tree.references.iter().filter(|used| used.backup != *own) {
        *uses.entry(reference.backup.clone()).or_default() += reference.live;
    }
    uses
}

fn warn_of(bad: &BadPages, progress: &dyn Progress) {
    let some: Vec<String> =
        bad.pages.iter().take(3).map(|page| format!("{} page {}", page.path, page.page)).collect();
    progress.warn(&format!(
        "{} pages of the cluster have a wrong checksum ({}{}); they are in the backup as they are, \
         and its record lists them",
        bad.count,
        some.join(", "),
        if bad.count > some.len() as u64 { ", …" } else { "" }
    ));
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
