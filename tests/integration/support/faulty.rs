//! Storage that fails when it is told to.
//!
//! Wraps another one, counts its operations, and lets a test fail the n-th of a kind, lose its
//! answer, cut or flip what is read, or die at any point. A storage's contract is the granularity:
//! what `finish` has answered is durable, and an object is there whole or not at all. So the state
//! after a crash is that of the wrapped storage, with the operation that was under way either done
//! or not.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use pgkeep::storage::{
    Capabilities, ErrorKind, Listed, ObjectName, ObjectWriter, Range, Result, Storage, StorageError,
};

/// What was asked of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Write,
    Finish,
    Read,
    Size,
    List,
    Delete,
    Replace,
    Sync,
}

impl Operation {
    /// Whether it changes what is stored.
    pub fn changes(self) -> bool {
        matches!(self, Operation::Finish | Operation::Delete | Operation::Replace)
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and the answer is this error.
    Fails(ErrorKind),
    /// It is done, but the answer is lost: the caller sees an error.
    AnswerLost,
    /// One bit of what is read is flipped.
    Flips,
}

/// Decides which operations go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Nothing,
    /// The n-th (from 1) operation of this kind, once.
    Nth(Operation, u64, Fault),
    /// From the n-th changing operation on nothing answers; whether that one was still done.
    Dies(u64, bool),
    /// Each operation with a chance of one in `of`, by the seed.
    Random {
        seed: u64,
        of: u64,
    },
    /// Nothing answers any more, and nobody counts that.
    Over,
}

#[derive(Debug)]
struct State {
    plan: Mutex<Plan>,
    log: Mutex<Vec<(Operation, String)>>,
    matching: AtomicU64,
    faults: AtomicU64,
}

/// The wrapper. Clones share their plan and their counts.
#[derive(Debug, Clone)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    state: Arc<State>,
}

impl Faulty {
    /// Wraps `inner`, and lets everything through for now.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        let state = State {
            plan: Mutex::new(Plan::Nothing),
            log: Mutex::default(),
            matching: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        };
        Faulty { inner, state: Arc::new(state) }
    }

    /// The n-th (from 1) operation of this kind goes wrong from now on counted; the others work.
    pub fn nth(&self, operation: Operation, n: u64, fault: Fault) {
        self.plan(Plan::Nth(operation, n, fault));
    }

    /// The process "dies" at the n-th (from 1) changing operation: that one is done or not, as
    /// `done` says, and neither it nor anything after it answers.
    pub fn dies(&self, n: u64, done: bool) {
        self.plan(Plan::Dies(n, done));
    }

    /// Each operation fails with a chance of one in `of`, the same ones for the same seed.
    pub fn random(&self, seed: u64, of: u64) {
        self.plan(Plan::Random { seed, of });
    }

    /// Whoever works with it was killed: nothing that is still under way takes effect. The counts stay.
    pub fn ends(&self) {
        *self.state.plan.lock().expect("the plan") = Plan::Over;
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        self.plan(Plan::Nothing);
    }

    fn plan(&self, plan: Plan) {
        *self.state.plan.lock().expect("the plan") = plan;
        self.state.matching.store(0, Ordering::SeqCst);
        self.state.faults.store(0, Ordering::SeqCst);
        self.state.log.lock().expect("the log").clear();
    }

    /// How often something went wrong since the plan was made.
    pub fn faults(&self) -> u64 {
        self.state.faults.load(Ordering::SeqCst)
    }

    /// What was asked since the plan was made, in order.
    pub fn log(&self) -> Vec<(Operation, String)> {
        self.state.log.lock().expect("the log").clone()
    }

    /// How many changing operations there were since the plan was made.
    pub fn changes(&self) -> u64 {
        self.log().iter().filter(|(operation, _)| operation.changes()).count() as u64
    }

    /// Notes an operation, and says what goes wrong with it.
    fn next(&self, operation: Operation, object: impl ToString) -> Option<Fault> {
        let mut log = self.state.log.lock().expect("the log");
        log.push((operation, object.to_string()));
        let count = |counts: bool| {
            let before = self.state.matching.fetch_add(u64::from(counts), Ordering::SeqCst);
            before + u64::from(counts)
        };
        let fault = match *self.state.plan.lock().expect("the plan") {
            Plan::Nothing => None,
            Plan::Nth(of, n, fault) => (of == operation && count(true) == n).then_some(fault),
            Plan::Dies(n, done) => {
                let number = count(operation.changes());
                match number.cmp(&n) {
                    std::cmp::Ordering::Less => None,
                    std::cmp::Ordering::Equal if operation.changes() && done => {
                        Some(Fault::AnswerLost)
                    }
                    _ => Some(Fault::Fails(ErrorKind::Unavailable)),
                }
            }
            Plan::Over => return Some(Fault::Fails(ErrorKind::Unavailable)),
            Plan::Random { seed, of } => {
                let drawn = mix(seed.wrapping_add(log.len() as u64));
                drawn.is_multiple_of(of).then_some(Fault::Fails(ErrorKind::Unavailable))
            }
        };
        self.state.faults.fetch_add(u64::from(fault.is_some()), Ordering::SeqCst);
        fault
    }

    fn error(&self, kind: ErrorKind, object: impl ToString) -> StorageError {
        StorageError {
            kind,
            operation: "use",
            object: object.to_string(),
            address: self.inner.address().to_owned(),
            message: "a fault of the test".to_owned(),
            hint: None,
        }
    }

    /// Runs an operation under the plan.
    async fn run<T>(
        &self,
        operation: Operation,
        object: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match self.next(operation, object) {
            None | Some(Fault::Flips) => work.await,
            Some(Fault::Fails(kind)) => Err(self.error(kind, object)),
            Some(Fault::AnswerLost) => {
                work.await?;
                Err(self.error(ErrorKind::Unavailable, object))
            }
        }
    }
}

