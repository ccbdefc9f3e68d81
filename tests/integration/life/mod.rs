//! Random schedules over the whole life of a repository, against a model of what was acknowledged.
//!
//! A life begins with an `init`, which may fail or die and is run again. Then users, a server, cron and
//! crashes do what they do, in random order: segments are archived and streamed, backups taken and
//! restored, deleted, expired and cleaned up, and all of it verified, each by the program's own code and
//! with the storage sound, failing once, failing now and then, or dying for good in the midst of it.
//! PostgreSQL is a task of the test ([`server`]), which knows what it has written.
//!
//! The model ([`world`]) knows what was acknowledged: backups and segments, and positions that a stream
//! has reported. Whatever else has happened, a backup restores byte for byte, a segment is got back as
//! recovery would get it, as far as the stream has it if it isn't whole, until an expiry may have taken
//! them. Other content under a name that is taken is refused. What was acknowledged as deleted never comes
//! back. A verification calls nothing wrong that was acknowledged.
//!
//! A schedule that fails names its seed.

mod met;
mod server;
mod steps;
mod tally;
mod wire;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use self::{tally::Tally, world::World};
use crate::support::random::Random;

/// How long there are schedules where nobody says how many.
const BRIEF: Duration = Duration::from_secs(20);

/// How many there are at a time: some of them wait.
const AT_ONCE: usize = 6;

/// From how many on all kinds of steps have to have happened, and to have gone wrong.
const LONG_ENOUGH: [u64; 2] = [100, 1000];

/// No schedule has a number like that.
const GIVEN_UP: u64 = u64::MAX / 2;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// `PGKEEP_TEST_SCHEDULES` says how many there are, `PGKEEP_TEST_SCHEDULE` is the seed of one that has failed,
/// which is then the only one.
#[test]
fn whatever_happens_what_was_acknowledged_is_there() {
    let again = number("PGKEEP_TEST_SCHEDULE");
    let many = again.map(|_| 1).or_else(|| number("PGKEEP_TEST_SCHEDULES"));
    let first = again.unwrap_or_else(|| Random::of_this_run().below(1 << 48));
    let begun = Instant::now();
    let (next, done, tally) = (AtomicU64::new(0), AtomicU64::new(0), Tally::default());
    let is_over = |number: u64| match many {
        Some(many) => number >= many,
        None => begun.elapsed() > BRIEF || number >= GIVEN_UP,
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if is_over(number) {
                        return;
                    }
                    let seed = first + number;
                    let lived = catch_unwind(AssertUnwindSafe(|| live(seed, &tally)));
                    if let Err(panic) = lived {
                        eprintln!(
                            "the schedule that failed is that of PGKEEP_TEST_SCHEDULE={seed}"
                        );
                        // The others needn't go on.
                        next.store(GIVEN_UP, Ordering::Relaxed);
                        resume_unwind(panic);
                    }
                    tally.schedule();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{tally}in {} s", begun.elapsed().as_secs());
    let done = done.load(Ordering::Relaxed);
    if done >= LONG_ENOUGH[0] {
        tally.check(done >= LONG_ENOUGH[1]);
    }
}

/// One life, on one thread, so that its order is the same each time.
fn live(seed: u64, tally: &Tally) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut world = World::new(seed, tally);
        world.begin().await;
        for _ in 0..4 + world.random.below(10) {
            world.step().await;
        }
        world.end().await;
    });
}
