//! Errors as a user reads them.

use std::path::Path;
use std::process::ExitCode;

use kiln_bundle::BundleError;
use kiln_compile::CompileError;
use kiln_engine::{EngineError, EngineErrorKind};
use kiln_lora::LoraError;
use kiln_native::{Error as NativeError, ErrorKind as NativeErrorKind};
use kiln_runtime::Error as RuntimeError;
use kiln_runtime::image::ImageError;

use crate::output;

/// A message, what may help, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

const UNEXPECTED: u8 = 1;
const USAGE: u8 = 2;
const INPUT: u8 = 3;
const LIBRARY: u8 = 4;
const FILES: u8 = 5;
const DIFFERS: u8 = 6;
const BUDGET: u8 = 7;

impl Failure {
    pub(crate) fn unexpected(message: String) -> Failure {
        Failure { message, hint: None, code: UNEXPECTED }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: None, code: USAGE }
    }

    pub(crate) fn input(path: &Path, reason: &str) -> Failure {
        Failure { message: format!("{}: {reason}", path.display()), hint: None, code: INPUT }
    }

    /// What was compared is not as close as was asked for.
    pub(crate) fn differs(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: None, code: DIFFERS }
    }

    /// An output can not be written, whatever the operating system's reason.
    pub(crate) fn writing(error: BundleError) -> Failure {
        match error {
            BundleError::Io { .. } => Failure { code: FILES, ..error.into() },
            other => other.into(),
        }
    }

    /// An error of the engine cache in `root`, with a hint that it can be moved where it can not be written.
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

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn report(&self) -> ExitCode {
        output::say(&format!("error: {}", self.message));
        if let Some(hint) = &self.hint {
            output::say(&format!("\nhint: {hint}"));
        }
        ExitCode::from(self.code)
    }
}

impl From<CompileError> for Failure {
    fn from(error: CompileError) -> Failure {
        let code = match error {
            CompileError::Bundle(error) => return error.into(),
            CompileError::Option { .. } => USAGE,
            CompileError::Toolkit(_) => LIBRARY,
            CompileError::Build { .. } => UNEXPECTED,
            _ => INPUT,
        };
        Failure { message: error.to_string(), hint: error.hint().map(str::to_owned), code }
    }
}

impl From<BundleError> for Failure {
    fn from(error: BundleError) -> Failure {
        use std::io::ErrorKind::{NotFound, StorageFull};
        let (code, hint) = match &error {
            BundleError::Io { kind: NotFound, .. } => (INPUT, None),
            BundleError::Io { kind: StorageFull, .. } => (FILES, Some("free some space")),
            BundleError::Io { .. } => (FILES, None),
            BundleError::Occupied { .. } => {
                (USAGE, Some("--out takes a folder that does not exist or is empty"))
            }
            BundleError::Size { .. } | BundleError::Digest { .. } => {
                (INPUT, Some("delete the bundle and compile it again"))
            }
            _ => (INPUT, None),
        };
        Failure { message: error.to_string(), hint: hint.map(str::to_owned), code }
    }
}

impl From<LoraError> for Failure {
    fn from(error: LoraError) -> Failure {
        Failure { message: error.to_string(), hint: None, code: INPUT }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        let (code, hint) = match error.kind() {
            EngineErrorKind::Library => {
                (LIBRARY, Some("kiln runtime install fetches the right libraries; --backend rten needs none"))
            }
            EngineErrorKind::Load => (INPUT, None),
            EngineErrorKind::Input => (USAGE, None),
            EngineErrorKind::Device => (LIBRARY, Some("kiln devices shows what runs where")),
            EngineErrorKind::Incompatible => {
                (INPUT, Some("kiln compile --target tensorrt-rtx builds for this machine's devices"))
            }
            EngineErrorKind::OutOfMemory => {
                (BUDGET, Some("--offload model, --offload sequential and --vae-tile take less"))
            }
            _ => (UNEXPECTED, None),
        };
        Failure { message: error.to_string(), hint: hint.map(str::to_owned), code }
    }
}

impl From<NativeError> for Failure {
    fn from(error: NativeError) -> Failure {
        let code = match error.kind() {
            NativeErrorKind::Cache => FILES,
            _ => LIBRARY,
        };
        Failure { message: error.to_string(), hint: error.hint().map(str::to_owned), code }
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Failure {
        match error {
            RuntimeError::Bundle(error) => error.into(),
            RuntimeError::Engine(error) => error.into(),
            RuntimeError::Native(error) => error.into(),
            RuntimeError::Image(error) => {
                let code = if matches!(error, ImageError::Write { .. }) { FILES } else { INPUT };
                Failure { message: error.to_string(), hint: None, code }
            }
            RuntimeError::Request { .. } | RuntimeError::Scheduler(_) => Failure::usage(error.to_string()),
            RuntimeError::Budget { budget, smallest } => {
                let hint = format!(
                    "--memory-budget {}MiB is the smallest that fits; kiln plan shows what takes how much",
                    smallest.div_ceil(1 << 20)
                );
                let [budget, smallest] = [budget, smallest].map(output::bytes);
                let message =
                    format!("memory budget: {budget} are too few: this request takes at least {smallest}");
                Failure { message, hint: Some(hint), code: BUDGET }
            }
            RuntimeError::Tokenizer(_)
            | RuntimeError::SchedulerFile { .. }
            | RuntimeError::Embedding { .. }
            | RuntimeError::Reference { .. }
            | RuntimeError::Lora(_)
            | RuntimeError::Target { .. }
            | RuntimeError::ControlNet { .. } => {
                Failure { message: error.to_string(), hint: None, code: INPUT }
            }
            other => Failure { message: other.to_string(), hint: None, code: UNEXPECTED },
        }
    }
}
