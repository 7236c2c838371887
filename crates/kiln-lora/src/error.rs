use std::fmt;
use std::path::{Path, PathBuf};

use kiln_bundle::TensorFileError;

/// Why a LoRA cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}", path = path.display())]
pub struct LoraError {
    path: PathBuf,
    reason: String,
}

impl LoraError {
    /// An error about a file: what is wrong with it.
    pub fn new(path: &Path, reason: impl fmt::Display) -> LoraError {
        LoraError { path: path.into(), reason: reason.to_string() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl From<TensorFileError> for LoraError {
    fn from(error: TensorFileError) -> LoraError {
        match error {
            TensorFileError::Io { path, error } => LoraError { path, reason: error.to_string() },
            TensorFileError::Content { path, reason } => LoraError { path, reason },
        }
    }
}
