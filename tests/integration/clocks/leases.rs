//! A backup that runs while clocks jump: its own host's, and that of one that expires.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use super::*;
use crate::support::{
    gate::Gate,
    install::{command, pgkeep_binary},
    pgkeep::{Running, start},
    scratch::write,
    wait_until,
};

/// A backup that waits before its data until it is let go.
struct Waiting {
    running: Running,
    go: Arc<AtomicBool>,
    _gate: Gate,
}

impl Waiting {
    fn start(site: &Site) -> Self {
        let go = Arc::new(AtomicBool::new(false));
        let may_go = go.clone();
        let gate = Gate::before(&site.cluster, "BASE_BACKUP", move || {
            while !may_go.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(20));
            }
        });
        let text = fs::read_to_string(site.pgkeep.config()).expect("read the configuration");
        let text = text.replace(&site.cluster.conninfo(), &gate.conninfo());
        let config = site.pgkeep.scratch().file("gate.toml", text);
        let mut backup = command(pgkeep_binary());
        backup.arg("--config").arg(config).args(["backup", "--type", "full"]);
        backup.envs(site.clock.variables());
        let running = start(backup);
        wait_until("there is a lease", 60, || site.count(ObjectKind::Lease) == 1);
        Waiting { running, go, _gate: gate }
    }

    fn finish(self) -> Output {
        self.go.store(true, Ordering::Relaxed);
        self.running.wait()
    }

    fn kill(self) {
        self.go.store(true, Ordering::Relaxed);
        self.running.kill_after(Duration::ZERO);
    }
}

fn lease_file(site: &Site) -> PathBuf {
    objects_of(&site.pgkeep.repository(), ObjectKind::Lease).remove(0).path
}

fn lease(site: &Site) -> serde_json::Value {
    // It is replaced now and then, and never half there.
    serde_json::from_slice(&fs::read(lease_file(site)).expect("read a lease")).expect("JSON")
}

#[test]
fn a_running_backup_survives_every_jump_of_its_hosts_clock() {
    let site = Site::new(15);
    let (before, _) = site.backup("full");
    let waiting = Waiting::start(&site);
    for jump in [-DAY, YEAR, 0] {
        let renewed = lease(&site)["renewed"].clone();
        site.clock.set(jump);
        wait_until("the lease is renewed", 60, || lease(&site)["renewed"] != renewed);
        // Other hosts go by the right time.
        site.pgkeep.ok(["expire"]);
        assert_eq!(site.count(ObjectKind::Abandoned), 0, "{jump}: {}", lease(&site));
        assert_eq!(site.count(ObjectKind::Begin), 2, "{jump}");
    }
    let output = waiting.finish();
    assert_eq!(output.code, 0, "{output}");
    assert_eq!(site.backups().len(), 2);
    assert_eq!(site.backups()[0], before);
    site.pgkeep.ok(["verify", "--level", "full"]);
    assert_eq!(site.rows("latest", &[]), 1);
}

/// It takes the backup for a crashed one. Then that isn't one: it says so, and what was there before stays.
#[test]
fn an_expiry_whose_clock_is_ahead_ends_a_running_backup_and_loses_none_that_counts() {
    let site = Site::new(15);
    let (before, _) = site.backup("full");
    let host = Clock::new();
    let waiting = Waiting::start(&site);
    host.set(YEAR);
    let mut expire = site.pgkeep.command(["expire"]);
    let expired = run_to_end(expire.envs(host.variables()));
    assert_eq!(expired.code, 0, "{expired}");
    let output = waiting.finish();
    assert_eq!(output.code, 9, "{output}");
    assert!(output.stderr.contains("crashed") || output.stderr.contains("deleted"), "{output}");
    assert_eq!(site.backups(), std::slice::from_ref(&before));
    assert_eq!(site.rows_of(&before), 1);
    let (next, _) = site.backup("incr");
    assert_eq!(site.backups(), [before, next]);
    site.pgkeep.ok(["verify", "--level", "full"]);
}

/// A process that died on a host whose clock was ahead: there it is known to be dead, elsewhere it looks
/// alive until that time has come, and nothing of it is removed.
#[test]
fn a_lease_from_the_future_counts_as_alive() {
    let site = Site::new(15);
    site.clock.set(YEAR);
    Waiting::start(&site).kill();
    let file = lease_file(&site);
    let id = lease(&site)["backup"].as_str().expect("a backup").to_owned();
    // As it would look from elsewhere: nothing here tells whether the process is there.
    let mut elsewhere = lease(&site);
    elsewhere["holder"].take();
    write(&file, elsewhere.to_string());
    site.pgkeep.ok(["expire"]);
    assert_eq!(site.count(ObjectKind::Begin), 1);
    let refused = site.pgkeep.fails(["delete", &id]);
    assert_eq!(refused.code, 9, "{refused}");
    let year = elsewhere["renewed"].as_str().expect("a time")[..4].to_owned();
    assert!(refused.stderr.contains(&format!("sign of life at {year}")), "{refused}");
    // By a clock that has come there it is dead.
    site.clock.set(YEAR + HOUR);
    site.ok(&["expire"]);
    assert_eq!(site.count(ObjectKind::Begin), 0);
    assert_eq!(site.count(ObjectKind::Lease), 0);
}
