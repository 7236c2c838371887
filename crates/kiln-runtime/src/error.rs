mod kind;

use std::path::{Path, PathBuf};

use kiln_bundle::{BundleError, ComponentName};
use kiln_engine::EngineError;
use kiln_lora::LoraError;
use kiln_native::Error as NativeError;

pub use kind::ErrorKind;

use crate::image::ImageError;
use crate::scheduler::SchedulerError;
use crate::tokenizer::TokenizerError;

/// Why a pipeline could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request asks for something impossible.
    #[error("{key}: {reason}")]
    Request {
        /// The parameter.
        key: &'static str,
        /// The offending value and what is accepted.
        reason: String,
    },
    /// A callback uses the pipeline whose run it is part of.
    #[error("a callback cannot use the pipeline that calls it")]
    Recursion,
    /// A thread panicked while it had the pipeline.
    #[error("an earlier fault broke this pipeline: open another one")]
    Broken,
    /// The progress callback stopped the run.
    #[error("cancelled after step {step} of {steps}")]
    Cancelled {
        /// Steps that were finished.
        step: usize,
        /// Steps that were asked for.
        steps: usize,
    },
    /// No way to spend memory is predicted to take so little.
    #[error(
        "memory budget: {budget} bytes are too few: the least that this request is predicted to take is {smallest}"
    )]
    Budget {
        /// The budget in bytes.
        budget: u64,
        /// Bytes of the way that takes least.
        smallest: u64,
    },
    /// The computation left the range of numbers.
    #[error("latents are not finite after step {step}")]
    NotFinite {
        /// The step, from 1.
        step: usize,
    },
    /// A component made NaN or infinity of finite numbers, with finite weights.
    #[error("{component}: makes numbers that are not finite, computing in {precision}")]
    Overflow {
        /// The component.
        component: ComponentName,
        /// What it computes in, as the manifest says.
        precision: String,
    },
    /// Weights hold NaN or infinity.
    #[error("{path}: {reason}", path = path.display())]
    Weights {
        /// The bundle's file.
        path: PathBuf,
        /// Which of them.
        reason: String,
    },
    /// A picture to compare others with is of one colour.
    #[error("the picture is of one colour")]
    FlatPicture,
    /// An engine answered with something that the pipeline does not know.
    #[error("{component}: {reason}")]
    Component {
        /// The component.
        component: ComponentName,
        /// What is wrong.
        reason: String,
    },
    /// Two arrays do not go together, which the pipeline's own checks should have found.
    #[error("shapes: {0}")]
    Shapes(String),
    /// Nobody knows the architecture that a bundle is of.
    #[error("{path}: is of architecture '{name}', which is not among those of this program", path = path.display())]
    Architecture {
        /// The bundle.
        path: PathBuf,
        /// The architecture.
        name: String,
    },
    /// The scheduler's configuration is not supported.
    #[error("{path}: {source}", path = path.display())]
    SchedulerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SchedulerError,
    },
    /// The scheduler cannot do what is asked.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// A file of learned words cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Embedding {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What may help.
        hint: Option<String>,
    },
    /// A bundle's reference cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Reference {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The bundle's engines do not run here.
    #[error("{path}: its engines are for {target}: {reason}", path = path.display())]
    Target {
        /// The bundle.
        path: PathBuf,
        /// What they were built for.
        target: kiln_bundle::Target,
        /// Why they do not run.
        reason: String,
    },
    /// A ControlNet does not fit the pipeline.
    #[error("{path}: {reason}", path = path.display())]
    ControlNet {
        /// The ControlNet's bundle.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A LoRA does not fit the pipeline.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// An engine cannot be loaded or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The tokenizer cannot be loaded or failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A picture cannot be made or written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A native library is not on this machine.
    #[error("{0} is not installed; kiln runtime install {name} fetches it", name = .0.name())]
    NotInstalled(kiln_native::Library),
    /// What runs engines was left out when the program was built.
    #[error("{what} is not in this program, which was built without the feature '{feature}' of kiln-runtime")]
    Feature {
        /// What is missing.
        what: &'static str,
        /// The feature that brings it.
        feature: &'static str,
    },
    /// A native library that was asked for cannot be used.
    #[error(transparent)]
    Native(#[from] NativeError),
}

#[cfg(feature = "cuda")]
impl From<kiln_cuda::CudaError> for Error {
    fn from(error: kiln_cuda::CudaError) -> Error {
        Error::Engine(error.into())
    }
}

/// The error of a request that asks for something impossible.
pub(crate) fn refuse<T>(key: &'static str, reason: String) -> Result<T, Error> {
    Err(Error::Request { key, reason })
}

impl Error {
    /// Whether a computation left the range of numbers.
    pub fn is_overflow(&self) -> bool {
        matches!(self, Error::NotFinite { .. } | Error::Overflow { .. })
    }

    pub(crate) fn embedding(path: &Path, reason: String) -> Error {
        Error::Embedding { path: path.into(), reason, hint: None }
    }

    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Error {
        BundleError::io(path, error).into()
    }
}
