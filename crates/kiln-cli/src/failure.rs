//! Errors as a user reads them, and the exit codes that they lead to.

use std::path::Path;
use std::process::ExitCode;

use kiln_bundle::BundleError;
use kiln_compile::CompileError;
use kiln_fleet::{FleetError, StartError};
use kiln_lora::LoraError;
use kiln_runtime::{EngineError, EngineErrorKind, Error as RuntimeError, ErrorKind, NativeError};
use kiln_server::ServerError;
use kiln_server::config::ConfigError;
use serde::{Deserialize, Serialize};

use crate::output;

/// Why the program ends without success. The number is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub(crate) enum Exit {
    Unexpected = 1,
    Usage = 2,
    Input = 3,
    Device = 4,
    Files = 5,
    Differs = 6,
    Memory = 7,
    Queue = 8,
}

impl Exit {
    pub(crate) const ALL: [Exit; 8] = [
        Exit::Unexpected,
        Exit::Usage,
        Exit::Input,
        Exit::Device,
        Exit::Files,
        Exit::Differs,
        Exit::Memory,
        Exit::Queue,
    ];

    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Exit::Unexpected => "an engine failed, or something unexpected happened",
            Exit::Usage => "the command line or a request's parameter is wrong",
            Exit::Input => "a checkpoint, bundle or model file is missing, malformed or not supported",
            Exit::Device => "a native library, driver or device cannot be found, fetched or used",
            Exit::Files => "a file cannot be read or written",
            Exit::Differs => "what was compared or verified differs more than allowed",
            Exit::Queue => "a fleet's queue cannot be reached or used",
            Exit::Memory => "what was asked for does not fit into the memory budget or a GPU",
        }
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Exit {
        match kind {
            ErrorKind::Request => Exit::Usage,
            ErrorKind::Input => Exit::Input,
            ErrorKind::Device => Exit::Device,
            ErrorKind::Files => Exit::Files,
            ErrorKind::Memory => Exit::Memory,
            _ => Exit::Unexpected,
        }
    }
}

/// A message, what may help, and how the program ends.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    exit: Exit,
}

impl Failure {
    fn new(exit: impl Into<Exit>, message: impl ToString) -> Failure {
        Failure { message: message.to_string(), hint: None, exit: exit.into() }
    }

    pub(crate) fn unexpected(message: impl ToString) -> Failure {
        Failure::new(Exit::Unexpected, message)
    }

    pub(crate) fn usage(message: impl ToString) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    pub(crate) fn input(path: &Path, reason: &str) -> Failure {
        Failure::new(Exit::Input, format!("{}: {reason}", path.display()))
    }

    /// What was asked for takes more memory than there is.
    pub(crate) fn memory(message: impl ToString) -> Failure {
        Failure::new(Exit::Memory, message)
    }

    /// What was compared is not as close as was asked for.
    pub(crate) fn differs(message: impl ToString) -> Failure {
        Failure::new(Exit::Differs, message)
    }

    /// An output cannot be written, whatever the operating system's reason.
    pub(crate) fn writing(error: BundleError) -> Failure {
        match error {
            BundleError::Io { .. } => Failure { exit: Exit::Files, ..error.into() },
            other => other.into(),
        }
    }

    /// An error of the engine cache in `root`, with a hint that it can be moved where it cannot be written.
    pub(crate) fn of_cache(error: BundleError, root: &Path) -> Failure {
        use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
        let kind = match &error {
            BundleError::Io { path, kind, .. } if path.starts_with(root) => *kind,
            _ => return error.into(),
        };
        let failure = Failure::writing(error);
        match kind {
            PermissionDenied | ReadOnlyFilesystem => failure.with_hint(
                "--engine-cache or KILN_ENGINE_CACHE moves the engines to a folder that can be written",
            ),
            StorageFull => failure.with_hint("free some space, or move the engines with --engine-cache"),
            _ => failure,
        }
    }

    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }

    fn with_hints(self, hint: Option<&str>) -> Failure {
        match hint {
            Some(hint) => self.with_hint(hint),
            None => self,
        }
    }

    /// The same about something that was being done.
    pub(crate) fn while_doing(self, what: &str) -> Failure {
        Failure { message: format!("{what}: {}", self.message), ..self }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn report(&self) -> ExitCode {
        output::say(&format!("error: {}", self.message));
        if let Some(hint) = &self.hint {
            output::say("");
            output::say(&format!("hint: {hint}"));
        }
        ExitCode::from(self.exit as u8)
    }
}

impl From<CompileError> for Failure {
    fn from(error: CompileError) -> Failure {
        match error {
            CompileError::Bundle(error) => error.into(),
            error => Failure::new(error.kind(), &error).with_hints(error.hint()),
        }
    }
}

