//! `check`: proves that archiving works from end to end, or says what is wrong.
//!
//! Settings that look right prove nothing. So a segment is closed, and the check is passed when
//! that very segment has come into every repository by PostgreSQL's own doing and can be read back.
//! Before that, check makes the cluster's system known in the repositories: from then on they take
//! its WAL, and no other's.

use std::{io, sync::Arc};

use tokio::time::{Duration, Instant};

use super::{
    diagnose::diagnose,
    gaps::report_gaps,
    pgdata::report_data_directory,
    replication::{report_replication, report_stream},
    server::Server,
    settings::report_settings,
};
use crate::{
    config::{ClusterSettings, RepositorySettings},
    error::{Error, Kind, Result},
    postgres::{SegmentName, WalFile, archiving::Archiver},
    progress::Progress,
    repo::{
        Repository, SystemId,
        catalog::{register_system, systems},
        id::RandomId,
        layout::{self, ClusterLayout},
        open::open,
        repository::Names,
        wal::WalStore,
    },
    storage::CreateOnly,
};

/// How long a command may take to end when its segment is stored, at least.
const AT_WORK: Duration = Duration::from_secs(5);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a check may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Take the server's system as one of the cluster's although another is registered: after
    /// pg_upgrade, or when the cluster was made anew.
    pub new_system: bool,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepState {
    /// It is as it should be.
    Ok,
    /// It works, and somebody should know.
    Warning,
    /// It doesn't work.
    Problem,
    /// It couldn't be checked here.
    Skipped,
}

impl StepState {
    /// The stable name used in JSON output.
    pub fn name(self) -> &'static str {
        match self {
            StepState::Ok => "ok",
            StepState::Warning => "warning",
            StepState::Problem => "problem",
            StepState::Skipped => "skipped",
        }
    }
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckStep {
    /// What, a stable name: `server`, `data-directory`, `replication`, `stream`, `wal-level`, `archive-mode`,
    /// `archive-command`, `archive-timeout`, `repository`, `create-only`, `object-lock`, `system`,
    /// `switch`, `arrival`, `gaps`.
    pub name: &'static str,
    /// The repository that it is about, if it is about one.
    pub repository: Option<String>,
    /// How it ended.
    pub state: StepState,
    /// A sentence without full stop.
    pub text: String,
    /// What to do, in order.
    pub hints: Vec<String>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The server's system, if it could be asked.
    pub system: Option<SystemId>,
    /// The segment that was closed.
    pub segment: Option<SegmentName>,
    /// The steps in the order they were done.
    pub steps: Vec<CheckStep>,
}

impl CheckReport {
    /// Whether no step found a problem.
    pub fn is_sound(&self) -> bool {
        self.steps.iter().all(|step| step.state != StepState::Problem)
    }

    pub(super) fn step(
        &mut self,
        name: &'static str,
        state: StepState,
        text: impl Into<String>,
    ) -> &mut CheckStep {
        self.steps.push(CheckStep {
            name,
            repository: None,
            state,
            text: text.into(),
            hints: Vec::new(),
        });
        // Just pushed.
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    pub(super) fn failed(&mut self, name: &'static str, e: &Error) -> &mut CheckStep {
        let step = self.step(name, StepState::Problem, e.to_string());
        step.hints = e.hints().to_vec();
        step
    }
}

impl CheckStep {
    pub(super) fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hints.push(hint.into());
        self
    }

    pub(super) fn of(&mut self, repository: &str) -> &mut Self {
        self.repository = Some(repository.to_owned());
        self
    }
}

