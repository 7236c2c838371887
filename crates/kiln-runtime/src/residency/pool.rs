//! Engines that pipelines share.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Duration;

use kiln_bundle::Tuning;
use kiln_engine::{Backend, Engine, Placement, heap};

use super::encodings::Encodings;
use crate::Error;

/// Bytes of encoded prompts that are remembered, unless told otherwise: some thirty of Stable Diffusion 1.5.
const DEFAULT_ENCODINGS: usize = 16 << 20;

/// How long to wait before looking again for engines that can leave.
const MOMENT: Duration = Duration::from_millis(5);

/// Loaded engines and encoded prompts, for one pipeline or for several on any threads.
///
/// An engine is known by what it is made of (the digests of its model and weights, LoRAs, backend, options), so that what
/// equal parts of several bundles need is loaded once. It stays loaded as long as a pipeline holds it, or until the budget is
/// needed for another one: then those that ran the longest ago leave first, and come back when they run again. Two pipelines
/// that need the same engine at once take turns.
///
/// Cheap to clone: clones are the same pool.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Most bytes of weights that are loaded.
    budget: Option<u64>,
    slots: Mutex<HashMap<EngineKey, Weak<Slot>>>,
    /// Bytes of weights that are loaded.
    loaded: Mutex<u64>,
    /// Told when an engine has run or left.
    changed: Condvar,
    clock: AtomicU64,
    /// Pictures that are being drawn.
    n_active: AtomicUsize,
    n_loads: AtomicU64,
    n_evictions: AtomicU64,
    encodings: Mutex<Encodings>,
}

/// What makes an engine what it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct EngineKey {
    /// The backend's family, or else its address: a slot keeps it alive.
    pub(super) backend: String,
    /// Digest of the model file.
    pub(super) model: String,
    /// Digest of the weight file, where there is one.
    pub(super) weights: Option<String>,
    /// Digests of the LoRAs that change its component, in order, with the bits of their factors.
    pub(super) loras: Vec<(String, u32)>,
    pub(super) placement: Placement,
    pub(super) swaps: bool,
    pub(super) streaming: Option<u64>,
    pub(super) tuning: Option<Tuning>,
}

/// A place for one engine, which is in it or not.
pub(super) struct Slot {
    shared: Arc<Shared>,
    /// Keeps the address in the key from being another backend's.
    _backend: Arc<dyn Backend>,
    bytes: u64,
    engine: Mutex<Option<Loaded>>,
    last_used: AtomicU64,
}

/// An engine, and whether its weights are where it runs, or on their way there.
struct Loaded {
    engine: Box<dyn Engine>,
    is_present: bool,
}

/// A picture that is being drawn.
pub(crate) struct Active(Arc<Shared>);

impl Pool {
    /// A pool whose engines stay as long as a pipeline holds them.
    pub fn new() -> Pool {
        Pool::with_limits(None, DEFAULT_ENCODINGS)
    }

    /// A pool whose loaded engines have no more than so many bytes of weights.
    ///
    /// What engines compute with comes on top: [`Pipeline::plan`](crate::Pipeline::plan) predicts it. An engine that is larger
    /// by itself is refused when it is needed; bundles in segments have small ones.
    pub fn with_budget(bytes: u64) -> Pool {
        Pool::with_limits(Some(bytes), DEFAULT_ENCODINGS)
    }

    /// A pool with a budget for weights, if there is one, and one for the encoded prompts that it remembers, both in bytes.
    pub fn with_limits(weights: Option<u64>, encodings: usize) -> Pool {
        let encodings = Mutex::new(Encodings::new(encodings));
        Pool { shared: Arc::new(Shared { budget: weights, encodings, ..Shared::default() }) }
    }

    /// The budget in bytes, if there is one.
    pub fn budget(&self) -> Option<u64> {
        self.shared.budget
    }

    /// Bytes of the weights of all engines that are loaded now.
    pub fn loaded_bytes(&self) -> u64 {
        *lock(&self.shared.loaded)
    }

    /// How many times an engine's weights were loaded.
    pub fn n_loads(&self) -> u64 {
        self.shared.n_loads.load(Relaxed)
    }

    /// How many times an engine's weights left to make room for others.
    pub fn n_evictions(&self) -> u64 {
        self.shared.n_evictions.load(Relaxed)
    }

    /// The slot of an engine, which may be empty.
    pub(super) fn slot(&self, key: &EngineKey, backend: &Arc<dyn Backend>, bytes: u64) -> Arc<Slot> {
        let mut slots = lock(&self.shared.slots);
        if let Some(slot) = slots.get(key).and_then(Weak::upgrade) {
            return slot;
        }
        slots.retain(|_, slot| slot.strong_count() > 0);
        let slot = Arc::new(Slot {
            shared: self.shared.clone(),
            _backend: backend.clone(),
            bytes,
            engine: Mutex::new(None),
            last_used: AtomicU64::new(0),
        });
        slots.insert(key.clone(), Arc::downgrade(&slot));
        slot
    }

    /// Says that a picture is being drawn, as long as the answer lives.
    pub(crate) fn activate(&self) -> Active {
        self.shared.n_active.fetch_add(1, Relaxed);
        Active(self.shared.clone())
    }

