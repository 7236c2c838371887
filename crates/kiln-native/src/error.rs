use std::fmt;
use std::path::Path;

/// What kind of thing went wrong with a native library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An environment variable names something that is not a usable library.
    NotALibrary,
    /// There is no wheel for this platform.
    Platform,
    /// No cache folder is known or it cannot be written.
    Cache,
    /// pip is absent or could not fetch the wheel.
    Fetch,
    /// The wheel is not the pinned one.
    Wheel,
}

impl From<ErrorKind> for kiln_types::ErrorKind {
    fn from(kind: ErrorKind) -> kiln_types::ErrorKind {
        match kind {
            ErrorKind::Cache => kiln_types::ErrorKind::Files,
            ErrorKind::NotALibrary | ErrorKind::Platform | ErrorKind::Fetch | ErrorKind::Wheel => {
                kiln_types::ErrorKind::Device
            }
        }
    }
}

/// Why a library could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    subject: String,
    reason: String,
    hint: Option<String>,
}

impl Error {
    pub(crate) const MOVE_CACHE: &str = "set KILN_CACHE_DIR to a folder that kiln may write";

    pub(crate) fn new(kind: ErrorKind, subject: impl Into<String>, reason: impl Into<String>) -> Error {
        Error { kind, subject: subject.into(), reason: reason.into(), hint: None }
    }

    #[cfg(feature = "install")]
    pub(crate) fn at(kind: ErrorKind, path: &Path, reason: impl Into<String>) -> Error {
        Error::new(kind, path.display().to_string(), reason)
    }

    #[cfg(feature = "install")]
    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Error {
        Error::at(ErrorKind::Cache, path, io_reason(error)).with_hint(Error::MOVE_CACHE)
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What may help.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.reason)
    }
}

/// A path that a variable named, for messages.
pub(crate) fn named_by(variable: &str, path: &Path) -> String {
    format!("{variable}={}", path.display())
}

/// What the operating system said, in kiln's words: lower case, without the number.
pub(crate) fn io_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
