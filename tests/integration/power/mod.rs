//! The power goes at each moment of each command, and whatever may be on the disk then is looked at.
//!
//! A command runs under strace, its system calls are replayed on a disk that keeps what is durable and what
//! was only written apart ([`crate::support::disk`]), and before and after each sync and each change of a name trees are made of what a
//! power loss might leave there. Each of them has to keep the command's promise; those that differ are written to
//! a real disk, where the program looks at them and does the same again.
//!
//! That a promise hangs on each sync is shown by leaving it out: with any one of them missing, some crash breaks
//! the promise, or it is said here why it may be missing.

mod archive;
mod backup;
mod init;
mod restore;
mod stream;

use std::{
    cell::Cell,
    collections::HashSet,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    Pgkeep,
    disk::{Disk, Op, Recording, Rest, Tree, record},
    random::Random,
};

/// How many random trees are made at each moment.
const TREES: usize = 4;

/// Whether every tree is tried with the program: `PGKEEP_TEST_POWER=all`.
fn all() -> bool {
    std::env::var("PGKEEP_TEST_POWER").is_ok_and(|value| value == "all")
}

/// What is promised of the files: of a tree that a power loss left, and whether the command had said by then
/// that it is done.
type Promise<'p> = &'p dyn Fn(&Tree, bool) -> Result<(), String>;

/// A command that ran on a disk.
struct Run {
    what: String,
    before: Disk,
    ops: Vec<Op>,
    /// Up to where the command had told its server by the moment that is looked at that WAL is durable.
    told: Cell<u64>,
}

/// What was gone through.
#[derive(Debug, Default)]
struct Seen {
    syncs: usize,
    moments: usize,
    trees: usize,
    /// Those that differ, and whether the command had ended.
    different: Vec<(Tree, bool)>,
}

impl Run {
    fn new(what: &str, before: Disk, ops: Vec<Op>) -> Self {
        Run { what: what.to_owned(), before, ops, told: Cell::new(0) }
    }

    /// Runs `command` on the disk at `root`, to its end. `None` where nobody may look on.
    fn of(what: &str, root: &Path, command: &Command) -> Option<Self> {
        let before = Disk::of(root);
        let Recording { output, ops } = record(command, root)?;
        assert_eq!(output.code, 0, "{what}: {output}");
        let run = Run::new(what, before, ops);
        run.assert_replayed(root, |_| false);
        Some(run)
    }

    /// As [`Run::of`], while others write: what they have put where `theirs` says is there from the beginning.
    fn beside_others(
        what: &str,
        root: &Path,
        command: &Command,
        theirs: impl Fn(&Path) -> bool,
    ) -> Option<Self> {
        let before = Disk::of(root);
        let Recording { output, ops } = record(command, root)?;
        assert_eq!(output.code, 0, "{what}: {output}");
        let mut run = Run::new(what, before, ops);
        run.before.add_of_others(&theirs);
        run.assert_replayed(root, |path| theirs(&root.join(path)));
        Some(run)
    }

    /// The model has to have come to what is really there.
    fn assert_replayed(&self, root: &Path, theirs: impl Fn(&Path) -> bool) {
        let (mut model, mut real) = (self.end().now(), Tree::read(root));
        for tree in [&mut model, &mut real] {
            tree.0.retain(|path, _| !theirs(path));
        }
        let differences = model.differences(&real);
        assert!(differences.is_empty(), "{}: the model differs: {differences:#?}", self.what);
    }

    /// The disk when all is done.
    fn end(&self) -> Disk {
        let mut disk = self.before.clone();
        for op in &self.ops {
            disk.apply(op);
        }
        disk
    }

    /// Calls `each` with the trees of each moment, until it says that it has seen enough. `without` are syncs
    /// that didn't happen.
    fn crashes(&self, without: &[usize], each: impl FnMut(&Tree, usize, bool) -> bool) {
        self.crashes_by(TREES, without, each);
    }

