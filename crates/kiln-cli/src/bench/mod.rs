//! Benchmarks: what each step to faster pictures brings, and what ways to spend memory take.

mod chart;
mod ladder;
mod memory;
mod operators;
mod row;
mod table;

use kiln_bundle::OutputFolder;
use kiln_runtime::Place;

use crate::args::{BenchArgs, BenchCommand};
use crate::failure::Failure;

/// What is drawn.
pub(crate) const PROMPT: &str = "a photograph of an astronaut riding a horse";

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    match &args.command {
        BenchCommand::Ladder(args) => ladder::run(args),
        BenchCommand::Memory(args) => memory::run(args),
        BenchCommand::Operators(args) => operators::run(args),
    }
}

/// Refuses to measure nothing.
fn check(steps: usize, rounds: usize) -> Result<(), Failure> {
    match steps == 0 || rounds == 0 {
        true => Err(Failure::usage("steps and rounds: at least one of each has to be measured")),
        false => Ok(()),
    }
}

/// Steps to draw before what is timed: until all is loaded, and on a GPU until kernels are chosen and runs are recorded.
fn warm_up_steps(place: &Place) -> u32 {
    match place.gpu() {
        None => 2,
        Some(_) => 5,
    }
}

fn write(folder: &OutputFolder, name: &str, text: &str) -> Result<(), Failure> {
    kiln_bundle::fs::write_atomic(&folder.path().join(name), text.as_bytes()).map_err(Failure::writing)
}
