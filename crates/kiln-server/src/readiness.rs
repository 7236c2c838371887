//! Whether models are loaded.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Fault, FaultKind, Phase};

/// How far a model is from being drawn with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Load {
    /// Its weights are not in memory; the next job for it waits for them.
    #[default]
    Unloaded,
    /// They come.
    Loading,
    /// They are there.
    Loaded,
    /// They could not be had.
    Failed(Fault),
}

impl Load {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Load::Unloaded => "unloaded",
            Load::Loading => "loading",
            Load::Loaded => "loaded",
            Load::Failed(_) => "failed",
        }
    }
}

/// How far a model is, and was.
#[derive(Debug, Default)]
pub(crate) struct Readiness(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    load: Load,
    /// Whether it could be loaded when that was tried last.
    is_good: Option<bool>,
}

impl Readiness {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn load(&self) -> Load {
        self.lock().load.clone()
    }

    pub(crate) fn set(&self, load: Load) {
        let mut state = self.lock();
        state.is_good = match load {
            Load::Loaded => Some(true),
            Load::Failed(_) => Some(false),
            Load::Unloaded | Load::Loading => state.is_good,
        };
        state.load = load;
    }

    /// Whether nobody has tried to load it yet.
    pub(crate) fn is_new(&self) -> bool {
        self.lock().is_good.is_none()
    }

    /// Whether a client may count on it: it could be loaded, or nobody has tried, unless it is loaded with the server.
    pub(crate) fn is_ready(&self, preload: bool) -> bool {
        self.lock().is_good.unwrap_or(!preload)
    }

    /// What the end of a job says; `before` is what was known when it began.
    pub(crate) fn learn(&self, phase: &Phase, before: Load) {
        self.set(match phase {
            Phase::Done(_) => Load::Loaded,
            Phase::Failed(fault) if fault.kind == FaultKind::Model => Load::Failed(fault.clone()),
            _ => before,
        });
    }
}
