//! What all schedules of a run came to.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use super::world::Trouble;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Init,
    Register,
    Push,
    PushOther,
    Stream,
    BackUp,
    Restore,
    Delete,
    Expire,
    CleanUp,
    Verify,
}

impl Kind {
    /// About how often a step of this kind changes what is stored at most, and how much it asks of the
    /// storage: so that most troubles are met.
    pub fn extent(self) -> (u64, u64) {
        match self {
            Kind::Init => (2, 8),
            Kind::Register => (1, 6),
            Kind::Push | Kind::PushOther => (2, 16),
            Kind::Stream => (24, 80),
            Kind::BackUp => (14, 80),
            Kind::Restore | Kind::Verify => (0, 50),
            Kind::Delete | Kind::Expire => (8, 40),
            Kind::CleanUp => (4, 24),
        }
    }
}

/// All there are.
const KINDS: [(Kind, &str); 11] = [
    (Kind::Init, "inits"),
    (Kind::Register, "registrations"),
    (Kind::Push, "pushes"),
    (Kind::PushOther, "pushes of other content"),
    (Kind::Stream, "streams"),
    (Kind::BackUp, "backups"),
    (Kind::Restore, "restores"),
    (Kind::Delete, "deletions"),
    (Kind::Expire, "expiries"),
    (Kind::CleanUp, "clean-ups"),
    (Kind::Verify, "verifications"),
];

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it was to do, and said so.
    Acknowledged,
    /// It failed, and said so.
    Failed,
    /// It was killed.
    Killed,
}

/// What all schedules of a run came to.
#[derive(Default)]
pub struct Tally {
    schedules: AtomicU64,
    /// By kind, and how often each was acknowledged, failed and was killed.
    steps: [[AtomicU64; 3]; KINDS.len()],
    faults: AtomicU64,
    deaths: AtomicU64,
    reports: AtomicU64,
    restores: AtomicU64,
    verifications: AtomicU64,
    whole: AtomicU64,
    open: AtomicU64,
}

fn add(to: &AtomicU64, some: u64) {
    to.fetch_add(some, Ordering::Relaxed);
}

fn of(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

impl Tally {
    /// A schedule that has held.
    pub fn schedule(&self) {
        add(&self.schedules, 1);
    }

    /// A step, and how many operations of the storage failed in it.
    pub fn step(&self, kind: Kind, outcome: Outcome, trouble: Trouble, faults: u64) {
        add(&self.steps[kind as usize][outcome as usize], 1);
        let died = faults > 0 && matches!(trouble, Trouble::Death { .. });
        add(&self.deaths, u64::from(died));
        // After its death nothing answers, which counts once.
        add(&self.faults, if died { 1 } else { faults });
    }

    /// Positions that a stream has reported as stored.
    pub fn reports(&self, many: u64) {
        add(&self.reports, many);
    }

    /// A restored directory that was compared.
    pub fn restore(&self) {
        add(&self.restores, 1);
    }

    /// A report of a verification that was compared with what was acknowledged.
    pub fn verification(&self) {
        add(&self.verifications, 1);
    }

    /// A segment that was got back and compared: whole, or as far as the stream has it.
    pub fn segments(&self, is_open: bool) {
        add(if is_open { &self.open } else { &self.whole }, 1);
    }

    /// That nothing is missing which a run of some length has to have had. `long`: nor what takes longer.
    pub fn check(&self, long: bool) {
        for ((_, name), outcomes) in KINDS.iter().zip(&self.steps) {
            let [acknowledged, failed, killed] = outcomes.each_ref().map(of);
            assert!(acknowledged > 0, "{name}: none was acknowledged");
            assert!(!long || failed + killed > 0, "{name}: nothing went wrong with any");
        }
        for (number, what) in [
            (&self.deaths, "deaths"),
            (&self.reports, "reports"),
            (&self.restores, "restores compared"),
            (&self.verifications, "verifications compared"),
            (&self.whole, "whole segments compared"),
            (&self.open, "open segments compared"),
        ] {
            assert!(of(number) > 0, "no {what}");
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: u64 = self.steps.iter().flatten().map(of).sum();
        writeln!(
            f,
            "{} schedules of {steps} steps: {} faults, {} deaths, {} positions reported by streams; {} \
             restores, {} verifications, {} whole and {} open segments compared",
            of(&self.schedules),
            of(&self.faults),
            of(&self.deaths),
            of(&self.reports),
            of(&self.restores),
            of(&self.verifications),
            of(&self.whole),
            of(&self.open),
        )?;
        for ((_, name), outcomes) in KINDS.iter().zip(&self.steps) {
            let [acknowledged, failed, killed] = outcomes.each_ref().map(of);
            writeln!(
                f,
                "    {name}: {acknowledged} acknowledged, {failed} failed, {killed} killed"
            )?;
        }
        Ok(())
    }
}