    /// The same, with so many random trees at each moment.
    fn crashes_by(
        &self,
        trees: usize,
        without: &[usize],
        mut each: impl FnMut(&Tree, usize, bool) -> bool,
    ) {
        let mut disk = self.before.clone();
        let mut random = Random::of_seed(self.ops.len() as u64);
        let mut moment = |disk: &Disk, at: usize| {
            let rests = [Rest::Nothing, Rest::Names, Rest::All].into_iter();
            let rests = rests.chain(std::iter::repeat_n(Rest::Some, trees));
            for rest in rests {
                if !each(&disk.lost(rest, &mut random), at, at == self.ops.len()) {
                    return false;
                }
            }
            true
        };
        self.told.set(0);
        for (at, op) in self.ops.iter().enumerate() {
            if op.is_turn() && !moment(&disk, at) {
                return;
            }
            if let Op::Told(lsn) = op {
                self.told.set(self.told.get().max(*lsn));
            }
            let is_left_out =
                matches!(op, Op::BeginSync(id, _) | Op::Sync(id, _) if without.contains(id));
            if !is_left_out {
                disk.apply(op);
            }
        }
        moment(&disk, self.ops.len());
    }

    /// Holds all trees against `promise`, and returns those that differ in more than what `is_rest` says nobody
    /// reads.
    fn keeps(&self, promise: Promise<'_>, is_rest: impl Fn(&Path) -> bool) -> Seen {
        let mut seen = Seen { syncs: self.syncs().len(), ..Seen::default() };
        let mut known = HashSet::new();
        let mut last = usize::MAX;
        self.crashes(&[], |tree, at, ended| {
            seen.moments += usize::from(at != last);
            last = at;
            seen.trees += 1;
            if let Err(why) = promise(tree, ended) {
                panic!("{}: a power loss before {:?}: {why}", self.what, self.ops.get(at));
            }
            if known.insert((tree.hash(&is_rest), ended)) {
                seen.different.push((tree.clone(), ended));
            }
            true
        });
        eprintln!(
            "{}: {} syncs, power lost at {} moments, {} trees, {} of them different",
            self.what,
            seen.syncs,
            seen.moments,
            seen.trees,
            seen.different.len()
        );
        seen
    }

    /// The syncs, by number, with what they are of.
    fn syncs(&self) -> Vec<(usize, PathBuf)> {
        let syncs = self.ops.iter().filter_map(|op| match op {
            Op::BeginSync(id, path) => Some((*id, path.clone())),
            _ => None,
        });
        syncs.collect()
    }

    /// Leaves out one sync after the other. Some crash has to break the promise then, unless the sync had
    /// nothing to do, or another one does the same in time: then some crash breaks it without both. For what isn't
    /// promised `is_spare` says so. Of many syncs it is every `step`th that is tried. Returns how many
    /// are needed, by themselves or with their like.
    fn needs_each_sync(
        &self,
        promise: Promise<'_>,
        step: usize,
        is_spare: impl Fn(&Path) -> bool,
    ) -> usize {
        let mut idle = HashSet::new();
        let mut disk = self.before.clone();
        for op in &self.ops {
            if let Op::BeginSync(id, path) = op
                && !disk.has_to_sync(path)
            {
                idle.insert(*id);
            }
            disk.apply(op);
        }
        let breaks = |without: &[usize]| {
            let mut broken = false;
            self.crashes(without, |tree, _, ended| {
                broken = promise(tree, ended).is_err();
                !broken
            });
            broken
        };
        let syncs = self.syncs();
        let (mut needed, mut twins, mut spare, mut missed) = (0, 0, 0, Vec::new());
        for (id, path) in syncs.iter().filter(|(id, _)| !idle.contains(id)).step_by(step) {
            let same = syncs.iter().filter(|(_, other)| other == path);
            let same: Vec<usize> = same.map(|(id, _)| *id).collect();
            if breaks(&[*id]) {
                needed += 1;
            } else if breaks(&same) {
                twins += 1;
            } else if is_spare(path) {
                spare += 1;
            } else {
                missed.push(path);
            }
        }
        eprintln!(
            "{}: of {} syncs {needed} are needed each, {twins} with another of the same, {spare} not for \
             what is promised; {} had nothing to do",
            self.what,
            syncs.len(),
            idle.len(),
        );
        assert!(missed.is_empty(), "{}: nothing breaks without a sync of {missed:#?}", self.what);
        needed + twins
    }
}

