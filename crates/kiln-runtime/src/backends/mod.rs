//! Devices, backends and the native libraries behind them.
//!
//! [`Backends`] is told what may be used and opens what runs the engines of a bundle:
//!
//! ```no_run
//! use kiln_runtime::{Backends, Bundle, Device, Libraries};
//!
//! let bundle = Bundle::open("engine-cache/shapes-cpu-0123456789abcdef")?;
//! let backends = Backends::new(Libraries::new().from_environment()).device(Device::Cpu).threads(Some(4));
//! let opened = backends.open_for(&bundle)?;
//! opened.notices.iter().for_each(|notice| eprintln!("{notice}"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What takes the place of something better is never silent: it comes with a [`Notice`].

mod device;
#[cfg(all(feature = "cuda", any(feature = "onnxruntime", feature = "tensorrt")))]
mod gpu;
#[cfg(not(all(feature = "cuda", any(feature = "onnxruntime", feature = "tensorrt"))))]
#[path = "no_gpu.rs"]
mod gpu;
mod host;
mod libraries;
mod notice;
mod place;
mod report;
mod runner;
mod target;

use std::fmt;
use std::sync::Arc;

use kiln_bundle::{Bundle, Target};
use kiln_engine::Backend;
use kiln_types::limits::MAX_THREADS;

use crate::Error;

pub use device::Device;
#[cfg(all(feature = "cuda", any(feature = "onnxruntime", feature = "tensorrt")))]
pub use gpu::DeviceCheck;
pub use gpu::Gpu;
pub use kiln_native::{Found, Library, Origin};
pub use libraries::Libraries;
pub use notice::Notice;
pub use place::Place;
pub use report::{DeviceReport, TargetReport};
pub use runner::Runner;
pub use target::library;

/// Opens what runs engines: on which device, with which backend, from which libraries.
#[derive(Clone, Debug)]
pub struct Backends {
    libraries: Libraries,
    device: Device,
    runner: Runner,
    threads: Option<usize>,
    records: bool,
}

/// A backend that was opened.
#[derive(Clone)]
#[non_exhaustive]
pub struct Opened {
    /// What runs the engines.
    pub backend: Arc<dyn Backend>,
    /// Where they run.
    pub place: Place,
    /// What is not as it was preferred to be.
    pub notices: Vec<Notice>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("backend", &self.backend.name())
            .field("place", &self.place)
            .field("notices", &self.notices)
            .finish()
    }
}

impl Backends {
    /// Any device and backend, with native libraries from there.
    pub fn new(libraries: Libraries) -> Backends {
        let (device, runner) = (Device::default(), Runner::default());
        Backends { libraries, device, runner, threads: None, records: true }
    }

    /// The device to run engines on; by default, the one that they are for.
    #[must_use]
    pub fn device(self, device: Device) -> Backends {
        Backends { device, ..self }
    }

    /// The backend to run them with; by default, the best one for their target.
    #[must_use]
    pub fn runner(self, runner: Runner) -> Backends {
        Backends { runner, ..self }
    }

    /// Threads per operator on the processor, from 1 to [`MAX_THREADS`]; by default, one per core, and never more, which
    /// a notice tells of.
    #[must_use]
    pub fn threads(self, threads: Option<usize>) -> Backends {
        Backends { threads, ..self }
    }

    /// Whether a GPU records runs as CUDA graphs and repeats them, which it does by default.
    #[must_use]
    pub fn recording(self, records: bool) -> Backends {
        Backends { records, ..self }
    }

    /// The same with native libraries from elsewhere.
    #[must_use]
    pub fn with_libraries(self, libraries: Libraries) -> Backends {
        Backends { libraries, ..self }
    }

    /// Where native libraries come from.
    pub fn libraries(&self) -> &Libraries {
        &self.libraries
    }

    /// Checks all that can be checked without opening a library.
    pub fn check(&self) -> Result<(), Error> {
        match self.threads.filter(|n| !(1..=MAX_THREADS).contains(n)) {
            Some(threads) => Err(Error::Request {
                key: "threads",
                reason: format!("{threads} is not a number from 1 to {MAX_THREADS}"),
            }),
            None => Ok(()),
        }
    }

    /// Opens what runs the engines of a target.
    ///
    /// Fails where the device or backend that was asked for does not run them, where the machine lacks the device or its
    /// driver is too old, and where a library is neither found nor fetched. On the processor, unless a backend or a library
    /// was asked for by name, the built-in backend takes over where ONNX Runtime cannot be had.
    pub fn open(&self, target: Target) -> Result<Opened, Error> {
        self.open_at(&self.place(target)?)
    }

    /// Opens what runs the engines of a bundle, like [`Backends::open`].
    pub fn open_for(&self, bundle: &Bundle) -> Result<Opened, Error> {
        self.open_at(&self.place_for(bundle)?)
    }

    /// Opens what runs engines in a place.
    pub fn open_at(&self, place: &Place) -> Result<Opened, Error> {
        self.check()?;
        let (backend, notices) = match place.gpu() {
            Some(gpu) => (gpu.open_backend(place.target(), &self.libraries, self.records)?, Vec::new()),
            None => host::open(self.runner, self.threads, &self.libraries)?,
        };
        let notices = place.notices().iter().cloned().chain(notices).collect();
        Ok(Opened { backend, place: place.clone(), notices })
    }
}
