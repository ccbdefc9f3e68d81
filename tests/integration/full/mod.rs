//! The disk is full, or broken, at each step of each command.
//!
//! A clean run under strace tells which calls change something below the repository, the directory restored to and
//! `state-dir`. Then the command is run once for each of them, while that call gets an error: no space, a quota, an
//! error of the disk; once, or from then on. The command has to say what was wrong, with what, and by
//! its exit code; what it leaves has to be sound, and when there is space again the same command has to work.
//!
//! [`small`] has the same from the kernel: on file systems that have so many pages and so many files and no more.

mod archive;
mod backup;
mod restore;
mod small;
mod stream;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    Pgkeep,
    disk::{Faulty, Place, Tree, places, run_with},
    pgkeep::Output,
    random::Random,
};

/// Whether every case is tried: `PGKEEP_TEST_FULL=all`.
fn all() -> bool {
    std::env::var("PGKEEP_TEST_FULL").is_ok_and(|value| value == "all")
}

/// A call that gets an error.
#[derive(Debug, Clone)]
struct Case {
    place: Place,
    error: &'static str,
    lasting: bool,
    /// What the calls that got it were about.
    hit: Vec<PathBuf>,
}

impl Case {
    /// What the system says of the error.
    fn text(&self) -> &'static str {
        match self.error {
            "ENOSPC" => "No space left on device",
            "EDQUOT" => "Disk quota exceeded",
            _ => "Input/output error",
        }
    }

    /// Whether something failed below `folder`.
    fn is_below(&self, folder: &Path) -> bool {
        self.hit.iter().any(|path| path.starts_with(folder))
    }
}

/// The errors that a call may get, and whether all that follow get it too. A `write` may also be to standard error, and
/// an `openat` only read: of these one fails.
fn errors(call: &str) -> &'static [(&'static str, bool)] {
    match call {
        "fsync" | "fdatasync" => &[("EIO", false), ("ENOSPC", true)],
        "unlink" | "unlinkat" | "rmdir" => &[("EIO", false), ("EIO", true)],
        "open" | "openat" | "creat" | "write" | "pwrite64" | "writev" => &[("ENOSPC", false)],
        _ => &[("EDQUOT", false), ("ENOSPC", true)],
    }
}

/// Runs the command in all cases, or in at most so many of them, that differ in what the call is and what it is about as
/// much as they can. `check` is called while the disk is as the command left it.
fn at_each_call(
    what: &str,
    root: &Path,
    command: impl Fn() -> Command,
    most: usize,
    mut check: impl FnMut(&Case, &Output),
) {
    let base = Tree::read(root);
    let Some((output, places)) = places(&command(), root) else { return };
    assert_eq!(output.code, 0, "{what}: {output}");
    let mut kinds: BTreeMap<String, Vec<Case>> = BTreeMap::new();
    let calls = places.len();
    for place in places {
        let folder = place.path.parent().unwrap_or(root).display();
        for (error, lasting) in errors(&place.call) {
            let kind = format!("{} {error} {lasting} in {folder}", place.call);
            let (lasting, hit) = (*lasting, Vec::new());
            let case = Case { place: place.clone(), error, lasting, hit };
            kinds.entry(kind).or_default().push(case);
        }
    }
    let of_all: usize = kinds.values().map(Vec::len).sum();
    let cases = if all() { kinds.into_values().flatten().collect() } else { pick(kinds, most) };
    let mut missed = 0;
    let tried = cases.len();
    for case in cases {
        // Threads don't share the work the same way each time, so one of them may not come so far.
        let nth = case.place.nth;
        let faulty = [nth, nth, nth.div_ceil(2)].into_iter().find_map(|nth| {
            reset(&base, root);
            let place = Place { nth, ..case.place.clone() };
            let faulty = run_with(&command(), root, &place, case.error, case.lasting);
            (faulty.strays == 0 && !faulty.hit.is_empty()).then_some(faulty)
        });
        let Some(Faulty { output, hit: places, .. }) = faulty else {
            missed += 1;
            continue;
        };
        let case = Case { hit: places, ..case };
        assert!(output.code >= 0, "{case:?}: {output}");
        assert!(!output.stderr.contains("a fault in pgkeep"), "{case:?}: {output}");
        check(&case, &output);
    }
    eprintln!(
        "{what}: {calls} calls change something, {of_all} cases, {} of them tried, {missed} met nothing",
        tried
    );
    assert!(missed * 2 <= tried, "{what}: {missed} of {tried} met nothing");
    reset(&base, root);
}

/// Brings back what was there, and leaves WAL that a server has archived meanwhile.
fn reset(base: &Tree, root: &Path) {
    let mut tree = base.clone();
    let found = Tree::read(root).0.into_iter();
    for (path, node) in
        found.filter(|(path, _)| path.starts_with("repository/main/clusters/main/wal"))
    {
        tree.0.entry(path).or_insert(node);
    }
    tree.write(root);
}

/// One of each kind, and then another one of each, until there are enough.
fn pick(mut kinds: BTreeMap<String, Vec<Case>>, most: usize) -> Vec<Case> {
    let mut random = Random::of_this_run();
    let mut picked = Vec::new();
    while picked.len() < most && !kinds.is_empty() {
        let mut round = Vec::new();
        kinds.retain(|_, cases| {
            round.push(cases.swap_remove(random.below(cases.len() as u64) as usize));
            !cases.is_empty()
        });
        while !round.is_empty() && picked.len() < most {
            picked.push(round.swap_remove(random.below(round.len() as u64) as usize));
        }
    }
    picked
}

/// That it failed with this code and said what was wrong, with what `of` names.
fn assert_told(case: &Case, output: &Output, code: i32, of: &str) {
    assert_eq!(output.code, code, "{case:?}: {output}");
    assert!(output.stderr.contains(case.text()), "{case:?}: {output}");
    assert!(output.stderr.contains(of), "{case:?}: not a word of {of}: {output}");
}

/// That the program finds nothing wrong with a repository, but for a backup that died before it was one.
fn assert_sound(pgkeep: &Pgkeep, what: &impl std::fmt::Debug) {
    let output = pgkeep.run(["verify", "--level", "full"]);
    let problems = output.stdout.matches("PROBLEM").count();
    let unfinished = output.stdout.matches("   unfinished: ").count();
    let is_left = output.code == 1 && problems == 1 && unfinished == 1;
    assert!(output.code == 0 || is_left, "{what:?}: {output}");
}
