//! Drills: a backup is restored to a directory of its own, a server replays its WAL there, and what came
//! back is looked at. What it cost is the answer to "how long, and how much is lost".
//!
//! Nothing of the original is touched: not its files, port, archive, subscriptions or tablespaces, even on
//! the same host. The server has settings of its own ([`conf`]), a socket in a directory that only
//! its user can enter ([`home`]), and gets its WAL by an `archive-get` that refuses what would be replayed
//! into a directory of the original.
//!
//! - [`choose`]: which backup;
//! - [`recovery`]: following the replay;
//! - [`session`], [`amcheck`], [`pages`]: what is looked at;
//! - [`record`]: the result as it grows.
//!
//! What isn't the backup's fault (no room, no server of that version, a repository that can't be
//! reached) is an error and no verdict.

mod amcheck;
mod choose;
mod conf;
mod home;
mod pages;
mod record;
mod recovery;
mod session;

use std::{future::Future, path::PathBuf, sync::Arc, time::Instant};

use chrono::Utc;

use crate::{
    config::{ClusterSettings, DrillQuery, DrillSettings},
    error::{Context, Error, Kind, Result},
    postgres::{
        Lsn,
        client::{Client, ConnInfo},
        control::{ClusterState, ControlFile},
        server::{Binaries, Server, Stop},
    },
    progress::Progress,
    repo::{
        Repository,
        drill::{DrillRecord, put_drill},
        layout::ClusterLayout,
        lease::{HeldLease, Lease},
        record::BackupRecord,
        wal::REFUSES_TABLESPACE,
    },
    restore::{
        RestoreReport, RestoreRequest, Target, TargetAction, TargetTimeline, guard,
        plan::{Plan, plan},
    },
};
pub use choose::Which;
use home::Home;
use record::Growing;
use recovery::{Down, until_open};
use session::{Access, Answer, NoSession, ask, value};

/// What is to be tried.
#[derive(Debug, Clone)]
pub struct DrillRequest {
    /// Which backup.
    pub which: Which,
    /// Up to where.
    pub target: Target,
    /// Along which timeline.
    pub timeline: TargetTimeline,
    /// Stop just before the target and not just after it.
    pub exclusive: bool,
    /// The keys of `[drill]`.
    pub settings: DrillSettings,
    /// How many threads read and write.
    pub threads: usize,
    /// The `restore_command`, which refuses new tablespaces.
    pub restore_command: String,
    /// Leave everything in place at the end.
    pub keep: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Drilled {
    /// The result.
    pub record: DrillRecord,
    /// Where everything was left, if it was.
    pub kept: Option<PathBuf>,
}

/// Restores a backup and looks at what comes back. The result is kept in the repository, where that can
/// be written to.
///
/// `stopped` ends it, with its error: the server is stopped, and what was made removed.
pub async fn drill(
    repository: &Repository,
    cluster: &ClusterSettings,
    request: &DrillRequest,
    progress: Arc<dyn Progress>,
    stopped: impl Future<Output = Error>,
) -> Result<Drilled> {
    guard::refuse_root("drill")?;
    let layout = ClusterLayout::new(&cluster.name)?;
    let began = Utc::now();
    tokio::pin!(stopped);
    let chosen = tokio::select! {
        biased;
        chosen = choose::choose(repository, &layout, request) => chosen?,
        e = &mut stopped => return Err(e),
    };
    let mut drill = Drill {
        repository,
        layout: &layout,
        cluster,
        request,
        progress,
        result: Growing::new(repository, cluster, &request.target, began),
        target: request.target.clone(),
        kept: None,
        lease: None,
    };
    let done = tokio::select! {
        biased;
        done = drill.run(chosen) => done,
        e = &mut stopped => Err(e),
    };
    if let Some(lease) = drill.lease.take() {
        lease.release().await;
    }
    done?;
    let kept = drill.kept.take();
    let record = drill.result.finish()?;
    if let Err(e) = put_drill(repository, &layout, &record).await {
        // Of a host that may only read, this is no fault.
        drill.progress.warn(&format!("the result isn't kept in the repository: {e}"));
    }
    Ok(Drilled { record, kept })
}

/// With a lease the backup and its WAL don't expire meanwhile; a repository that can't be written to has
/// no expire from here, so doing without is no failure.
async fn lease(
    repository: &Repository,
    layout: &ClusterLayout,
    record: &BackupRecord,
) -> Option<HeldLease> {
    let mut lease = Lease::new("drill", Some(record.id.clone())).ok()?;
    lease.start_lsn = Some(record.start_lsn);
    match HeldLease::take(repository, layout, lease).await {
        Ok(lease) => Some(lease),
        Err(e) => {
            tracing::info!("no lease for this drill: {e}");
            None
        }
    }
}

/// A drill on its way.
struct Drill<'a> {
    repository: &'a Repository,
    layout: &'a ClusterLayout,
    cluster: &'a ClusterSettings,
    request: &'a DrillRequest,
    progress: Arc<dyn Progress>,
    result: Growing,
    /// Up to where: as it was asked for, or to the end of a backup behind which WAL has expired.
    target: Target,
    /// Where everything is left, if it is to be.
    kept: Option<PathBuf>,
    lease: Option<HeldLease>,
}

