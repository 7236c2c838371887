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

/// Where the server listens; read by the command line's parser, like the three below.
pub(crate) const KILN_SERVE_LISTEN: Variable =
    Variable { name: "KILN_SERVE_LISTEN", meaning: "address and port of kiln serve (default: 127.0.0.1:7860)" };

/// The server's keys.
pub(crate) const KILN_SERVE_KEYS: Variable =
    Variable { name: "KILN_SERVE_KEYS", meaning: "file of API keys of kiln serve (default: no key is needed)" };

/// The server's names.
pub(crate) const KILN_SERVE_ALLOW_HOSTS: Variable = Variable {
    name: "KILN_SERVE_ALLOW_HOSTS",
    meaning: "names by which kiln serve without keys may be called, separated by commas (default: the machine's own)",
};

/// The server's folder.
pub(crate) const KILN_SERVE_STATE: Variable = Variable {
    name: "KILN_SERVE_STATE",
    meaning: "folder for jobs of kiln serve (default: serve/ in KILN_CACHE_DIR)",
};

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
        KILN_SERVE_LISTEN,
        KILN_SERVE_KEYS,
        KILN_SERVE_ALLOW_HOSTS,
        KILN_SERVE_STATE,
        KILN_LOG,
        NO_COLOR,
    ])
}

/// Tells ONNX Runtime, here and in child processes, not to record its use.
///
/// Its Linux wheels open a database in the home folder as the environment is created, before
/// `DisableTelemetryEvents` can be called. A value that the user has set stays.
///
/// Must be called before any thread is started.
pub(crate) fn silence_telemetry() {
    const NAME: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(NAME).is_none() {
        #[expect(unsafe_code, reason = "no other way reaches a library that reads the environment itself")]
        // SAFETY: `main` calls this first, so no other thread reads or writes the environment.
        unsafe {
            std::env::set_var(NAME, "1");
        }
    }
}
