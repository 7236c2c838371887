//! What the engines of a bundle take, measured.

use kiln_bundle::stable_diffusion::{UNET_CONTROLLED, VAE_DECODER, VAE_ENCODER};
use std::time::{Duration, Instant};

use kiln_bundle::{Component, ComponentFigures, ComponentName, Figures, PortInfo, Sample};
use kiln_engine::{EngineErrorKind, Tensor, TensorView};
use ndarray::ArrayD;

use super::Pipeline;
use crate::generator::TorchCpuGenerator;
use crate::memory::Meter;
use crate::plan::Growth;
use crate::{Error, MemoryOptions, Offload};

/// Text positions of one block of tokens.
const TOKENS: u64 = 77;

/// Shares of the model's default size at which components are measured whose memory grows with the area, beside multiples
/// of it as large as [`MOST`] allows.
const LINEAR: &[f64] = &[0.5, 1.0];

/// The same where it grows with the area's square, as the scores of attention do; of multiples only the double.
const QUADRATIC: &[f64] = &[0.5, 0.75, 1.0];

/// Largest side in latents that is measured: what larger ones take follows, and measuring them would take minutes.
const MOST: u64 = 64;

/// How often a component runs at one size, unless that takes longer than [`LONG_ENOUGH`]: the fastest run counts.
const MOST_RUNS: usize = 5;

const LONG_ENOUGH: Duration = Duration::from_millis(200);

/// Rows of the batch and the size in latents of one run.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Extent {
    rows: u64,
    size: [u64; 2],
}

impl Pipeline {
    /// Runs the components at several sizes and measures what they take: of this process's memory or of the device's, and
    /// of time.
    ///
    /// In a process that holds little else, for what the process gives back to the components counts as theirs. `None`
    /// where the operating system does not tell what a process holds.
    pub fn measure(&mut self, progress: &mut dyn FnMut(ComponentName)) -> Result<Option<Figures>, Error> {
        let Some(meter) = <dyn Meter>::of(self.backend()) else { return Ok(None) };
        let before = self.memory();
        let figures = self.measure_all(before, &*meter, progress);
        self.set_memory(before)?;
        figures.map(Some)
    }

    fn measure_all(
        &mut self,
        memory: MemoryOptions,
        meter: &dyn Meter,
        progress: &mut dyn FnMut(ComponentName),
    ) -> Result<Figures, Error> {
        // The second UNet, which ControlNets steer, takes what the first one takes and little more.
        let roles = self.bundle.manifest().components.keys().copied();
        let roles: Vec<ComponentName> = roles.filter(|role| *role != UNET_CONTROLLED).collect();
        let whole = MemoryOptions { offload: Offload::None, ..memory };
        let by_segment = MemoryOptions { offload: Offload::Sequential, placement: None, ..memory };
        self.set_memory(whole)?;
        if let Some(first) = roles.first() {
            self.samples(*first, meter)?;
        }
        self.release();
        meter.settle(self.backend())?;
        let mut figures = Figures {
            backend: self.backend().name().into(),
            version: self.backend().version().into(),
            base_bytes: meter.base(),
            components: Default::default(),
        };
        for role in roles {
            progress(role);
            // By segment first: that leaves the weights in the page cache and nothing in the process.
            self.set_memory(by_segment)?;
            let segments = self.samples(role, meter)?;
            self.set_memory(whole)?;
            let whole = self.samples(role, meter)?;
            figures.components.insert(role, ComponentFigures { whole, segments });
        }
        Ok(figures)
    }

