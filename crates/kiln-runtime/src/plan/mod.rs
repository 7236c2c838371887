//! What a request will take under each way to spend memory, before it runs.

mod forecast;

use crate::{Error, MemoryOptions, Role};
pub(crate) use forecast::Forecast;

/// Ways to spend memory on one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// From the one that holds most to the one that holds least; what is computed in tiles comes after what is not.
    pub choices: Vec<Choice>,
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

impl Plan {
    /// The fastest choice of at most so many bytes; of several that are about equally fast the first.
    pub fn within(&self, budget: u64) -> Result<&Choice, Error> {
        let fits = || self.choices.iter().filter(|choice| choice.peak_bytes <= budget);
        let fastest = fits().map(|choice| choice.seconds).fold(f64::INFINITY, f64::min);
        let smallest = self.choices.iter().map(|choice| choice.peak_bytes).min().unwrap_or(0);
        fits().find(|choice| choice.seconds <= fastest * SAME_SPEED).ok_or(Error::Budget { budget, smallest })
    }
}
