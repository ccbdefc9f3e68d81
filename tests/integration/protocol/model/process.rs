//! The processes of the model, one storage operation a step.

use super::{
    mutants::Mutant,
    world::{BACKUPS, Objects, Part, REST, list},
};

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// Takes a backup with this base.
    BackUp { backup: usize, base: usize },
    /// Deletes a backup, as somebody asked for.
    Delete(usize),
    /// Takes this backup, if it is unfinished, for a crashed one's, whatever its process does: its
    /// lease may have expired while it slept.
    CleanUp(usize),
    /// Cuts all WAL but what the listed backups need.
    Expire,
}

/// What a process does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    // A backup.
    BaseIsMarked,
    BaseHasRecord,
    BaseHasBegin,
    Begin,
    PackA,
    PackB,
    Manifest,
    BaseDeleted,
    BaseBegin,
    Record,
    Floor,
    OwnAbandoned,
    OwnDeleted,
    OwnBegin,
    MarkOwn,
    Undo,
    // A deletion or clean-up.
    StateDeleted,
    StateRecord,
    StateBegin,
    Claim,
    ClaimRecord,
    ClaimBegin,
    Mark,
    First,
    FirstDeleted(u8),
    FirstBegin(u8),
    Second,
    SecondList(u8),
    SecondDeleted(u8),
    SecondBegin(u8),
    SecondRecord(u8),
    SecondAgain(u8),
    Sweep(u8),
    Pack(u8, Part),
    Rest(u8),
    LastButOne(u8),
    Last(u8),
    // An expiry.
    WriteFloor,
    IsMarked(u8),
    HasRecord(u8),
    HasBegin(u8),
    RemoveWal(u8),
    // The end.
    Succeeded,
    Failed,
}

/// A process: what it does next, and what it has learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    pub task: Task,
    pub at: At,
    /// Folders of the listing it works through.
    folders: u8,
    /// Backups that were deleted at the first look.
    deleted: u8,
    /// Backups whose lists don't count.
    left_out: u8,
    /// Backups that were there at the first look and have to be met at the second.
    there: u8,
    /// Packs that somebody refers to: two bits a backup.
    needed: u8,
}

impl Process {
    pub fn new(task: Task) -> Self {
        let at = match task {
            Task::BackUp { .. } => At::BaseIsMarked,
            Task::Delete(_) => At::Mark,
            Task::CleanUp(_) => At::StateDeleted,
            Task::Expire => At::WriteFloor,
        };
        Process { task, at, folders: 0, deleted: 0, left_out: 0, there: 0, needed: 0 }
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.at, At::Succeeded | At::Failed)
    }

    fn go(mut self, at: At) -> Self {
        self.at = at;
        self
    }

    fn needs(&self, backup: usize, pack: Part) -> bool {
        self.needed & pack_bit(backup, pack) != 0
    }
}

fn pack_bit(backup: usize, pack: Part) -> u8 {
    1 << (backup * 2 + usize::from(pack == Part::PackB))
}

/// What comes of a process's next step: one outcome, or two where a read may fail.
pub fn step(process: Process, objects: Objects, mutant: Option<Mutant>) -> Vec<(Process, Objects)> {
    let mut outcomes = match process.task {
        Task::BackUp { backup, base } => vec![back_up(process, objects, backup, base, mutant)],
        Task::Delete(backup) | Task::CleanUp(backup) => remove(process, objects, backup, mutant),
        Task::Expire => vec![expire(process, objects, mutant)],
    };
    for (process, _) in &mut outcomes {
        process.settle(mutant);
    }
    outcomes
}

impl Process {
    /// Goes on to where it asks the storage next, and forgets what it won't need again: so that states
    /// which differ in nothing that matters are one.
    fn settle(&mut self, mutant: Option<Mutant>) {
        let has = |set: u8, b: u8| usize::from(b) < BACKUPS && set & 1 << b != 0;
        let is_last = |b: u8| usize::from(b) == BACKUPS;
        loop {
            self.at = match self.at {
                At::FirstDeleted(b) if is_last(b) => At::Second,
                At::FirstDeleted(b) if !has(self.folders, b) => At::FirstDeleted(b + 1),
                At::SecondList(b) if is_last(b) && self.reads_first(mutant) => At::Mark,
                At::SecondList(b) if is_last(b) => At::Sweep(0),
                At::SecondList(b) if !has(self.folders, b) || self.leaves_out(b, mutant) => {
                    At::SecondList(b + 1)
                }
                At::Sweep(b) if is_last(b) => At::Succeeded,
                At::Sweep(b) if !has(self.deleted, b) => At::Sweep(b + 1),
                At::IsMarked(b)
                    if is_last(b) && mutant == Some(Mutant::BackupsAreReadBeforeTheFloor) =>
                {
                    At::WriteFloor
                }
                At::IsMarked(b) if is_last(b) => At::RemoveWal(0),
                At::RemoveWal(b) if is_last(b) => At::Succeeded,
                At::RemoveWal(b) if has(self.there, b) => At::RemoveWal(b + 1),
                _ => break,
            };
        }
        match self.at {
            At::Succeeded | At::Failed | At::First => {
                *self = Process { at: self.at, ..Process::new(self.task) }
            }
            At::Second => self.folders = 0,
            At::Sweep(_) => (self.folders, self.left_out, self.there) = (0, 0, 0),
            _ => {}
        }
    }

