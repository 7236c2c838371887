//! The environment variables that the program reads.

use kiln_native::env::{VARIABLES, Variable};

/// Folder for engines; read by the command line's parser.
pub(crate) const KILN_ENGINE_CACHE: Variable = Variable {
    name: "KILN_ENGINE_CACHE",
    meaning: "folder for engines (default: engine-cache/ in a checkout, else in KILN_CACHE_DIR)",
};

/// Largest size of the engine cache; read by the command line's parser.
pub(crate) const KILN_ENGINE_CACHE_LIMIT: Variable = Variable {
    name: "KILN_ENGINE_CACHE_LIMIT",
    meaning: "how large the engine cache may grow, as 20GiB (default: no limit)",
};

/// The variables of the server's flags; read by the command line's parser.
const KILN_SERVE: Variable = Variable {
    name: "KILN_SERVE_*",
    meaning: "flags of kiln serve, as KILN_SERVE_QUEUE for --queue; kiln serve --help names all",
};

/// The variables of the worker's flags; read by the command line's parser.
const KILN_WORKER: Variable = Variable { name: "KILN_WORKER_*", meaning: "flags of kiln worker, likewise" };

/// Where a fleet's queue is; read by the command line's parser.
const KILN_NATS: Variable =
    Variable { name: "KILN_NATS", meaning: "where a fleet's queue is, for kiln fleet, as --nats says it" };

/// The level from which messages are shown.
pub(crate) const KILN_LOG: Variable = Variable {
    name: "KILN_LOG",
    meaning: "which messages of TensorRT are shown: error, warn, info, debug, trace",
};

/// Read by the progress bars and by the command line's parser.
const NO_COLOR: Variable = Variable { name: "NO_COLOR", meaning: "no colours" };

/// All that a user may set.
pub(crate) fn all() -> impl Iterator<Item = Variable> {
    VARIABLES.into_iter().chain([
        KILN_ENGINE_CACHE,
        KILN_ENGINE_CACHE_LIMIT,
        KILN_SERVE,
        KILN_WORKER,
        KILN_NATS,
        KILN_LOG,
        NO_COLOR,
    ])
}

/// Makes the environment what the program and the libraries in it should read.
///
/// Must be called before any thread is started.
pub(crate) fn prepare() {
    silence_telemetry();
    forget_empty();
}

/// Tells ONNX Runtime, here and in child processes, not to record its use.
///
/// Its Linux wheels open a database in the home folder as the environment is created, before
/// `DisableTelemetryEvents` can be called. A value that the user has set stays.
fn silence_telemetry() {
    const NAME: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(NAME).is_none() {
        #[expect(unsafe_code, reason = "no other way reaches a library that reads the environment itself")]
        // SAFETY: `main` calls this first, so no other thread reads or writes the environment.
        unsafe {
            std::env::set_var(NAME, "1");
        }
    }
}

/// Removes kiln's variables that are empty, which count as unset.
fn forget_empty() {
    let is_own = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("KILN_");
    let empty = std::env::vars_os().filter(|(name, value)| is_own(name) && value.is_empty());
    for (name, _) in empty.collect::<Vec<_>>() {
        #[expect(unsafe_code, reason = "the command line's parser takes an empty variable for a value")]
        // SAFETY: `main` calls this first, so no other thread reads or writes the environment.
        unsafe {
            std::env::remove_var(name);
        }
    }
}
