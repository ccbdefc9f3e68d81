//! Every message of a server, and everything that can go wrong with it.
//!
//! As in `s3::faults`, but between the program and PostgreSQL: a clean run of a command is recorded at a
//! proxy ([`crate::support::pgwire`]), then the command is run once for each message that the server sent
//! and each [`Fault`] that this message can meet. Whatever happens, the command ends within its own
//! limits, with all done that it was to do or with an error that says what was wrong, within bounded
//! memory; nothing is left that counts; and when all is well again, it works. A stream goes on by itself.
//!
//! ```text
//! PGKEEP_TEST_FAULTS=all             every case of every matrix; all:400..600, a seed and a part of a
//!                                    case's name work as in s3::faults
//! cargo test --test integration -- --nocapture server_faults      says how many there are, and the seed
//! ```

mod backup;
mod check;
mod identity;
mod silence;
mod stream;

use std::{
    collections::BTreeMap,
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{
    Cluster, Pgkeep,
    chosen::Chosen,
    install::{command, pgkeep_binary},
    pgkeep::Output,
    pgwire::{Fault, Link, PgWire, Place, Seen},
};

/// One matrix at a time: each has enough to do for the whole machine.
static ALONE: Mutex<()> = Mutex::new(());

/// What each message can meet.
const FAULTS: [Fault; 25] = [
    Fault::CutBefore,
    Fault::CutInside,
    Fault::CutAfter,
    Fault::ResetInside,
    Fault::LengthOff(-1),
    Fault::LengthOff(1),
    Fault::Length(0),
    Fault::Length(32 << 20),
    Fault::Length(0x7fff_ffff),
    Fault::Length(u32::MAX),
    Fault::Type(b'?'),
    Fault::Type(b'C'),
    Fault::LeftOut,
    Fault::Scrambled,
    Fault::Twice,
    Fault::Swapped,
    Fault::Error("ERROR", "XX000"),
    Fault::Error("FATAL", "57P01"),
    Fault::ErrorAfter("XX000"),
    Fault::Notices(500),
    Fault::Stranger,
    Fault::DoneBefore,
    Fault::Silence,
    Fault::SilenceHere,
    Fault::Drip,
];

/// What rows can meet besides.
const IN_ROWS: [Fault; 4] = [
    Fault::Field(0, ""),
    Fault::Field(0, "nonsense"),
    Fault::Field(0, "99999999999999999999"),
    Fault::Null(0),
];

/// What WAL can meet.
const IN_WAL: [Fault; 6] = [
    Fault::WalOff(8192),
    Fault::WalOff(-8192),
    Fault::WalHole(8),
    Fault::WalOverlap,
    Fault::ServerEnd(0),
    Fault::ServerEnd(u64::MAX),
];

/// What signs of life can meet.
const IN_KEEPALIVES: [Fault; 2] = [Fault::ServerEnd(0), Fault::ServerEnd(u64::MAX)];

/// After how many cases it is said how far a matrix has got.
const SAY_EACH: usize = 100;

/// One run of a matrix.
#[derive(Debug, Clone)]
struct Case {
    place: Place,
    fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { link, asked, what, before } = &self.place;
        let asked: String = asked.chars().take(70).collect();
        write!(f, "{link:?} {asked:?}: {what} ({before} before), {:?}", self.fault)
    }
}

/// What a message of a recorded run can meet.
fn faults_of(seen: &Seen) -> Vec<Fault> {
    let more: &[Fault] = match seen.place.what.as_str() {
        "D" => &IN_ROWS,
        "dw" => &IN_WAL,
        "dk" => &IN_KEEPALIVES,
        _ => &[],
    };
    FAULTS.iter().chain(more).copied().collect()
}

impl Fault {
    /// Whether a run has to go on as if nothing had been.
    fn goes_unnoticed(self) -> bool {
        matches!(self, Fault::Notices(_) | Fault::Drip | Fault::ServerEnd(_))
    }
}

impl Case {
    /// Nothing is to come before the checkpoint is done, so nobody misses it as long as the server answers
    /// other questions.
    fn is_never_noticed(&self) -> bool {
        self.fault == Fault::SilenceHere
            && self.place.asked.starts_with("BASE_BACKUP")
            && (&*self.place.what, self.place.before) == ("T", 0)
    }
}

/// A cluster whose server is reached over a wire, and configurations for both ways.
struct Site {
    cluster: Cluster,
    pgkeep: Pgkeep,
    wire: PgWire,
    /// By the way that goes wrong, with little patience for silence.
    config: PathBuf,
    /// The same with the usual patience, for what is slow and has to go well.
    patient: PathBuf,
}

impl Site {
    /// `pgkeep`'s configuration is the direct way.
    fn new(cluster: Cluster, pgkeep: Pgkeep) -> Self {
        let wire = PgWire::to(&cluster);
        pgkeep.set("cluster.main", "archive-timeout = \"10s\"");
        let text = fs::read_to_string(pgkeep.config()).expect("read the configuration");
        let by_wire = text.replace(&cluster.conninfo(), &wire.conninfo());
        let table = "[cluster.main]\n";
        assert!(by_wire != text && by_wire.contains(table), "{text}");
        let hasty = by_wire.replace(table, &format!("{table}stall-timeout = \"2s\"\n"));
        let config = pgkeep.scratch().file("hasty.toml", hasty);
        let patient = pgkeep.scratch().file("patient.toml", by_wire);
        Site { cluster, pgkeep, wire, config, patient }
    }

    /// pgkeep by the way that goes wrong. A run that doesn't end by itself is killed, and one that takes
    /// too much memory ends by its own doing, without an exit code of pgkeep's.
    fn command(&self, fault: Option<Fault>, arguments: &[&str]) -> Command {
        let mut command = limited();
        command.args(["timeout", "--signal", "KILL", "120"]).arg(pgkeep_binary());
        command.arg("--config").arg(self.config_for(fault)).args(arguments);
        command
    }

