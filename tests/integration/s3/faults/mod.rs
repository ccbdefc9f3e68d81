//! Every request of a command, and everything that can go wrong with it.
//!
//! A clean run of the command is recorded at a proxy between it and the server. Then the command is
//! run once for each request and each [`Fault`] that this request can meet, and for how long it
//! lasts. Whatever happens, the command has either done all it was to do, or it fails, says so with
//! the right exit code, and leaves nothing that counts; and when all is well again, it works.
//!
//! ```text
//! PGKEEP_TEST_FAULTS=all             every case of every matrix
//! PGKEEP_TEST_FAULTS=all:400..600    of each matrix those from the 400th to the 599th: a part of it, or
//!                                    the rest (all:400..) of one that was interrupted
//! PGKEEP_TEST_FAULTS=17              what the seed 17 chooses, where a matrix is too large for each time
//! PGKEEP_TEST_FAULTS=PutObject       the cases with this in their names
//! cargo test --test integration -- --nocapture s3::faults      says how many there are, and the seed
//! ```

mod archive;
mod backup;
mod cluster;
mod restore;

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crate::support::{
    Pgkeep,
    chosen::Chosen,
    install::{command, pgkeep_binary},
    pgkeep::{Output, run_to_end},
    s3::{
        Server, Wire,
        wire::{Fault, Request, Seen},
    },
};

/// One matrix at a time: each has enough to do for the whole machine.
static ALONE: Mutex<()> = Mutex::new(());

/// What can go wrong.
const FAULTS: [Fault; 17] = [
    Fault::Answer(500, "InternalError"),
    Fault::Answer(503, "SlowDown"),
    Fault::Answer(409, "OperationAborted"),
    Fault::Answer(403, "RequestTimeTooSkewed"),
    Fault::Answer(403, "ExpiredToken"),
    Fault::Answer(403, "AccessDenied"),
    Fault::Answer(404, "NoSuchBucket"),
    Fault::Page(502),
    Fault::Page(404),
    Fault::Page(200),
    Fault::Inside200("InternalError"),
    Fault::ResetBefore,
    Fault::ResetAfter,
    Fault::Silence,
    Fault::SilenceInside,
    Fault::BrokenOff,
    Fault::Shortened,
];

/// After how many cases of a whole matrix it is said how far it has got.
const SAY_EACH: usize = 20;

/// For how long it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    /// The next attempt is answered.
    Once,
    /// This request never works, others do.
    Here,
    /// From this request on nothing works.
    Everywhere,
}

const LASTS: [Lasts; 3] = [Lasts::Once, Lasts::Here, Lasts::Everywhere];

/// A request of the recorded run: the same one is known in another run by this.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    operation: &'static str,
    /// The key without what differs between runs.
    key: String,
    /// How many of the same there were before.
    before: usize,
}

/// One run of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Case {
    place: Place,
    fault: Fault,
    lasts: Lasts,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { place: Place { operation, key, before }, fault, lasts } = self;
        write!(f, "{operation} {key} ({before} before), {fault:?}, {lasts:?}")
    }
}

impl Case {
    /// Whether another attempt is to help, so that the run has to succeed.
    fn passes(&self) -> bool {
        self.lasts == Lasts::Once && self.fault.may_pass(self.place.operation)
    }

    /// The plan for a wire.
    fn plan(&self) -> impl FnMut(&Request) -> Option<Fault> + Send + 'static {
        let case = self.clone();
        let (mut alike, mut met) = (0, false);
        move |request| {
            let here = request.operation == case.place.operation
                && without_what_differs(&request.key) == case.place.key;
            alike += usize::from(here);
            let due = here && alike > case.place.before;
            let strikes = match case.lasts {
                Lasts::Once => due && !met,
                Lasts::Here => due,
                Lasts::Everywhere => due || met,
            };
            met |= strikes;
            strikes.then_some(case.fault)
        }
    }
}

