//! What the engines of a bundle take, measured.

use std::time::{Duration, Instant};

use kiln_bundle::{Component, ComponentFigures, ComponentName, Figures, PortInfo, Sample};
use kiln_engine::{Backend, EngineErrorKind, Tensor, TensorView};
use ndarray::ArrayD;

use super::facts::Facts;
use crate::generator::TorchCpuGenerator;
use crate::memory::Meter;
use crate::plan::Growth;
use crate::residency::Residency;
use crate::{Error, MemoryOptions, Offload, Request};

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
    /// Text positions.
    tokens: u64,
}

impl Extent {
    /// One row at the model's default size, with one block of text.
    pub(super) fn default_of(facts: &Facts) -> Extent {
        let [_, _, height, width] = facts.latent_shape(1, facts.size);
        Extent { rows: 1, size: [height as u64, width as u64], tokens: facts.positions }
    }
}

/// One step of a picture of half the model's size, or of its own where that cannot be chosen.
pub(super) fn first_request(facts: &Facts) -> Request {
    let half = |side: u32| facts.fixed.is_none().then(|| (side / 2).next_multiple_of(64).min(side));
    let [height, width] = [facts.size.height, facts.size.width].map(half);
    Request { steps: Some(1), height, width, ..Request::new("a picture") }
}

/// Measures what the components take; none where the operating system does not tell what a process holds.
pub(super) fn measure(
    facts: &Facts,
    engines: &mut Residency,
    progress: &mut dyn FnMut(ComponentName),
) -> Result<Option<Figures>, Error> {
    let Some(meter) = <dyn Meter>::of(&**engines.backend()) else { return Ok(None) };
    let before = engines.memory();
    let figures = Measurement { facts, engines, meter: &*meter }.all(before, progress);
    engines.set_memory(before);
    figures.map(Some)
}

struct Measurement<'a> {
    facts: &'a Facts,
    engines: &'a mut Residency,
    meter: &'a dyn Meter,
}