    /// The same, for a command that doesn't end by itself.
    fn program(&self, fault: Option<Fault>, arguments: &[&str]) -> Command {
        let mut command = limited();
        command.arg(pgkeep_binary()).arg("--config").arg(self.config_for(fault)).args(arguments);
        command
    }

    fn config_for(&self, fault: Option<Fault>) -> &PathBuf {
        let patient = fault.is_none_or(Fault::goes_unnoticed);
        if patient { &self.patient } else { &self.config }
    }
}

/// What runs a program with so many bytes of memory, its threads' stacks included.
fn limited() -> Command {
    let mut command = command("prlimit");
    command.arg("--data=600000000");
    command
}

/// A command that is to be run in each case.
trait Work: Sync {
    /// What it is, in a few words.
    fn name(&self) -> &str;

    /// Where it is run: as many cases at a time.
    fn sites(&self) -> &[Site];

    /// Makes everything as it was before the first run.
    fn reset(&self, site: &Site);

    /// The command.
    fn run(&self, site: &Site, fault: Option<Fault>) -> Output;

    /// Whether each run has this message.
    fn is_certain(&self, _: &Place) -> bool {
        true
    }

    /// Whether what it left is right.
    fn check(&self, site: &Site, case: &Case, output: &Output);
}

/// Records a run of `work`, and runs every case of it: all of them, or, unless the environment says
/// otherwise, `most`. There have to be at least so many messages and cases.
fn matrix(work: &dyn Work, most: usize, least: (usize, usize)) {
    let _alone = ALONE.lock().unwrap_or_else(|failed| failed.into_inner());
    let site = &work.sites()[0];
    work.reset(site);
    site.wire.heal();
    let began = Instant::now();
    let clean = work.run(site, None);
    println!("{}: a clean run takes {:?}", work.name(), began.elapsed());
    assert_eq!(clean.code, 0, "{}: {clean}", work.name());
    let seen = site.wire.seen();
    let mut all = Vec::new();
    for seen in seen.iter().filter(|seen| work.is_certain(&seen.place)) {
        let case = |fault| Case { place: seen.place.clone(), fault };
        all.extend(faults_of(seen).into_iter().map(case).filter(|case| !case.is_never_noticed()));
    }
    let (total, chosen) = (all.len(), Chosen::from_environment(most));
    let (cases, how) = match chosen {
        Chosen::Sample(most, seed) if most < total => {
            (sample(Chosen::Sample(usize::MAX, seed).of(all), most), format!(" by {seed}"))
        }
        chosen => (chosen.of(all), format!(", from number {}", chosen.first())),
    };
    println!(
        "{}: {} messages, {total} cases, {} of them{how} (PGKEEP_TEST_FAULTS)",
        work.name(),
        seen.len(),
        cases.len()
    );
    let mut kinds = BTreeMap::<_, usize>::new();
    for Seen { place, .. } in &seen {
        let asked: String = place.asked.chars().take(70).collect();
        *kinds.entry((place.link, asked, &place.what)).or_default() += 1;
    }
    for ((link, asked, what), count) in kinds {
        println!("    {link:?} {asked:?}: {count} of {what}");
    }
    assert!(seen.len() >= least.0 && total >= least.1, "fewer than there used to be: {least:?}");

    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let slowest = Mutex::new((Duration::ZERO, String::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for site in work.sites() {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(number) else { break };
                    if number > 0 && number % SAY_EACH == 0 {
                        println!("{}: {number} of {} have begun", work.name(), cases.len());
                    }
                    let began = Instant::now();
                    if catch_unwind(AssertUnwindSafe(|| one(work, site, case))).is_err() {
                        println!("{}: WRONG: {case}", work.name());
                        wrong.lock().unwrap().push(case.to_string());
                    }
                    let mut slowest = slowest.lock().unwrap();
                    *slowest = slowest.clone().max((began.elapsed(), case.to_string()));
                }
            });
        }
    });
    println!("{}: {} cases in {:?}", work.name(), cases.len(), began.elapsed());
    let (time, case) = slowest.into_inner().unwrap();
    println!("{}: the slowest took {time:?}: {case}", work.name());
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// As many of the cases: of each kind of message one before any has two. Most messages of a backup are its
/// data, and all else would hardly be met.
fn sample(cases: Vec<Case>, most: usize) -> Vec<Case> {
    let mut ranks = BTreeMap::<(Link, String, String), usize>::new();
    let mut ranked: Vec<_> = cases
        .into_iter()
        .map(|case| {
            let Place { link, asked, what, .. } = case.place.clone();
            // Parameters are of one kind.
            let what = what.split(' ').next().unwrap_or_default().to_owned();
            let rank = ranks.entry((link, asked, what)).or_default();
            *rank += 1;
            (*rank, case)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, case)| case).take(most).collect()
}

fn one(work: &dyn Work, site: &Site, case: &Case) {
    let mut runs = 0;
    let output = loop {
        work.reset(site);
        site.wire.plan(&case.place, case.fault);
        let output = work.run(site, Some(case.fault));
        runs += 1;
        if site.wire.seen().iter().any(|seen| seen.fault.is_some()) {
            break output;
        }
        // How often something is asked isn't the same in each run.
        assert!(runs < 5, "{case}: it wasn't met: {output}");
    };
    site.wire.heal();
    let is_over = (0..=126).contains(&output.code);
    assert!(is_over && !output.stderr.contains("a fault in pgkeep"), "{case}: {output}");
    if case.fault.goes_unnoticed() {
        assert_eq!(output.code, 0, "{case}: {output}");
    }
    work.check(site, case, &output);
}
