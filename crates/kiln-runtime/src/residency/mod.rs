//! Which engines are loaded.

#[cfg(feature = "tensorrt")]
mod kernels;
mod network;

use kiln_bundle::stable_diffusion::{UNET, UNET_CONTROLLED, VAE_DECODER, VAE_ENCODER};
use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_bundle::{Bundle, Component, ComponentName, Segment, TensorFile, Tuning};
use kiln_engine::{Backend, CudaTuning, Engine, KernelStore, LoadOptions, Placement, heap};
use kiln_lora::LoraPlan;

use crate::lora::ChangedWeights;
use crate::{Error, MemoryOptions, Offload};
pub(crate) use network::Network;

/// Weights of models of up to so many bytes are packed where they may stay: that takes under a second.
const PACKED_BYTES: u64 = 256 << 20;

/// The engines of a bundle, segment by segment, loaded as the memory options say.
pub(crate) struct Residency {
    backend: Arc<dyn Backend>,
    memory: MemoryOptions,
    loaded: BTreeMap<(ComponentName, usize), Loaded>,
    loras: LoraPlan,
}

/// A segment's engine.
struct Loaded {
    engine: Box<dyn Engine>,
    /// Whether its weights are where it runs, or on their way there.
    is_present: bool,
}

impl Loaded {
    /// Lets go of its weights; false where the engine has to go with them.
    fn park(&mut self) -> bool {
        self.is_present = false;
        self.engine.unload().unwrap_or(false)
    }

    fn prefetch(&mut self) -> Result<(), Error> {
        self.is_present = true;
        Ok(self.engine.prefetch()?)
    }
}

impl Residency {
    pub(crate) fn new(backend: Arc<dyn Backend>, memory: MemoryOptions) -> Residency {
        Residency { backend, memory, loaded: BTreeMap::new(), loras: LoraPlan::default() }
    }