    /// Whether it is the deletion that does things in the wrong order.
    fn reads_first(&self, mutant: Option<Mutant>) -> bool {
        mutant == Some(Mutant::ListsAreReadBeforeTheMark) && matches!(self.task, Task::Delete(_))
    }

    fn leaves_out(&self, backup: u8, mutant: Option<Mutant>) -> bool {
        let never = [Mutant::OneLookForAll, Mutant::ListsOfDeletedBackupsCount];
        self.left_out & 1 << backup != 0 && !never.iter().any(|m| mutant == Some(*m))
    }
}

fn back_up(
    process: Process,
    mut objects: Objects,
    own: usize,
    base: usize,
    mutant: Option<Mutant>,
) -> (Process, Objects) {
    use Mutant as M;
    let is = |m: Mutant| mutant == Some(m);
    let if_else = |condition: bool, yes: At, no: At| if condition { yes } else { no };
    let next = match process.at {
        // It chooses a base that is listed.
        At::BaseIsMarked => {
            if_else(objects.has(base, Part::Deleted), At::Failed, At::BaseHasRecord)
        }
        At::BaseHasRecord => if_else(objects.has(base, Part::Record), At::BaseHasBegin, At::Failed),
        At::BaseHasBegin => {
            let listed = objects.has(base, Part::Begin) || is(M::BeginIsNoPartOfABackup);
            if_else(listed, At::Begin, At::Failed)
        }
        At::Begin => {
            objects.create(own, Part::Begin);
            At::PackA
        }
        At::PackA => {
            objects.create(own, Part::PackA);
            At::PackB
        }
        At::PackB => {
            objects.create(own, Part::PackB);
            if_else(is(M::BaseIsCheckedBeforeTheManifest), At::BaseDeleted, At::Manifest)
        }
        At::Manifest => {
            objects.create(own, Part::Manifest);
            match mutant {
                Some(M::BaseIsNotChecked | M::BaseIsCheckedBeforeTheManifest) => At::Record,
                Some(M::FloorsAreReadBeforeTheRecord) => At::Floor,
                Some(M::OwnMarksAreReadBeforeTheRecord) => At::OwnAbandoned,
                _ => At::BaseDeleted,
            }
        }
        At::BaseDeleted => {
            let checked =
                if is(M::BaseIsCheckedBeforeTheManifest) { At::Manifest } else { At::Record };
            let begin = if is(M::BaseIsOnlyAskedForItsMark) { checked } else { At::BaseBegin };
            if_else(objects.has(base, Part::Deleted), At::Undo, begin)
        }
        At::BaseBegin => {
            let checked =
                if is(M::BaseIsCheckedBeforeTheManifest) { At::Manifest } else { At::Record };
            if_else(objects.has(base, Part::Begin), checked, At::Undo)
        }
        At::Record => {
            objects.create(own, Part::Record);
            match mutant {
                Some(M::FloorsAreNotRead | M::FloorsAreReadBeforeTheRecord) => At::OwnAbandoned,
                Some(M::OwnMarksAreReadBeforeTheRecord) => At::Succeeded,
                _ => At::Floor,
            }
        }
        At::Floor => match mutant {
            Some(M::FloorsAreReadBeforeTheRecord) => {
                if_else(objects.has_floor(), At::Undo, At::BaseDeleted)
            }
            Some(M::OwnMarksAreNotRead) => if_else(objects.has_floor(), At::MarkOwn, At::Succeeded),
            _ => if_else(objects.has_floor(), At::MarkOwn, At::OwnAbandoned),
        },
        At::OwnAbandoned => {
            let claimed = objects.has(own, Part::Abandoned) && !is(M::OwnClaimIsNotRead);
            if_else(claimed, At::MarkOwn, At::OwnDeleted)
        }
        At::OwnDeleted => {
            let marked = objects.has(own, Part::Deleted);
            let fine = if is(M::OwnIsOnlyAskedForItsMark) { At::Succeeded } else { At::OwnBegin };
            if_else(marked, At::MarkOwn, fine)
        }
        At::OwnBegin => {
            let fine = match is(M::OwnMarksAreReadBeforeTheRecord) {
                true => At::BaseDeleted,
                false => At::Succeeded,
            };
            if_else(objects.has(own, Part::Begin), fine, At::MarkOwn)
        }
        At::MarkOwn => {
            objects.create(own, Part::Deleted);
            At::Failed
        }
        // What it has stored goes, as of any deleted backup.
        At::Undo => {
            objects.create(own, Part::Deleted);
            At::Rest(own as u8)
        }
        at => return take_folder(process.go(at), objects, mutant, At::Failed),
    };
    (process.go(next), objects)
}