/// Kills a command, the first of `commands`, right before each of its syncs of which `here` says so, and runs it again, or
/// the second of them, to its end; and then the power goes, at each moment of the second run. `promise` is asked of what that leaves, with what is there in the end, and
/// whether it was the end; not where the second run ends with the code `nothing_done`. Returns how often it was killed.
fn killed_and_run_again(
    what: &str,
    root: &Path,
    commands: [&dyn Fn() -> Command; 2],
    here: impl Fn(&Path) -> bool,
    nothing_done: Option<i32>,
    promise: impl Fn(&Tree, &Tree, bool) -> Result<(), String>,
) -> usize {
    let Some(first) = Run::of(what, root, &commands[0]()) else { return 0 };
    let first_end = first.end().now();
    let mut killed = 0;
    for (at, op) in first.ops.iter().enumerate() {
        let Op::BeginSync(_, path) = op else { continue };
        if !here(path) {
            continue;
        }
        killed += 1;
        let mut disk = first.before.clone();
        first.ops[..at].iter().for_each(|op| disk.apply(op));
        disk.now().write(root);
        let second = record(&commands[1](), root).expect("it worked before");
        if Some(second.output.code) == nothing_done {
            continue;
        }
        let moment = format!("{what}, killed before a sync of {} and run again", path.display());
        assert_eq!(second.output.code, 0, "{moment}: {}", second.output);
        let second = Run::new(&moment, disk, second.ops);
        second.assert_replayed(root, |_| false);
        let end = second.end().now();
        second.crashes_by(1, &[], |tree, _, ended| {
            let kept = promise(tree, &end, ended);
            // Until the second one has come so far, what the first one had made may be whole.
            let kept = kept.or_else(|why| match ended {
                false => promise(tree, &first_end, ended).map_err(|_| why),
                true => Err(why),
            });
            if let Err(why) = kept {
                panic!("{moment}, then a power loss: {why}");
            }
            true
        });
    }
    eprintln!("{what}: killed before {killed} syncs and run again");
    killed
}

/// The part of a path below the repository, of what counts there: no temporary files, no leases.
fn object<'p>(repository: &Path, path: &'p Path) -> Option<&'p Path> {
    let name = path.strip_prefix(repository).ok()?;
    let counts = !name.starts_with(".tmp") && !name.iter().any(|part| part == "leases");
    counts.then_some(name)
}

/// That each object in the tree is what it is in `end`: objects are there whole or not at all.
fn whole_or_none(tree: &Tree, end: &Tree, repository: &Path) -> Result<(), String> {
    for (path, content) in tree.files(repository) {
        if object(repository, path).is_some() && end.file(path) != Some(content) {
            return Err(format!("{} isn't whole", path.display()));
        }
    }
    Ok(())
}

/// That the file at `path` is what it is in `end`.
fn is_there(tree: &Tree, end: &Tree, path: &Path) -> Result<(), String> {
    match tree.file(path) {
        None => Err(format!("{} isn't there", path.display())),
        content if content == end.file(path) => Ok(()),
        _ => Err(format!("{} isn't whole", path.display())),
    }
}

/// The tree as another boot of the system finds it, which takes nothing for its own that this one has noted.
fn after_a_boot(mut tree: Tree) -> Tree {
    let boot =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot has an id");
    let (boot, other) = (boot.trim().to_owned(), "00000000-0000-4000-8000-000000000000");
    for (path, node) in &mut tree.0 {
        if let crate::support::disk::Node::File(content) = node
            && path.starts_with("state")
        {
            let text = String::from_utf8_lossy(content);
            if text.contains(&boot) {
                *content = text.replace(&boot, other).into_bytes().into();
            }
        }
    }
    tree
}

/// What nobody reads of a tree below the scratch directory of a [`Pgkeep`].
fn is_rest(path: &Path) -> bool {
    path.starts_with("repository/main/.tmp")
}

/// That the program finds nothing wrong with a repository, but for a backup that died before it was one.
fn assert_sound(pgkeep: &Pgkeep, what: &str) {
    let output = pgkeep.run(["verify", "--level", "full"]);
    let problems = output.stdout.matches("PROBLEM").count();
    let unfinished = output.stdout.matches("   unfinished: ").count();
    let is_left = output.code == 1 && problems == 1 && unfinished == 1;
    assert!(output.code == 0 || is_left, "{what}: {output}");
}