    /// An empty one with the same backend and options.
    pub(crate) fn sibling(&self) -> Residency {
        Residency::new(self.backend.clone(), self.memory)
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(crate) fn memory(&self) -> MemoryOptions {
        self.memory
    }

    /// Drops the engines that are loaded, which the new options may place elsewhere.
    pub(crate) fn set_memory(&mut self, memory: MemoryOptions) {
        self.memory = memory;
        self.clear();
    }

    /// Drops the engines whose weights other LoRAs change from now on.
    pub(crate) fn set_loras(&mut self, loras: LoraPlan) {
        let before = std::mem::replace(&mut self.loras, loras);
        self.loaded.retain(|(role, _), _| before.changes(owner(*role)) == self.loras.changes(owner(*role)));
    }

    /// Whether weights differ from the bundle's.
    pub(crate) fn has_loras(&self) -> bool {
        !self.loras.is_empty()
    }

    pub(crate) fn is_loaded(&self, role: ComponentName) -> bool {
        self.loaded.iter().any(|((loaded, _), engine)| *loaded == role && engine.is_present)
    }

    /// Drops all engines, and gives back what they and their tensors held.
    pub(crate) fn clear(&mut self) {
        self.loaded.clear();
        self.backend.trim();
        heap::trim();
    }

    /// Lets go of the weights of all engines but those of the roles that `stays` names, and gives back what their tensors
    /// held.
    pub(crate) fn release(&mut self, stays: impl Fn(ComponentName) -> bool) {
        self.loaded.retain(|(role, _), loaded| stays(*role) || loaded.park());
        self.backend.trim();
        heap::trim();
    }

    /// A component to run.
    pub(crate) fn network<'a>(
        &'a mut self,
        bundle: &'a Bundle,
        role: ComponentName,
    ) -> Result<Network<'a>, Error> {
        Network::new(self, bundle, role)
    }

    /// Loads all segments of a component, unless only the one that runs is to be loaded.
    pub(crate) fn load(&mut self, bundle: &Bundle, role: ComponentName) -> Result<(), Error> {
        if self.memory.offload == Offload::Sequential {
            return Ok(());
        }
        self.prefetch_component(bundle, role)
    }

    /// Starts to load all segments of a component, beside what a device computes now; on the host, loads them.
    fn prefetch_component(&mut self, bundle: &Bundle, role: ComponentName) -> Result<(), Error> {
        let n_segments = bundle.component(role)?.segments.len();
        (0..n_segments).try_for_each(|i| self.segment(bundle, role, i)?.prefetch())
    }

    /// The engine of a segment that will run.
    fn segment(&mut self, bundle: &Bundle, role: ComponentName, i: usize) -> Result<&mut Loaded, Error> {
        let component = bundle.component(role)?;
        if !self.loaded.contains_key(&(role, i)) {
            let twins = twins(role);
            self.loaded.retain(|(loaded, _), _| !twins.contains(loaded));
            let engine = self.open(bundle, role, i)?;
            self.loaded.insert((role, i), Loaded { engine, is_present: false });
        }
        self.trim(component, role, i);
        let missing = || Error::Component { component: role, reason: "is not loaded".into() };
        self.loaded.get_mut(&(role, i)).ok_or_else(missing)
    }

    fn open(&self, bundle: &Bundle, role: ComponentName, i: usize) -> Result<Box<dyn Engine>, Error> {
        let component = bundle.component(role)?;
        let segment = &component.segments[i];
        let swaps = self.memory.offload != Offload::None;
        let mut options = LoadOptions {
            placement: self.placement(bundle),
            overrides: None,
            swaps,
            streaming: self.streaming(role),
            tuning: bundle.manifest().tuning.map(tuning).unwrap_or_default(),
            kernels: self.kernels(bundle, segment),
        };
        if let Some(changes) = self.loras.changes(owner(role)) {
            let weights = ChangedWeights::new(bundle, component, segment, changes)?;
            options.overrides = weights.map(|weights| Arc::new(weights) as _);
        }
        Ok(self.backend.load(&bundle.path(&segment.engine), &options)?)
    }

    /// Where kernels are kept that TensorRT-RTX compiles for an engine.
    #[cfg(feature = "tensorrt")]
    fn kernels(&self, bundle: &Bundle, segment: &Segment) -> Option<Arc<dyn KernelStore>> {
        let device =
            self.backend.device().filter(|_| self.backend.format() == kiln_engine::Format::TensorRtRtx)?;
        Some(Arc::new(kernels::KernelFile::new(bundle, &segment.engine, device)?))
    }

    #[cfg(not(feature = "tensorrt"))]
    fn kernels(&self, _bundle: &Bundle, _segment: &Segment) -> Option<Arc<dyn KernelStore>> {
        None
    }

    /// Most bytes of a component's weights on the device, where weights stream.
    fn streaming(&self, role: ComponentName) -> Option<u64> {
        match (self.memory.offload, role) {
            (Offload::None | Offload::Model, _) => None,
            (Offload::Sequential, UNET | UNET_CONTROLLED) => Some(self.memory.keep_bytes),
            (Offload::Sequential, _) => Some(0),
        }
    }

    /// Gives back memory of tensors before a segment runs.
    ///
    /// Under sequential offload, idle memory and weights together stay below the weights of the largest segment. An
    /// autoencoder's segments have tensors of other sizes each, which do not fit into what the others left.
    fn trim(&self, component: &Component, role: ComponentName, i: usize) {
        if self.memory.offload == Offload::Sequential {
            let largest = component.segments.iter().map(|segment| segment.weight_bytes).max().unwrap_or(0);
            heap::trim_tensors(largest - component.segments[i].weight_bytes);
        } else if matches!(role, VAE_DECODER | VAE_ENCODER) {
            heap::trim_tensors(0);
        }
    }

    fn placement(&self, bundle: &Bundle) -> Placement {
        let components = bundle.manifest().components.iter();
        let own = components.filter(|(role, _)| **role != UNET_CONTROLLED);
        let is_small = own.map(|(_, component)| component.weight_bytes).sum::<u64>() <= PACKED_BYTES;
        self.memory.placement.unwrap_or(match self.memory.offload {
            Offload::None | Offload::Model if is_small => Placement::Packed,
            _ => Placement::Mapped,
        })
    }

    /// Called when a segment has run: drops it under sequential offload, unless it is one of those that stay.
    ///
    /// Segments run in the same order in every step; those that came first stay, for any other choice would load as much.
    fn has_run(&mut self, component: &Component, role: ComponentName, i: usize) {
        if self.memory.offload != Offload::Sequential {
            return;
        }
        let present = self.loaded.iter().filter(|((loaded, _), engine)| *loaded == role && engine.is_present);
        let bytes: u64 = present.map(|((_, i), _)| component.segments[*i].weight_bytes).sum();
        let is_in_loop = matches!(role, UNET | UNET_CONTROLLED);
        if (!is_in_loop || bytes > self.memory.keep_bytes)
            && let Some(loaded) = self.loaded.get_mut(&(role, i))
            && !loaded.park()
        {
            self.loaded.remove(&(role, i));
        }
    }

    /// Asks for the weights of segments after `i`, as far ahead as is prefetched: of the page cache, or of engines that swap.
    fn prefetch(
        &mut self,
        bundle: &Bundle,
        weights: Option<&TensorFile>,
        role: ComponentName,
        i: usize,
    ) -> Result<(), Error> {
        let component = bundle.component(role)?;
        let ahead = self.memory.prefetch;
        if self.memory.offload == Offload::Sequential && self.backend.swaps() {
            let last = i.saturating_add(ahead).min(component.segments.len() - 1);
            return (i + 1..=last).try_for_each(|i| self.segment(bundle, role, i)?.prefetch());
        }
        if let (Some(file), Some(segment)) = (weights, component.segments.get(i + ahead))
            && ahead > 0
        {
            file.prefetch(segment.weights.iter().map(String::as_str));
        }
        Ok(())
    }
}

/// Asks for the weights of a whole component; what is wrong with them is told when they are loaded.
fn prefetch_all(bundle: &Bundle, role: ComponentName) {
    let Ok(component) = bundle.component(role) else { return };
    if let Some(file) = component.weights.as_ref().and_then(|name| TensorFile::open(&bundle.path(name)).ok()) {
        file.prefetch(file.tensors().keys().map(String::as_str));
    }
}

/// The component by whose name LoRAs call a role's weights.
fn owner(role: ComponentName) -> ComponentName {
    match role {
        UNET_CONTROLLED => UNET,
        role => role,
    }
}

fn tuning(Tuning { tf32, search }: Tuning) -> CudaTuning {
    CudaTuning { tf32, search }
}

/// Engines over the same weights, of which one at a time is enough.
fn twins(role: ComponentName) -> &'static [ComponentName] {
    match role {
        UNET => &[UNET_CONTROLLED],
        UNET_CONTROLLED => &[UNET],
        _ => &[],
    }
}
