use std::fmt;
use std::path::{Path, PathBuf};

use kiln_types::ErrorKind;

/// What kind of thing went wrong in an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineErrorKind {
    /// The native library is absent or cannot be used.
    Library,
    /// A model file cannot be loaded.
    Load,
    /// An input has a wrong name, type or shape.
    Input,
    /// The engine failed while it ran.
    Run,
    /// The machine has no device to run it on, or one that its driver does not let it use.
    Device,
    /// The engine was built for other devices or by another release.
    Incompatible,
    /// The device has not enough memory left.
    OutOfMemory,
    /// The device stopped working; nothing in this process can use it any more.
    Lost,
}

impl From<EngineErrorKind> for ErrorKind {
    fn from(kind: EngineErrorKind) -> ErrorKind {
        match kind {
            EngineErrorKind::Library | EngineErrorKind::Device => ErrorKind::Device,
            EngineErrorKind::Load | EngineErrorKind::Incompatible => ErrorKind::Input,
            EngineErrorKind::Input => ErrorKind::Request,
            EngineErrorKind::OutOfMemory => ErrorKind::Memory,
            EngineErrorKind::Run | EngineErrorKind::Lost => ErrorKind::Unexpected,
        }
    }
}

/// An error of a backend or an engine.
#[derive(Debug, thiserror::Error)]
pub struct EngineError {
    kind: EngineErrorKind,
    path: Option<PathBuf>,
    reason: String,
}

impl EngineError {
    pub(crate) fn new(kind: EngineErrorKind, path: &Path, reason: impl fmt::Display) -> EngineError {
        EngineError { path: Some(path.into()), ..EngineError::unlocated(kind, reason) }
    }

    /// An error that is about no file, or whose reason names it.
    pub(crate) fn unlocated(kind: EngineErrorKind, reason: impl fmt::Display) -> EngineError {
        let reason = reason.to_string();
        let mut lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
        let reason = lines.next().unwrap_or_default().to_owned();
        EngineError { kind, path: None, reason }
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> EngineErrorKind {
        self.kind
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}: {}", path.display(), self.reason),
            None => f.write_str(&self.reason),
        }
    }
}
