//! Errors as exceptions of `kiln.errors`.

use kiln_bundle::BundleError;
use kiln_compile::CompileError;
use kiln_runtime::{Error, ErrorKind};
use pyo3::prelude::*;

/// Why a call fails.
pub(crate) enum Failure {
    /// kiln says so.
    Kiln { kind: ErrorKind, message: String, hint: Option<String> },
    /// Python does: a callback raised, or a signal came.
    Python(PyErr),
}

impl Failure {
    pub(crate) fn request(message: impl ToString) -> Failure {
        Failure::new(ErrorKind::Request, message, None)
    }

    pub(crate) fn new(kind: ErrorKind, error: impl ToString, hint: Option<&str>) -> Failure {
        Failure::Kiln { kind, message: error.to_string(), hint: hint.map(str::to_owned) }
    }

    fn raise(self, py: Python<'_>) -> PyErr {
        let (kind, message, hint) = match self {
            Failure::Python(error) => return error,
            Failure::Kiln { kind, message, hint } => (kind, message, hint),
        };
        let name = match kind {
            ErrorKind::Request => "RequestError",
            ErrorKind::Input => "InputError",
            ErrorKind::Device => "DeviceError",
            ErrorKind::Files => "FilesError",
            ErrorKind::Memory => "BudgetError",
            ErrorKind::Cancelled => "Cancelled",
            _ => "KilnError",
        };
        let class = py.import("kiln.errors").and_then(|errors| errors.getattr(name));
        match class.and_then(|class| class.call1((message, hint))) {
            Ok(value) => PyErr::from_value(value),
            Err(error) => error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(error.kind(), &error, error.hint())
    }
}

impl From<BundleError> for Failure {
    fn from(error: BundleError) -> Failure {
        Error::from(error).into()
    }
}

impl From<CompileError> for Failure {
    fn from(error: CompileError) -> Failure {
        Failure::new(error.kind(), &error, error.hint())
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Failure {
        Failure::Python(error)
    }
}

/// Does work without the interpreter's lock.
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> PyResult<T> {
    py.detach(work).map_err(|failure| failure.raise(py))
}
