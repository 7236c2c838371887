//! What a bundle's engines take, measured in a process that does nothing else.

use std::process::{Command, Stdio};

use kiln_bundle::{Bundle, Figures, Sample};
use serde_json::json;

use crate::args::{ExecutionArgs, MeasureArgs};
use crate::failure::Failure;
use crate::models::{self, seal_key};
use crate::place::Place;
use crate::progress::Bar;
use crate::{execution, output};

pub(crate) fn run(args: &MeasureArgs) -> Result<(), Failure> {
    if !Bundle::is_bundle(&args.bundle) {
        return Err(Failure::input(&args.bundle, "is no bundle").with_hint("kiln compile makes bundles"));
    }
    let mut bundle = Bundle::open(&args.bundle)?;
    let mut pipeline =
        models::pipeline(bundle.clone(), Place::of(&bundle, args.execution)?.backend(args.execution)?)?;
    let bar = Bar::spinner("measuring");
    let figures = pipeline.measure(&mut |role| bar.message(role.to_string()))?.ok_or_else(|| {
        Failure::unexpected("this operating system does not tell how much memory a process has taken".into())
    })?;
    drop(bar);
    if !args.no_store {
        bundle.set_figures(&figures, &seal_key()?)?;
    }
    match args.json {
        true => output::data(&json!(figures).to_string()),
        false => show(&figures),
    }
    Ok(())
}

/// Measures a bundle's engines and records what they take.
pub(crate) fn record(bundle: &mut Bundle, execution: ExecutionArgs) -> Result<Figures, Failure> {
    let figures = in_another_process(bundle, execution)?;
    bundle.set_figures(&figures, &seal_key()?)?;
    Ok(figures)
}

/// Figures of a process that holds nothing else; an engine that fails there takes nothing with it.
pub(crate) fn in_another_process(bundle: &Bundle, args: ExecutionArgs) -> Result<Figures, Failure> {
    let unusable = |e: std::io::Error| Failure::unexpected(format!("can not start another kiln: {e}"));
    let program = std::env::current_exe().map_err(unusable)?;
    let mut command = Command::new(program);
    command.arg("measure").arg(bundle.root()).args(["--no-store", "--json"]);
    command.args(execution::arguments(args));
    let _bar = Bar::spinner("measuring");
    let answer = command.stdin(Stdio::null()).output().map_err(unusable)?;
    if !answer.status.success() {
        let said = String::from_utf8_lossy(&answer.stderr);
        let reason = said.lines().find_map(|line| line.strip_prefix("error: "));
        let reason = reason.map_or_else(|| answer.status.to_string(), str::to_owned);
        return Err(Failure::input(bundle.root(), &format!("could not be measured: {reason}")));
    }
    serde_json::from_slice(&answer.stdout)
        .map_err(|e| Failure::unexpected(format!("the process that measured answered nonsense: {e}")))
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
