//! The bound on memory: an input that makes a target take more aborts it.
//!
//! libFuzzer's own limit on an allocation needs a sanitizer's hooks, and its limit on the process looks
//! once a second, which a large allocation that is never touched slips through.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// What a target may hold beside what was held before it, in bytes: an object that is read whole may have
/// 64 MiB, and is then compared frame by frame with two more readers of it, at up to 16 MiB each.
const MOST: usize = 128 << 20;

static HELD: AtomicUsize = AtomicUsize::new(0);
static BOUND: AtomicUsize = AtomicUsize::new(usize::MAX);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// The allocations themselves are the system's; this counts them.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        take(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn take(bytes: usize) {
    let held = HELD.fetch_add(bytes, Relaxed).saturating_add(bytes);
    // A panic's own message and backtrace need memory too.
    if held > BOUND.load(Relaxed) && !std::thread::panicking() {
        BOUND.store(usize::MAX, Relaxed);
        panic!("an allocation of {bytes} bytes, beyond the {MOST} that an input may take");
    }
}

/// Runs with the bound.
pub fn within(run: impl FnOnce()) {
    BOUND.store(HELD.load(Relaxed).saturating_add(MOST), Relaxed);
    run();
    BOUND.store(usize::MAX, Relaxed);
}