/// Checks archiving of the cluster into these repositories. Problems are in the report; an error
/// means that there is nothing to report: a connection string that can't be read, or
/// ([`Kind::Conflict`]) repositories that another system is registered in.
pub async fn check(
    repositories: &[&RepositorySettings],
    cluster: &ClusterSettings,
    options: CheckOptions,
    progress: Arc<dyn Progress>,
) -> Result<CheckReport> {
    if repositories.is_empty() {
        return Err(Error::new(Kind::Usage, "no repository is configured"));
    }
    let layout = ClusterLayout::new(&cluster.name)?;
    let mut report = CheckReport::default();

    progress.step("asking the server");
    let mut server = match Server::connect(cluster).await {
        Ok(server) => Some(server),
        Err(e) if e.kind() == Kind::Usage => return Err(e),
        Err(e) => {
            report.failed("server", &e);
            None
        }
    };
    let mut archives = false;
    if let Some(server) = &mut server {
        report.system = Some(server.system);
        report.step("server", StepState::Ok, server.describe());
        let directory = report_data_directory(server, cluster, &mut report);
        report_replication(server, &mut report).await;
        report_stream(server, cluster, &mut report).await?;
        // Elsewhere a standby may have its own under the same path.
        let directory = directory.filter(|_| server.is_local());
        archives = report_settings(server, directory.as_deref(), &mut report);
    }

    progress.step("opening the repositories");
    let mut opened = Vec::new();
    for settings in repositories {
        match open_writable(settings).await {
            Ok((repository, creation)) => {
                let text = format!(
                    "{} opens ({}) and can be written to",
                    repository.storage().address(),
                    if repository.keyring().is_encrypted() { "encrypted" } else { "not encrypted" }
                );
                report.step("repository", StepState::Ok, text).of(&settings.name);
                report_creation(&repository, creation, &mut report);
                report_lock(&repository, &mut report).await;
                opened.push(repository);
            }
            Err(e) => {
                report.failed("repository", &e).of(&settings.name);
            }
        }
    }
    let Some(server) = &mut server else { return Ok(report) };
    register(&opened, &layout, server.system, options, &mut report).await?;

    if !archives {
        let text = "no segment was closed, since the server can't archive it";
        report.step("switch", StepState::Skipped, text);
    } else if server.in_recovery {
        let text = "no segment can be closed on a standby; run the check on the primary too";
        report.step("switch", StepState::Skipped, text);
    } else {
        let system = server.system;
        let stores = opened.iter().map(|r| WalStore::new(r, &layout, system)).collect();
        prove(server, cluster, stores, &mut report, progress.as_ref()).await;
    }
    // Last: what waits to be archived behind the closed segment isn't missing by now.
    progress.step("looking for gaps in the WAL");
    for repository in &opened {
        report_gaps(repository, &layout, server.system, &mut report).await;
    }
    Ok(report)
}

/// Opens a repository and begins an object in it, which is not finished. Also finds out whether the
/// storage refuses to create what is there.
async fn open_writable(settings: &RepositorySettings) -> Result<(Repository, CreateOnly)> {
    let repository = open(settings).await?;
    let mut writer = repository.storage().create(&layout::repository_file()).await?;
    writer.write(b"pgkeep".as_slice().into()).await?;
    let creation = repository.storage().create_only().await?;
    Ok((repository, creation))
}

/// Whether what is stored is safe from being overwritten: by the storage, or by its names.
fn report_creation(repository: &Repository, creation: CreateOnly, report: &mut CheckReport) {
    let (state, text) = match (creation, repository.names()) {
        (CreateOnly::Inherent, _) => return,
        (CreateOnly::Honoured, Names::Plain) => {
            (StepState::Ok, "the server refuses to overwrite what is there")
        }
        (_, Names::Content) => (
            StepState::Ok,
            "names hold the content's checksum, so that nothing can be overwritten by other content",
        ),
        (CreateOnly::Ignored, Names::Plain) => (
            StepState::Problem,
            "the server overwrites what is there, and the names in this repository don't guard \
             against it: what another server archives could take the place of this one's WAL",
        ),
    };
    let step = report.step("create-only", state, text).of(repository.name());
    if state == StepState::Problem {
        step.hint(
            "it has to honour If-None-Match of PutObject and CompleteMultipartUpload, as it did when \
             the repository was made: update it, or look for what changes requests on the way",
        )
        .hint("in a new repository on it names hold checksums: `pgkeep init` finds out by itself");
    }
}

