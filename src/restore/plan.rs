//! The plan of a restore: what is written where, and what PostgreSQL is told.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use super::{
    RestoreReport, RestoreRequest, Target, TargetAction, TargetTimeline,
    choose::{Choice, choose},
    settings::{RecoverySettings, Signal},
    write::{WriteRequest, write},
};
use crate::{
    config::ClusterSettings,
    error::{Error, Kind, Result},
    postgres::Timeline,
    progress::Progress,
    repo::{
        Repository,
        layout::ClusterLayout,
        lease::{HeldLease, Lease},
        record::{BackupRecord, Tablespace},
        timelines::read_history,
        tombstone::is_unmarked,
        wal::WalStore,
        wal_floor::Floors,
    },
};

/// A restore that can be carried out.
pub struct Plan {
    repository: Repository,
    layout: ClusterLayout,
    choice: Choice,
    tablespaces: BTreeMap<u32, PathBuf>,
    settings: RecoverySettings,
    archives: bool,
}

/// A time as PostgreSQL reads it whatever its zone is: with microseconds and a numeric offset.
pub fn server_time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// Plans a restore from one repository. Reads it only.
pub async fn plan(
    repository: &Repository,
    cluster: &ClusterSettings,
    request: &RestoreRequest,
) -> Result<Plan> {
    check_request(request)?;
    let layout = ClusterLayout::new(&cluster.name)?;
    let choice = choose(repository, &layout, request).await?;
    let tablespaces = place_tablespaces(&choice.record, request)?;
    let archives = request.keep_archive_mode && !request.standby && !sets(request, "archive_mode");
    let (floors, _) = Floors::read_sound(repository, &layout, choice.record.system).await?;
    let is_point = floors.make_point(&choice.record);
    let settings = recovery_settings(&choice, is_point, request);
    Ok(Plan { repository: repository.clone(), layout, choice, tablespaces, settings, archives })
}

/// Whether it is for a standby that goes on with whichever timeline is the newest.
fn follows(request: &RestoreRequest) -> bool {
    request.standby
        && matches!(request.timeline, TargetTimeline::Unspecified | TargetTimeline::Latest)
}

fn sets(request: &RestoreRequest, name: &str) -> bool {
    request.set.iter().any(|(set, _)| set.eq_ignore_ascii_case(name))
}

/// What can be said to be impossible without looking at a repository.
fn check_request(request: &RestoreRequest) -> Result<()> {
    let usage = |message: &str| Err(Error::new(Kind::Usage, message));
    if !request.pgdata.is_absolute() {
        return usage("--pgdata has to be an absolute path");
    }
    // Below a data directory even an empty folder is the server's, and part of its backups.
    let around = request.pgdata.ancestors().skip(1).find(|above| above.join("PG_VERSION").exists());
    if let Some(above) = around {
        let message = format!("--pgdata is inside the data directory {}", above.display());
        return Err(Error::new(Kind::Usage, message).hint("restore to a directory beside it"));
    }
    if request.standby && request.target != Target::Latest {
        return usage("a standby replays for ever: --standby and a target exclude each other");
    }
    if request.exclusive
        && !matches!(request.target, Target::Time(_) | Target::Lsn(_) | Target::Xid(_))
    {
        return usage("--target-exclusive is for --target-time, --target-lsn and --target-xid");
    }
    if request.action.is_some() && request.target == Target::Latest {
        return usage("--target-action needs a target: at the end of the WAL the server promotes");
    }
    if let Target::Name(name) = &request.target
        && !(1..=63).contains(&name.len())
    {
        return usage("a restore point's name has 1 to 63 bytes");
    }
    for (name, value) in &request.set {
        let is_name = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
        if !is_name || value.contains(['\n', '\r', '\0']) {
            return usage(&format!("--set {name}=… is not a setting of one line"));
        }
        if name.to_ascii_lowercase().starts_with("recovery_target")
            || name.eq_ignore_ascii_case("restore_command")
        {
            return Err(Error::new(Kind::Usage, format!("--set can't give {name}"))
                .hint("it follows from the target; use the --target-… options"));
        }
    }
    Ok(())
}

