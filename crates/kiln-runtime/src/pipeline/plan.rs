//! What a request will take, from what the bundle's engines were measured to take.

use kiln_bundle::{BundleError, ComponentName, Figures, Stage};
use kiln_types::Size;

use super::facts::Facts;
use super::job::{Job, Pass};
use super::measure::growth;
use crate::architecture::Model;
use crate::error::refuse;
use crate::plan::{FAR_MARGIN, Forecast, MARGIN, MemoryChoice, MemoryPlan, Rows};
use crate::residency::Residency;
use crate::{Error, MemoryOptions, Offload, Upscaler, VaeTiling};

/// Shares of the model's default size that tiles may have.
const TILES: [u32; 3] = [1, 2, 4];

/// Least side of a tile in latents: smaller ones see too little of the picture, and their seams show.
const LEAST_TILE: u32 = 16;

/// How much larger than the largest measured area one may be to be like it.
const FAR: f64 = 1.5;

/// Bytes of a pixel in a picture.
const RGB: f64 = 3.0;

/// Bytes for each element of text states beyond the first block: those of the prompt and of the batch, and what a segment
/// makes of them.
const TEXT_BYTES: f64 = 40.0;

/// Bytes of a pixel in what a decoder makes.
const PLANES: f64 = 12.0;

/// One component's part in a request.
#[derive(Clone, Copy)]
struct Work {
    component: ComponentName,
    rows: u64,
    size: Size,
    runs: u64,
    /// Blocks of tokens of the longest prompt.
    blocks: u64,
}

/// What predicts.
pub(super) struct Forecaster<'a> {
    pub(super) facts: &'a Facts,
    pub(super) model: &'a Model,
    pub(super) engines: &'a Residency,
    pub(super) figures: &'a Figures,
}

