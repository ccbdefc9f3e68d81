//! Real code, one storage operation at a time, in any order that a test wants.
//!
//! Each process has a [`Gate`] in front of the storage. It waits there before each operation until it
//! is let through, so whoever holds the processes decides what happens when. [`all_orders`] tries all
//! orders that can make a difference: two operations that don't touch the same object, or only read
//! it, come to the same either way round (sleep sets: Godefroid, "Partial-Order Methods", 1996).

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use bytes::Bytes;
use pgkeep::storage::{
    Capabilities, Listed, ObjectName, ObjectWriter, Range, Result, Storage, StorageError,
};

use crate::support::memory::Memory;

/// What an operation touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Reads an object, or asks whether it is there.
    Look(String),
    /// Lists what begins with this.
    List(String),
    /// Makes or removes an object.
    Change(String),
}

impl Access {
    /// Whether it makes no difference which of two comes first.
    fn is_independent_of(&self, other: &Access) -> bool {
        match (self, other) {
            (Access::Change(a), Access::Change(b) | Access::Look(b))
            | (Access::Look(b), Access::Change(a)) => a != b,
            (Access::Change(a), Access::List(prefix))
            | (Access::List(prefix), Access::Change(a)) => !a.starts_with(prefix.as_str()),
            _ => true,
        }
    }
}

#[derive(Debug, Default)]
struct Door {
    waiting: Mutex<Option<Access>>,
    locked: AtomicBool,
    open: AtomicBool,
}

/// A storage that waits before each operation.
#[derive(Debug, Clone)]
pub struct Gate {
    storage: Memory,
    door: Arc<Door>,
}

impl Gate {
    /// In front of this storage, letting everything through for now.
    pub fn before(storage: &Memory) -> Self {
        Gate { storage: storage.clone(), door: Arc::default() }
    }

    /// From now on each operation waits.
    pub fn lock(&self) {
        self.door.locked.store(true, Ordering::SeqCst);
    }

    async fn pass(&self, access: Access) {
        if !self.door.locked.load(Ordering::SeqCst) {
            return;
        }
        *self.door.waiting.lock().expect("the door") = Some(access);
        poll_fn(|_| match self.door.open.swap(false, Ordering::SeqCst) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        *self.door.waiting.lock().expect("the door") = None;
    }
}

#[async_trait]
impl Storage for Gate {
    fn address(&self) -> &str {
        self.storage.address()
    }

    fn capabilities(&self) -> Capabilities {
        self.storage.capabilities()
    }

    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        let writer = self.storage.create(name).await?;
        Ok(Box::new(GateWriter { gate: self.clone(), name: name.to_string(), writer }))
    }

    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes> {
        self.pass(Access::Look(name.to_string())).await;
        self.storage.read(name, range).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64> {
        self.pass(Access::Look(name.to_string())).await;
        self.storage.size(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        self.pass(Access::List(prefix.to_owned())).await;
        self.storage.list(prefix, after, limit).await
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        self.pass(Access::List(format!("{folder}/"))).await;
        self.storage.folders(folder).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.pass(Access::Change(name.to_string())).await;
        self.storage.delete(name).await
    }

    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.pass(Access::Change(name.to_string())).await;
        self.storage.replace(name, bytes).await
    }

    async fn ensure_durable(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.pass(Access::Look(name.to_string())).await;
        self.storage.ensure_durable(name).await
    }
}

struct GateWriter {
    gate: Gate,
    name: String,
    writer: Box<dyn ObjectWriter>,
}

#[async_trait]
impl ObjectWriter for GateWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.writer.write(bytes).await
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        self.gate.pass(Access::Change(self.name)).await;
        self.writer.finish().await
    }
}

/// A process at its gate.
pub struct Process<'a> {
    door: Arc<Door>,
    work: Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>,
    result: Option<Result<(), String>>,
}

impl<'a> Process<'a> {
    /// Brings `work`, which goes through `gate`, to its first operation.
    pub fn start(gate: &Gate, work: impl Future<Output = Result<(), String>> + 'a) -> Self {
        let mut process = Process { door: gate.door.clone(), work: Box::pin(work), result: None };
        process.poll();
        process
    }

    fn poll(&mut self) {
        if let Poll::Ready(result) =
            self.work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            self.result = Some(result);
        }
    }

    /// Its next operation; none when it has ended.
    pub fn next(&self) -> Option<Access> {
        self.door.waiting.lock().expect("the door").clone()
    }

    /// Lets it do its next operation, and brings it to the one after.
    pub fn step(&mut self) {
        self.door.open.store(true, Ordering::SeqCst);
        self.poll();
    }

    /// How it ended, if it has.
    pub fn result(&self) -> Option<&Result<(), String>> {
        self.result.as_ref()
    }
}

/// A process, by its place, that needn't be tried here: it was, and what happened since makes no
/// difference to it.
type Asleep = Vec<(usize, Access)>;

/// Runs what `start` makes in all orders that can make a difference, and calls `check` after each
/// step, with the order so far, and `end` when all have ended. Returns how many orders there were.
pub fn all_orders<T>(
    start: impl Fn() -> T,
    processes: impl for<'t> Fn(&'t T) -> Vec<Process<'t>>,
    check: impl Fn(&T, &[Process<'_>], &[usize]),
    end: impl Fn(&T),
) -> usize {
    let mut orders = 0;
    // Beginnings of orders to be tried, each with who is asleep after it.
    let mut untried: Vec<(Vec<usize>, Asleep)> = vec![(Vec::new(), Vec::new())];
    while let Some((mut order, mut asleep)) = untried.pop() {
        let world = start();
        let mut processes = processes(&world);
        for (done, next) in order.iter().enumerate() {
            processes[*next].step();
            if done + 1 == order.len() {
                check(&world, &processes, &order);
            }
        }
        loop {
            let ready: Vec<(usize, Access)> =
                processes.iter().enumerate().filter_map(|(i, p)| Some((i, p.next()?))).collect();
            let mut awake = ready.iter().filter(|(i, _)| asleep.iter().all(|(a, _)| a != i));
            let Some((first, access)) = awake.next() else {
                if ready.is_empty() {
                    orders += 1;
                    end(&world);
                }
                break;
            };
            // The others are tried later, with those before them asleep.
            let mut before = asleep.clone();
            before.push((*first, access.clone()));
            for (other, its) in awake {
                let still = before.iter().filter(|(_, a)| a.is_independent_of(its));
                untried.push(([&order[..], &[*other]].concat(), still.cloned().collect()));
                before.push((*other, its.clone()));
            }
            asleep.retain(|(_, a)| a.is_independent_of(access));
            order.push(*first);
            processes[*first].step();
            check(&world, &processes, &order);
        }
    }
    orders
}

/// Runs the processes to their ends in an order that follows from `seed`, and calls `check` after
/// each step. One process is often let run for a while: that is when the others are asleep.
pub fn random_order(
    seed: u64,
    processes: &mut [Process<'_>],
    check: impl Fn(&[Process<'_>], &[usize]),
) -> Vec<usize> {
    let mut random = seed;
    let mut draw = |of: usize| {
        // A number that looks random, from the one before (SplitMix64).
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % of as u64) as usize
    };
    let mut order = Vec::new();
    loop {
        let ready: Vec<usize> =
            (0..processes.len()).filter(|i| processes[*i].next().is_some()).collect();
        if ready.is_empty() {
            return order;
        }
        let next = ready[draw(ready.len())];
        for _ in 0..1 + draw(12) {
            if processes[next].next().is_none() {
                break;
            }
            processes[next].step();
            order.push(next);
            check(processes, &order);
        }
    }
}