/// Where each tablespace goes: to its original place, unless the map says otherwise.
fn place_tablespaces(
    record: &BackupRecord,
    request: &RestoreRequest,
) -> Result<BTreeMap<u32, PathBuf>> {
    let outside = || record.tablespaces.iter().filter(|t| !t.in_place);
    let named = |which: &str, t: &&Tablespace| {
        t.oid.to_string() == which
            || t.location.trim_end_matches('/') == which.trim_end_matches('/')
    };
    let place = |t: &Tablespace| match &request.tablespaces_below {
        Some(folder) => folder.join(t.oid.to_string()),
        None => PathBuf::from(&t.location),
    };
    let mut places: BTreeMap<u32, PathBuf> = outside().map(|t| (t.oid, place(t))).collect();
    for (which, new) in &request.tablespace_map {
        let Some(tablespace) = outside().find(|t| named(which, t)) else {
            let known: Vec<_> = outside().map(|t| format!("{} ({})", t.oid, t.location)).collect();
            return Err(Error::new(
                Kind::Usage,
                format!("--tablespace-map: backup {} has no tablespace {which}", record.id),
            )
            .hint(match known.is_empty() {
                true => "it has no tablespaces outside the data directory".to_owned(),
                false => format!("it has {}", known.join(", ")),
            }));
        };
        if !new.is_absolute() {
            let message =
                format!("--tablespace-map {which}={}: not an absolute path", new.display());
            return Err(Error::new(Kind::Usage, message));
        }
        places.insert(tablespace.oid, new.clone());
    }
    let mut taken: Vec<&Path> = vec![&request.pgdata];
    for place in places.values() {
        if let Some(other) = taken.iter().find(|t| place == *t || t.starts_with(place)) {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "a tablespace can't go to {}: {} is there",
                    place.display(),
                    other.display()
                ),
            ));
        }
        taken.push(place);
    }
    Ok(places)
}

/// What is written to `postgresql.auto.conf`, and which signal file. `is_point` says that WAL behind the backup
/// has expired.
fn recovery_settings(
    choice: &Choice,
    is_point: bool,
    request: &RestoreRequest,
) -> RecoverySettings {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| lines.push((name.to_owned(), value.to_owned()));
    set("restore_command", &request.restore_command);
    // What the original's postgresql.conf runs or delays in a recovery isn't meant for this one.
    for (name, value) in [
        ("recovery_end_command", ""),
        ("archive_cleanup_command", ""),
        ("recovery_min_apply_delay", "0"),
    ] {
        if !sets(request, name) && !request.standby {
            set(name, value);
        }
    }
    // A server that is started once more before it has promoted has forgotten that it comes from a backup, and
    // reads ahead of its target: what isn't there any more behind that would stop it.
    if (is_point || request.target == Target::Immediate) && !sets(request, "recovery_prefetch") {
        set("recovery_prefetch", "off");
    }
    let signal = if request.standby {
        match follows(request) {
            true => set("recovery_target_timeline", "latest"),
            false => set("recovery_target_timeline", &choice.timeline.to_string()),
        }
        Signal::Standby
    } else {
        set("recovery_target_timeline", &choice.timeline.to_string());
        match &request.target {
            Target::Latest => {}
            Target::Immediate => set("recovery_target", "immediate"),
            Target::Time(time) => set("recovery_target_time", &server_time(*time)),
            Target::Lsn(lsn) => set("recovery_target_lsn", &lsn.to_string()),
            Target::Xid(xid) => set("recovery_target_xid", &xid.to_string()),
            Target::Name(name) => set("recovery_target_name", name),
        }
        if request.target != Target::Latest {
            // Both ways, since postgresql.conf may say otherwise.
            set("recovery_target_inclusive", if request.exclusive { "off" } else { "on" });
            let action = request.action.unwrap_or(TargetAction::Pause);
            set("recovery_target_action", action.as_str());
        }
        Signal::Recovery
    };
    if !request.keep_archive_mode {
        set("archive_mode", "off");
    }
    for (name, value) in &request.set {
        set(name, value);
    }
    RecoverySettings { signal, lines, alone: request.forget_alter_system }
}

