//! systemd, where it supervises the process (`sd_notify(3)`).

#[cfg(unix)]
pub(crate) use systemd::*;

#[cfg(unix)]
mod systemd {
    use std::sync::mpsc::{self, RecvTimeoutError, Sender};
    use std::thread;
    use std::time::Duration;

    use sd_notify::NotifyState;

    /// How much longer the start may take, and how often that is said.
    const MORE: Duration = Duration::from_secs(60);
    const BEAT: Duration = Duration::from_secs(20);

    /// A start, which may take long: models are compiled.
    pub(crate) struct Starting(#[expect(dead_code, reason = "its end ends the thread")] Sender<()>);

    impl Starting {
        /// Asks for time until it is dropped.
        pub(crate) fn begin() -> Starting {
            let (sender, ended) = mpsc::channel::<()>();
            let ask = move || {
                loop {
                    let more = u32::try_from(MORE.as_micros()).unwrap_or(u32::MAX);
                    let _ = sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(more)]);
                    if ended.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            };
            // Without the thread the start has the time that its unit gives.
            let _ = thread::Builder::new().name("starting".into()).spawn(ask);
            Starting(sender)
        }
    }

    pub(crate) fn ready() {
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    pub(crate) fn stopping() {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
    }

    pub(crate) fn lives() {
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }

    /// How often it wants to hear that the process lives.
    pub(crate) fn beat() -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|limit| limit / 3)
    }
}

#[cfg(not(unix))]
pub(crate) use none::*;

#[cfg(not(unix))]
mod none {
    use std::time::Duration;

    pub(crate) struct Starting;

    impl Starting {
        pub(crate) fn begin() -> Starting {
            Starting
        }
    }

    pub(crate) fn ready() {}

    pub(crate) fn stopping() {}

    pub(crate) fn lives() {}

    pub(crate) fn beat() -> Option<Duration> {
        None
    }
}