    /// Gives memory of freed tensors back, all but so many bytes, unless another pipeline computes with it.
    pub(super) fn trim_tensors(&self, keep: u64) {
        if self.shared.n_active.load(Relaxed) <= 1 {
            heap::trim_tensors(keep);
        }
    }

    /// Gives everything that was freed back.
    pub(super) fn trim(&self) {
        match self.shared.n_active.load(Relaxed) {
            0 | 1 => heap::trim(),
            _ => heap::trim_scratch(),
        }
    }

    /// Prompts that were encoded before.
    pub(crate) fn encodings(&self) -> MutexGuard<'_, Encodings> {
        lock(&self.shared.encodings)
    }
}

impl Default for Pool {
    fn default() -> Pool {
        Pool::new()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("budget", &self.shared.budget)
            .field("loaded_bytes", &self.loaded_bytes())
            .finish_non_exhaustive()
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.n_active.fetch_sub(1, Relaxed);
    }
}

impl Slot {
    /// Uses the engine, opened if it is not there; nobody else uses it meanwhile.
    pub(super) fn with<T>(
        &self,
        open: impl FnOnce() -> Result<Box<dyn Engine>, Error>,
        work: impl FnOnce(&mut dyn Engine) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut guard = lock(&self.engine);
        let room = match is_present(&guard) {
            true => None,
            false => Some(Room::make(&self.shared, self.bytes)?),
        };
        let engine = match guard.take() {
            Some(loaded) => loaded.engine,
            None => open()?,
        };
        if let Some(room) = room {
            room.keep();
        }
        let loaded = Loaded { engine, is_present: true };
        self.last_used.store(self.shared.clock.fetch_add(1, Relaxed) + 1, Relaxed);
        let result = work(&mut *guard.insert(loaded).engine);
        drop(guard);
        self.shared.changed.notify_all();
        result
    }

    /// Whether its weights are where it runs, or on their way there.
    pub(super) fn is_present(&self) -> bool {
        self.idle().is_none_or(|guard| is_present(&guard))
    }

    /// What is in it, unless that runs or is being loaded.
    fn idle(&self) -> Option<MutexGuard<'_, Option<Loaded>>> {
        match self.engine.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Lets go of its weights, and of the engine where it has to go with them; whether the engine is still there.
    pub(super) fn park(&self) -> bool {
        let mut guard = lock(&self.engine);
        self.empty(&mut guard);
        guard.is_some()
    }

    fn empty(&self, guard: &mut Option<Loaded>) {
        let Some(loaded) = guard else { return };
        let was_present = std::mem::take(&mut loaded.is_present);
        if !loaded.engine.unload().unwrap_or(false) {
            *guard = None;
        }
        if was_present {
            self.shared.forget(self.bytes);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let engine = self.engine.get_mut().unwrap_or_else(PoisonError::into_inner);
        if engine.take().is_some_and(|loaded| loaded.is_present) {
            self.shared.forget(self.bytes);
        }
    }
}

/// Bytes that count as loaded until this goes, or for good once something fills them.
struct Room<'a> {
    shared: &'a Shared,
    bytes: u64,
}

impl<'a> Room<'a> {
    fn make(shared: &'a Shared, bytes: u64) -> Result<Room<'a>, Error> {
        shared.make_room(bytes)?;
        Ok(Room { shared, bytes })
    }

    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.bytes);
    }
}

impl Shared {
    fn forget(&self, bytes: u64) {
        *lock(&self.loaded) -= bytes;
        self.changed.notify_all();
    }

    /// Counts so many bytes as loaded, once others have left for them.
    ///
    /// Engines that run now cannot leave, and are waited for. Whoever waits here holds no engine that is loaded, so that two
    /// who wait never wait for each other.
    fn make_room(&self, bytes: u64) -> Result<(), Error> {
        self.wait_for_room(bytes)?;
        self.n_loads.fetch_add(1, Relaxed);
        Ok(())
    }

    fn wait_for_room(&self, bytes: u64) -> Result<(), Error> {
        let Some(budget) = self.budget else {
            *lock(&self.loaded) += bytes;
            return Ok(());
        };
        if bytes > budget {
            return Err(Error::Budget { budget, smallest: bytes });
        }
        loop {
            {
                let mut loaded = lock(&self.loaded);
                if *loaded + bytes <= budget {
                    *loaded += bytes;
                    return Ok(());
                }
            }
            if !self.evict_one() {
                let loaded = lock(&self.loaded);
                if *loaded + bytes > budget {
                    // What changes between the check and the wait is seen after a moment.
                    drop(self.changed.wait_timeout(loaded, MOMENT).unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }

    /// Lets go of the engine that ran the longest ago, of those that do not run now.
    fn evict_one(&self) -> bool {
        let mut slots: Vec<Arc<Slot>> = lock(&self.slots).values().filter_map(Weak::upgrade).collect();
        slots.sort_by_key(|slot| slot.last_used.load(Relaxed));
        slots.iter().any(|slot| match slot.idle() {
            Some(mut guard) if is_present(&guard) => {
                slot.empty(&mut guard);
                self.n_evictions.fetch_add(1, Relaxed);
                true
            }
            _ => false,
        })
    }
}

fn is_present(engine: &Option<Loaded>) -> bool {
    engine.as_ref().is_some_and(|loaded| loaded.is_present)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
