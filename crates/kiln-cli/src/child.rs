//! Work that another process of this program does: what crashes there takes nothing with it, and its memory is its own.
//!
//! The other process reads one job as JSON from standard input and answers on standard output with what it made or with
//! a [`Failure`], also as JSON. It ends with the process that waits for it.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use clap::ValueEnum;
use kiln_bundle::child::Child;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::Work;
use crate::failure::Failure;
use crate::{log, output};

type Answer<A> = Result<A, Failure>;

/// Has a job done in another process; a failure is the one of there.
pub(crate) fn call<A: DeserializeOwned>(work: Work, job: &impl Serialize) -> Answer<A> {
    call_with(work, job, &[])
}

/// The same, with variables in the other's environment besides those of this process.
pub(crate) fn call_with<A: DeserializeOwned>(
    work: Work,
    job: &impl Serialize,
    variables: &[(&str, &OsStr)],
) -> Answer<A> {
    let output = run(work, job, variables)
        .map_err(|e| Failure::unexpected(format!("cannot start another kiln: {e}")))?;
    serde_json::from_slice::<Answer<A>>(&output.stdout).unwrap_or_else(|_| Err(lost(&output)))
}

fn run(work: Work, job: &impl Serialize, variables: &[(&str, &OsStr)]) -> io::Result<Output> {
    let job = serde_json::to_vec(job)?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["work", &name(work)])
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(if log::is_on() { Stdio::inherit() } else { Stdio::piped() });
    let mut child = Child::spawn(&mut command)?;
    if let Some(mut stdin) = child.take_stdin() {
        // A child that ended early is told of by its status.
        let _ = stdin.write_all(&job);
    }
    child.wait_with_output()
}

fn name(work: Work) -> String {
    work.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// A process that crashed has left its last words at best.
fn lost(output: &Output) -> Failure {
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Failure::unexpected(format!("the process ended without an answer ({}): {last}", output.status))
}

/// Reads a job from standard input, does it and answers on standard output.
pub(crate) fn answer<J: DeserializeOwned, A: Serialize>(
    work: impl FnOnce(J) -> Answer<A>,
) -> Result<(), Failure> {
    let job = serde_json::from_reader(io::stdin().lock()).map_err(|e| {
        Failure::usage(format!("standard input: {e}")).with_hint("other commands of kiln run this one")
    })?;
    let answer = serde_json::to_string(&work(job)).map_err(Failure::unexpected)?;
    output::data(&answer);
    Ok(())
}
