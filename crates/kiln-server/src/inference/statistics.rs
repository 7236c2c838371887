//! What was drawn, by model.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Finished;

/// What was drawn with one model.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Count {
    /// When a request was answered last, in milliseconds since 1970.
    pub(crate) last: u64,
    /// Pictures.
    pub(crate) pictures: u64,
    pub(crate) success: Span,
    pub(crate) failure: Span,
    pub(crate) queue: Span,
    pub(crate) start: Span,
    pub(crate) steps: Span,
    pub(crate) decode: Span,
}

/// How often something took place, and how long all of it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) count: u64,
    pub(crate) time: Duration,
}

impl Span {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time = self.time.saturating_add(time);
    }
}

/// Counts by model.
#[derive(Debug, Default)]
pub(crate) struct Statistics(Mutex<BTreeMap<String, Count>>);

impl Statistics {
    pub(crate) fn count(&self, model: &str) -> Count {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(model).cloned().unwrap_or_default()
    }

    /// Counts a request that took so long, and what came of it.
    pub(crate) fn add(&self, model: &str, time: Duration, drawn: Option<&Finished>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(model.to_owned()).or_default();
        count.last = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let Some(drawn) = drawn else {
            return count.failure.add(time);
        };
        let timings = drawn.timings;
        count.pictures += drawn.images.len() as u64;
        count.success.add(time);
        count.queue.add(time.saturating_sub(timings.start + timings.steps + timings.decode));
        count.start.add(timings.start);
        count.steps.add(timings.steps);
        count.decode.add(timings.decode);
    }
}
