//! Memory over time: what of the process is resident, or what it takes of a GPU.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kiln_bundle::BundleError;
use kiln_bundle::fs::{follow, write_atomic};
use kiln_runtime::{Gpu, process_memory};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_millis(10);

/// The same on a GPU, which does not remember how much was taken between them.
const GPU_INTERVAL: Duration = Duration::from_millis(1);

/// What was seen of a process's memory.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Recording {
    /// Seconds since the beginning, and bytes that were taken.
    pub(crate) samples: Vec<(f64, u64)>,
    /// Seconds since the beginning, and what began then.
    pub(crate) phases: Vec<(f64, String)>,
    /// Most bytes that were taken at any time: seen by the operating system, or the largest sample of a GPU.
    pub(crate) peak_bytes: u64,
}

impl Recording {
    /// Writes it as JSON; a link is followed.
    pub(crate) fn write(&self, file: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec(self).map_err(Failure::unexpected)?;
        let target = follow(file).map_err(|e| BundleError::io(file, &e));
        target.and_then(|target| write_atomic(&target, &text)).map_err(Failure::writing)
    }

    /// From the beginning to the last sample.
    pub(crate) fn seconds(&self) -> f64 {
        self.samples.last().map_or(0.0, |(seconds, _)| *seconds)
    }
}

/// Memory that is watched.
#[derive(Clone)]
enum Watched {
    Process,
    /// A GPU, and what was taken of it before.
    Gpu(Gpu, u64),
}

impl Watched {
    fn new(gpu: Option<Gpu>) -> Watched {
        match gpu {
            None => Watched::Process,
            Some(gpu) => {
                let before = gpu.taken_bytes().unwrap_or(0);
                Watched::Gpu(gpu, before)
            }
        }
    }

    fn bytes(&self) -> Option<u64> {
        match self {
            Watched::Process => process_memory::resident(),
            Watched::Gpu(gpu, before) => Some(gpu.taken_bytes()?.saturating_sub(*before)),
        }
    }

    fn interval(&self) -> Duration {
        match self {
            Watched::Process => INTERVAL,
            Watched::Gpu(..) => GPU_INTERVAL,
        }
    }
}

/// Samples memory until it is finished.
pub(crate) struct MemoryTrace {
    watched: Watched,
    start: Instant,
    samples: Arc<Mutex<Vec<(f64, u64)>>>,
    phases: Vec<(f64, String)>,
    stop: Arc<AtomicBool>,
    sampler: Option<JoinHandle<()>>,
}

impl MemoryTrace {
    /// Watches a GPU's memory or, without one, what of this process is resident.
    pub(crate) fn start(gpu: Option<Gpu>) -> MemoryTrace {
        let start = Instant::now();
        let watched = Watched::new(gpu);
        let seen = watched.clone();
        let (samples, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (taken, ends) = (samples.clone(), stop.clone());
        let sampler = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                if let Some(bytes) = seen.bytes() {
                    let sample = (start.elapsed().as_secs_f64(), bytes);
                    taken.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                }
                thread::sleep(seen.interval());
            }
        });
        MemoryTrace { watched, start, samples, phases: Vec::new(), stop, sampler: Some(sampler) }
    }

    /// Notes what begins now.
    pub(crate) fn phase(&mut self, name: impl Into<String>) {
        let name = name.into();
        if self.phases.last().is_none_or(|(_, last)| *last != name) {
            self.phases.push((self.start.elapsed().as_secs_f64(), name));
        }
    }

    /// What was seen so far.
    pub(crate) fn finish(mut self) -> Recording {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            // A sampler has nothing to say that a panic could hide.
            let _ = sampler.join();
        }
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let peak_bytes = match &self.watched {
            Watched::Process => process_memory::peak().unwrap_or(0),
            Watched::Gpu(..) => samples.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0),
        };
        Recording {
            samples: std::mem::take(&mut samples),
            phases: std::mem::take(&mut self.phases),
            peak_bytes,
        }
    }
}
