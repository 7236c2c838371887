//! Which engines are loaded.

mod chain;
mod encodings;
mod joined;
#[cfg(feature = "cuda")]
mod kernels;
mod pool;
mod reuse;
mod sharing;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use kiln_bundle::{Bundle, Component, ComponentName, SealKey, Segment, Stage, TensorFile, Tuning};
#[cfg(feature = "cuda")]
use kiln_engine::Format;
use kiln_engine::{Backend, CudaTuning, Engine, KernelStore, LoadOptions, Placement};
use kiln_lora::{Lora, LoraPlan};

use crate::lora::ChangedWeights;
use crate::{Error, MemoryOptions, Offload};
pub(crate) use chain::Chain;
pub(crate) use encodings::EncodingKey;
pub(crate) use pool::Active;
pub use pool::Pool;
use pool::{EngineKey, Slot};
pub(crate) use reuse::{Deep, Reuse};
pub(crate) use sharing::Sources;

/// Weights of models of up to so many bytes are packed where they may stay: that takes under a second.
const PACKED_BYTES: u64 = 256 << 20;

/// The folder of kernels, and the key that seals them.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only devices have kernels to keep"))]
pub(crate) struct KernelCache {
    pub(crate) folder: PathBuf,
    pub(crate) key: SealKey,
}

/// The engines that a pipeline holds of one bundle, segment by segment, as its memory options say.
pub(crate) struct Residency {
    bundle: Arc<Bundle>,
    components: BTreeMap<ComponentName, Arc<Component>>,
    pool: Pool,
    backend: Arc<dyn Backend>,
    memory: MemoryOptions,
    kernels: Option<KernelCache>,
    loras: Vec<Lora>,
    changes: LoraPlan,
    held: BTreeMap<(ComponentName, usize), Arc<Slot>>,
}

impl Residency {
    pub(crate) fn new(
        bundle: Arc<Bundle>,
        backend: Arc<dyn Backend>,
        pool: Pool,
        kernels: Option<KernelCache>,
        memory: MemoryOptions,
    ) -> Residency {
        let components = bundle.manifest().components.iter();
        Residency {
            components: components.map(|(name, component)| (*name, Arc::new(component.clone()))).collect(),
            bundle,
            pool,
            backend,
            memory,
            kernels,
            loras: Vec::new(),
            changes: LoraPlan::default(),
            held: BTreeMap::new(),
        }
    }

    /// An empty one for another bundle.
    pub(crate) fn sibling(&self, bundle: Arc<Bundle>) -> Residency {
        let (backend, pool) = (self.backend.clone(), self.pool.clone());
        Residency::new(bundle, backend, pool, self.kernels.clone(), self.memory)
    }

    pub(crate) fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn memory(&self) -> MemoryOptions {
        self.memory
    }

    pub(crate) fn component(&self, name: ComponentName) -> Result<&Arc<Component>, Error> {
        match self.components.get(&name) {
            Some(component) => Ok(component),
            None => Err(self.bundle.component(name).err().map_or_else(|| self.missing(name), Error::from)),
        }
    }

    fn missing(&self, name: ComponentName) -> Error {
        Error::Component { component: name, reason: "is not in the bundle".into() }
    }

    /// Lets go of the engines, which the new options may place elsewhere.
    pub(crate) fn set_memory(&mut self, memory: MemoryOptions) {
        self.memory = memory;
        self.clear();
    }

    /// Lets go of the engines whose weights other LoRAs change from now on.
    pub(crate) fn set_loras(&mut self, loras: Vec<Lora>, changes: LoraPlan) {
        self.loras = loras;
        let before = std::mem::replace(&mut self.changes, changes);
        let (bundle, now) = (&self.bundle, &self.changes);
        self.held.retain(|(name, _), _| {
            let owner = bundle.weights_owner(*name);
            before.changes(owner) == now.changes(owner)
        });
    }