/// Files that were restored, and where to.
struct Restored {
    home: Home,
    report: RestoreReport,
    binaries: Binaries,
    control: ControlFile,
}

/// The backup didn't pass, and the check that failed is in the result.
struct Failed;

impl Drill<'_> {
    /// Does it all.
    async fn run(&mut self, chosen: Option<choose::Chosen>) -> Result<()> {
        let user = self.user()?;
        let restored = match self.restore(chosen).await? {
            Ok(restored) => restored,
            Err(Failed) => return Ok(()),
        };
        let access = Access::new(&restored.home, &user);
        if let Ok((server, client, database)) = self.open(&restored, &access).await? {
            self.look(&restored, &access, client, &database).await?;
            self.stop(server).await?;
            self.pages(&restored).await?;
        }
        Ok(())
    }

    /// As whom to connect.
    fn user(&self) -> Result<String> {
        if let Some(user) = &self.request.settings.user {
            return Ok(user.clone());
        }
        let info = ConnInfo::parse(&self.cluster.conninfo).map_err(|e| {
            let message = format!("read the conninfo of cluster {}", self.cluster.name);
            Error::new(Kind::Usage, message).because(e).hint("or set user in [drill]")
        })?;
        Ok(info.user().to_owned())
    }

    /// Chooses, and restores all files.
    async fn restore(
        &mut self,
        chosen: Option<choose::Chosen>,
    ) -> Result<Result<Restored, Failed>> {
        let begun = Instant::now();
        let mut broken = None;
        if let Some(chosen) = chosen {
            self.result.backup(&chosen.id, chosen.record.as_deref());
            broken = chosen.broken;
            if let Some(record) = chosen.record
                && self.target == Target::Latest
                && choose::is_point(self.repository, self.layout, &record).await?
            {
                self.progress.step("the backup is kept as a point: it is replayed to its own end");
                self.target = Target::Immediate;
            }
        }
        let above = self.request.settings.directory.clone().unwrap_or_else(std::env::temp_dir);
        let home = Home::make(&above, self.request.keep)?;
        self.kept = self.request.keep.then(|| home.path().to_owned());
        let request = self.restore_request(&home);
        let planned = match broken {
            Some(e) => Err(e),
            None => plan(self.repository, self.cluster, &request).await,
        };
        let plan = match planned {
            Ok(plan) => plan,
            Err(e) => return self.not_restored(e, begun),
        };
        let record = plan.record();
        self.result.backup(&record.id, Some(record));
        self.result.timeline(plan.timeline());
        self.lease = lease(self.repository, self.layout, record).await;
        if !record.tablespaces.is_empty() {
            home.make_tablespaces()?;
        }
        // Before anything is fetched.
        let major = record.system.major;
        let binaries = self.binaries(major)?;
        home::check_room(&above, record.sizes.cluster)?;
        self.result.archive(choose::archive_end(self.repository, self.layout, &plan).await?);
        match self.write(&plan, &request).await {
            Err(e) => self.not_restored(e, begun),
            Ok(report) => {
                let seconds = begun.elapsed().as_secs_f64();
                self.result.restored(&report, seconds);
                // It is whole, so what can't be read in it was so in the backup.
                let control = match ControlFile::read(&home.data()) {
                    Ok(control) => control,
                    Err(e) => {
                        let e = Error::new(Kind::Damaged, "read the restored cluster").because(e);
                        return self.not_restored(e, begun);
                    }
                };
                conf::write(&home, major, &control, &self.request.settings.settings)?;
                Ok(Ok(Restored { home, report, binaries, control }))
            }
        }
    }

    async fn write(&self, plan: &Plan, request: &RestoreRequest) -> Result<RestoreReport> {
        plan.write(request, self.progress.clone()).await
    }

    fn restore_request(&self, home: &Home) -> RestoreRequest {
        let (target, command) = (self.target.clone(), self.request.restore_command.clone());
        RestoreRequest {
            backup: self.result.chosen().cloned(),
            // At the end of the WAL the server promotes anyway.
            action: (target != Target::Latest).then_some(TargetAction::Promote),
            timeline: self.request.timeline,
            exclusive: self.request.exclusive,
            tablespaces_below: Some(home.tablespaces()),
            forget_alter_system: true,
            threads: self.request.threads,
            ..RestoreRequest::new(home.data(), target, command)
        }
    }

    fn binaries(&self, major: u32) -> Result<Binaries> {
        let given = self.request.settings.bin_dir.as_deref();
        let found = Binaries::of_major(major, given).map_err(|e| {
            Error::new(Kind::Local, format!("the backup is of PostgreSQL {major}: {e}"))
                .hint("install that server's package, or name its folder: bin-dir in [drill]")
        })?;
        // Where the repository is configured in the environment, the server's archive-get needs it.
        let found = found.hand_on("PGKEEP_");
        self.progress.step(&format!("a server of PostgreSQL {} is here", found.version()));
        Ok(found)
    }

    /// Tells the backup's faults from others.
    fn not_restored(&mut self, e: Error, begun: Instant) -> Result<Result<Restored, Failed>> {
        let is_fault = match e.kind() {
            Kind::Damaged | Kind::Wal => true,
            // A target that somebody named may be out of reach for many reasons.
            Kind::Target => self.target == Target::Latest,
            _ => false,
        };
        if !is_fault || self.result.chosen().is_none() {
            return Err(e);
        }
        let seconds = begun.elapsed().as_secs_f64();
        self.result.failed("restore", e.to_string(), seconds, Vec::new(), e.hints().to_vec());
        Ok(Err(Failed))
    }

    /// Starts the server and waits until it answers.
    async fn open(
        &mut self,
        restored: &Restored,
        access: &Access,
    ) -> Result<Result<(Server, Client, String), Failed>> {
        self.progress.step("starting the restored server, which replays the WAL");
        let (begun, started) = (Instant::now(), epoch());
        let home = &restored.home;
        let file = conf::path(home).display().to_string();
        let settings = [("config_file", file.as_str())];
        let start = Server::start(&restored.binaries, &home.data(), &settings, &home.log());
        let mut server = start.context(Kind::Local, || "start the restored server")?;
        let silence = self.request.settings.timeout;
        let waited = until_open(&mut server, home.log(), silence, self.progress.as_ref()).await;
        let (recovery, opened) = waited;
        if let Err(down) = opened {
            return self.down(&server, &recovery, down, begun).await.map(Err);
        }
        let (mut client, database) = match maintenance(access).await? {
            Ok(session) => session,
            Err(e) => {
                let text = format!("the server is up and doesn't let anybody in: {e}");
                let seconds = begun.elapsed().as_secs_f64();
                self.result.failed("recovery", text, seconds, server.last_words(15), Vec::new());
                return Ok(Err(Failed));
            }
        };
        let query = "select pg_catalog.pg_last_wal_replay_lsn() || ' ' || coalesce(to_char(\
                     pg_catalog.pg_last_xact_replay_timestamp() at time zone 'UTC', \
                     'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), '')";
        let answer = value(&mut client, query).await?.unwrap_or_default();
        let (lsn, time) = answer.split_once(' ').unwrap_or_default();
        let lsn: Lsn = lsn.parse().context(Kind::Postgres, || "ask how far was replayed")?;
        let time = time.parse().ok();
        let now = epoch();
        let done = recovery.done.unwrap_or(now).clamp(started, now);
        self.result.opened(client.server_version().text.clone(), done - started, now - done);
        self.result.came_back(lsn, time);
        let seconds = begun.elapsed().as_secs_f64();
        match self.result.short_of_archive(&self.target) {
            Some(text) => self.result.failed("recovery", text, seconds, Vec::new(), Vec::new()),
            None => {
                let to = &restored.report.target;
                let text = format!("replayed to {to}, which was LSN {lsn}");
                self.result.passed("recovery", text, seconds);
            }
        }
        Ok(Ok((server, client, database)))
    }

    /// What it means that the server didn't open.
    async fn down(
        &mut self,
        server: &Server,
        recovery: &recovery::Recovery,
        down: Down,
        begun: Instant,
    ) -> Result<Failed> {
        let words = server.last_words(15);
        let says = |what: &str| words.iter().rev().find(|line| line.contains(what)).cloned();
        if let Some(line) = says(REFUSES_TABLESPACE) {
            let message = format!("the drill can't go on: {}", line.trim_start_matches("pgkeep: "));
            return Err(Error::new(Kind::Conflict, message).hint(
                "take a backup and drill that one: it has the tablespace, which then goes elsewhere",
            ));
        }
        if says("No space left on device").is_some() {
            let folder = server_folder(self.request);
            let message =
                format!("there is no room left in {folder}, where the cluster is restored");
            return Err(Error::new(Kind::Local, message)
                .hint("name another directory: --directory, or directory in [drill]"));
        }
        // An outage is no fault of the backup's.
        self.repository.prove_present().await?;
        let text = match down {
            Down::Ended(status) => format!("the server ended before it opened: {status}"),
            Down::Silent(time) => {
                format!("the server gave no sign of progress for {} s", time.as_secs())
            }
            Down::Io(e) => {
                return Err(Error::new(Kind::Local, "watch the restored server").because(e));
            }
        };
        if !recovery.started {
            let log = words.join(" | ");
            return Err(Error::new(Kind::Postgres, text)
                .hint(format!("its log: {log}"))
                .hint("are the settings of [drill] right for this host?"));
        }
        let at = recovery.at.map(|at| format!("; replay had come to {at}")).unwrap_or_default();
        let seconds = begun.elapsed().as_secs_f64();
        self.result.failed("recovery", format!("{text}{at}"), seconds, words, Vec::new());
        Ok(Failed)
    }

    /// Looks into what came back.
    async fn look(
        &mut self,
        restored: &Restored,
        access: &Access,
        mut client: Client,
        database: &str,
    ) -> Result<()> {
        if self.request.settings.amcheck {
            self.progress.step("running pg_amcheck");
            let begun = Instant::now();
            let (binaries, threads) = (&restored.binaries, self.request.threads);
            let found = amcheck::run(binaries, access, &mut client, database, threads).await?;
            let seconds = begun.elapsed().as_secs_f64();
            match found {
                amcheck::Amcheck::Sound => {
                    let text = "pg_amcheck found nothing wrong in tables and indexes".to_owned();
                    self.result.passed("amcheck", text, seconds);
                }
                amcheck::Amcheck::Corrupt(lines) => {
                    let text = "pg_amcheck found damage".to_owned();
                    let hint = "is the original damaged too? Run pg_amcheck there".to_owned();
                    self.result.failed("amcheck", text, seconds, lines, vec![hint]);
                }
                amcheck::Amcheck::Skipped(why) => self.result.skipped("amcheck", why),
            }
        }
        client.close().await;
        let request = self.request;
        let is_here =
            |query: &&DrillQuery| query.cluster.as_ref().is_none_or(|c| *c == self.cluster.name);
        let queries: Vec<&DrillQuery> = request.settings.queries.iter().filter(is_here).collect();
        for (i, query) in queries.into_iter().enumerate() {
            self.progress.step(&format!("asking query {}", i + 1));
            let begun = Instant::now();
            let answer = ask(access, query).await?;
            let seconds = begun.elapsed().as_secs_f64();
            let what = format!("in {}: {}", query.database, record::shortened(&query.sql));
            let name = format!("query {}", i + 1);
            let expected = record::shortened(&query.expect);
            match answer {
                Answer::AsExpected => {
                    self.result.passed(
                        &name,
                        format!("{what}: {expected:?}, as expected"),
                        seconds,
                    );
                }
                Answer::Other(came) => {
                    let came = record::shortened(&came);
                    let text = format!("{what}: expected {expected:?}, came {came:?}");
                    self.result.failed(&name, text, seconds, Vec::new(), Vec::new());
                }
                Answer::Error(e) => {
                    let text = format!("{what}: expected {expected:?}, came an error: {e}");
                    self.result.failed(&name, text, seconds, Vec::new(), Vec::new());
                }
            }
        }
        Ok(())
    }

    /// Stops the server in good order, so that all its pages are on disk.
    async fn stop(&self, server: Server) -> Result<()> {
        self.progress.step("stopping the restored server");
        server
            .stop(Stop::Fast, self.request.settings.timeout)
            .await
            .context(Kind::Postgres, || "stop the restored server")
    }

    /// The checksums of all pages, as they are after replay.
    async fn pages(&mut self, restored: &Restored) -> Result<()> {
        const NAME: &str = "page-checksums";
        let begun = Instant::now();
        if !restored.control.data_checksums {
            self.result.skipped(NAME, "the cluster has no data checksums".to_owned());
            return Ok(());
        }
        self.progress.step("checking the checksum of each page");
        let data = restored.home.data();
        let control = ControlFile::read(&data)
            .context(Kind::Postgres, || "read the control file of the stopped server")?;
        if control.state != ClusterState::ShutDown {
            return Err(Error::new(Kind::Postgres, "the restored server didn't shut down whole"));
        }
        let (threads, progress) = (self.request.threads, self.progress.clone());
        let found = pages::check(data, control, threads, progress).await?;
        let seconds = begun.elapsed().as_secs_f64();
        match found.bad {
            0 => self.result.passed(NAME, format!("{} pages", found.checked), seconds),
            bad => {
                let text = format!("{bad} of {} pages have a wrong checksum", found.checked);
                let hint = "was it so in the original? `pgkeep verify --level full` tells whether the \
                            backup has them as they were";
                self.result.failed(NAME, text, seconds, found.named, vec![hint.to_owned()]);
            }
        }
        Ok(())
    }
}

/// A session on a database that is there for such things. An error within is the backup's fault.
async fn maintenance(access: &Access) -> Result<Result<(Client, String), Error>> {
    let mut last = None;
    for database in ["postgres", "template1"] {
        match access.connect(database).await {
            Ok(client) => return Ok(Ok((client, database.to_owned()))),
            Err(NoSession::Role(e)) => return Err(access.wrong_role(e)),
            Err(NoSession::NoDatabase(e)) => last = Some(e),
            Err(NoSession::Other(e)) => {
                return Ok(Err(Error::of_server(format!("connect to {database}"), e)));
            }
        }
    }
    Ok(Err(match last {
        Some(e) => Error::of_server("connect to template1", e),
        None => Error::new(Kind::Internal, "no database was tried"),
    }))
}

fn server_folder(request: &DrillRequest) -> String {
    let folder = request.settings.directory.clone().unwrap_or_else(std::env::temp_dir);
    folder.display().to_string()
}

/// Now, in seconds since 1970, as the server's log counts.
fn epoch() -> f64 {
    Utc::now().timestamp_micros() as f64 / 1e6
}
