//! Whether the worker gets on.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many times as long as it ever took a piece of work may take.
const TIMES: u32 = 20;

/// How many times as long as it ever took it may take and still count as progress.
const USUAL: u32 = 3;

/// A kind of work, which cannot be interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    /// A model's engines are opened, or its LoRAs are changed.
    Loading,
    /// A prompt is encoded, or the denoiser is evaluated once.
    Drawing,
    /// Latents become pictures.
    Decoding,
}

/// Work that takes far too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stuck {
    /// The model's name.
    pub(crate) model: String,
    /// For how long.
    pub(crate) time: Duration,
}

/// What the worker does, and how long that has taken so far.
///
/// It is stuck where one piece of work takes longer than the patience, and than [`TIMES`] times the longest piece of this
/// kind that the model has had.
#[derive(Debug, Default)]
pub(crate) struct Pulse(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    patience: Option<Duration>,
    now: Option<Piece>,
    longest: BTreeMap<(String, Work), Duration>,
}

#[derive(Debug)]
struct Piece {
    of: (String, Work),
    since: Instant,
}

impl Pulse {
    /// Sets the patience; without one, nothing is ever stuck.
    pub(crate) fn expect(&self, patience: Option<Duration>) {
        self.lock().patience = patience;
    }

    /// A piece of work begins, and the one before has ended.
    pub(crate) fn begin(&self, model: &str, work: Work) {
        self.lock().pass(Some((model.into(), work)), Instant::now());
    }

    /// There is nothing to do.
    pub(crate) fn rest(&self) {
        self.lock().pass(None, Instant::now());
    }

    /// What the worker is stuck in, if it is.
    pub(crate) fn stuck(&self) -> Option<Stuck> {
        self.lock().stuck(Instant::now())
    }

    /// Whether the worker shows progress: what it does has taken no longer than this, or than [`USUAL`] times the longest piece
    /// of this kind. Loading, which has no steps, shows it until it is stuck.
    pub(crate) fn gets_on(&self, patience: Duration) -> bool {
        self.lock().gets_on(patience, Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pass(&mut self, of: Option<(String, Work)>, now: Instant) {
        if let Some(Piece { of, since }) = self.now.take() {
            let longest = self.longest.entry(of).or_default();
            *longest = now.saturating_duration_since(since).max(*longest);
        }
        self.now = of.map(|of| Piece { of, since: now });
    }

    fn gets_on(&self, patience: Duration, now: Instant) -> bool {
        let Some(Piece { of, since }) = &self.now else { return true };
        let longest = self.longest.get(of).copied().unwrap_or_default();
        match of.1 {
            Work::Loading => self.stuck(now).is_none(),
            _ => now.saturating_duration_since(*since) <= patience.max(longest.saturating_mul(USUAL)),
        }
    }

    fn stuck(&self, now: Instant) -> Option<Stuck> {
        let (patience, piece) = (self.patience?, self.now.as_ref()?);
        let longest = self.longest.get(&piece.of).copied().unwrap_or_default();
        let time = now.saturating_duration_since(piece.since);
        let is_stuck = time > patience.max(longest.saturating_mul(TIMES));
        is_stuck.then(|| Stuck { model: piece.of.0.clone(), time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn state(patience: u32) -> (State, Instant) {
        (State { patience: Some(patience * SECOND), ..State::default() }, Instant::now())
    }

    fn piece(work: Work) -> Option<(String, Work)> {
        Some(("shapes".into(), work))
    }

    #[test]
    fn work_is_stuck_when_it_takes_longer_than_the_patience() {
        let (mut state, start) = state(600);
        assert_eq!(state.stuck(start + 9999 * SECOND), None, "who has nothing to do is not stuck");
        state.pass(piece(Work::Loading), start);
        assert_eq!(state.stuck(start + 600 * SECOND), None);
        let stuck = Stuck { model: "shapes".into(), time: 601 * SECOND };
        assert_eq!(state.stuck(start + 601 * SECOND), Some(stuck));
        state.pass(piece(Work::Drawing), start + 602 * SECOND);
        assert_eq!(state.stuck(start + 1200 * SECOND), None, "it has got on");
        state.pass(None, start + 1201 * SECOND);
        assert_eq!(state.stuck(start + 9999 * SECOND), None);
    }

    #[test]
    fn work_that_was_slow_before_may_take_a_multiple_of_that() {
        let (mut state, start) = state(60);
        state.pass(piece(Work::Drawing), start);
        state.pass(piece(Work::Drawing), start + 10 * SECOND);
        state.pass(piece(Work::Drawing), start + 11 * SECOND);
        assert_eq!(state.stuck(start + 211 * SECOND), None, "20 times ten seconds");
        assert!(state.stuck(start + 212 * SECOND).is_some());
        // Other work has its own measure, and so has another model.
        state.pass(piece(Work::Decoding), start + 300 * SECOND);
        assert!(state.stuck(start + 361 * SECOND).is_some());
        state.pass(Some(("other".into(), Work::Drawing)), start + 400 * SECOND);
        assert!(state.stuck(start + 461 * SECOND).is_some());
    }

    #[test]
    fn a_step_shows_progress_while_it_is_no_slower_than_usual() {
        let (mut state, start) = state(600);
        assert!(state.gets_on(SECOND, start));
        state.pass(piece(Work::Drawing), start);
        assert!(state.gets_on(SECOND, start + SECOND) && !state.gets_on(SECOND, start + 2 * SECOND));
        state.pass(piece(Work::Drawing), start + 10 * SECOND);
        assert!(state.gets_on(SECOND, start + 40 * SECOND) && !state.gets_on(SECOND, start + 41 * SECOND));
        state.pass(piece(Work::Loading), start + 50 * SECOND);
        assert!(state.gets_on(SECOND, start + 600 * SECOND) && !state.gets_on(SECOND, start + 651 * SECOND));
    }

    #[test]
    fn without_patience_nothing_is_stuck() {
        let pulse = Pulse::default();
        pulse.begin("shapes", Work::Drawing);
        assert_eq!(pulse.stuck(), None);
        pulse.expect(Some(Duration::ZERO));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(pulse.stuck().map(|stuck| stuck.model), Some("shapes".into()));
        pulse.rest();
        assert_eq!(pulse.stuck(), None);
    }
}