/// A key with the parts that are made anew in each run left out.
fn without_what_differs(key: &str) -> String {
    let mut before = "";
    let parts = key.split('/').map(|part| {
        let made = match before {
            "backups" | "leases" | "systems" | "wal" => !part.is_empty(),
            _ => part.len() >= 24 && part.as_bytes()[..24].iter().all(u8::is_ascii_hexdigit),
        };
        before = part;
        match part.split_once('.') {
            _ if !made => part.to_owned(),
            Some((_, end)) if end.ends_with("backup") => "#.backup".to_owned(),
            _ => "#".to_owned(),
        }
    });
    parts.collect::<Vec<_>>().join("/")
}

/// A repository on a server of its own, a wire to it, and configurations for both ways.
struct Site {
    server: Server,
    wire: Wire,
    config: PathBuf,
    /// As `config`, and gives up soon what doesn't move. On a machine that has much to do that would
    /// be some of what goes well, too.
    impatient: PathBuf,
    direct: PathBuf,
    /// Whether what is run now is impatient.
    hurry: AtomicBool,
    /// What runs write comes here.
    folder: PathBuf,
}

impl Site {
    /// A copy of this pgkeep's repository.
    fn of(pgkeep: &Pgkeep, number: usize) -> Self {
        let original = pgkeep.server().expect("a repository in S3");
        let server = original.copy();
        let wire = Wire::to(server.address());
        let text = fs::read_to_string(pgkeep.config()).expect("read the configuration");
        let to = |endpoint: &str| text.replace(&original.endpoint(), endpoint);
        let by_wire = to(&wire.endpoint());
        let table = "[repository.main.s3]\n";
        assert!(by_wire.contains(table), "{by_wire}");
        let impatient = by_wire.replace(table, &format!("{table}stall-timeout = \"1s\"\n"));
        let scratch = pgkeep.scratch();
        Site {
            config: scratch.file(&format!("wire{number}.toml"), by_wire),
            impatient: scratch.file(&format!("impatient{number}.toml"), impatient),
            direct: scratch.file(&format!("direct{number}.toml"), to(&server.endpoint())),
            folder: scratch.folder(&format!("site{number}")),
            hurry: AtomicBool::new(false),
            server,
            wire,
        }
    }

    /// pgkeep, by the way that goes wrong.
    fn command(&self, arguments: &[&str]) -> Command {
        let hurry = self.hurry.load(Ordering::Relaxed);
        with(if hurry { &self.impatient } else { &self.config }, arguments)
    }

    /// pgkeep, by a way that doesn't.
    fn direct(&self, arguments: &[&str]) -> Command {
        with(&self.direct, arguments)
    }
}

/// A run that doesn't end by itself is killed, and then its exit code is 137.
fn with(config: &PathBuf, arguments: &[&str]) -> Command {
    let mut command = command("timeout");
    command.args(["--signal", "KILL", "120"]).arg(pgkeep_binary());
    command.arg("--config").arg(config).args(arguments);
    command
}

/// Runs that fail are to be over soon.
fn quick_to_try_again(pgkeep: &Pgkeep) {
    pgkeep.set("repository.main.s3", "retry-pause = \"1ms\"");
}

/// Encryption takes nearly all the time of a program that wasn't optimised.
fn without_encryption(pgkeep: &Pgkeep) {
    let key = format!("key-file = \"{}\"", pgkeep.key_file("main").display());
    pgkeep.edit(|text| text.replace(&key, "encryption = \"none\""));
}

/// A command that is to be run in each case.
trait Work: Sync {
    /// What it is, in a few words.
    fn name(&self) -> &str;

    /// Makes everything as it was before the first run.
    fn reset(&self, site: &Site);

    /// The command.
    fn run(&self, site: &Site) -> Output;

    /// What it exits with when nothing goes wrong.
    fn clean(&self) -> i32 {
        0
    }

    /// Whether what it left is right. `case` is what went wrong, `seen` are the run's requests.
    fn check(&self, site: &Site, case: &Case, seen: &[Seen], output: &Output);