impl From<BundleError> for Failure {
    fn from(error: BundleError) -> Failure {
        let hint = match &error {
            BundleError::Io { kind: std::io::ErrorKind::StorageFull, .. } => Some("free some space"),
            BundleError::Occupied { .. } => Some("--out takes a folder that does not exist or is empty"),
            BundleError::Size { .. } | BundleError::Digest { .. } => {
                Some("delete the bundle and compile it again")
            }
            BundleError::Format { .. } => Some("kiln compile makes it again from its checkpoint"),
            _ => None,
        };
        Failure::new(error.kind(), &error).with_hints(hint)
    }
}

impl From<LoraError> for Failure {
    fn from(error: LoraError) -> Failure {
        RuntimeError::from(error).into()
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        let hint = match error.kind() {
            EngineErrorKind::Library => {
                Some("kiln runtime install fetches the right libraries; --backend rten needs none")
            }
            EngineErrorKind::Device => Some("kiln devices shows what runs where"),
            EngineErrorKind::Incompatible => {
                Some("kiln compile --target tensorrt-rtx builds for this machine's devices")
            }
            EngineErrorKind::OutOfMemory => {
                Some("--offload model, --offload sequential and --vae-tile take less")
            }
            _ => None,
        };
        Failure::new(ErrorKind::from(error.kind()), &error).with_hints(hint)
    }
}

impl From<NativeError> for Failure {
    fn from(error: NativeError) -> Failure {
        RuntimeError::from(error).into()
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Failure {
        match error {
            RuntimeError::Bundle(error) => error.into(),
            RuntimeError::Engine(error) => error.into(),
            RuntimeError::Budget { budget, smallest } => {
                let hint = format!(
                    "--memory-budget {}MiB is the smallest that fits; kiln plan shows what takes how much",
                    smallest.div_ceil(1 << 20)
                );
                let [budget, smallest] = [budget, smallest].map(output::bytes);
                let message =
                    format!("memory budget: {budget} are too few: this request takes at least {smallest}");
                Failure::new(Exit::Memory, message).with_hint(hint)
            }
            error => Failure::new(error.kind(), &error).with_hints(hint(&error)),
        }
    }
}

/// What may help, in the words of the command line where it has some.
fn hint(error: &RuntimeError) -> Option<&str> {
    match error {
        RuntimeError::Request { key: "device", .. } => {
            Some("kiln compile makes engines for another device with --target cpu, cuda or tensorrt-rtx")
        }
        RuntimeError::Request { key: "backend", .. } => {
            Some("--backend auto takes what engines are for; --device cpu runs a checkpoint on the processor")
        }
        RuntimeError::Overflow { precision, .. } if precision != "f32" => Some(
            "kiln compile --precision f32 computes everything in f32, a specification's precision: {components: {NAME: f32}} one component",
        ),
        RuntimeError::Weights { .. } => {
            Some("the checkpoint's own file is damaged or was saved that way: get it again, or use another one")
        }
        error => error.hint(),
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Failure {
        let message = error.to_string();
        match error {
            ServerError::Listen { .. } => Failure::new(Exit::Files, message)
                .with_hint("--listen takes another address, such as 127.0.0.1:7861"),
            ServerError::Unguarded(_) => Failure::usage(message)
                .with_hint("--keys names a file of keys; --allow-strangers lets everybody in"),
            ServerError::Certificate { .. } | ServerError::Keys => Failure::new(Exit::Input, message),
            ServerError::Model { name, source } => Failure::from(*source).while_doing(&format!("model {name}")),
            ServerError::Store(_) => {
                Failure::new(Exit::Files, message).with_hint("--state takes another folder for jobs")
            }
            ServerError::Elsewhere(source) => match source.downcast::<FleetError>() {
                Ok(error) => (*error).into(),
                Err(other) => Failure::unexpected(other),
            },
            ServerError::System(_) => Failure::unexpected(message),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Failure {
        match error {
            StartError::Fleet(error) => error.into(),
            StartError::Server(error) => error.into(),
        }
    }
}

impl From<FleetError> for Failure {
    fn from(error: FleetError) -> Failure {
        let hint = match &error {
            FleetError::Broker(_) => {
                Some("--nats names the server, which has to run with JetStream: nats-server -js")
            }
            _ => None,
        };
        let exit = match error {
            FleetError::Bundle(error) => return error.into(),
            FleetError::File { .. } => Exit::Files,
            FleetError::Unknown(_) => Exit::Usage,
            _ => Exit::Queue,
        };
        Failure::new(exit, &error).with_hints(hint)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::new(Exit::Input, error)
    }
}
