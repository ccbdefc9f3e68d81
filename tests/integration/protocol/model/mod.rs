//! A model of the protocol by which backups come and go, and a search through all that can happen.
//!
//! Backups, deletions, clean-ups and an expiry are processes that take one storage operation a step.
//! The search tries all interleavings. A process that crashes, or sleeps past its lease and wakes, is
//! one that isn't scheduled for a while or never again, so both are among them; a clean-up takes any
//! unfinished backup for a crashed one's whenever it likes. In each state nothing that is listed as a
//! backup may lack a pack, nothing that was reported as a success may be gone, unless its deletion was
//! asked for, or lack its WAL; and if everybody died there, a clean-up has to leave nothing behind.
//!
//! The protocol has to come through, and with any one of its rules taken out or turned round it must
//! not.

mod mutants;
mod process;
mod world;

use std::collections::HashSet;

use self::{
    mutants::{Mutant, mutants},
    process::{At, Process, Task, step},
    world::{BACKUPS, FULL, INCR, NEXT, Objects, Part, RUNNING, list},
};

/// All there is: what is stored, and where each process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    objects: Objects,
    processes: [Option<Process>; MOST],
}

/// How many processes there are at most.
const MOST: usize = 4;

/// A step: which process took it, and what it was.
type Step = (usize, At);

/// A step that was taken, and what can be tried after it.
type Taken = (Option<Step>, Vec<(Step, State)>);

/// What was searched, and what was found.
struct Found {
    states: usize,
    /// What is wrong, and the steps that lead there.
    violation: Option<(String, Vec<String>)>,
}

fn search(tasks: &[Task], mutant: Option<Mutant>) -> Found {
    let processes = std::array::from_fn(|i| tasks.get(i).map(|task| Process::new(*task)));
    let first = State { objects: Objects::at_first(), processes };
    let mut known = HashSet::from([first]);
    let mut tidied = HashSet::new();
    // The path to where the search is.
    let mut path: Vec<Taken> = vec![(None, successors(&first, mutant))];
    while let Some((_, untried)) = path.last_mut() {
        let Some((step, state)) = untried.pop() else {
            path.pop();
            continue;
        };
        if !known.insert(state) {
            continue;
        }
        let broken = broken(&state, tasks, mutant).or_else(|| {
            tidied.insert(state.objects).then(|| left(state.objects, mutant)).flatten()
        });
        path.push((Some(step), successors(&state, mutant)));
        if let Some(broken) = broken {
            let steps = path.iter().filter_map(|(step, _)| *step);
            let steps = steps.map(|(i, at)| format!("{:?}: {at:?}", tasks[i])).collect();
            return Found { states: known.len(), violation: Some((broken, steps)) };
        }
    }
    Found { states: known.len(), violation: None }
}

fn successors(state: &State, mutant: Option<Mutant>) -> Vec<(Step, State)> {
    let mut found = Vec::new();
    for (i, process) in state.processes.iter().enumerate() {
        let Some(process) = process.filter(|process| !process.has_ended()) else { continue };
        for (after, objects) in step(process, state.objects, mutant) {
            let mut next = State { objects, ..*state };
            next.processes[i] = Some(after);
            found.push(((i, process.at), next));
        }
    }
    found
}

/// Whether who lists backups sees this one.
fn is_listed(objects: Objects, backup: usize, mutant: Option<Mutant>) -> bool {
    let mut objects = objects;
    if mutant == Some(Mutant::BeginIsNoPartOfABackup) {
        objects.create(backup, Part::Begin);
    }
    objects.is_listed(backup)
}