    /// Whether this request is made in each run.
    fn is_certain(&self, _: &Place) -> bool {
        true
    }

    /// Whether the run must end well, may, or mustn't.
    fn expects(&self, case: &Case) -> Expected {
        match () {
            () if case.passes() => Expected::Success,
            () if case.lasts == Lasts::Once => Expected::Either,
            () => Expected::Failure,
        }
    }
}

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Success,
    Failure,
    Either,
}

#[test]
fn parts_of_a_matrix_are_all_of_it() {
    let place = |n| Place { operation: "GetObject", key: format!("main/{n}"), before: 0 };
    let case = |n| Case { place: place(n), fault: Fault::Silence, lasts: Lasts::Once };
    let cases: Vec<_> = (0..100).map(case).collect();
    let all = |text: &str| Chosen::read(text, 5).of(cases.clone());
    assert_eq!(all("all").len(), 100);
    assert_ne!(all("all"), cases, "they are in another order");
    let parts = [all("all:..30"), all("all:30..31"), all("all:31..100"), all("all:100..")];
    assert_eq!(parts.concat(), all("all"));
    assert_eq!(all("all:31.."), all("all:31..100"));
    assert_eq!(all("main/17 "), [case(17)]);
    assert_eq!((all("4711").len(), all("4711")), (5, all("4711")));
    assert_ne!(all("4711"), all("4712"));
}

/// The cases of a run with these requests: each request with every fault that it can meet.
fn cases(seen: &[Seen]) -> Vec<Case> {
    let mut before: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let mut cases = Vec::new();
    for Seen { request, answer, .. } in seen {
        let key = without_what_differs(&request.key);
        let count = before.entry((request.operation, key.clone())).or_default();
        let place = Place { operation: request.operation, key, before: *count };
        *count += 1;
        let body = answer.map_or(0, |(_, body)| body);
        for fault in FAULTS.into_iter().filter(|fault| fault.can_meet(request, body)) {
            cases.extend(LASTS.map(|lasts| Case { place: place.clone(), fault, lasts }));
        }
    }
    cases
}