    /// Whether weights differ from the bundle's.
    pub(crate) fn has_loras(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Whether no engine has to leave for another.
    pub(crate) fn all_stay(&self) -> bool {
        self.memory.offload == Offload::None && self.pool.budget().is_none()
    }

    pub(crate) fn is_loaded(&self, name: ComponentName) -> bool {
        self.held.iter().any(|((held, _), slot)| *held == name && slot.is_present())
    }

    /// Lets go of all engines, and gives back what they and their tensors held.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
        self.backend.trim();
        self.pool.trim();
    }

    /// Lets go of the weights of all engines but those of the components that `stays` names, and gives back what their
    /// tensors held.
    pub(crate) fn release(&mut self, stays: impl Fn(ComponentName) -> bool) {
        self.held.retain(|(name, _), slot| stays(*name) || keeps_engine(slot));
        self.backend.trim();
        self.pool.trim();
    }

    /// A component to run.
    pub(crate) fn chain(&mut self, name: ComponentName) -> Result<Chain<'_>, Error> {
        Chain::new(self, name)
    }

    /// Loads all segments of a component, unless only the one that runs is to be loaded.
    pub(crate) fn load(&mut self, name: ComponentName) -> Result<(), Error> {
        match self.memory.offload {
            Offload::Sequential => Ok(()),
            Offload::None if self.all_stay() && self.is_on_host() => self.load_at_once(name),
            Offload::None | Offload::Model => self.prefetch_component(name),
        }
    }

    #[cfg(feature = "cuda")]
    fn is_on_host(&self) -> bool {
        self.backend.device().is_none()
    }

    #[cfg(not(feature = "cuda"))]
    fn is_on_host(&self) -> bool {
        true
    }

    /// Starts to load all segments of a component, beside what a device computes now; on the host, loads them.
    fn prefetch_component(&mut self, name: ComponentName) -> Result<(), Error> {
        let n_segments = self.component(name)?.segments.len();
        (0..n_segments).try_for_each(|i| self.with_engine(name, i, |engine| Ok(engine.prefetch()?)))
    }

    /// Loads all segments of a component, as many at once as there are cores.
    fn load_at_once(&mut self, name: ComponentName) -> Result<(), Error> {
        let component = self.component(name)?.clone();
        let slots: Vec<_> = (0..component.segments.len()).map(|i| self.slot(name, &component, i)).collect();
        self.trim(&component, 0);
        let n_threads = thread::available_parallelism().map_or(1, usize::from).min(slots.len());
        let residency = &*self;
        let load_every_nth = |first: usize| {
            let own = slots.iter().enumerate().skip(first).step_by(n_threads);
            own.into_iter()
                .try_for_each(|(i, slot)| slot.with(|| residency.open(name, &component, i), |_| Ok(())))
        };
        let result = thread::scope(|scope| {
            let others: Vec<_> =
                (1..n_threads).map(|first| scope.spawn(move || load_every_nth(first))).collect();
            let own = load_every_nth(0);
            let joined =
                others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            joined.fold(own, Result::and)
        });
        if result.is_err() {
            self.held.retain(|(held, _), slot| *held != name || slot.is_present());
        }
        result
    }

    /// Uses the engine of a segment, which is loaded if need be.
    fn with_engine<T>(
        &mut self,
        name: ComponentName,
        i: usize,
        work: impl FnOnce(&mut dyn Engine) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let component = self.component(name)?.clone();
        let slot = self.slot(name, &component, i);
        self.trim(&component, i);
        let result = slot.with(|| self.open(name, &component, i), work);
        if result.is_err() && !slot.is_present() {
            self.held.remove(&(name, i));
        }
        result
    }

    /// The slot of a segment's engine, which is held from now on.
    fn slot(&mut self, name: ComponentName, component: &Component, i: usize) -> Arc<Slot> {
        if let Some(slot) = self.held.get(&(name, i)) {
            return slot.clone();
        }
        self.let_twins_go(name);
        let slot = self.pool.slot(&self.key(name, component, i), &self.backend, bytes(component, i));
        self.held.insert((name, i), slot.clone());
        slot
    }

    /// Lets go of engines over the same weights, of which one at a time is enough.
    fn let_twins_go(&mut self, name: ComponentName) {
        let owner = self.bundle.weights_owner(name);
        let bundle = &self.bundle;
        self.held.retain(|(held, _), _| *held == name || bundle.weights_owner(*held) != owner);
    }

    fn key(&self, name: ComponentName, component: &Component, i: usize) -> EngineKey {
        let digest = |file: &str| self.bundle.manifest().files.get(file).map(|entry| entry.blake3.clone());
        let changes = self.changes.changes(self.bundle.weights_owner(name));
        let loras = self.loras.iter().filter(|lora| changes.is_some_and(|changes| changes.are_by(lora)));
        EngineKey {
            backend: self.backend.family().unwrap_or_else(|| format!("{:p}", Arc::as_ptr(&self.backend))),
            model: digest(&component.segments[i].engine).unwrap_or_default(),
            weights: component.weights.as_deref().and_then(digest),
            loras: loras.map(|lora| (lora.file.digest().to_owned(), lora.weight.to_bits())).collect(),
            placement: self.placement(),
            swaps: self.swaps(),
            streaming: self.streaming(component.stage),
            tuning: self.bundle.manifest().tuning,
        }
    }

    /// What identifies a component's weights and how they run, whatever bundle it is in.
    pub(crate) fn identity(&self, name: ComponentName) -> Result<String, Error> {
        let component = self.component(name)?;
        let keys = (0..component.segments.len()).map(|i| format!("{:?}", self.key(name, component, i)));
        Ok(keys.collect())
    }

    /// Gives back memory of tensors before a segment runs.
    ///
    /// Under sequential offload, idle tensors and weights together stay below the weights of the largest segment.
    fn trim(&self, component: &Component, i: usize) {
        if self.memory.offload == Offload::Sequential {
            let largest = component.segments.iter().map(|segment| segment.weight_bytes).max().unwrap_or(0);
            self.pool.trim_tensors(largest - bytes(component, i));
        }
    }

    /// Called when a segment has run: lets go of it under sequential offload, unless it is one of those that stay.
    ///
    /// Segments run in the same order in every step; those that came first stay, for any other choice would load as much.
    fn has_run(&mut self, name: ComponentName, component: &Component, i: usize) {
        if self.memory.offload != Offload::Sequential {
            return;
        }
        let present = self.held.iter().filter(|((held, _), slot)| *held == name && slot.is_present());
        let n_bytes: u64 = present.map(|((_, i), _)| bytes(component, *i)).sum();
        if (component.stage != Stage::Denoiser || n_bytes > self.memory.keep_bytes)
            && self.held.get(&(name, i)).is_some_and(|slot| !keeps_engine(slot))
        {
            self.held.remove(&(name, i));
        }
    }

    /// Asks for the weights of segments after `i`, as far ahead as is prefetched: of the page cache, or of engines that swap.
    fn prefetch(&mut self, weights: Option<&TensorFile>, name: ComponentName, i: usize) -> Result<(), Error> {
        let component = self.component(name)?;
        let ahead = self.memory.prefetch;
        if self.memory.offload == Offload::Sequential && self.backend.swaps() {
            let last = i.saturating_add(ahead).min(component.segments.len() - 1);
            return (i + 1..=last).try_for_each(|i| self.with_engine(name, i, |engine| Ok(engine.prefetch()?)));
        }
        if let (Some(file), Some(segment)) = (weights, component.segments.get(i + ahead))
            && ahead > 0
        {
            file.prefetch(segment.weights.iter().map(String::as_str));
        }
        Ok(())
    }

    /// Asks for the weights of a whole component; what is wrong with them is told when they are loaded.
    fn prefetch_pages(&self, name: ComponentName) {
        let weights = self.components.get(&name).and_then(|component| component.weights.as_ref());
        if let Some(file) = weights.and_then(|weights| TensorFile::open(&self.bundle.path(weights)).ok()) {
            file.prefetch(file.tensors().keys().map(String::as_str));
        }
    }

    fn open(&self, name: ComponentName, component: &Component, i: usize) -> Result<Box<dyn Engine>, Error> {
        let (bundle, segment) = (&*self.bundle, &component.segments[i]);
        let mut options = LoadOptions {
            placement: self.placement(),
            overrides: None,
            swaps: self.swaps(),
            streaming: self.streaming(component.stage),
            tuning: bundle.manifest().tuning.map(tuning).unwrap_or_default(),
            kernels: self.kernel_store(segment),
        };
        if let Some(changes) = self.changes.changes(bundle.weights_owner(name)) {
            let weights = ChangedWeights::new(bundle, component, segment, changes)?;
            options.overrides = weights.map(|weights| Arc::new(weights) as _);
        }
        Ok(self.backend.load(&bundle.path(&segment.engine), &options)?)
    }

    /// Where kernels of an engine are kept that its library compiles on the device.
    #[cfg(feature = "cuda")]
    fn kernel_store(&self, segment: &Segment) -> Option<Arc<dyn KernelStore>> {
        let device = self.backend.device().filter(|_| self.backend.format() == Format::TensorRtRtx)?;
        let file = kernels::KernelFile::new(self.kernels.as_ref()?, &self.bundle, &segment.engine, device)?;
        Some(Arc::new(file))
    }

    #[cfg(not(feature = "cuda"))]
    fn kernel_store(&self, _segment: &Segment) -> Option<Arc<dyn KernelStore>> {
        None
    }

    fn swaps(&self) -> bool {
        self.memory.offload != Offload::None
    }

    /// Most bytes of a component's weights on the device, where weights stream.
    fn streaming(&self, stage: Stage) -> Option<u64> {
        match (self.memory.offload, stage) {
            (Offload::None | Offload::Model, _) => None,
            (Offload::Sequential, Stage::Denoiser) => Some(self.memory.keep_bytes),
            (Offload::Sequential, _) => Some(0),
        }
    }

    pub(crate) fn gains_from_batches(&self) -> bool {
        let runs_row_by_row = self.placement() == Placement::Mapped && !self.backend.format().is_for_device();
        !runs_row_by_row || self.memory.offload == Offload::Sequential
    }

    /// Parts of a batch that run side by side; what that takes is not within a budget.
    fn lanes(&self) -> usize {
        match self.all_stay() {
            true => self.backend.lanes(),
            false => 1,
        }
    }

    /// Rows of a batch whose intermediate results are there at once.
    pub(crate) fn rows_at_once(&self, memory: MemoryOptions, rows: u64) -> u64 {
        let is_mapped =
            self.placement_with(memory) == Placement::Mapped && !self.backend.format().is_for_device();
        match is_mapped && memory.offload != Offload::Sequential {
            true => rows.min(chain::ROWS_TOGETHER as u64),
            false => rows,
        }
    }

    fn placement(&self) -> Placement {
        self.placement_with(self.memory)
    }

    fn placement_with(&self, memory: MemoryOptions) -> Placement {
        let components = self.bundle.manifest().components.values();
        let own = components.filter(|component| component.shares_weights_with.is_none());
        let is_small = own.map(|component| component.weight_bytes).sum::<u64>() <= PACKED_BYTES;
        memory.placement.unwrap_or(match memory.offload {
            Offload::None | Offload::Model if is_small => Placement::Packed,
            _ => Placement::Mapped,
        })
    }
}

/// Lets go of a slot's weights, unless another pipeline holds it too; whether it is worth holding on to.
fn keeps_engine(slot: &Arc<Slot>) -> bool {
    Arc::strong_count(slot) == 1 && slot.park()
}

fn bytes(component: &Component, i: usize) -> u64 {
    component.segments[i].weight_bytes
}

fn tuning(Tuning { tf32, search }: Tuning) -> CudaTuning {
    CudaTuning { tf32, search }
}