impl Forecaster<'_> {
    pub(super) fn plan(&self, job: &Job<'_>) -> Result<MemoryPlan, Error> {
        if job.task.controlled {
            return refuse("memory budget", "what ControlNets take is not measured".into());
        }
        if self.engines.has_loras() {
            return refuse(
                "memory budget",
                "what LoRAs take that are swapped in is not measured; kiln compile --lora fuses them".into(),
            );
        }
        let works = self.works(job)?;
        let mut choices = Vec::new();
        for vae_tiling in self.tilings(&works) {
            for offload in [Offload::None, Offload::Model, Offload::Sequential] {
                let memory = MemoryOptions {
                    offload,
                    vae_tiling,
                    placement: None,
                    keep_bytes: 0,
                    ..self.engines.memory()
                };
                choices.push(self.forecast(&works, memory)?);
            }
        }
        let denoiser = self.engines.component(self.model.denoiser.component(job.task))?;
        let denoiser_segments = denoiser.segments.iter().map(|segment| segment.weight_bytes).collect();
        Ok(MemoryPlan { choices, denoiser_segments, margin: self.margin(job, &works) })
    }

    fn is_fixed(&self) -> bool {
        self.facts.fixed.is_some()
    }

    /// By how much predictions may be off.
    fn margin(&self, job: &Job<'_>, works: &[Work]) -> f64 {
        let denoiser = self.figures.components.get(&self.model.denoiser.component(job.task));
        let samples = denoiser.map_or(&[][..], |denoiser| &denoiser.whole);
        let measured = samples.iter().map(|sample| sample.height * sample.width).max().unwrap_or(0);
        let asked =
            works.iter().map(|work| work.size.map(|side| side / self.facts.latents.scale_factor).area());
        let asked = asked.max().unwrap_or(0);
        if asked as f64 > FAR * measured as f64 && !self.is_fixed() { FAR_MARGIN } else { MARGIN }
    }

    /// What runs, in order.
    fn works(&self, job: &Job<'_>) -> Result<Vec<Work>, Error> {
        // Engines of a fixed size were measured with all their rows, and run with them.
        let batch = if self.is_fixed() { 1 } else { job.batch() };
        let rows = if self.is_fixed() { 1 } else { job.guidance.rows(batch) } as u64;
        let (batch, blocks) = (batch as u64, job.n_blocks);
        let work = |component, rows, size, runs| Work { component, rows, size, runs, blocks };
        let denoiser = self.model.denoiser.component(job.task);
        let evaluations = |pass: &Pass| pass.schedule.n_evaluations() as u64;
        let decoder = self.facts.image_decoder;

        let size = job.first.size;
        let encoders = self.facts.text_encoders.iter();
        let mut works: Vec<Work> = encoders.map(|encoder| work(*encoder, rows * blocks, size, 1)).collect();
        if job.task.from_picture {
            let runs = if job.task.masked { 2 } else { 1 };
            works.push(work(self.facts.image_encoder()?, 1, size, runs));
        }
        works.push(work(denoiser, rows, size, evaluations(&job.first)));
        let mut last = size;
        if let (Some(pass), Some(hires)) = (&job.second, &job.request.hires) {
            last = pass.size;
            if hires.upscaler == Upscaler::Pixels {
                works.push(work(decoder, 1, size, batch));
                works.push(work(self.facts.image_encoder()?, 1, last, batch));
            }
            works.push(work(denoiser, rows, last, evaluations(pass)));
        }
        works.push(work(decoder, 1, last, batch));
        Ok(works)
    }

    /// Bytes that the denoiser takes for text beyond one block of tokens, at most: states, and keys and values in each segment.
    fn longer_text(&self, work: &Work) -> f64 {
        (work.rows * work.blocks.saturating_sub(1) * self.facts.positions * self.facts.text_width) as f64
            * TEXT_BYTES
    }

    /// None, and those whose tiles are smaller than the largest picture.
    fn tilings(&self, works: &[Work]) -> Vec<Option<VaeTiling>> {
        let factor = self.facts.latents.scale_factor;
        let largest = works.iter().map(|work| work.size.longest()).max().unwrap_or(0);
        let default = self.facts.size.longest();
        let least = LEAST_TILE * factor;
        let tiles = TILES.iter().map(|share| default / share).filter(|tile| (least..largest).contains(tile));
        let tilings = tiles.map(|tile| VaeTiling { tile: Some(tile), ..VaeTiling::default() });
        let fits = tilings.filter(|tiling| {
            let shape = self.facts.latent_shape(1, Size::square(largest));
            self.facts.decoding_tiles(Some(*tiling), &shape).is_ok()
        });
        [None].into_iter().chain(fits.filter(|_| !self.is_fixed()).map(Some)).collect()
    }

    fn forecast(&self, works: &[Work], memory: MemoryOptions) -> Result<MemoryChoice, Error> {
        let mut held: Vec<(ComponentName, f64)> = Vec::new();
        let mut peak = (0.0, self.facts.image_decoder);
        let mut denoiser_bytes = 0.0_f64;
        // On a device all engines compute in one memory, which stays as large as the largest needs.
        let shares_arena = self.engines.backend().format().is_for_device() && memory.offload == Offload::None;
        let mut arena = 0.0_f64;
        let mut seconds = 0.0;
        let runs = works.iter().map(|work| self.run_of(work, memory)).collect::<Result<Vec<_>, _>>()?;
        // What kernels of one component needed stays for the next one, unless components come and go.
        let scratch = match memory.offload {
            Offload::None => runs.iter().map(|(run, ..)| run.scratch_bytes).fold(0.0, f64::max),
            Offload::Model | Offload::Sequential => 0.0,
        };
        for (work, (run, n_runs, aside)) in works.iter().zip(runs) {
            held.retain(|(name, _)| memory.offload == Offload::None && *name != work.component);
            let others: f64 = held.iter().map(|(_, bytes)| bytes).sum();
            arena = if shares_arena { arena.max(run.peak_bytes - run.held_bytes) } else { 0.0 };
            let idle_scratch = (scratch - run.scratch_bytes).max(0.0);
            let own = run.peak_bytes.max(run.held_bytes + arena) + idle_scratch;
            let bytes = self.figures.base_bytes as f64 + others + own + aside;
            if bytes > peak.0 {
                peak = (bytes, work.component);
            }
            if self.engines.component(work.component)?.stage == Stage::Denoiser {
                denoiser_bytes = denoiser_bytes.max(bytes);
            }
            held.push((work.component, run.held_bytes));
            seconds += run.seconds * n_runs;
            if memory.offload == Offload::Model {
                seconds += run.load_seconds;
            }
        }
        let (peak_bytes, peak_component) = (peak.0 as u64, peak.1);
        let denoiser_bytes = denoiser_bytes as u64;
        Ok(MemoryChoice { memory, peak_bytes, denoiser_bytes, peak_component, seconds })
    }

    /// One run of a component, how many of them there are, and the bytes besides it.
    fn run_of(&self, work: &Work, memory: MemoryOptions) -> Result<(Forecast, f64, f64), Error> {
        let bundle = self.engines.bundle();
        let missing = || {
            let path = bundle.path(bundle.manifest().figures.as_deref().unwrap_or_default());
            BundleError::Figures { path, reason: format!("tells nothing of the {}", work.component) }
        };
        let measured = self.figures.components.get(&work.component).ok_or_else(missing)?;
        let samples = match memory.offload {
            Offload::None | Offload::Model => &measured.whole,
            Offload::Sequential => &measured.segments,
        };
        let component = self.engines.component(work.component)?;
        let growth = growth(component, &**self.engines.backend());
        let shape = self.facts.latent_shape(1, work.size);
        let (area, runs) = ((shape[2] * shape[3]) as f64, work.runs as f64);
        if !component.stage.is_autoencoder() {
            let text = if component.stage == Stage::Denoiser { self.longer_text(work) } else { 0.0 };
            let rows = Rows { all: work.rows, at_once: self.engines.rows_at_once(memory, work.rows) };
            return Ok((Forecast::new(samples, rows, area, growth), runs, text));
        }
        let pixels = work.size.area() as f64;
        let pictures = (runs - 1.0) * pixels * RGB;
        Ok(match self.facts.decoding_tiles(memory.vae_tiling, &shape)? {
            None => (Forecast::new(samples, Rows::of(1), area, growth), runs, pictures),
            Some(tiles) => {
                let (tile, total) = (tiles.largest_area(&shape), tiles.total_area(&shape));
                let joined = pixels * PLANES * (1.0 + tiles.waiting_area(&shape) / area);
                (Forecast::new(samples, Rows::of(1), tile, growth), runs * total / tile, pictures + joined)
            }
        })
    }
}
