//! What went wrong with a job, as its owner may know it.

use std::fmt;

use kiln_runtime::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// Why a job has no pictures. Its message names no path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What kind of thing went wrong.
    pub kind: FaultKind,
    /// One line for whoever sent the request.
    pub message: String,
}

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The request cannot be done: the same one will fail again.
    Request,
    /// The model or a LoRA cannot be used.
    Model,
    /// There was not enough memory.
    Memory,
    /// The device is lost or does not work.
    Device,
    /// The process ended before the job did.
    Interrupted,
    /// Anything else.
    Internal,
}

impl Fault {
    /// A fault of a kind.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into() }
    }

    /// What may be told of an error of the runtime: the words of those about the request, the kind of all others.
    pub fn of(error: &Error) -> Fault {
        match error.kind() {
            ErrorKind::Request => Fault::new(FaultKind::Request, error.to_string()),
            ErrorKind::Memory => Fault::new(FaultKind::Memory, "the picture does not fit into memory"),
            ErrorKind::Input | ErrorKind::Files => {
                Fault::new(FaultKind::Model, "the model cannot be used; the server's log says why")
            }
            ErrorKind::Device => Fault::new(FaultKind::Device, "the device does not work"),
            _ => match error {
                Error::NotFinite { .. } | Error::Overflow { .. } => {
                    Fault::new(FaultKind::Internal, "the model made numbers that are not finite")
                }
                _ => Fault::unknown(),
            },
        }
    }

    /// What nobody but the log can explain.
    pub fn unknown() -> Fault {
        Fault::new(FaultKind::Internal, "the picture could not be drawn; the server's log says why")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A client's text as messages show it.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}
