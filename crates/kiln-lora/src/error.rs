use std::fmt;
use std::path::{Path, PathBuf};

use kiln_bundle::TensorFileError;

/// Why a LoRA cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}", path = path.display())]
pub struct LoraError {
    path: PathBuf,
    reason: String,
    hint: Option<String>,
}

impl LoraError {
    /// An error about a file: what is wrong with it.
    pub fn new(path: &Path, reason: impl fmt::Display) -> LoraError {
        LoraError { path: path.into(), reason: reason.to_string(), hint: None }
    }

    /// A path that leads to nothing.
    pub(crate) fn absent(path: &Path) -> LoraError {
        LoraError { hint: kiln_bundle::absent::hint(path), ..LoraError::new(path, "no such file or folder") }
    }

    pub(crate) fn with_hint(self, hint: Option<&str>) -> LoraError {
        LoraError { hint: hint.map(Into::into), ..self }
    }

    /// What may help.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl From<TensorFileError> for LoraError {
    fn from(error: TensorFileError) -> LoraError {
        match error {
            TensorFileError::Io { path, error } => LoraError::new(&path, error),
            TensorFileError::Content { path, reason } => LoraError::new(&path, reason),
        }
    }
}
