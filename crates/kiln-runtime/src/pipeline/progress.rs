use std::ops::ControlFlow;

use crate::Error;
use crate::watch::{Event, Watch};

/// How far a run is, and who watches it.
pub(super) struct Progress<'w> {
    pub(super) watch: Watch<'w>,
    /// Evaluations done.
    pub(super) step: usize,
    /// Evaluations to make.
    pub(super) steps: usize,
}

impl<'w> Progress<'w> {
    pub(super) fn new(watch: Watch<'w>) -> Progress<'w> {
        Progress { watch, step: 0, steps: 0 }
    }

    pub(super) fn tell(&mut self, event: Event) -> Result<(), Error> {
        match self.watch.tell(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled { step: self.step, steps: self.steps }),
        }
    }
}
