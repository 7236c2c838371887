//! Building engines in another process.

use kiln_compile::{BuiltEngine, EngineBuilder, EngineJob, JobFailure};

use crate::args::Work;
use crate::child;
use crate::failure::Failure;

/// What the other process answers.
type Answer = Result<BuiltEngine, JobFailure>;

/// Starts a process for each engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OtherProcess;

impl EngineBuilder for OtherProcess {
    fn build(&self, job: &EngineJob) -> Answer {
        let lost = |failure: Failure| Err(JobFailure::Builder(failure.message().into()));
        child::call::<Answer>(Work::BuildEngine, job).unwrap_or_else(lost)
    }
}

/// Does a job here.
pub(crate) fn work(job: EngineJob) -> Result<Answer, Failure> {
    Ok(job.run().map(|built| BuiltEngine { peak_bytes: kiln_runtime::process_memory::peak(), ..built }))
}
