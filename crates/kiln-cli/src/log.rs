//! What TensorRT says while it builds, for those who ask.

use std::io::stderr;

use tracing_subscriber::filter::LevelFilter;

use crate::environment::KILN_LOG;
use crate::failure::Failure;

/// Whether messages are shown.
pub(crate) fn is_on() -> bool {
    std::env::var_os(KILN_LOG.name).is_some_and(|level| !level.is_empty())
}

/// Shows messages on stderr from the level that `KILN_LOG` names.
pub(crate) fn start() -> Result<(), Failure> {
    if !is_on() {
        return Ok(());
    }
    let level = std::env::var(KILN_LOG.name).unwrap_or_default();
    let filter: LevelFilter = level.parse().map_err(|_| {
        let name = KILN_LOG.name;
        Failure::usage(format!("{name}: '{level}' is not error, warn, info, debug or trace"))
    })?;
    tracing_subscriber::fmt().with_max_level(filter).with_writer(stderr).with_ansi(false).without_time().init();
    Ok(())
}
