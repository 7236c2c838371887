//! What a request will take, from what the bundle's engines were measured to take.

use kiln_bundle::stable_diffusion::{UNET, VAE_DECODER, VAE_ENCODER};
use kiln_bundle::{BundleError, ComponentName, Figures};

use super::Pipeline;
use crate::plan::{FAR_MARGIN, Forecast, MARGIN};
use crate::request::refuse;
use crate::{Choice, Error, MemoryOptions, Offload, Plan, Request, Upscaler, VaeTiling};

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
    role: ComponentName,
    rows: u64,
    /// Height and width in pixels.
    size: [u32; 2],
    runs: u64,
    /// Blocks of tokens of the longest prompt.
    blocks: u64,
}

impl Pipeline {
    /// What a request will take under every way to spend memory, from [`Figures`] of its bundle.
    ///
    /// ControlNets are not measured, and a request with control pictures is refused.
    pub fn plan(&self, request: &Request, figures: &Figures) -> Result<Plan, Error> {
        let size = self.size(request)?;
        self.check(request, size)?;
        if !request.controls.is_empty() {
            return refuse("memory budget", "what ControlNets take is not measured".into());
        }
        if self.engines.has_loras() {
            return refuse(
                "memory budget",
                "what LoRAs take that are swapped in is not measured; kiln compile --lora fuses them".into(),
            );
        }
        let blocks = self.n_blocks(request)?;
        let works = self.works(request, size, blocks)?;
        let tilings = self.tilings(&works)?;
        let mut choices = Vec::new();
        for vae_tiling in tilings {
            for offload in [Offload::None, Offload::Model, Offload::Sequential] {
                let memory =
                    MemoryOptions { offload, vae_tiling, placement: None, keep_bytes: 0, ..self.memory() };
                choices.push(self.forecast(&works, memory, figures)?);
            }
        }
        let segments = self.bundle.component(UNET)?.segments.iter();
        let unet_segments = segments.map(|segment| segment.weight_bytes).collect();
        Ok(Plan { choices, unet_segments, margin: self.margin(&works, figures)? })
    }

    /// By how much predictions may be off.
    fn margin(&self, works: &[Work], figures: &Figures) -> Result<f64, Error> {
        let factor = u64::from(self.bundle.pipeline()?.latents.scale_factor);
        let samples = figures.components.get(&UNET).map_or(&[][..], |unet| &unet.whole);
        let measured = samples.iter().map(|sample| sample.height * sample.width).max().unwrap_or(0);
        let asked = works.iter().map(|work| work.size.map(|side| u64::from(side) / factor));
        let asked = asked.map(|[height, width]| height * width).max().unwrap_or(0);
        let is_fixed = self.is_fixed()?;
        Ok(if asked as f64 > FAR * measured as f64 && !is_fixed { FAR_MARGIN } else { MARGIN })
    }

    /// What runs, in order.
    fn works(&self, request: &Request, size: [u32; 2], blocks: u64) -> Result<Vec<Work>, Error> {
        let info = self.bundle.pipeline()?;
        // Engines of a fixed size were measured with all their rows, and run with them.
        let batch = if self.is_fixed()? { 1 } else { request.prompts.len() as u64 };
        let is_doubled = !self.is_fixed()? && self.guidance(request)?.is_guided();
        let rows = if is_doubled { 2 * batch } else { batch };
        let steps = self.steps(request)?;
        let strength = self.strength(request)?.map(|strength| ("strength", strength));
        let (sampler, begin) = self.sampler(request, steps, strength)?;
        let work =
            |role: ComponentName, rows: u64, size: [u32; 2], runs: u64| Work { role, rows, size, runs, blocks };

        let mut works: Vec<Work> =
            info.text_encoders.iter().map(|encoder| work(encoder.component, rows * blocks, size, 1)).collect();
        if let Some(init) = &request.init {
            works.push(work(VAE_ENCODER, 1, size, if init.mask.is_some() { 2 } else { 1 }));
        }
        works.push(work(UNET, rows, size, (sampler.timesteps().len() - begin) as u64));
        let mut last = size;
        if let Some(hires) = &request.hires {
            last = self.hires_size(size, hires)?;
            if hires.upscaler == Upscaler::Pixels {
                works.push(work(VAE_DECODER, 1, size, batch));
                works.push(work(VAE_ENCODER, 1, last, batch));
            }
            works.push(work(UNET, rows, last, self.hires_steps(request, steps)? as u64));
        }
        works.push(work(VAE_DECODER, 1, last, batch));
        Ok(works)
    }