    /// Runs a component at growing sizes, so that each run finds what the one before it left, as steps of a loop do.
    ///
    /// Sizes that an engine was not built for are left out, unless it has no other.
    fn samples(&mut self, role: ComponentName, meter: &dyn Meter) -> Result<Vec<Sample>, Error> {
        self.release();
        meter.settle(self.backend())?;
        meter.reset_peak();
        let before = meter.held()?;
        let start = Instant::now();
        self.engines.load(&self.bundle, role)?;
        meter.settle(self.backend())?;
        let load_seconds = start.elapsed().as_secs_f64();
        let mut samples = Vec::new();
        let mut refused = None;
        for extent in self.extents(role)? {
            let seconds = match self.seconds(role, extent, samples.is_empty()) {
                Ok(seconds) => seconds,
                Err(Error::Engine(e)) if e.kind() == EngineErrorKind::Input => {
                    refused = Some(Error::Engine(e));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let peak = meter.peak()?;
            meter.settle(self.backend())?;
            let Extent { rows, size: [height, width] } = extent;
            samples.push(Sample {
                rows,
                height,
                width,
                peak_bytes: peak.saturating_sub(before),
                held_bytes: meter.held()?.saturating_sub(before),
                load_seconds,
                seconds,
            });
            meter.reset_peak();
        }
        match refused {
            Some(error) if samples.is_empty() => Err(error),
            _ => Ok(samples),
        }
    }

    /// Seconds of the fastest of several runs.
    fn seconds(&mut self, role: ComponentName, extent: Extent, is_first: bool) -> Result<f64, Error> {
        let inputs = random(&tensors(&self.bundle.component(role)?.inputs, extent));
        let views: Vec<(&str, TensorView<'_>)> =
            inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
        // The first run of all may wait for weights.
        let least_runs = if is_first { 2 } else { 1 };
        let mut seconds = f64::INFINITY;
        let begun = Instant::now();
        for i in 1..=MOST_RUNS {
            let start = Instant::now();
            self.engines.network(&self.bundle, role)?.run(&views)?;
            seconds = seconds.min(start.elapsed().as_secs_f64());
            if i >= least_runs && begun.elapsed() > LONG_ENOUGH {
                break;
            }
        }
        Ok(seconds)
    }

    /// One row at the model's default size.
    pub(super) fn default_extent(&self) -> Result<Extent, Error> {
        let info = self.bundle.pipeline()?;
        let size =
            [info.size.height, info.size.width].map(|pixels| u64::from(pixels / info.latents.scale_factor));
        Ok(Extent { rows: 1, size })
    }

    /// What to run a component with: one row at several sizes, unless it takes only one, and two rows.
    fn extents(&self, role: ComponentName) -> Result<Vec<Extent>, Error> {
        let component = self.bundle.component(role)?;
        let shapes = |extent: Extent| tensors(&component.inputs, extent);
        let one = self.default_extent()?;
        let full = one.size;
        let longest = full[0].max(full[1]);
        let largest = full.map(|side| (side * MOST.min(longest)).div_ceil(longest));
        let growth = self.growth(component);
        let mut extents: Vec<Extent> = match shapes(one) == shapes(Extent { size: [1, 1], ..one }) {
            true => vec![Extent { size: [1, 1], ..one }],
            false => {
                // Engines of a device may not have been built for more than the model's own size.
                let (shares, most_times) = match (growth, self.backend().format().is_for_device()) {
                    (Growth::Linear, false) => (LINEAR, MOST),
                    (Growth::Quadratic, false) => (QUADRATIC, 2),
                    (Growth::Linear, true) => (LINEAR, 1),
                    (Growth::Quadratic, true) => (QUADRATIC, 1),
                };
                let size =
                    |share: &f64| largest.map(|side| ((side as f64 * share / 8.0).ceil() as u64 * 8).min(side));
                let times = (1..=most_times.ilog2()).map(|power| 1 << power);
                let larger = times.take_while(|times| longest * times <= MOST);
                let larger = larger.map(|times| largest.map(|side| side * times));
                let sizes = shares.iter().map(size).chain(larger);
                sizes.map(|size| Extent { size, ..one }).collect()
            }
        };
        extents.dedup();
        let largest = extents[extents.len() - 1];
        let two = Extent { rows: 2, ..largest };
        let is_autoencoder = matches!(role, VAE_DECODER | VAE_ENCODER);
        if !is_autoencoder && shapes(two) != shapes(largest) {
            extents.push(two);
        }
        Ok(extents)
    }

    /// How a component's bytes grow with the area.
    pub(super) fn growth(&self, component: &Component) -> Growth {
        match component.attention().decomposed > 0 || self.backend().holds_scores() {
            true => Growth::Quadratic,
            false => Growth::Linear,
        }
    }
}

/// Name, whether it holds floats, and shape of each input.
pub(super) fn tensors(
    ports: &[PortInfo],
    Extent { rows, size: [height, width] }: Extent,
) -> Vec<(String, bool, Vec<usize>)> {
    let size = |symbol: &str| match symbol {
        "batch" => Some(rows),
        "height" => Some(height),
        "width" => Some(width),
        "tokens" => Some(TOKENS),
        _ => None,
    };
    let shape = |port: &PortInfo| port.shape.iter().map(|n| n.at(size).unwrap_or(1) as usize).collect();
    let is_float = |port: &PortInfo| port.dtype != kiln_bundle::ElementType::I64;
    ports.iter().map(|port| (port.name.clone(), is_float(port), shape(port))).collect()
}

pub(super) fn random(tensors: &[(String, bool, Vec<usize>)]) -> Vec<(String, Tensor)> {
    let mut generator = TorchCpuGenerator::new(0);
    let mut make = |is_float: bool, shape: &[usize]| match is_float {
        true => Tensor::F32(generator.randn(shape)),
        false => Tensor::I64(ArrayD::zeros(shape.to_vec())),
    };
    tensors.iter().map(|(name, is_float, shape)| (name.clone(), make(*is_float, shape))).collect()
}
