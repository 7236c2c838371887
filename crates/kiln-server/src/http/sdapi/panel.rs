//! What clients have chosen, and what is being drawn for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::options::Settings;
use crate::{ClientId, Job};

/// The state behind the paths of this API, each client's apart. Without keys all callers are one client.
#[derive(Default)]
pub(super) struct Panel(Mutex<State>);

#[derive(Default)]
struct State {
    settings: HashMap<ClientId, Settings>,
    /// The newest last.
    calls: Vec<(u64, Call)>,
    n_calls: u64,
}

/// Pictures that a client waits for.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) client: ClientId,
    /// `txt2img` or `img2img`.
    pub(super) task: &'static str,
    /// One per iteration.
    pub(super) jobs: Vec<Arc<Job>>,
    pub(super) begun: SystemTime,
    pub(super) is_interrupted: bool,
    pub(super) is_skipped: bool,
}

/// As long as it lives, a call is under way.
pub(super) struct Entered {
    panel: Arc<Panel>,
    id: u64,
}

impl Panel {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn settings(&self, client: &ClientId) -> Settings {
        self.state().settings.get(client).cloned().unwrap_or_default()
    }

    pub(super) fn choose(&self, client: &ClientId, settings: Settings) {
        self.state().settings.insert(client.clone(), settings);
    }

    /// Notes that a call is under way.
    pub(super) fn enter(
        self: &Arc<Self>,
        client: ClientId,
        task: &'static str,
        jobs: Vec<Arc<Job>>,
    ) -> Entered {
        let begun = SystemTime::now();
        let call = Call { client, task, jobs, begun, is_interrupted: false, is_skipped: false };
        let mut state = self.state();
        state.n_calls += 1;
        let id = state.n_calls;
        state.calls.push((id, call));
        Entered { panel: self.clone(), id }
    }

    /// The newest call of a client.
    pub(super) fn newest(&self, client: &ClientId) -> Option<Call> {
        let state = self.state();
        state.calls.iter().rev().map(|(_, call)| call).find(|call| call.client == *client).cloned()
    }

    /// Notes what a client does to its newest call, and gives that.
    pub(super) fn mark(&self, client: &ClientId, mark: impl FnOnce(&mut Call)) -> Option<Call> {
        let mut state = self.state();
        let call = state.calls.iter_mut().rev().map(|(_, call)| call).find(|call| call.client == *client)?;
        mark(call);
        Some(call.clone())
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.panel.state().calls.retain(|(id, _)| *id != self.id);
    }
}