/// Records a run of `work`, and runs every case of it at the sites: all of them, or, unless the
/// environment says otherwise, `most`. There have to be at least so many requests and cases.
fn matrix<S: Borrow<Site> + Sync>(
    work: &dyn Work,
    sites: &[S],
    most: usize,
    least: (usize, usize),
) {
    let _alone = ALONE.lock().unwrap_or_else(|failed| failed.into_inner());
    let site = sites[0].borrow();
    work.reset(site);
    site.wire.heal();
    let began = std::time::Instant::now();
    let clean = work.run(site);
    println!("{}: a clean run takes {:?}", work.name(), began.elapsed());
    assert_eq!(clean.code, work.clean(), "{}: {clean}", work.name());
    let seen = site.wire.seen();
    let all: Vec<_> =
        cases(&seen).into_iter().filter(|case| work.is_certain(&case.place)).collect();
    let chosen = Chosen::from_environment(most);
    let total = all.len();
    let cases = chosen.of(all);
    println!(
        "{}: {} requests, {total} cases, {} of them{}",
        work.name(),
        seen.len(),
        cases.len(),
        match &chosen {
            Chosen::Sample(_, seed) if cases.len() < total => {
                format!(" by PGKEEP_TEST_FAULTS={seed}")
            }
            Chosen::All(_) => format!(", from number {}", chosen.first()),
            _ => String::new(),
        }
    );
    for Seen { request, answer, .. } in &seen {
        println!("    {} {} {answer:?}", request.operation, request.key);
    }
    assert!(seen.len() >= least.0 && total >= least.1, "fewer than there used to be: {least:?}");
    assert!(seen.iter().all(|seen| seen.answer.is_some()), "{seen:?}: {clean}");

    let (next, done, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let underway = Mutex::new(BTreeSet::new());
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for site in sites {
            scope.spawn(|| {
                loop {
                    let number = {
                        let mut underway = underway.lock().unwrap();
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        underway.insert(number);
                        number
                    };
                    let Some(case) = cases.get(number) else { break };
                    let ran = catch_unwind(AssertUnwindSafe(|| one(work, site.borrow(), case)));
                    if ran.is_err() {
                        println!("{}: WRONG: {case}", work.name());
                        wrong.lock().unwrap().push(case.to_string());
                    }
                    let mut underway = underway.lock().unwrap();
                    underway.remove(&number);
                    let ended = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if ended % SAY_EACH == 0 && matches!(chosen, Chosen::All(_)) {
                        let from = underway.first().copied().unwrap_or(number + 1);
                        let from = chosen.first() + from;
                        println!("{}: all before number {from} have been run", work.name());
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    println!("{}: {} cases in {:?}", work.name(), cases.len(), began.elapsed());
    assert_eq!(done.into_inner(), cases.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn one(work: &dyn Work, site: &Site, case: &Case) {
    let mut runs = 0;
    let (output, seen) = loop {
        work.reset(site);
        site.wire.plan(case.plan());
        site.hurry.store(case.fault.is_silence(), Ordering::Relaxed);
        let output = work.run(site);
        let seen = site.wire.seen();
        site.wire.heal();
        runs += 1;
        let met = seen.iter().any(|seen| seen.fault.is_some());
        assert!(met || runs < 5, "{case}: it wasn't met: {output}");
        // What waits for something doesn't ask as often each time, and when the machine has much to
        // do, the impatient run out of patience with more than the fault.
        let as_expected = output.code == work.clean() || !case.passes();
        if met && (as_expected || !case.fault.is_silence() || runs >= 3) {
            break (output, seen);
        }
    };
    let is_over = (0..=126).contains(&output.code);
    assert!(is_over && !output.stderr.contains("a fault in pgkeep"), "{case}: {output}");
    match work.expects(case) {
        Expected::Success => assert_eq!(output.code, work.clean(), "{case}: {output}"),
        Expected::Failure => assert!(output.code > 1, "{case}: {output}"),
        Expected::Either => {}
    }
    if output.code > 1 {
        // It says what was done with what, and where.
        assert!(output.stderr.contains("s3://"), "{case}: {output}");
    }
    work.check(site, case, &seen, &output);
}

impl Fault {
    /// Whether it makes sense with this request, whose answer's body has so many bytes.
    fn can_meet(self, request: &Request, body: usize) -> bool {
        let is_read = request.operation == "GetObject";
        let in_xml = request.operation.starts_with("List")
            || ["CreateMultipartUpload", "CompleteMultipartUpload"].contains(&request.operation);
        match self {
            Fault::SilenceInside | Fault::BrokenOff => body >= 2,
            Fault::Shortened => is_read && body >= 2,
            Fault::Inside200(_) => in_xml,
            Fault::Page(200) => in_xml || is_read,
            _ => true,
        }
    }

    /// Whether another attempt may help with a request of this operation.
    fn may_pass(self, operation: &str) -> bool {
        match self {
            // The answer to a HEAD has no body that could say more than its status.
            Fault::Answer(status, _) if operation == "HeadObject" => status >= 500,
            Fault::Answer(_, code) => {
                !["ExpiredToken", "AccessDenied", "NoSuchBucket"].contains(&code)
            }
            Fault::Page(status) => status >= 500,
            // What says that it is whole is believed, until its content is looked at.
            Fault::Shortened => false,
            _ => true,
        }
    }

    /// Whether it ends with patience only.
    fn is_silence(self) -> bool {
        matches!(self, Fault::Silence | Fault::SilenceInside)
    }

    /// Whether the server may have done what was asked.
    fn is_after(self) -> bool {
        use Fault::*;
        matches!(self, ResetAfter | Silence | SilenceInside | BrokenOff | Shortened)
    }
}
