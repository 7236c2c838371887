//! A pool of threads, for who has none.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::Parallel;

/// How often a waiting thread looks before it sleeps: some 100 microseconds, as long as a pause between operators.
const LOOKS: usize = 2000;

/// Threads that wait for work; the caller's is one of the lanes.
#[derive(Debug)]
pub struct Threads {
    state: Arc<State>,
    workers: Vec<JoinHandle<()>>,
    /// One run at a time.
    running: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts runs; a change is the start of one.
    run: AtomicUsize,
    task: Mutex<Option<Task>>,
    /// Workers that have not finished the run.
    busy: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// The task of a run.
#[derive(Clone, Copy, Debug)]
struct Task(*const (dyn Fn() + Sync));

// SAFETY: it points to a `Sync` closure that lives until the run ends.
unsafe impl Send for Task {}

impl Threads {
    /// A pool of `lanes` lanes, which has one thread less.
    pub fn new(lanes: usize) -> Self {
        let state = Arc::new(State::default());
        let worker = |_| {
            let state = state.clone();
            std::thread::spawn(move || state.work())
        };
        let workers = (1..lanes).map(worker).collect();
        Self { state, workers, running: Mutex::new(()) }
    }

    fn start(&self, task: &(dyn Fn() + Sync)) {
        // SAFETY: the lifetime alone is erased; `run` waits for all workers before it returns or unwinds.
        let task =
            unsafe { std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync)>(task) };
        *lock(&self.state.task) = Some(Task(task));
        self.state.busy.store(self.workers.len(), Ordering::Relaxed);
        self.state.run.fetch_add(1, Ordering::Release);
        self.workers.iter().for_each(|worker| worker.thread().unpark());
    }

    fn wait(&self) {
        let mut looks = 0;
        while self.state.busy.load(Ordering::Acquire) > 0 {
            looks += 1;
            if looks < LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        *lock(&self.state.task) = None;
    }
}

impl Parallel for Threads {
    fn lanes(&self) -> usize {
        self.workers.len() + 1
    }

    /// Panics of a task are passed on when all lanes have finished.
    fn run(&self, n: usize, task: &(dyn Fn() + Sync)) {
        let _running = lock(&self.running);
        // Calls are taken by lanes, so that any number of them is made.
        let calls = AtomicUsize::new(0);
        let call = || {
            while calls.fetch_add(1, Ordering::Relaxed) < n {
                task();
            }
        };
        if n > 1 {
            self.start(&call);
        }
        let own = catch_unwind(AssertUnwindSafe(call));
        self.wait();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!self.state.panicked.swap(false, Ordering::Relaxed), "a task panicked on another thread");
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        self.state.run.fetch_add(1, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches panics, and ends with none.
            let _ = worker.join();
        }
    }
}

impl State {
    fn work(&self) {
        let mut run = 0;
        loop {
            run = self.next(run);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let task = *lock(&self.task);
            if let Some(Task(task)) = task {
                // SAFETY: the run waits for this worker, so that its task lives.
                let call = || unsafe { (*task)() };
                if catch_unwind(AssertUnwindSafe(call)).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits until the run is another than `last`.
    fn next(&self, last: usize) -> usize {
        let mut looks = 0;
        loop {
            let run = self.run.load(Ordering::Acquire);
            if run != last {
                return run;
            }
            looks += 1;
            if looks < LOOKS { std::hint::spin_loop() } else { std::thread::park() }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
