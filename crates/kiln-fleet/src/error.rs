//! What goes wrong between a process and its fleet.

use std::fmt::Display;

/// Why a fleet cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// The server of the queue does not answer, or answers with an error.
    #[error("{0}")]
    Broker(String),
    /// What is there cannot be used: the server is too old, or the fleet was made otherwise.
    #[error("{0}")]
    Refused(String),
    /// Pictures or bundles cannot be stored or read.
    #[error("{0}")]
    Storage(String),
    /// Nothing has this name.
    #[error("{0}")]
    Unknown(String),
    /// A file of this machine.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A bundle.
    #[error(transparent)]
    Bundle(#[from] kiln_bundle::BundleError),
}

impl FleetError {
    /// An error of the server while something is done.
    pub(crate) fn broker(doing: &str, error: impl Display) -> FleetError {
        FleetError::Broker(format!("{doing}: {error}"))
    }
}
