//! Which cases of a matrix of faults are run: all of them, a part, or a sample by a seed
//! (`PGKEEP_TEST_FAULTS`).

use std::{fmt, ops::Range};

/// Which of the cases are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// At most so many, by this seed.
    Sample(usize, u64),
    /// These, counted in an order that is the same in each run.
    All(Range<usize>),
    /// Those whose names have this.
    Named(String),
}

impl Chosen {
    /// What the environment says; at most `most` where it says nothing.
    pub fn from_environment(most: usize) -> Self {
        let text = std::env::var("PGKEEP_TEST_FAULTS").unwrap_or_default();
        if text.is_empty() {
            let mut seed = [0; 4];
            getrandom::fill(&mut seed).expect("random bytes");
            return Chosen::Sample(most, u32::from_le_bytes(seed).into());
        }
        Chosen::read(&text, most)
    }

    /// What this text says.
    pub fn read(text: &str, most: usize) -> Self {
        if let Ok(seed) = text.parse() {
            return Chosen::Sample(most, seed);
        }
        let Some(range) = text.strip_prefix("all") else { return Chosen::Named(text.to_owned()) };
        let number = |text: &str, default| match text {
            "" => default,
            text => text.parse().unwrap_or_else(|e| panic!("PGKEEP_TEST_FAULTS: {text}: {e}")),
        };
        let (from, to) = match range.strip_prefix(':').map(|range| range.split_once("..")) {
            Some(Some(ends)) => ends,
            None if range.is_empty() => ("", ""),
            _ => panic!("PGKEEP_TEST_FAULTS is all, or all:400..600, not {text}"),
        };
        Chosen::All(number(from, 0)..number(to, usize::MAX))
    }

    /// In an order in which those that wait for a timeout are spread. It goes by the cases' names, so
    /// that it is the same in each run, and hardly another when a command asks for more.
    pub fn of<Case: fmt::Display>(&self, mut cases: Vec<Case>) -> Vec<Case> {
        let seed = if let Chosen::Sample(_, seed) = self { *seed } else { 0 };
        cases.sort_by_cached_key(|case| {
            *blake3::hash(format!("{seed} {case}").as_bytes()).as_bytes()
        });
        match self {
            Chosen::Sample(most, _) => cases.truncate(*most),
            Chosen::All(range) => {
                cases.truncate(range.end);
                cases.drain(..range.start.min(cases.len()));
            }
            Chosen::Named(with) => cases.retain(|case| case.to_string().contains(with)),
        }
        cases
    }

    /// The number of the first of them.
    pub fn first(&self) -> usize {
        if let Chosen::All(range) = self { range.start } else { 0 }
    }
}
