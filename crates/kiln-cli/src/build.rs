//! Building engines in another process: a builder that crashes takes nothing with it, and its memory can be measured.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use kiln_bundle::Target;
use kiln_compile::{
    BuildOptions, BuiltEngine, Checkpoint, EngineBuilder, EngineJob, JobFailure, TargetSpec, Toolkit,
};

use crate::failure::Failure;
use crate::place::{Place, library};
use crate::{log, output, runtime};

/// What builds engines of a target, fetched if need be.
pub(crate) fn toolkit(target: Target) -> Result<Toolkit, Failure> {
    let found = runtime::find(library(target))?;
    Ok(Toolkit::open(found.path, Arc::new(OtherProcess))?)
}

/// What engines are built with that run in a place, as a specification for its target says.
pub(crate) fn options_for(
    place: &Place,
    checkpoint: &Checkpoint,
    mut spec: TargetSpec,
) -> Result<BuildOptions, Failure> {
    if let Some(devices) = spec.compute_capabilities_mut() {
        *devices = place.compute_capabilities();
    }
    spec.build_options(checkpoint, Vec::new(), toolkit)
}

/// What the other process prints.
type Answer = Result<BuiltEngine, JobFailure>;

/// Starts `kiln build-engine` for each engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OtherProcess;

impl EngineBuilder for OtherProcess {
    fn build(&self, job: &EngineJob) -> Result<BuiltEngine, JobFailure> {
        let unusable = |e: std::io::Error| JobFailure::Builder(format!("can not start another kiln: {e}"));
        let program = std::env::current_exe().map_err(unusable)?;
        let mut child = Command::new(program)
            .arg("build-engine")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if log::is_on() { Stdio::inherit() } else { Stdio::piped() })
            .spawn()
            .map_err(unusable)?;
        let job = serde_json::to_vec(job).map_err(|e| JobFailure::Builder(e.to_string()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A child that ended early is told of by its status.
            let _ = stdin.write_all(&job);
        }
        let output = child.wait_with_output().map_err(unusable)?;
        let lost = |_| {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            let reason = format!("the builder ended without an answer ({}): {last}", output.status);
            Err(JobFailure::Builder(reason))
        };
        serde_json::from_slice::<Answer>(&output.stdout).unwrap_or_else(lost)
    }
}

/// Reads a job from standard input, runs it and answers on standard output.
pub(crate) fn run() -> Result<(), Failure> {
    end_with_parent();
    let job: EngineJob = serde_json::from_reader(std::io::stdin().lock()).map_err(|e| {
        Failure::usage(format!("standard input: {e}")).with_hint("kiln compile runs this command")
    })?;
    let answer: Answer = job.run().map(|built| BuiltEngine { peak_bytes: peak_bytes(), ..built });
    output::data(&serde_json::to_string(&answer).unwrap_or_default());
    Ok(())
}

/// Lets the operating system end this process when the one that waits for its engine ends, however that happens.
#[cfg(target_os = "linux")]
fn end_with_parent() {
    use rustix::process::{Signal, set_parent_process_death_signal};
    // Without it a builder finishes its engine for nobody.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent() {}

/// Most resident memory of this process so far, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
