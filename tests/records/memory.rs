//! Counts what a thread allocates, so that a test can compare it with the size of the input.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that the thread has allocated since [`peak`] was called, now and at most.
    static ALLOCATED: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// The system's allocator, counted.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    // Fails while the thread ends, when no test measures it any more.
    let _ = ALLOCATED.try_with(|allocated| {
        let (now, most) = allocated.get();
        allocated.set((now + bytes, most.max(now + bytes)));
    });
}

// Safety: all calls are forwarded to the system allocator. The counters are in a cell, which allocates
// nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Runs `work`. Returns the largest amount that the thread had allocated meanwhile, in bytes beyond those
/// allocated before, and the result.
pub fn peak<T>(work: impl FnOnce() -> T) -> (usize, T) {
    ALLOCATED.set((0, 0));
    let done = work();
    (ALLOCATED.get().1.max(0).unsigned_abs(), done)
}
