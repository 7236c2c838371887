//! Spans of jobs, for those who trace requests: one for a job, and one within it for each of its phases.

use std::sync::{Mutex, PoisonError};

use tracing::{Span, debug_span, field};

use crate::{JobId, Phase, Spec};

/// The spans of a job that are open. Without a subscriber that wants them they cost nothing.
#[derive(Debug)]
pub(crate) struct Spans {
    job: Span,
    phase: Mutex<Span>,
}

impl Spans {
    /// Those of a job that is queued, within the span of the request that sends it.
    pub(crate) fn new(id: &JobId, spec: &Spec) -> Spans {
        let pictures = spec.request.prompts.len();
        // A child, in the sense of `tracing`, would hold its request's span open until its own end.
        let job =
            debug_span!(parent: None, "job", job = %id, model = spec.model, pictures, outcome = field::Empty);
        #[cfg(feature = "otel")]
        crate::otel::put_within(&job, &Span::current());
        let phase = Mutex::new(debug_span!(parent: &job, "queued"));
        Spans { job, phase }
    }

    /// Ends a phase's span and begins the next one's.
    pub(crate) fn enter(&self, before: &Phase, phase: &Phase) {
        if before.name() == phase.name() {
            return;
        }
        let span = match phase {
            Phase::Queued => debug_span!(parent: &self.job, "queued"),
            Phase::Loading => debug_span!(parent: &self.job, "loading"),
            Phase::Drawing { .. } => debug_span!(parent: &self.job, "drawing"),
            Phase::Decoding => debug_span!(parent: &self.job, "decoding"),
            Phase::Done(_) | Phase::Failed(_) | Phase::Cancelled => {
                self.job.record("outcome", phase.name());
                Span::none()
            }
        };
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = span;
    }

    /// The span in which a job's pictures are written down.
    pub(crate) fn saving(&self) -> Span {
        debug_span!(parent: &self.job, "saving")
    }
}
