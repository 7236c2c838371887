//! When a job will be done.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Share of the newest measurement.
const WEIGHT: f64 = 0.2;

/// How fast each model is, as it has been lately: cost per second while it was at work.
#[derive(Debug, Default)]
pub(crate) struct Speeds(Mutex<BTreeMap<String, f64>>);

impl Speeds {
    /// Takes note of work: what evaluations cost, and the time that they took.
    pub(crate) fn note(&self, model: &str, cost: f64, time: Duration) {
        let (speed, mut speeds) = (cost / time.as_secs_f64().max(1e-9), self.lock());
        match speeds.get_mut(model) {
            Some(known) => *known += WEIGHT * (speed - *known),
            None => drop(speeds.insert(model.into(), speed)),
        }
    }

    /// Time that so much of a model's work takes; unknown before its first.
    pub(crate) fn time(&self, model: &str, cost: f64) -> Option<Duration> {
        let speed = self.lock().get(model).copied().filter(|speed| *speed > 0.0)?;
        Duration::try_from_secs_f64(cost / speed).ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, f64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
