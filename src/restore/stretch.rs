//! Frames that are fetched together, ahead of the threads that write them.
//!
//! Where reading is a request, one for each frame would spend a restore's time on waiting, and cost. So
//! frames that lie close together in a pack are fetched as one stretch, with what is between them,
//! while those before are being written. How many stretches live at a time is bounded.

use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync,
    task::{JoinError, JoinHandle},
};

use super::windows::Job;
use crate::{
    error::{Error, Kind, Result},
    repo::{
        pack::{FRAME, PackReader},
        sealed::{Frames, ObjectReader},
    },
};

/// How many stretches may be fetched and not yet written. With their size this bounds memory.
const STRETCHES: usize = 4;

/// How many frames that nobody wants may lie between two that are fetched together.
const GAP: u32 = 2;

/// Where fewer frames than this are worth reading together, each is read by the thread that writes
/// it.
const FEWEST: u64 = 8;

/// How often who waits for room looks whether it still should.
const LOOK: Duration = Duration::from_millis(100);

/// Fetches ahead, within bounds.
pub struct Ahead<'a> {
    packs: &'a Arc<PackReader>,
    runtime: &'a Handle,
    /// How many frames a stretch may span; 0 where frames are read one by one.
    span: u32,
    alive: Arc<Alive>,
}

impl<'a> Ahead<'a> {
    /// For frames of these packs; `runtime` fetches.
    pub fn new(packs: &'a Arc<PackReader>, runtime: &'a Handle) -> Self {
        let together = packs.repository().storage().capabilities().read_together;
        let span = Some(together / FRAME as u64).filter(|frames| *frames >= FEWEST);
        let span = span.map_or(0, |frames| u32::try_from(frames).unwrap_or(u32::MAX));
        Ahead { packs, runtime, span, alive: Arc::default() }
    }

    /// How the jobs of a window, which are sorted by place, are done together: how many at a time.
    pub fn group(&self, jobs: &[Job]) -> Vec<usize> {
        if self.span == 0 {
            return Some(jobs.len()).filter(|n| *n > 0).into_iter().collect();
        }
        let mut groups: Vec<usize> = Vec::new();
        // The first job of the group, and the one before.
        let mut begun: Option<(&Job, &Job)> = None;
        for job in jobs {
            let goes_on = |first: &Job, before: &Job| {
                let ((pack, from), (_, last)) = (first.frame(), before.frame());
                let (this, frame) = job.frame();
                (&job.backup, this) == (&first.backup, pack)
                    && frame.saturating_sub(from) < self.span
                    && frame.saturating_sub(last) <= GAP + 1
            };
            match (begun, groups.last_mut()) {
                (Some((first, before)), Some(group)) if goes_on(first, before) => {
                    *group += 1;
                    begun = Some((first, job));
                }
                _ => {
                    groups.push(1);
                    begun = Some((job, job));
                }
            }
        }
        groups
    }

    /// Begins to fetch the frames of a group, as soon as there is room. `None` where they are read
    /// one by one. `check` says whether to go on waiting.
    pub fn fetch(
        &self,
        jobs: &[Job],
        check: impl Fn() -> Result<()>,
    ) -> Result<Option<Arc<Stretch>>> {
        let (Some(first), Some(last)) = (jobs.first(), jobs.last()) else { return Ok(None) };
        if self.span == 0 {
            return Ok(None);
        }
        let room = self.alive.room(check)?;
        let (packs, backup) = (self.packs.clone(), first.backup.clone());
        let ((pack, from), (_, to)) = (first.frame(), last.frame());
        let fetching = self.runtime.spawn(async move {
            let pack = packs.pack(&backup, pack).await?;
            let numbers = u64::from(from)..u64::from(to) + 1;
            let frames = pack.fetch_frames(packs.repository(), numbers).await?;
            Ok(Fetched { pack, frames })
        });
        let state = sync::Mutex::new(State::Fetching(fetching));
        Ok(Some(Arc::new(Stretch { state, _room: room })))
    }
}

/// How many stretches there are.
#[derive(Default)]
struct Alive {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl Alive {
    fn room(self: &Arc<Self>, check: impl Fn() -> Result<()>) -> Result<Room> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            check()?;
            if *count < STRETCHES {
                *count += 1;
                return Ok(Room(self.clone()));
            }
            let waited = self.fewer.wait_timeout(count, LOOK);
            count = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One stretch's share.
struct Room(Arc<Alive>);

impl Drop for Room {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.fewer.notify_all();
    }
}

/// Frames being fetched.
pub struct Stretch {
    state: sync::Mutex<State>,
    _room: Room,
}

impl fmt::Debug for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stretch")
    }
}

enum State {
    Fetching(JoinHandle<Result<Fetched>>),
    Fetched(Arc<Fetched>),
    /// The first who asked was told why.
    Failed,
}

/// Frames that were fetched.
struct Fetched {
    pack: Arc<ObjectReader>,
    frames: Frames,
}

impl Stretch {
    /// The raw bytes of a frame, once it is there.
    pub async fn frame(&self, packs: &PackReader, number: u32) -> Result<Vec<u8>> {
        let fetched = self.fetched().await?;
        fetched.pack.open_frame(packs.repository(), number.into(), &fetched.frames)
    }

    async fn fetched(&self) -> Result<Arc<Fetched>> {
        let mut state = self.state.lock().await;
        let fetched = match &mut *state {
            State::Fetched(fetched) => return Ok(fetched.clone()),
            State::Failed => Err(Error::new(Kind::Interrupted, "the frames couldn't be fetched")),
            State::Fetching(fetching) => fetching.await.unwrap_or_else(|e| Err(died(&e))),
        };
        match fetched {
            Ok(fetched) => {
                let fetched = Arc::new(fetched);
                *state = State::Fetched(fetched.clone());
                Ok(fetched)
            }
            Err(e) => {
                *state = State::Failed;
                Err(e)
            }
        }
    }
}

fn died(e: &JoinError) -> Error {
    Error::new(Kind::Internal, format!("the task that fetches frames died: {e}"))
}
