//! The protocol with one thing wrong. Each has to be caught, else the model proves nothing.

use super::{
    process::Task::{self, BackUp, CleanUp, Delete, Expire},
    world::{FULL, INCR, NEXT, RUNNING},
};

/// A fault in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    // Of a deletion.
    ListsAreReadBeforeTheMark,
    OnlyListsOfBackupsCount,
    ListsThatCantBeReadAreEmpty,
    ListsOfDeletedBackupsCount,
    OneLookForAll,
    ListsThatWentAreNotMissed,
    DeletedGoesFirst,
    BeginGoesAfterDeleted,
    // Of a clean-up.
    CleanUpRemovesByTheLeaseAlone,
    CleanUpMarksByTheLeaseAlone,
    RecordIsLookedForBeforeTheClaim,
    // Of a backup.
    BaseIsNotChecked,
    BaseIsCheckedBeforeTheManifest,
    BaseIsOnlyAskedForItsMark,
    OwnMarksAreNotRead,
    OwnMarksAreReadBeforeTheRecord,
    OwnClaimIsNotRead,
    OwnIsOnlyAskedForItsMark,
    // Of who lists backups.
    BeginIsNoPartOfABackup,
    // Of the WAL.
    FloorsAreNotRead,
    FloorsAreReadBeforeTheRecord,
    BackupsAreReadBeforeTheFloor,
}

/// Each with what has to happen at the same time for it to do harm.
pub fn mutants() -> Vec<(Mutant, Vec<Task>)> {
    use Mutant as M;
    let running = BackUp { backup: RUNNING, base: INCR };
    let on_full = BackUp { backup: RUNNING, base: FULL };
    let next = BackUp { backup: NEXT, base: RUNNING };
    vec![
        (M::ListsAreReadBeforeTheMark, vec![on_full, Delete(INCR), Delete(FULL)]),
        (M::OnlyListsOfBackupsCount, vec![running, Delete(INCR), Delete(FULL)]),
        (M::ListsThatCantBeReadAreEmpty, vec![Delete(FULL)]),
        (M::ListsOfDeletedBackupsCount, vec![Delete(INCR)]),
        (M::OneLookForAll, vec![running, Delete(INCR), Delete(FULL)]),
        (M::ListsThatWentAreNotMissed, vec![running, Delete(INCR), Delete(FULL)]),
        (M::DeletedGoesFirst, vec![Delete(INCR)]),
        (M::BeginGoesAfterDeleted, vec![running, CleanUp(RUNNING)]),
        (M::CleanUpRemovesByTheLeaseAlone, vec![running, CleanUp(RUNNING)]),
        (M::CleanUpMarksByTheLeaseAlone, vec![running, CleanUp(RUNNING)]),
        (M::RecordIsLookedForBeforeTheClaim, vec![running, CleanUp(RUNNING)]),
        (M::BaseIsNotChecked, vec![running, Delete(INCR), Delete(FULL)]),
        (M::BaseIsCheckedBeforeTheManifest, vec![running, Delete(INCR), Delete(FULL)]),
        (M::BaseIsOnlyAskedForItsMark, vec![running, Delete(INCR), Delete(FULL)]),
        (M::OwnMarksAreNotRead, vec![running, CleanUp(RUNNING)]),
        (M::OwnMarksAreReadBeforeTheRecord, vec![running, CleanUp(RUNNING)]),
        (M::OwnClaimIsNotRead, vec![running, CleanUp(RUNNING)]),
        (M::OwnIsOnlyAskedForItsMark, vec![running, CleanUp(RUNNING)]),
        (M::BeginIsNoPartOfABackup, vec![running, next, CleanUp(RUNNING)]),
        (M::FloorsAreNotRead, vec![running, Expire]),
        (M::FloorsAreReadBeforeTheRecord, vec![running, Expire]),
        (M::BackupsAreReadBeforeTheFloor, vec![running, Expire]),
    ]
}
