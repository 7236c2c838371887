use std::path::{Path, PathBuf};

use kiln_bundle::read::ReadError;
use kiln_bundle::{BundleError, ComponentName, ErrorKind, TensorFileError};
use kiln_graph::TraceError;
use kiln_lora::LoraError;

/// Why a checkpoint could not be traced or compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// Something in the checkpoint is missing, malformed or not supported.
    #[error("{path}: {reason}", path = path.display())]
    Checkpoint {
        /// File or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What may help.
        hint: Option<String>,
    },
    /// An option does not fit the checkpoint.
    #[error("{path}: {reason}", path = path.display())]
    Option {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        reason: String,
        /// What would fit.
        hint: String,
    },
    /// The network cannot be traced or emitted.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// What builds engines cannot be used.
    #[error("{0}")]
    Toolkit(String),
    /// What was traced already can become GPU engines and nothing else.
    #[error("a bundle of ONNX cannot become one for {0}")]
    FromOnnx(kiln_bundle::Target),
    /// A specification does not parse or contradicts itself.
    #[error("{path}: {reason}", path = path.display())]
    Specification {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column where there are such.
        reason: String,
    },
    /// An engine cannot be built.
    #[error("{component}: {reason}")]
    Build {
        /// The component.
        component: ComponentName,
        /// What the builder says.
        reason: String,
        /// What may help.
        hint: Option<&'static str>,
    },
    /// Attentions of an engine would be several kernels with the matrix of all scores between them.
    #[error("{model}: {n} of its attentions would not be fused")]
    SlowAttention {
        /// The model.
        model: String,
        /// How many.
        n: u64,
    },
    /// A LoRA cannot be used with the checkpoint.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// A file or bundle cannot be read or written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl CompileError {
    pub(crate) fn checkpoint(path: &Path, reason: impl Into<String>) -> CompileError {
        CompileError::Checkpoint { path: path.into(), reason: reason.into(), hint: None }
    }

    /// A path that leads to nothing; `hint` helps where the path itself tells nothing.
    pub(crate) fn absent(path: &Path, expected: &str, hint: &str) -> CompileError {
        let is_file =
            path.extension().is_some_and(|e| ["safetensors", "ckpt", "pt", "bin"].iter().any(|s| e == *s));
        let reason = format!("no such {}", if is_file { "file" } else { expected });
        let hint = kiln_bundle::absent::hint(path).unwrap_or_else(|| hint.into());
        CompileError::checkpoint(path, reason).with_hint(hint)
    }

    pub(crate) fn with_hint(self, text: impl Into<String>) -> CompileError {
        match self {
            CompileError::Checkpoint { path, reason, .. } => {
                CompileError::Checkpoint { path, reason, hint: Some(text.into()) }
            }
            other => other,
        }
    }

    pub(crate) fn io(path: &Path, error: &std::io::Error) -> CompileError {
        BundleError::io(path, error).into()
    }

    /// Why a file of a checkpoint cannot be read.
    pub(crate) fn reading(path: &Path, error: ReadError) -> CompileError {
        error.map(|e| CompileError::io(path, e), |reason| CompileError::checkpoint(path, reason))
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            CompileError::Bundle(error) => error.kind(),
            CompileError::Option { .. } => ErrorKind::Request,
            CompileError::Toolkit(_) => ErrorKind::Device,
            CompileError::Build { .. } => ErrorKind::Unexpected,
            _ => ErrorKind::Input,
        }
    }

    /// What may help.
    pub fn hint(&self) -> Option<&str> {
        match self {
            CompileError::Checkpoint { hint, .. } => hint.as_deref(),
            CompileError::Option { hint, .. } => Some(hint),
            CompileError::Build { hint, .. } => *hint,
            CompileError::Lora(error) => error.hint(),
            CompileError::SlowAttention { .. } => Some("--allow-slow-attention accepts that"),
            _ => None,
        }
    }
}

impl From<TensorFileError> for CompileError {
    fn from(error: TensorFileError) -> CompileError {
        match error {
            TensorFileError::Io { path, error } => CompileError::io(&path, &error),
            TensorFileError::Content { path, reason } => CompileError::checkpoint(&path, reason),
        }
    }
}

/// The first few of some names, and how many there are beyond.
pub(crate) fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
