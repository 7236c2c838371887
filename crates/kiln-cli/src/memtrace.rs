//! Resident memory over time.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kiln_runtime::process_memory;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_millis(10);

/// Samples this process's resident memory until it is finished.
pub(crate) struct MemoryTrace {
    start: Instant,
    samples: Arc<Mutex<Vec<(f64, u64)>>>,
    phases: Vec<(f64, String)>,
    stop: Arc<AtomicBool>,
    sampler: Option<JoinHandle<()>>,
}

impl MemoryTrace {
    pub(crate) fn start() -> MemoryTrace {
        let start = Instant::now();
        let (samples, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (taken, ends) = (samples.clone(), stop.clone());
        let sampler = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                if let Some(bytes) = process_memory::resident() {
                    let sample = (start.elapsed().as_secs_f64(), bytes);
                    taken.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                }
                thread::sleep(INTERVAL);
            }
        });
        MemoryTrace { start, samples, phases: Vec::new(), stop, sampler: Some(sampler) }
    }

    /// Notes what begins now.
    pub(crate) fn phase(&mut self, name: impl Into<String>) {
        let name = name.into();
        if self.phases.last().is_none_or(|(_, last)| *last != name) {
            self.phases.push((self.start.elapsed().as_secs_f64(), name));
        }
    }

    /// Writes samples and phases as JSON.
    pub(crate) fn finish(mut self, file: &Path) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            // A sampler has nothing to say that a panic could hide.
            let _ = sampler.join();
        }
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let report: Value = json!({
            "samples": *samples,
            "phases": self.phases,
            "peak_bytes": process_memory::peak(),
        });
        kiln_bundle::fs::write_atomic(file, report.to_string().as_bytes()).map_err(Failure::writing)
    }
}
