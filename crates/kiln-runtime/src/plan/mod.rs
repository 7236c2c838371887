//! What a request will take under each way to spend memory, before it runs.

mod forecast;

use crate::{Error, MemoryOptions, Offload, Role};
pub(crate) use forecast::Forecast;

/// Ways to spend memory on one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// From the one that holds most to the one that holds least; what is computed in tiles comes after what is not.
    pub choices: Vec<Choice>,
    /// Bytes of the UNet's weights.
    pub unet_bytes: u64,
    /// Bytes that the process holds for each byte of weights that stays loaded: a little more than one.
    pub held_per_byte: f64,
}

/// One way to spend memory, and what it is predicted to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The options.
    pub memory: MemoryOptions,
    /// Most bytes that the process will hold.
    pub peak_bytes: u64,
    /// The component that runs when it does.
    pub peak_role: Role,
    /// Seconds, where everything is loaded that the options let stay.
    pub seconds: f64,
}

/// Predictions that differ by less are taken for equally fast.
const SAME_SPEED: f64 = 1.05;

/// Share of what is left of a budget that is given to segments which stay loaded.
const KEPT_SHARE: f64 = 0.9;

/// What is kept is a whole number of these.
const MEBIBYTE: u64 = 1 << 20;

impl Plan {
    /// The fastest choice of at most so many bytes; of several that are about equally fast the first.
    ///
    /// Under sequential offload, as many segments stay loaded as the rest of the budget holds.
    pub fn within(&self, budget: u64) -> Result<Choice, Error> {
        let fits = || self.choices.iter().filter(|choice| choice.peak_bytes <= budget);
        let fastest = fits().map(|choice| choice.seconds).fold(f64::INFINITY, f64::min);
        let smallest = self.choices.iter().map(|choice| choice.peak_bytes).min().unwrap_or(0);
        let mut choice = *fits()
            .find(|choice| choice.seconds <= fastest * SAME_SPEED)
            .ok_or(Error::Budget { budget, smallest })?;
        if choice.memory.offload == Offload::Sequential {
            let left = (budget - choice.peak_bytes) as f64 * KEPT_SHARE / self.held_per_byte;
            choice.memory.keep_bytes = (left as u64).min(self.unet_bytes) & !(MEBIBYTE - 1);
            choice.peak_bytes += (choice.memory.keep_bytes as f64 * self.held_per_byte) as u64;
        }
        Ok(choice)
    }
}
