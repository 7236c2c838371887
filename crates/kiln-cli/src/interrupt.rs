//! What happens when the user, or the system, asks the process to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, LazyLock, OnceLock};

use kiln_bundle::fs::abandon;

use crate::failure::Failure;

static ENDING: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Who is told of signals instead.
static SERVER: OnceLock<Sender<Request>> = OnceLock::new();

/// What signals ask of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// SIGHUP: read the models anew.
    #[cfg_attr(not(unix), expect(dead_code, reason = "nothing hangs up there"))]
    Reload,
    /// SIGINT or SIGTERM: finish what has begun, and end. A second one ends at once.
    End,
}

/// From now on signals are told to a server, which ends by itself.
pub(crate) fn serve(server: Sender<Request>) {
    let _ = SERVER.set(server);
}

/// From now on an interrupted process ends its children and removes what it has half-written before it ends.
///
/// It ends without the exit handlers of native libraries, whose threads may still compute.
///
/// A hangup does not end a server.
pub(crate) fn watch(is_server: bool) -> Result<(), Failure> {
    start(is_server).map_err(|e| Failure::unexpected(format!("cannot watch for signals: {e}")))
}

/// Ends the process, whose work is done, without the exit handlers of native libraries whose threads still compute.
pub(crate) fn end_now() {
    #[cfg(unix)]
    signal_hook::low_level::exit(0);
}

/// Waits for the end where there is one coming: what fails because of it is not worth telling.
pub(crate) fn wait_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

#[cfg(unix)]
fn start(is_server: bool) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    use signal_hook::{flag, iterator::Signals, low_level};

    let exit_code = |signal| 128 + signal;
    let mut ends = vec![SIGINT, SIGTERM];
    // As nohup asks.
    if !is_server && !crate::fault::is_ignored(SIGHUP) {
        ends.push(SIGHUP);
    }
    for signal in &ends {
        // In this order the first signal arms what ends the process at once with the second.
        flag::register_conditional_shutdown(*signal, exit_code(*signal), ENDING.clone())?;
        flag::register(*signal, ENDING.clone())?;
    }
    // A file that grows past the user's limit is an error of the file and not the end.
    flag::register(SIGXFSZ, Arc::default())?;
    if is_server {
        ends.push(SIGHUP);
    }
    let mut signals = Signals::new(ends)?;
    let end = move || {
        for signal in signals.forever() {
            match (SERVER.get(), signal) {
                (Some(server), SIGHUP) => drop(server.send(Request::Reload)),
                (Some(server), _) => drop(server.send(Request::End)),
                (None, SIGHUP) if is_server => {}
                (None, _) => {
                    abandon();
                    low_level::exit(exit_code(signal));
                }
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(end).map(drop)
}

#[cfg(not(unix))]
fn start(_is_server: bool) -> Result<(), ctrlc::Error> {
    const INTERRUPTED: i32 = 130;
    ctrlc::set_handler(|| {
        if let Some(server) = SERVER.get() {
            let _ = server.send(Request::End);
            return;
        }
        ENDING.store(true, Ordering::SeqCst);
        abandon();
        std::process::exit(INTERRUPTED);
    })
}