/// A number that looks random, from one that doesn't (the finaliser of SplitMix64).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[async_trait]
impl Storage for Faulty {
    fn address(&self) -> &str {
        self.inner.address()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn set_landmark(&self, name: &ObjectName, content: Bytes) {
        self.inner.set_landmark(name, content);
    }

    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        let writer = self.run(Operation::Create, name.as_str(), self.inner.create(name)).await?;
        Ok(Box::new(FaultyWriter { storage: self.clone(), name: name.clone(), writer }))
    }

    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes> {
        match self.next(Operation::Read, name) {
            None => self.inner.read(name, range).await,
            Some(Fault::Flips) => {
                let mut bytes = self.inner.read(name, range).await?.to_vec();
                let middle = bytes.len() / 2;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= 1;
                }
                Ok(bytes.into())
            }
            Some(Fault::Fails(kind)) => Err(self.error(kind, name)),
            Some(Fault::AnswerLost) => Err(self.error(ErrorKind::Unavailable, name)),
        }
    }

    async fn size(&self, name: &ObjectName) -> Result<u64> {
        self.run(Operation::Size, name.as_str(), self.inner.size(name)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        let listed = self.run(Operation::List, prefix, self.inner.list(prefix, after, limit));
        match listed.await {
            // Of what isn't there a listing is empty.
            Err(e) if e.is_not_found() => Ok(Vec::new()),
            listed => listed,
        }
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        self.run(Operation::List, folder, self.inner.folders(folder)).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.run(Operation::Delete, name.as_str(), self.inner.delete(name)).await
    }

    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.run(Operation::Replace, name.as_str(), self.inner.replace(name, bytes)).await
    }

    async fn ensure_durable(&self, name: &ObjectName) -> Result<()> {
        self.run(Operation::Sync, name.as_str(), self.inner.ensure_durable(name)).await
    }
}

struct FaultyWriter {
    storage: Faulty,
    name: ObjectName,
    writer: Box<dyn ObjectWriter>,
}

#[async_trait]
impl ObjectWriter for FaultyWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let FaultyWriter { storage, name, writer } = self;
        storage.run(Operation::Write, name.as_str(), writer.write(bytes)).await
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        let FaultyWriter { storage, name, writer } = *self;
        storage.run(Operation::Finish, name.as_str(), writer.finish()).await
    }
}
