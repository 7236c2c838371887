//! Parts of a batch side by side, each on one core.
//!
//! Operators that ONNX Runtime does not divide, and the ends of those that it does, leave cores idle. Where there are as many
//! parts as cores, each core has work of its own until the end. A session runs one thing at a time, so each lane has one.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use kiln_types::Placement;
use ort::session::Session;

use super::{OnnxRuntime, Ports, builder};
use crate::error::EngineErrorKind::Load;
use crate::{EngineError, LoadOptions, Tensor, TensorView, WeightSource};

/// The lanes of an engine, which open when they are needed.
pub(super) struct Lanes {
    runtime: OnnxRuntime,
    placement: Placement,
    overrides: Option<Arc<dyn WeightSource>>,
    sessions: Vec<Session>,
}

impl Lanes {
    pub(super) fn new(runtime: OnnxRuntime, options: &LoadOptions) -> Lanes {
        let (placement, overrides) = (options.placement, options.overrides.clone());
        Lanes { runtime, placement, overrides, sessions: Vec::new() }
    }

    /// Runs each part on a thread of its own.
    pub(super) fn run(
        &mut self,
        model: &Path,
        ports: &Ports,
        parts: &[Vec<(&str, TensorView<'_>)>],
    ) -> Result<Vec<Vec<Tensor>>, EngineError> {
        while self.sessions.len() < parts.len() {
            self.sessions.push(self.open(model)?);
        }
        let mut lanes = parts.iter().zip(&mut self.sessions);
        thread::scope(|scope| {
            let own = lanes.next();
            let others: Vec<_> =
                lanes.map(|(inputs, session)| scope.spawn(move || ports.run(model, session, inputs))).collect();
            let own = own.map(|(inputs, session)| ports.run(model, session, inputs));
            let others =
                others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            own.into_iter().chain(others).collect()
        })
    }

    fn open(&self, model: &Path) -> Result<Session, EngineError> {
        let refuse = |reason: String| EngineError::new(Load, model, reason);
        let builder = builder(&self.runtime.environment, self.placement)
            .and_then(|builder| Ok(builder.with_independent_thread_pool()?.with_intra_threads(1)?))
            .map_err(|e| refuse(e.to_string()))?;
        let weights = (self.placement, self.overrides.as_deref());
        self.runtime.session(builder, model, weights, 1).map_err(refuse)
    }
}
