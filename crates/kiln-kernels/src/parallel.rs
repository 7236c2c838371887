//! Work on several threads, which the caller brings.

use std::sync::atomic::{AtomicUsize, Ordering};

mod threads;

pub use threads::Threads;

/// A pool of threads. Kernels start no thread themselves.
pub trait Parallel {
    /// How many calls of a task can run at once, at least 1. Scratch is asked for by this number.
    fn lanes(&self) -> usize;

    /// Calls `task` `n` times, as far as it can at once, and returns when all calls have.
    ///
    /// A pool that makes fewer calls, or one call after the other, costs time and never changes a result.
    fn run(&self, n: usize, task: &(dyn Fn() + Sync));
}

/// The caller's thread alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Parallel for Serial {
    fn lanes(&self) -> usize {
        1
    }

    fn run(&self, n: usize, task: &(dyn Fn() + Sync)) {
        (0..n).for_each(|_| task());
    }
}

/// A pool and its number of lanes, which is asked for once: what scratch is checked for is what is used.
#[derive(Clone, Copy)]
pub(crate) struct Pool<'a> {
    pool: &'a dyn Parallel,
    pub(crate) lanes: usize,
}

impl<'a> Pool<'a> {
    pub(crate) fn new(pool: &'a dyn Parallel) -> Self {
        Self { pool, lanes: pool.lanes().max(1) }
    }

    /// Calls `work(lane, item)` once for each of `n_items`. No two calls at once have the same lane, and lanes are
    /// below `lanes`, whatever the pool does: lanes and items are taken from counters.
    pub(crate) fn for_each(self, n_items: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        let (lanes, items) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let take = || {
            let lane = lanes.fetch_add(1, Ordering::Relaxed);
            if lane >= self.lanes {
                return;
            }
            let next = || Some(items.fetch_add(1, Ordering::Relaxed)).filter(|&item| item < n_items);
            while let Some(item) = next() {
                work(lane, item);
            }
        };
        self.pool.run(self.lanes.min(n_items), &take);
        // What a pool without a single call has left.
        (items.into_inner()..n_items).for_each(|item| work(0, item));
    }
}