/// A step of removing all of a folder; `then` comes after its last.
fn take_folder(
    process: Process,
    mut objects: Objects,
    mutant: Option<Mutant>,
    then: At,
) -> (Process, Objects) {
    let first =
        if mutant == Some(Mutant::BeginGoesAfterDeleted) { Part::Deleted } else { Part::Begin };
    let second = if first == Part::Begin { Part::Deleted } else { Part::Begin };
    let next = match process.at {
        At::Rest(backup) => match REST.into_iter().find(|part| objects.has(backup.into(), *part)) {
            Some(part) => {
                objects.remove(backup.into(), part);
                At::Rest(backup)
            }
            None => At::LastButOne(backup),
        },
        At::LastButOne(backup) => {
            objects.remove(backup.into(), first);
            At::Last(backup)
        }
        At::Last(backup) => {
            objects.remove(backup.into(), second);
            then
        }
        at => unreachable!("{at:?} is no step of removing a folder"),
    };
    (process.go(next), objects)
}

fn remove(
    mut process: Process,
    mut objects: Objects,
    target: usize,
    mutant: Option<Mutant>,
) -> Vec<(Process, Objects)> {
    use Mutant as M;
    let is = |m: Mutant| mutant == Some(m);
    let has = |backup: u8, part| objects.has(backup.into(), part);
    let next = match process.at {
        // A clean-up looks for a folder that is unfinished.
        At::StateDeleted if objects.folders() & 1 << target == 0 => At::First,
        At::StateDeleted => match objects.has(target, Part::Deleted) {
            true => At::First,
            false => At::StateRecord,
        },
        At::StateRecord if objects.has(target, Part::Record) => At::StateBegin,
        At::StateBegin if objects.has(target, Part::Begin) || is(M::BeginIsNoPartOfABackup) => {
            At::First
        }
        At::StateRecord | At::StateBegin => match mutant {
            Some(M::CleanUpMarksByTheLeaseAlone) => At::Mark,
            Some(M::CleanUpRemovesByTheLeaseAlone) => At::Rest(target as u8),
            Some(M::RecordIsLookedForBeforeTheClaim) => At::ClaimRecord,
            _ => At::Claim,
        },
        At::Claim => {
            objects.create(target, Part::Abandoned);
            if is(M::RecordIsLookedForBeforeTheClaim) { At::Mark } else { At::ClaimRecord }
        }
        At::ClaimRecord if objects.has(target, Part::Record) => At::ClaimBegin,
        At::ClaimBegin if objects.has(target, Part::Begin) => At::First,
        At::ClaimRecord | At::ClaimBegin => {
            if is(M::RecordIsLookedForBeforeTheClaim) {
                At::Claim
            } else {
                At::Mark
            }
        }
        // It reads first, and marks when it knows what to remove.
        At::Mark if process.reads_first(mutant) && process.deleted == 0 => {
            process.deleted = 1 << target;
            process.left_out = 1 << target;
            At::Second
        }
        At::Mark => {
            objects.create(target, Part::Deleted);
            if process.reads_first(mutant) { At::Sweep(0) } else { At::First }
        }
        // The first look: who is deleted?
        At::First => {
            process.folders = objects.folders();
            At::FirstDeleted(0)
        }
        At::FirstDeleted(b) if has(b, Part::Deleted) => {
            process.deleted |= 1 << b;
            process.left_out |= 1 << b;
            At::FirstDeleted(b + 1)
        }
        At::FirstDeleted(b) => At::FirstBegin(b),
        At::FirstBegin(b) => {
            let set = if has(b, Part::Begin) { &mut process.there } else { &mut process.left_out };
            *set |= 1 << b;
            At::FirstDeleted(b + 1)
        }
        // The second look: what do the others refer to?
        At::Second => {
            process.folders = objects.folders();
            let gone = process.there & !process.folders;
            if gone != 0 && !is(M::ListsThatWentAreNotMissed) {
                At::First
            } else {
                At::SecondList(0)
            }
        }
        At::SecondList(b) => {
            let is_deleted_now = is(M::OneLookForAll) && has(b, Part::Deleted);
            if is_deleted_now {
                process.deleted |= 1 << b;
            }
            let uncommitted = is(M::OnlyListsOfBackupsCount) && !has(b, Part::Record);
            if is_deleted_now || uncommitted {
                At::SecondList(b + 1)
            } else if has(b, Part::Manifest) {
                return read_list(process, objects, b, mutant);
            } else {
                At::SecondDeleted(b)
            }
        }
        At::SecondDeleted(b) if has(b, Part::Deleted) => missed(b, mutant),
        At::SecondDeleted(b) => At::SecondBegin(b),
        At::SecondBegin(b) if has(b, Part::Begin) => At::SecondRecord(b),
        At::SecondBegin(b) => missed(b, mutant),
        At::SecondRecord(b) if has(b, Part::Record) => At::SecondAgain(b),
        At::SecondRecord(b) => At::SecondList(b + 1),
        At::SecondAgain(b) if has(b, Part::Manifest) => {
            return read_list(process, objects, b, mutant);
        }
        // It was written before the record: it is lost, or went since.
        At::SecondAgain(b) if has(b, Part::Deleted) || !has(b, Part::Begin) => missed(b, mutant),
        At::SecondAgain(_) => At::Failed,
        // What nobody needs goes.
        At::Sweep(b) => {
            let kept = [Part::PackA, Part::PackB]
                .into_iter()
                .any(|pack| has(b, pack) && process.needs(b.into(), pack));
            match kept {
                true => At::Pack(b, Part::PackA),
                false if is(M::DeletedGoesFirst) => At::Last(b),
                false => At::Rest(b),
            }
        }
        At::Pack(b, pack) => {
            if !process.needs(b.into(), pack) {
                objects.remove(b.into(), pack);
            }
            if pack == Part::PackA { At::Pack(b, Part::PackB) } else { At::Sweep(b + 1) }
        }
        At::Last(b) if is(M::DeletedGoesFirst) && has(b, Part::Deleted) => {
            objects.remove(b.into(), Part::Deleted);
            At::Rest(b)
        }
        At::Rest(b) | At::LastButOne(b) | At::Last(b) => {
            return vec![take_folder(process, objects, mutant, At::Sweep(b + 1))];
        }
        at => unreachable!("{at:?} is no step of a removal"),
    };
    vec![(process.go(next), objects)]
}

