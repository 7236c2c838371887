//! What a bundle's engines take, measured in a process that does nothing else.

use std::path::PathBuf;

use kiln_bundle::{Bundle, Figures, Sample};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::args::{ExecutionArgs, MeasureArgs, Work};
use crate::failure::Failure;
use crate::model::open_bundle;
use crate::models::{self, seal_key};
use crate::progress::Bar;
use crate::{backends, child, output};

/// A bundle to measure in another process.
#[derive(Serialize, Deserialize)]
pub(crate) struct Job {
    bundle: PathBuf,
    execution: ExecutionArgs,
}

pub(crate) fn run(args: &MeasureArgs) -> Result<(), Failure> {
    let mut bundle = open_bundle(&args.bundle)?;
    let figures = measure(&bundle, args.execution)?;
    if !args.no_store {
        bundle.set_figures(&figures, &seal_key()?)?;
    }
    match args.json {
        true => output::data(&json!(figures).to_string()),
        false => show(&figures),
    }
    Ok(())
}

/// Measures a bundle's engines here.
pub(crate) fn work(job: Job) -> Result<Figures, Failure> {
    measure(&open_bundle(&job.bundle)?, job.execution)
}

fn measure(bundle: &Bundle, execution: ExecutionArgs) -> Result<Figures, Failure> {
    let backends = execution.backends();
    let backend = backends::open(&backends, &backends.place_for(bundle)?)?;
    let mut pipeline = models::pipeline(bundle.clone(), backend)?;
    let bar = Bar::spinner("measuring");
    pipeline.measure(&mut |role| bar.message(role.to_string()))?.ok_or_else(|| {
        Failure::unexpected("this operating system does not tell how much memory a process has taken")
    })
}

/// Measures a bundle's engines and records what they take.
pub(crate) fn record(bundle: &mut Bundle, execution: ExecutionArgs) -> Result<Figures, Failure> {
    let figures = in_another_process(bundle, execution)?;
    bundle.set_figures(&figures, &seal_key()?)?;
    Ok(figures)
}

/// Figures of a process that holds nothing else; an engine that fails there takes nothing with it.
pub(crate) fn in_another_process(bundle: &Bundle, execution: ExecutionArgs) -> Result<Figures, Failure> {
    let _bar = Bar::spinner("measuring");
    let figures = child::call(Work::Measure, &Job { bundle: bundle.root().into(), execution });
    figures
        .map_err(|failure| failure.while_doing(&format!("{}: could not be measured", bundle.root().display())))
}

fn show(figures: &Figures) {
    output::data(&format!("{} {}", figures.backend, figures.version));
    output::data(&format!("{:<16} {:>10}", "without engines", output::bytes(figures.base_bytes)));
    for (role, component) in &figures.components {
        for (name, samples) in [("whole", &component.whole), ("by segment", &component.segments)] {
            for Sample { rows, height, width, peak_bytes, seconds, .. } in samples {
                let peak = output::bytes(*peak_bytes);
                output::data(&format!(
                    "{:<16} {name:<10} {rows} x {height}x{width}: {peak:>9}, {seconds:.3} s",
                    role.to_string()
                ));
            }
        }
    }
}
