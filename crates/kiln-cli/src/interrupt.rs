//! What happens when the user, or the system, asks the process to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use kiln_bundle::fs::abandon;

use crate::failure::Failure;

static ENDING: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on an interrupted process ends its children and removes what it has half-written before it ends.
///
/// It ends without the exit handlers of native libraries, whose threads may still compute.
pub(crate) fn watch() -> Result<(), Failure> {
    start().map_err(|e| Failure::unexpected(format!("cannot watch for signals: {e}")))
}

/// Waits for the end where there is one coming: what fails because of it is not worth telling.
pub(crate) fn wait_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

#[cfg(unix)]
fn start() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    use signal_hook::{flag, iterator::Signals, low_level};

    let exit_code = |signal| 128 + signal;
    let mut ends = vec![SIGINT, SIGTERM];
    // As nohup asks.
    if !crate::fault::is_ignored(SIGHUP) {
        ends.push(SIGHUP);
    }
    for signal in &ends {
        // In this order the first signal arms what ends the process at once with the second.
        flag::register_conditional_shutdown(*signal, exit_code(*signal), ENDING.clone())?;
        flag::register(*signal, ENDING.clone())?;
    }
    // A file that grows past the user's limit is an error of the file and not the end.
    flag::register(SIGXFSZ, Arc::default())?;
    let mut signals = Signals::new(ends)?;
    let end = move || {
        if let Some(signal) = signals.forever().next() {
            abandon();
            low_level::exit(exit_code(signal));
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(end).map(drop)
}

#[cfg(not(unix))]
fn start() -> Result<(), ctrlc::Error> {
    const INTERRUPTED: i32 = 130;
    ctrlc::set_handler(|| {
        ENDING.store(true, Ordering::SeqCst);
        abandon();
        std::process::exit(INTERRUPTED);
    })
}
