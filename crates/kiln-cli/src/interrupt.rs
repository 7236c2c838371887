//! What happens when the user, or the system, asks the process to end.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Failure;

/// The exit code of a process that a signal ended, as shells have it for SIGINT.
const INTERRUPTED: i32 = 130;

static ENDING: AtomicBool = AtomicBool::new(false);

/// From now on an interrupted process removes what it has half-written before it ends.
pub(crate) fn watch() -> Result<(), Failure> {
    let end = || {
        ENDING.store(true, Ordering::SeqCst);
        kiln_bundle::fs::abandon();
        std::process::exit(INTERRUPTED);
    };
    ctrlc::set_handler(end).map_err(|e| Failure::unexpected(format!("cannot watch for signals: {e}")))
}

/// Waits for the end where there is one coming: what fails because of it is not worth telling.
pub(crate) fn wait_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}
