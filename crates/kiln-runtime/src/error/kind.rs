use kiln_engine::EngineErrorKind;
pub use kiln_types::ErrorKind;

use super::Error;
use crate::image::ImageError;
use crate::scheduler::SchedulerError;

impl Error {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Request { .. } | Error::Scheduler(_) | Error::Recursion => ErrorKind::Request,
            Error::Cancelled { .. } => ErrorKind::Cancelled,
            Error::Budget { .. } => ErrorKind::Memory,
            Error::Broken
            | Error::NotFinite { .. }
            | Error::Overflow { .. }
            | Error::FlatPicture
            | Error::Component { .. }
            | Error::Shapes(_) => ErrorKind::Unexpected,
            Error::Architecture { .. }
            | Error::SchedulerFile { .. }
            | Error::Embedding { .. }
            | Error::Reference { .. }
            | Error::Weights { .. }
            | Error::Target { .. }
            | Error::ControlNet { .. }
            | Error::Lora(_)
            | Error::Tokenizer(_) => ErrorKind::Input,
            Error::Bundle(error) => error.kind(),
            Error::Engine(error) => error.kind().into(),
            Error::Image(ImageError::Write { .. }) => ErrorKind::Files,
            Error::Image(_) => ErrorKind::Input,
            Error::NotInstalled(_) | Error::Feature { .. } => ErrorKind::Device,
            Error::Native(error) => error.kind().into(),
        }
    }

    /// What may help, where the library knows: one line.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::Native(error) => error.hint(),
            Error::Lora(error) => error.hint(),
            Error::Embedding { hint, .. } => hint.as_deref(),
            Error::SchedulerFile { source: SchedulerError::Class { .. }, .. } => {
                Some("kiln generate --scheduler draws with another one, and with the settings that both have")
            }
            Error::Weights { .. } => {
                Some("the model's file is damaged or was saved that way; get it again, or another one")
            }
            Error::Overflow { precision, .. } if precision != "f32" => Some(
                "a bundle whose component computes in f32 does not overflow there; see precision in specifications",
            ),
            Error::Overflow { .. } | Error::NotFinite { .. } => {
                Some("a large guidance scale, or a large weight of a LoRA or ControlNet, does this")
            }
            Error::Engine(error) => match error.kind() {
                EngineErrorKind::Incompatible => Some("compile the model for this machine's devices"),
                EngineErrorKind::OutOfMemory => Some("offload and tiled decoding take less memory"),
                _ => None,
            },
            _ => None,
        }
    }
}