impl Plan {
    /// The backup that it begins with.
    pub fn record(&self) -> &BackupRecord {
        &self.choice.record
    }

    /// The name of the repository that it restores from.
    pub fn repository(&self) -> &str {
        self.repository.name()
    }

    /// The timeline that recovery follows.
    pub fn timeline(&self) -> Timeline {
        self.choice.timeline
    }

    /// Whether the archive of this plan goes on where that of `other` has left off: on a timeline that comes from its.
    pub(super) async fn goes_on_from(&self, other: &Plan) -> Result<bool> {
        let (mine, its) = (&self.choice, &other.choice);
        if mine.record.system != its.record.system || mine.timeline == its.timeline {
            return Ok(false);
        }
        let store = WalStore::new(&self.repository, &self.layout, mine.record.system);
        let history = read_history(&store, mine.timeline).await?;
        Ok(history.is_some_and(|history| history.contains(its.timeline)))
    }

    /// A standby that follows the newest timeline takes the one with the highest number that it finds in any repository, counted
    /// up from its own, whether that comes from there or not, and doesn't start if it doesn't (`xlogrecovery.c`,
    /// `findNewestTimeLine`): an error ([`Kind::Target`]).
    pub(super) async fn refuse_another_newest(
        &self,
        repositories: &[Repository],
        request: &RestoreRequest,
    ) -> Result<()> {
        if !follows(request) {
            return Ok(());
        }
        let record = &self.choice.record;
        let (mut newest, mut next) = (None, record.timeline.0.checked_add(1));
        while let Some(number) = next {
            let mut found = None;
            for repository in repositories {
                let store = WalStore::new(repository, &self.layout, record.system);
                found = read_history(&store, Timeline(number)).await?;
                if found.is_some() {
                    break;
                }
            }
            if found.is_none() {
                break;
            }
            (newest, next) = (found, number.checked_add(1));
        }
        match newest {
            Some(newest) if !record.lies_on(&newest) => {
                let message = format!(
                    "timeline {} is the newest that a standby would find, and doesn't come from that of backup {}",
                    newest.timeline, record.id
                );
                Err(Error::new(Kind::Target, message).hint(
                    "--target-timeline current, or the number of another one, has it follow that one",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Writes the data directory, with a lease while it does.
    pub(super) async fn carry_out(
        self,
        request: &RestoreRequest,
        progress: Arc<dyn Progress>,
    ) -> Result<RestoreReport> {
        let lease = self.lease().await;
        let done = self.write(request, progress).await;
        if let Some(lease) = lease {
            lease.release().await;
        }
        done
    }

    /// Writes the data directory. Who calls this has a lease.
    pub async fn write(
        &self,
        request: &RestoreRequest,
        progress: Arc<dyn Progress>,
    ) -> Result<RestoreReport> {
        let record = &self.choice.record;
        // Who deletes it from now on has seen the lease, if there is one.
        if !is_unmarked(&self.repository, &self.layout, &record.id).await? {
            let address = self.repository.storage().address();
            let message = format!("backup {} was deleted just now from {address}", record.id);
            return Err(Error::new(Kind::Conflict, message).hint(match request.backup {
                Some(_) => "`pgkeep info` lists those that are there",
                None => "run it again: another one is taken",
            }));
        }
        let target = match request.standby {
            true if follows(request) => {
                "none: it follows the newest timeline as a standby".to_owned()
            }
            true => format!("none: it follows timeline {} as a standby", self.choice.timeline),
            false => format!("{} on timeline {}", request.target, self.choice.timeline),
        };
        progress.step(&format!("restoring backup {}, recovery to {target}", record.id));
        if self.archives {
            progress.warn(
                "the restored cluster keeps its archive_mode: once promoted it archives into the \
                 same repository as the original, under a new timeline; for a copy to look at, \
                 restore with --archive-mode off",
            );
        }
        if let Some(hole) = self.choice.hole {
            progress.warn(&format!(
                "recovery ends at {}: the WAL of {} from there to {} isn't in {}, and what was streamed behind that \
                 can't be replayed; a stream that died may have left it so, and had acknowledged nothing of it then, \
                 or a part was lost; `pgkeep info` shows it as a gap",
                hole.from,
                hole.segment,
                hole.to,
                self.repository.storage().address()
            ));
        }
        let written = write(
            WriteRequest {
                repository: &self.repository,
                layout: &self.layout,
                record,
                pgdata: &request.pgdata,
                tablespaces: &self.tablespaces,
                settings: self.settings.clone(),
                threads: request.threads,
            },
            progress,
        )
        .await?;
        Ok(RestoreReport {
            repository: self.repository.name().to_owned(),
            backup: record.id.clone(),
            system: record.system,
            timeline: (!follows(request)).then_some(self.choice.timeline),
            target,
            stop_lsn: self.choice.stop,
            pauses: request.target != Target::Latest
                && request.action.unwrap_or(TargetAction::Pause) == TargetAction::Pause,
            last_transaction: self.choice.last_transaction,
            pgdata: request.pgdata.clone(),
            files: written.files,
            bytes: written.bytes,
        })
    }

    /// With a lease the backup doesn't expire while it is copied; a repository that can't be written
    /// to has no expire from here, so doing without is no failure.
    async fn lease(&self) -> Option<HeldLease> {
        let lease = Lease::new("restore", Some(self.choice.record.id.clone())).ok()?;
        match HeldLease::take(&self.repository, &self.layout, lease).await {
            Ok(lease) => Some(lease),
            Err(e) => {
                tracing::info!("no lease for this restore: {e}");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Lsn;

    fn request(target: Target) -> RestoreRequest {
        RestoreRequest::new("/data".into(), target, "pgkeep archive-get %f %p".into())
    }

    fn record() -> BackupRecord {
        serde_json::from_value(serde_json::json!({
            "format": 1, "id": "20261121T195812Z-full", "cluster": "main", "kind": "full", "asked": "full",
            "label": "", "system": "15-7", "server-version": "15.18", "source": "primary", "timeline": 1,
            "start-lsn": "0/2000028", "stop-lsn": "0/2000100", "segment-size": 16 << 20,
            "started-at": "2026-11-21T19:58:12Z", "stopped-at": "2026-11-21T19:59:00Z", "data-checksums": true,
            "sizes": { "files": 0, "cluster": 0, "raw": 0, "stored": 0 }, "pgkeep": "0.1.0",
            "tablespaces": [
                { "oid": 16384, "location": "/spaces/one" },
                { "oid": 16385, "location": "/spaces/two/" },
                { "oid": 16386, "location": "pg_tblspc/16386", "in-place": true },
            ],
        }))
        .unwrap()
    }

    #[test]
    fn what_contradicts_itself_is_refused_before_a_repository_is_asked() {
        let is_fine = |change: &dyn Fn(&mut RestoreRequest), target: Target| {
            let mut request = request(target);
            change(&mut request);
            check_request(&request).map_err(|e| assert_eq!(e.kind(), Kind::Usage)).is_ok()
        };
        let time = || Target::Time("2026-11-21T20:00:00Z".parse().unwrap());
        let name = |len: usize| Target::Name("x".repeat(len));
        assert!(is_fine(&|_| (), Target::Latest) && is_fine(&|_| (), time()));
        assert!(!is_fine(&|r| r.pgdata = "data".into(), Target::Latest));

        let standby = |r: &mut RestoreRequest| r.standby = true;
        assert!(is_fine(&standby, Target::Latest) && !is_fine(&standby, time()));
        let exclusive = |r: &mut RestoreRequest| r.exclusive = true;
        for (target, fits) in [
            (time(), true),
            (Target::Lsn(Lsn(1)), true),
            (Target::Xid(700), true),
            (name(1), false),
            (Target::Immediate, false),
            (Target::Latest, false),
        ] {
            assert_eq!(is_fine(&exclusive, target.clone()), fits, "{target}");
        }
        let action = |r: &mut RestoreRequest| r.action = Some(TargetAction::Promote);
        assert!(is_fine(&action, Target::Immediate) && !is_fine(&action, Target::Latest));
        for (len, fits) in [(0, false), (1, true), (63, true), (64, false)] {
            assert_eq!(is_fine(&|_| (), name(len)), fits, "{len}");
        }
        for (set, value, fits) in [
            ("work_mem", "4MB", true),
            ("extension.setting", "", true),
            ("", "x", false),
            ("work mem", "x", false),
            ("port = 1 #", "x", false),
            ("work_mem", "1\nport = 1", false),
            ("work_mem", "1\rport = 1", false),
            ("work_mem", "1\0", false),
            ("Recovery_Target_Time", "x", false),
            ("RESTORE_COMMAND", "x", false),
        ] {
            let give = |r: &mut RestoreRequest| r.set.push((set.into(), value.into()));
            assert_eq!(is_fine(&give, Target::Latest), fits, "{set} = {value:?}");
        }
    }

    #[test]
    fn a_standby_follows_what_was_asked_for() {
        let choice = Choice {
            record: record(),
            timeline: Timeline(2),
            stop: None,
            last_transaction: None,
            hole: None,
        };
        let set = |name: &str, is_point, change: &dyn Fn(&mut RestoreRequest)| {
            let mut request = request(Target::Latest);
            change(&mut request);
            let lines = recovery_settings(&choice, is_point, &request).lines;
            let values = lines.into_iter().filter(|(n, _)| n == name).map(|(_, value)| value);
            values.collect::<Vec<_>>()
        };
        for (timeline, expected) in [
            (TargetTimeline::Unspecified, "latest"),
            (TargetTimeline::Latest, "latest"),
            (TargetTimeline::Current, "2"),
            (TargetTimeline::Id(Timeline(2)), "2"),
        ] {
            let standby = |r: &mut RestoreRequest| (r.standby, r.timeline) = (true, timeline);
            assert_eq!(set("recovery_target_timeline", false, &standby), [expected]);
        }
        // Nothing is read ahead where there may be nothing, unless somebody says so.
        let immediate = |r: &mut RestoreRequest| r.target = Target::Immediate;
        let given = |r: &mut RestoreRequest| r.set.push(("recovery_prefetch".into(), "on".into()));
        assert_eq!(set("recovery_prefetch", false, &|_| ()), [""; 0]);
        assert_eq!(set("recovery_prefetch", false, &immediate), ["off"]);
        assert_eq!(set("recovery_prefetch", true, &|_| ()), ["off"]);
        assert_eq!(set("recovery_prefetch", true, &given), ["on"]);
    }

    #[test]
    fn no_tablespace_goes_where_something_else_does() {
        let record = record();
        let placed = |map: &[(&str, &str)]| {
            let mut request = request(Target::Latest);
            request.tablespace_map =
                map.iter().map(|(which, new)| ((*which).into(), (*new).into())).collect();
            place_tablespaces(&record, &request)
        };
        let at = |places: Result<BTreeMap<u32, PathBuf>>| {
            places.map(|places| places.into_values().collect::<Vec<_>>()).map_err(|e| e.kind())
        };
        let paths = |paths: [&str; 2]| Ok(paths.map(PathBuf::from).to_vec());
        assert_eq!(at(placed(&[])), paths(["/spaces/one", "/spaces/two/"]));
        assert_eq!(at(placed(&[("16384", "/a"), ("/spaces/two", "/b")])), paths(["/a", "/b"]));
        for map in [
            // At the data directory, or around it.
            &[("16384", "/data")][..],
            &[("16384", "/")],
            // Where the other one is.
            &[("16384", "/spaces/two")],
            &[("16385", "/spaces")],
            // Not to be placed, not there, no place.
            &[("16386", "/a")],
            &[("16390", "/a")],
            &[("16384", "a")],
        ] {
            assert_eq!(at(placed(map)), Err(Kind::Usage), "{map:?}");
        }
    }
}