/// What may not be.
fn broken(state: &State, tasks: &[Task], mutant: Option<Mutant>) -> Option<String> {
    let objects = state.objects;
    let has_succeeded = |backup: usize| {
        let is_it = |p: &Process| matches!(p.task, Task::BackUp { backup: b, .. } if b == backup);
        match backup {
            FULL | INCR => true,
            _ => state.processes.iter().flatten().any(|p| is_it(p) && p.at == At::Succeeded),
        }
    };
    for backup in 0..BACKUPS {
        let listed = is_listed(objects, backup, mutant);
        let succeeded = has_succeeded(backup);
        if let Some((of, part)) = objects.lacks(backup).filter(|_| listed) {
            return Some(format!("backup {backup} is listed and lacks {part:?} of {of}"));
        }
        if succeeded && !listed && !tasks.contains(&Task::Delete(backup)) {
            return Some(format!("backup {backup} has succeeded and is gone"));
        }
        if succeeded && listed && !objects.has_wal(backup) {
            return Some(format!("backup {backup} has succeeded and lacks its WAL"));
        }
    }
    None
}

/// What a clean-up leaves behind when everybody else is dead, if it is more than it may be.
fn left(objects: Objects, mutant: Option<Mutant>) -> Option<String> {
    let mut cleaned = objects;
    // The last one sweeps what the ones before have marked; one alone is as good for what is deleted.
    for backup in 0..BACKUPS {
        let mut process = Process::new(Task::CleanUp(backup));
        while !process.has_ended() {
            // The first outcome of a read is that it works.
            (process, cleaned) = step(process, cleaned, mutant).swap_remove(0);
        }
        if process.at == At::Failed {
            return Some(format!("a clean-up of backup {backup} fails afterwards"));
        }
    }
    let listed = |objects, backup: &usize| is_listed(objects, *backup, mutant);
    let backups: Vec<usize> = (0..BACKUPS).filter(|b| listed(objects, b)).collect();
    let still: Vec<usize> = (0..BACKUPS).filter(|b| listed(cleaned, b)).collect();
    if backups != still {
        return Some(format!("a clean-up makes {still:?} of the backups {backups:?}"));
    }
    let needed: Vec<_> = backups.iter().flat_map(|backup| list(*backup)).collect();
    for backup in (0..BACKUPS).filter(|b| !backups.contains(b)) {
        let packs = [Part::PackA, Part::PackB].map(|pack| (backup, pack));
        let is_needed = packs.iter().any(|pack| needed.contains(pack));
        let superfluous = packs.iter().find(|p| cleaned.has(p.0, p.1) && !needed.contains(p));
        let there = cleaned.folders() & 1 << backup != 0;
        if superfluous.is_some() || (there && !is_needed) {
            return Some(format!("a clean-up leaves something of backup {backup}"));
        }
    }
    None
}

/// What is searched: everything that can go on at once, a few at a time.
fn scenarios() -> Vec<Vec<Task>> {
    use Task::{BackUp, CleanUp, Delete, Expire};
    let running = BackUp { backup: RUNNING, base: INCR };
    let next = BackUp { backup: NEXT, base: RUNNING };
    vec![
        vec![running, Delete(INCR), Delete(FULL)],
        vec![BackUp { backup: RUNNING, base: FULL }, Delete(INCR), Delete(FULL)],
        vec![running, Delete(INCR), CleanUp(RUNNING)],
        vec![running, CleanUp(RUNNING), CleanUp(RUNNING)],
        vec![running, next, CleanUp(RUNNING)],
        vec![running, next, Delete(RUNNING)],
        vec![running, Delete(INCR), Expire],
        vec![running, CleanUp(RUNNING), Expire],
        vec![running, next, CleanUp(RUNNING), Expire],
    ]
}

#[test]
fn nothing_that_can_happen_breaks_the_protocol() {
    for tasks in scenarios() {
        let found = search(&tasks, None);
        println!("{:>8} states: {tasks:?}", found.states);
        if let Some((what, steps)) = found.violation {
            panic!("{what}:\n{}", steps.join("\n"));
        }
    }
}

#[test]
fn each_rule_of_the_protocol_is_needed() {
    for (mutant, tasks) in mutants() {
        let found = search(&tasks, Some(mutant));
        let (what, steps) =
            found.violation.unwrap_or_else(|| panic!("{mutant:?} isn't caught by {tasks:?}"));
        println!("{mutant:?} is caught after {} steps: {what}", steps.len());
    }
}