/// Whether it can be seen that object lock holds what is stored. Where it can't, backups go on, and
/// nobody would notice that what they share isn't held as long as they are.
async fn report_lock(repository: &Repository, report: &mut CheckReport) {
    let step = match repository.storage().retained_until(&layout::repository_file()).await {
        Ok(None) => return,
        Ok(Some(_)) => {
            let text = "object lock holds what is stored, and can be asked until when";
            report.step("object-lock", StepState::Ok, text)
        }
        Err(e) => {
            let e = Error::from(e);
            let text = format!("it isn't known whether object lock holds what is stored: {e}");
            let step = report.step("object-lock", StepState::Warning, text);
            step.hints = e.hints().to_vec();
            step
        }
    };
    step.of(repository.name());
}

/// Makes the system known in each repository, unless another one is there.
async fn register(
    repositories: &[Repository],
    layout: &ClusterLayout,
    system: SystemId,
    options: CheckOptions,
    report: &mut CheckReport,
) -> Result<()> {
    // All are asked before any is written to.
    let mut known = Vec::with_capacity(repositories.len());
    for repository in repositories {
        let systems = systems(repository, layout).await;
        if let Ok(systems) = &systems
            && !systems.is_empty()
            && !systems.contains(&system)
            && !options.new_system
        {
            let others: Vec<_> = systems.iter().map(ToString::to_string).collect();
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "the server is system {system}, but in repository {} cluster {} is system {}",
                    repository.name(),
                    layout.cluster(),
                    others.join(", ")
                ),
            )
            .hint("if it is another cluster, give it a section [cluster.NAME] and name it by --cluster")
            .hint("if it is the same one after pg_upgrade or initdb: pgkeep check --new-system"));
        }
        known.push(systems);
    }
    for (repository, systems) in repositories.iter().zip(known) {
        let registered = match systems {
            Ok(systems) if systems.contains(&system) => {
                // Reads the registration back and makes sure that it is durable.
                register_system(repository, layout, system).await.map(|()| "is")
            }
            Ok(_) => register_system(repository, layout, system).await.map(|()| "is now"),
            Err(e) => Err(e),
        };
        let step = match registered {
            Ok(how) => {
                let text =
                    format!("system {system} {how} registered for cluster {}", layout.cluster());
                report.step("system", StepState::Ok, text)
            }
            Err(e) => report.failed("system", &e),
        };
        step.of(repository.name());
    }
    Ok(())
}

/// Closes a segment and waits for it.
async fn prove(
    server: &mut Server,
    cluster: &ClusterSettings,
    stores: Vec<WalStore>,
    report: &mut CheckReport,
    progress: &dyn Progress,
) {
    let before = server.archiver().await;
    let mark = match RandomId::random() {
        Ok(mark) => mark.to_string(),
        Err(e) => {
            report.failed("switch", &e);
            return;
        }
    };
    let segment = match server.close_segment(&mark).await {
        Ok(segment) => segment,
        Err(e) => {
            report.failed("switch", &e);
            return;
        }
    };
    report.segment = Some(segment);
    report.step("switch", StepState::Ok, format!("WAL segment {segment} was closed"));
    progress.step(&format!("waiting for WAL segment {segment} to arrive"));

    let asked = stores.len();
    let began = Instant::now();
    let mut wait = Arrival { pending: stores, mark, began, gave_up: false, arrived: 0 };
    wait.run(server, cluster, segment, before.as_ref().ok(), report).await;
    let is_everywhere = asked > 0 && wait.arrived == asked;
    let is_missed =
        is_everywhere && !wait.is_archived(server, cluster, segment, before.as_ref().ok()).await;
    if wait.pending.is_empty() && !is_missed {
        return;
    }
    let diagnosis = diagnose(server, cluster, segment, before.ok()).await;
    if is_missed {
        let text = format!(
            "WAL segment {segment} is there, as a stream brings it, and the server hasn't archived it within {} s: {}",
            wait.began.elapsed().as_secs(),
            diagnosis.text
        );
        report.step("arrival", StepState::Problem, text).hints.clone_from(&diagnosis.hints);
    }
    for store in wait.pending {
        let text = format!(
            "WAL segment {segment} didn't arrive within {} s: {}",
            wait.began.elapsed().as_secs(),
            diagnosis.text
        );
        let step = report.step("arrival", StepState::Problem, text);
        step.of(store.repository().name()).hints.clone_from(&diagnosis.hints);
    }
}