/// A list that was there at the first look isn't any more: it all begins again.
fn missed(backup: u8, mutant: Option<Mutant>) -> At {
    match mutant {
        Some(Mutant::ListsThatWentAreNotMissed | Mutant::OneLookForAll) => {
            At::SecondList(backup + 1)
        }
        _ => At::First,
    }
}

/// Reads a list, or fails to.
fn read_list(
    process: Process,
    objects: Objects,
    backup: u8,
    mutant: Option<Mutant>,
) -> Vec<(Process, Objects)> {
    let mut read = process.go(At::SecondList(backup + 1));
    for (of, pack) in list(backup.into()) {
        read.needed |= pack_bit(of, pack);
    }
    let failed = match mutant {
        Some(Mutant::ListsThatCantBeReadAreEmpty) => At::SecondList(backup + 1),
        _ => At::Failed,
    };
    vec![(read, objects), (process.go(failed), objects)]
}

fn expire(
    mut process: Process,
    mut objects: Objects,
    mutant: Option<Mutant>,
) -> (Process, Objects) {
    let late = mutant == Some(Mutant::BackupsAreReadBeforeTheFloor);
    let next = match process.at {
        At::WriteFloor if late && process.folders == 0 => {
            process.folders = u8::MAX;
            At::IsMarked(0)
        }
        At::WriteFloor => {
            objects.create_floor();
            if late { At::RemoveWal(0) } else { At::IsMarked(0) }
        }
        At::IsMarked(b) if objects.has(b.into(), Part::Deleted) => At::IsMarked(b + 1),
        At::IsMarked(b) => At::HasRecord(b),
        At::HasRecord(b) if objects.has(b.into(), Part::Record) => At::HasBegin(b),
        At::HasRecord(b) => At::IsMarked(b + 1),
        At::HasBegin(b) => {
            if objects.has(b.into(), Part::Begin) {
                process.there |= 1 << b;
            }
            At::IsMarked(b + 1)
        }
        At::RemoveWal(b) => {
            objects.remove_wal(b.into());
            At::RemoveWal(b + 1)
        }
        at => unreachable!("{at:?} is no step of an expiry"),
    };
    (process.go(next), objects)
}