impl Measurement<'_> {
    fn all(
        &mut self,
        memory: MemoryOptions,
        progress: &mut dyn FnMut(ComponentName),
    ) -> Result<Figures, Error> {
        // What shares another component's weights takes what that one takes and little more.
        let components = self.engines.bundle().manifest().components.iter();
        let own = components.filter(|(_, component)| component.shares_weights_with.is_none());
        let names: Vec<ComponentName> = own.map(|(name, _)| *name).collect();
        let whole = MemoryOptions { offload: Offload::None, ..memory };
        let by_segment = MemoryOptions { offload: Offload::Sequential, placement: None, ..memory };
        self.engines.set_memory(whole);
        if let Some(first) = names.first() {
            self.samples(*first)?;
        }
        self.engines.clear();
        self.settle()?;
        let backend = self.engines.backend();
        let mut figures = Figures {
            backend: backend.name().into(),
            version: backend.version().into(),
            base_bytes: self.meter.base(),
            components: Default::default(),
        };
        for name in names {
            progress(name);
            // By segment first: that leaves the weights in the page cache and nothing in the process.
            self.engines.set_memory(by_segment);
            let segments = self.samples(name)?;
            self.engines.set_memory(whole);
            let whole = self.samples(name)?;
            figures.components.insert(name, ComponentFigures { whole, segments });
        }
        Ok(figures)
    }

    fn settle(&self) -> Result<(), Error> {
        self.meter.settle(&**self.engines.backend())
    }

    /// Runs a component at growing sizes, so that each run finds what the one before it left, as steps of a loop do.
    ///
    /// Sizes that an engine was not built for are left out, unless it has no other.
    fn samples(&mut self, name: ComponentName) -> Result<Vec<Sample>, Error> {
        self.engines.clear();
        self.settle()?;
        self.meter.reset_peak();
        let before = self.meter.held()?;
        let start = Instant::now();
        self.engines.load(name)?;
        self.settle()?;
        let load_seconds = start.elapsed().as_secs_f64();
        let mut samples: Vec<Sample> = Vec::new();
        let mut refused = None;
        for extent in self.extents(name)? {
            let seconds = match self.seconds(name, extent, samples.is_empty()) {
                Ok(seconds) => seconds,
                Err(Error::Engine(e)) if e.kind() == EngineErrorKind::Input => {
                    refused = Some(Error::Engine(e));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (peak, scratch_bytes) = (self.meter.peak()?, self.meter.scratch());
            self.settle()?;
            let Extent { rows, size: [height, width], .. } = extent;
            samples.push(Sample {
                rows,
                height,
                width,
                peak_bytes: peak,
                scratch_bytes,
                held_bytes: self.meter.held()?,
                load_seconds,
                seconds,
            });
            self.meter.reset_peak();
        }
        // What of the component before was still held, and then given back, is none of this one's.
        let before = samples.iter().map(|sample| sample.held_bytes).fold(before, u64::min);
        for sample in &mut samples {
            sample.peak_bytes = sample.peak_bytes.saturating_sub(before);
            sample.held_bytes -= before;
        }
        match refused {
            Some(error) if samples.is_empty() => Err(error),
            _ => Ok(samples),
        }
    }

    /// Seconds of the fastest of several runs.
    fn seconds(&mut self, name: ComponentName, extent: Extent, is_first: bool) -> Result<f64, Error> {
        let inputs = random(&tensors(&self.engines.component(name)?.inputs, extent));
        let views: Vec<(&str, TensorView<'_>)> =
            inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
        // The first run of all may wait for weights.
        let least_runs = if is_first { 2 } else { 1 };
        let mut seconds = f64::INFINITY;
        let begun = Instant::now();
        for i in 1..=MOST_RUNS {
            let start = Instant::now();
            self.engines.chain(name)?.run(&views)?;
            seconds = seconds.min(start.elapsed().as_secs_f64());
            if i >= least_runs && begun.elapsed() > LONG_ENOUGH {
                break;
            }
        }
        Ok(seconds)
    }

    /// What to run a component with: one row at several sizes, unless it takes only one, and two rows.
    fn extents(&self, name: ComponentName) -> Result<Vec<Extent>, Error> {
        let component = self.engines.component(name)?;
        let shapes = |extent: Extent| tensors(&component.inputs, extent);
        let one = Extent::default_of(self.facts);
        let full = one.size;
        let longest = full[0].max(full[1]);
        let largest = full.map(|side| (side * MOST.min(longest)).div_ceil(longest));
        let growth = growth(component, &**self.engines.backend());
        let is_on_device = self.engines.backend().format().is_for_device();
        let mut extents: Vec<Extent> = match shapes(one) == shapes(Extent { size: [1, 1], ..one }) {
            true => vec![Extent { size: [1, 1], ..one }],
            false => {
                // Engines of a device may not have been built for more than the model's own size.
                let (shares, most_times) = match (growth, is_on_device) {
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
        let is_autoencoder = component.stage.is_autoencoder();
        if !is_autoencoder && shapes(two) != shapes(largest) {
            extents.push(two);
        }
        Ok(extents)
    }
}

/// How a component's bytes grow with the area.
pub(super) fn growth(component: &Component, backend: &dyn Backend) -> Growth {
    match component.attention().decomposed > 0 || backend.holds_scores() {
        true => Growth::Quadratic,
        false => Growth::Linear,
    }
}

/// Name, whether it holds floats, and shape of each input.
pub(super) fn tensors(
    ports: &[PortInfo],
    Extent { rows, size: [height, width], tokens }: Extent,
) -> Vec<(String, bool, Vec<usize>)> {
    let size = |symbol: &str| match symbol {
        "batch" => Some(rows),
        "height" => Some(height),
        "width" => Some(width),
        "tokens" => Some(tokens),
        _ => None,
    };
    let shape = |port: &PortInfo| port.shape.iter().map(|n| n.at(size).unwrap_or(1) as usize).collect();
    let is_float = |port: &PortInfo| port.dtype.is_float();
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