/// Waiting for one segment in several repositories.
struct Arrival {
    /// Where it isn't yet.
    pending: Vec<WalStore>,
    /// What this server alone has written into the segment.
    mark: String,
    began: Instant,
    gave_up: bool,
    /// In how many repositories it is, and was read.
    arrived: usize,
}

impl Arrival {
    /// Whether the server itself is done with the segment, which a stream may have brought before it. Where it doesn't say, it is.
    async fn is_archived(
        &self,
        server: &mut Server,
        cluster: &ClusterSettings,
        segment: SegmentName,
        before: Option<&Archiver>,
    ) -> bool {
        // The command may be at work still on what it has stored already.
        let deadline = (self.began + cluster.archive_wait).max(Instant::now() + AT_WORK);
        while let Ok(now) = server.archiver().await {
            if is_done(&now, segment) {
                return true;
            }
            let gave_up = before.is_some_and(|before| now.failed_count >= before.failed_count + 3);
            if gave_up || Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + FIRST_PAUSE)).await;
        }
        true
    }

    async fn run(
        &mut self,
        server: &mut Server,
        cluster: &ClusterSettings,
        segment: SegmentName,
        before: Option<&Archiver>,
        report: &mut CheckReport,
    ) {
        let deadline = self.began + cluster.archive_wait;
        let mut pause = FIRST_PAUSE;
        loop {
            let late = self.gave_up || Instant::now() >= deadline;
            let mut pending = Vec::new();
            for store in self.pending.drain(..) {
                match arrived(&store, segment, &self.mark).await {
                    Ok(Some(text)) => {
                        self.arrived += 1;
                        report.step("arrival", StepState::Ok, text).of(store.repository().name());
                    }
                    Ok(None) => pending.push(store),
                    Err(e) if e.kind() == Kind::Repository && !late => pending.push(store),
                    Err(e) => {
                        report.failed("arrival", &e).of(store.repository().name());
                    }
                }
            }
            self.pending = pending;
            if self.pending.is_empty() || late {
                return;
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            // After three failures the archiver rests for a minute: no need to wait with it.
            if pause == LONGEST_PAUSE
                && let Some(before) = before
                && let Ok(now) = server.archiver().await
            {
                self.gave_up = now.failed_count >= before.failed_count + 3;
            }
        }
    }
}

/// Whether the server has archived this segment, or a later one.
fn is_done(archiver: &Archiver, segment: SegmentName) -> bool {
    let last = archiver.last_archived.as_deref().and_then(|name| name.get(..24));
    last.is_some_and(|last| last >= segment.to_string().as_str())
}

/// Whether the segment is in the repository. What is there is read to its last byte, and has to be
/// this server's: another one may archive under the same names.
async fn arrived(store: &WalStore, segment: SegmentName, mark: &str) -> Result<Option<String>> {
    let Some(name) = store.find(WalFile::Segment(segment)).await? else { return Ok(None) };
    let mut finder = Finder { mark: mark.as_bytes(), rest: Vec::new(), found: false };
    let Some(summary) = store.copy_to(&name, &mut finder).await? else { return Ok(None) };
    if !finder.found {
        return Err(Error::new(
            Kind::Conflict,
            format!(
                "WAL segment {segment} is there, and isn't the one that this server has closed"
            ),
        )
        .hint("another server, a copy of this one perhaps, archives into the same place")
        .hint("give each a cluster name of its own, or switch the archiving of the copy off"));
    }
    Ok(Some(format!(
        "WAL segment {segment} arrived and was read back: {} bytes, SHA-256 {}…",
        summary.size,
        summary.short_checksum()
    )))
}

/// Looks for a mark in what is written to it.
struct Finder<'a> {
    mark: &'a [u8],
    /// The end of what came before, in which the mark may begin.
    rest: Vec<u8>,
    found: bool,
}

impl io::Write for Finder<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.found {
            self.rest.extend_from_slice(bytes);
            self.found = self.rest.windows(self.mark.len()).any(|part| part == self.mark);
            self.rest.drain(..self.rest.len().saturating_sub(self.mark.len()));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