    /// Bytes that the UNet takes for text beyond one block of tokens, at most: states, and keys and values in each segment.
    fn longer_text(&self, work: &Work) -> Result<f64, Error> {
        if work.role != UNET {
            return Ok(0.0);
        }
        let encoders = &self.bundle.pipeline()?.text_encoders;
        let width: u64 = encoders.iter().map(|encoder| u64::from(encoder.width)).sum();
        let positions = encoders.first().map_or(0, |encoder| u64::from(encoder.positions));
        Ok((work.rows * (work.blocks - 1) * positions * width) as f64 * TEXT_BYTES)
    }

    /// None, and those whose tiles are smaller than the largest picture.
    fn tilings(&self, works: &[Work]) -> Result<Vec<Option<VaeTiling>>, Error> {
        let info = self.bundle.pipeline()?;
        let largest = works.iter().flat_map(|work| work.size).max().unwrap_or(0);
        let default = info.size.height.max(info.size.width);
        let least = LEAST_TILE * info.latents.scale_factor;
        let tiles = TILES.iter().map(|share| default / share).filter(|tile| (least..largest).contains(tile));
        let tilings = tiles.map(|tile| VaeTiling { tile: Some(tile), ..VaeTiling::default() });
        let fits = tilings.filter(|tiling| {
            let shape = [1, 1, largest, largest].map(|side| (side / info.latents.scale_factor) as usize);
            self.decoding_tiles(Some(*tiling), &shape).is_ok()
        });
        let is_fixed = self.is_fixed()?;
        Ok([None].into_iter().chain(fits.filter(|_| !is_fixed).map(Some)).collect())
    }

    fn forecast(&self, works: &[Work], memory: MemoryOptions, figures: &Figures) -> Result<Choice, Error> {
        let mut held: Vec<(ComponentName, f64)> = Vec::new();
        let mut peak = (0.0, UNET);
        // On a device all engines compute in one memory, which stays as large as the largest needs.
        let shares_arena = self.backend().format().is_for_device() && memory.offload == Offload::None;
        let mut arena = 0.0_f64;
        let mut seconds = 0.0;
        for work in works {
            let (run, n_runs, aside) = self.run_of(work, memory, figures)?;
            held.retain(|(role, _)| memory.offload == Offload::None && *role != work.role);
            let others: f64 = held.iter().map(|(_, bytes)| bytes).sum();
            arena = if shares_arena { arena.max(run.peak_bytes - run.held_bytes) } else { 0.0 };
            let bytes = figures.base_bytes as f64 + others + run.peak_bytes.max(run.held_bytes + arena) + aside;
            if bytes > peak.0 {
                peak = (bytes, work.role);
            }
            held.push((work.role, run.held_bytes));
            seconds += run.seconds * n_runs;
            if memory.offload == Offload::Model {
                seconds += run.load_seconds;
            }
        }
        Ok(Choice { memory, peak_bytes: peak.0 as u64, peak_role: peak.1, seconds })
    }

    /// One run of a component, how many of them there are, and the bytes besides it.
    fn run_of(
        &self,
        work: &Work,
        memory: MemoryOptions,
        figures: &Figures,
    ) -> Result<(Forecast, f64, f64), Error> {
        let missing = || {
            let path = self.bundle.path(self.bundle.manifest().figures.as_deref().unwrap_or_default());
            BundleError::Figures { path, reason: format!("tells nothing of the {}", work.role) }
        };
        let component = figures.components.get(&work.role).ok_or_else(missing)?;
        let samples = match memory.offload {
            Offload::None | Offload::Model => &component.whole,
            Offload::Sequential => &component.segments,
        };
        let growth = self.growth(self.bundle.component(work.role)?);
        let factor = self.bundle.pipeline()?.latents.scale_factor;
        let [height, width] = work.size.map(|pixels| (pixels / factor) as usize);
        let (area, runs) = ((height * width) as f64, work.runs as f64);
        if !matches!(work.role, VAE_DECODER | VAE_ENCODER) {
            return Ok((Forecast::new(samples, work.rows, area, growth), runs, self.longer_text(work)?));
        }
        let pixels = f64::from(work.size[0]) * f64::from(work.size[1]);
        let pictures = (runs - 1.0) * pixels * RGB;
        let shape = [1, 1, height, width];
        Ok(match self.decoding_tiles(memory.vae_tiling, &shape)? {
            None => (Forecast::new(samples, 1, area, growth), runs, pictures),
            Some(tiles) => {
                let (tile, total) = (tiles.largest_area(&shape), tiles.total_area(&shape));
                let joined = pixels * PLANES * (1.0 + tiles.waiting_area(&shape) / area);
                (Forecast::new(samples, 1, tile, growth), runs * total / tile, pictures + joined)
            }
        })
    }
}
