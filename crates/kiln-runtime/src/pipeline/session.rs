//! Several requests at once.

use super::{Drawing, Output, Pipeline};
use crate::residency::Active;
use crate::watch::Watch;
use crate::{Error, Request};

/// A pipeline at work on several requests.
///
/// Each [begins](Session::begin), is [taken](Session::advance) from evaluation to evaluation together with the others, and is
/// [decoded](Session::finish) in the end. Requests of any prompts, seeds, schedulers, steps and guidance share evaluations of
/// the denoiser if their pictures have the same size and their prompts as many blocks of tokens; others take turns.
///
/// ```no_run
/// # use kiln_runtime::{Error, Pipeline, Request, Watch};
/// # fn both(pipeline: &mut Pipeline) -> Result<(), Error> {
/// let mut session = pipeline.session();
/// let mut a = session.begin(&Request::new("a red circle"), Watch::new())?;
/// let mut b = session.begin(&Request::new("a blue star").steps(20), Watch::new())?;
/// while !(a.is_denoised() && b.is_denoised()) {
///     for result in session.advance(&mut [&mut a, &mut b]) {
///         result?;
///     }
/// }
/// session.finish(a, Watch::new())?.images[0].save_png("a.png", &[])?;
/// session.finish(b, Watch::new())?.images[0].save_png("b.png", &[])?;
/// # Ok(())
/// # }
/// ```
///
/// Under offload no engine stays loaded when it is dropped.
pub struct Session<'p> {
    pipeline: &'p mut Pipeline,
    _active: Active,
}

impl<'p> Session<'p> {
    pub(super) fn new(pipeline: &'p mut Pipeline) -> Session<'p> {
        let active = pipeline.pool().activate();
        Session { pipeline, _active: active }
    }

    /// The pipeline.
    pub fn pipeline(&self) -> &Pipeline {
        self.pipeline
    }

    /// Encodes the texts, and the picture where there is one.
    pub fn begin(&mut self, request: &Request, watch: Watch<'_>) -> Result<Drawing, Error> {
        let job = self.pipeline.resolve(request)?;
        self.pipeline.run(watch).begin(job)
    }

    /// Evaluates the denoiser once for each drawing that is not denoised yet; gives one result for each. A drawing whose
    /// evaluation fails does not stop the others, and should not be taken further.
    pub fn advance(&mut self, drawings: &mut [&mut Drawing]) -> Vec<Result<(), Error>> {
        self.pipeline.run(Watch::new()).advance(drawings)
    }

    /// Decodes a drawing.
    pub fn finish(&mut self, drawing: Drawing, watch: Watch<'_>) -> Result<Output, Error> {
        self.pipeline.run(watch).finish(&drawing)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.pipeline.rest();
    }
}
