//! What a request will take under each way to spend memory, before it runs.

mod forecast;

use crate::{ComponentName, Error, MemoryOptions, Offload};
pub(crate) use forecast::{Forecast, Growth, Rows};

/// Ways to spend memory on one request.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct MemoryPlan {
    /// From the one that holds most to the one that holds least; what is computed in tiles comes after what is not.
    pub choices: Vec<MemoryChoice>,
    /// Bytes of the weights of the denoiser's segments, in the order in which they run.
    pub denoiser_segments: Vec<u64>,
    /// Share by which predictions may be off, which has to fit into a budget too.
    pub margin: f64,
}

/// One way to spend memory, and what it is predicted to take.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct MemoryChoice {
    /// The options.
    pub memory: MemoryOptions,
    /// Most bytes that the process will hold.
    pub peak_bytes: u64,
    /// Most bytes that it will hold while the denoiser runs.
    pub denoiser_bytes: u64,
    /// The component that runs when it holds most.
    pub peak_component: ComponentName,
    /// Seconds, where everything is loaded that the options let stay.
    pub seconds: f64,
}

/// Predictions that differ by less are taken for equally fast.
const SAME_SPEED: f64 = 1.05;

/// Bytes that a loaded segment holds beside its weights, at most: its graph, and what its library needs for one.
const BESIDE_WEIGHTS: u64 = 384 << 10;

/// Share by which predictions may be off for sizes like those that were measured.
pub(crate) const MARGIN: f64 = 0.05;

/// The same for sizes that are larger.
pub(crate) const FAR_MARGIN: f64 = 0.15;

/// How much slower a choice may be that computes nothing in tiles, which change the picture.
const FOR_THE_SAME_PICTURE: f64 = 1.25;

impl MemoryPlan {
    /// The fastest choice that fits into so many bytes, with a margin for what predictions are off; of several that are
    /// about equally fast the first. Tiles are chosen where nothing else fits that is not much slower.
    ///
    /// Under sequential offload, as many segments stay loaded as the rest of the budget holds.
    pub fn within(&self, budget: u64) -> Result<MemoryChoice, Error> {
        let usable = self.usable(budget);
        let fits = || self.choices.iter().filter(|choice| choice.peak_bytes <= usable);
        let untiled = || fits().filter(|choice| choice.memory.vae_tiling.is_none());
        let fastest = |choices: &mut dyn Iterator<Item = &MemoryChoice>| {
            choices.map(|choice| choice.seconds).fold(f64::INFINITY, f64::min)
        };
        let (best, best_untiled) = (fastest(&mut fits()), fastest(&mut untiled()));
        let chosen = match best_untiled <= best * FOR_THE_SAME_PICTURE {
            true => untiled().find(|choice| choice.seconds <= best_untiled * SAME_SPEED),
            false => fits().find(|choice| choice.seconds <= best * SAME_SPEED),
        };
        let mut choice = *chosen.ok_or_else(|| Error::Budget { budget, smallest: self.smallest_budget() })?;
        if choice.memory.offload == Offload::Sequential {
            let (keep_bytes, held_bytes) = self.kept_within(usable - choice.peak_bytes);
            choice.memory.keep_bytes = keep_bytes;
            // Other components run when these segments have left.
            choice.denoiser_bytes += held_bytes;
            choice.peak_bytes = choice.peak_bytes.max(choice.denoiser_bytes);
        }
        Ok(choice)
    }

    /// What is left of a budget in bytes when the margin for what predictions are off is taken away: a choice fits whose
    /// [`peak_bytes`](MemoryChoice::peak_bytes) are no more.
    pub fn usable(&self, budget: u64) -> u64 {
        (budget as f64 / (1.0 + self.margin)) as u64
    }

    fn smallest_budget(&self) -> u64 {
        let smallest = self.choices.iter().map(|choice| choice.peak_bytes).min().unwrap_or(0);
        (smallest as f64 * (1.0 + self.margin)).ceil() as u64
    }

    /// Bytes of weights of the first segments, as many as so many bytes hold, and what these segments hold.
    fn kept_within(&self, bytes: u64) -> (u64, u64) {
        let sums = self.denoiser_segments.iter().scan((0, 0), |(kept, held), segment| {
            *kept += segment;
            *held += segment + BESIDE_WEIGHTS;
            Some((*kept, *held))
        });
        sums.take_while(|(_, held)| *held <= bytes).last().unwrap_or_default()
    }
}
