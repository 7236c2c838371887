//! Measuring what ways to spend memory take, each in a process of its own.

use std::path::{Path, PathBuf};

use kiln_bundle::{Bundle, OutputFolder};
use kiln_runtime::image::RgbImage;
use kiln_runtime::{MemoryChoice, Request};
use serde_json::Value;

use super::row::Row;
use super::{PROMPT, chart, check, table, warm_up_steps, write};
use crate::args::{BenchMemoryArgs, Work};
use crate::draw::{Drawn, Job};
use crate::failure::Failure;
use crate::model::open_bundle;
use crate::plan::{figures, offload, tile};
use crate::progress::Bar;
use crate::{backends, child, models, output};

/// What is measured.
struct Case {
    bundle: PathBuf,
    model: String,
    choice: MemoryChoice,
    /// Steps to draw before what is timed.
    warm_up: Option<u32>,
    runs: Vec<Drawn>,
}

pub(super) fn run(args: &BenchMemoryArgs) -> Result<(), Failure> {
    check(args.steps, args.rounds)?;
    let folder = OutputFolder::open(&args.out)?;
    let report = measure(args, &folder)?;
    folder.publish()?;
    match args.json {
        true => output::data(&report.json.to_string()),
        false => output::data(report.markdown.trim_end()),
    }
    Ok(())
}

/// What was measured, as it is written.
pub(super) struct Report {
    pub(super) markdown: String,
    pub(super) json: Value,
}

/// Measures every way to run every bundle; tables, chart, pictures and traces go to a folder.
pub(super) fn measure(args: &BenchMemoryArgs, folder: &OutputFolder) -> Result<Report, Failure> {
    let mut request = Request::new("").steps(args.steps);
    request.scheduler = args.scheduler.name()?.map(Into::into);
    (request.height, request.width) = (args.pixels.height, args.pixels.width);
    let mut cases = Vec::new();
    for bundle in &args.bundles {
        cases.append(&mut self::cases(bundle, &request, args)?);
    }
    let (bar, n_cases) = (Bar::count("measuring"), cases.len());
    for round in 0..args.rounds {
        for (i, case) in cases.iter_mut().enumerate() {
            bar.at((round * n_cases + i) as u64, (args.rounds * n_cases) as u64);
            case.runs.push(draw(case, folder.path(), i, args)?);
        }
    }
    drop(bar);
    let rows = rows(cases, folder.path(), args.steps)?;
    let report = Report { markdown: table::markdown(&rows), json: table::json(&rows, &request, args) };
    write(folder, "memory.md", &report.markdown)?;
    write(folder, "memory.json", &report.json.to_string())?;
    write(folder, "memory.svg", &chart::svg(&rows))?;
    Ok(report)
}

/// Every way to run a bundle.
fn cases(path: &Path, request: &Request, args: &BenchMemoryArgs) -> Result<Vec<Case>, Failure> {
    let bundle = open_bundle(path)?;
    let backends = args.execution.backends();
    let place = backends.place_for(&bundle)?;
    let pipeline = models::pipeline(bundle, backends::open(&backends, &place)?)?;
    let plan = pipeline.plan(request, &figures(&pipeline, args.execution)?)?;
    let model = label(pipeline.bundle());
    let warm_up = place.gpu().map(|_| warm_up_steps(&place));
    let case = |choice| Case { bundle: path.into(), model: model.clone(), choice, warm_up, runs: Vec::new() };
    Ok(plan.choices.into_iter().map(case).collect())
}

/// The model, and what is not the default about how it was compiled.
fn label(bundle: &Bundle) -> String {
    let manifest = bundle.manifest();
    let option = |name: &str, default: &str| {
        let value = manifest.provenance.options.get(name).map(String::as_str);
        value.filter(|value| *value != default).map(|value| format!("{name} {value}"))
    };
    let special: Vec<String> =
        [option("storage", "as computed"), option("attention", "fused")].into_iter().flatten().collect();
    match special.as_slice() {
        [] => manifest.name.clone(),
        special => format!("{} ({})", manifest.name, special.join(", ")),
    }
}

/// Draws a picture in another process.
fn draw(case: &Case, folder: &Path, index: usize, args: &BenchMemoryArgs) -> Result<Drawn, Failure> {
    let job = Job {
        bundle: case.bundle.clone(),
        prompt: PROMPT.into(),
        steps: args.steps,
        scheduler: args.scheduler.name()?.map(Into::into),
        warm_up: case.warm_up,
        width: args.pixels.width,
        height: args.pixels.height,
        offload: case.choice.memory.offload.into(),
        vae_tile: tile(&case.choice.memory),
        picture: file(folder, case, index, "png"),
        execution: args.execution,
    };
    let drawn: Drawn = child::call(Work::Draw, &job)
        .map_err(|failure| failure.while_doing(&case.bundle.display().to_string()))?;
    drawn.recording.write(&file(folder, case, index, "json"))?;
    Ok(drawn)
}

/// A file of a case, whose name tells which one.
fn file(folder: &Path, case: &Case, index: usize, ending: &str) -> PathBuf {
    let tile = tile(&case.choice.memory).map_or_else(String::new, |tile| format!("-tile{tile}"));
    folder.join(format!("{:02}-{}{tile}.{ending}", index + 1, offload(&case.choice.memory)))
}

fn rows(cases: Vec<Case>, folder: &Path, steps: usize) -> Result<Vec<Row>, Failure> {
    let per_step = |run: &Drawn| run.seconds.steps / steps as f64;
    let first: Vec<f64> = cases[0].runs.iter().map(per_step).collect();
    let mut reference: Option<(PathBuf, RgbImage)> = None;
    let mut rows = Vec::new();
    for (i, case) in cases.into_iter().enumerate() {
        let image = RgbImage::open(file(folder, &case, i, "png")).map_err(kiln_runtime::Error::from)?;
        if reference.as_ref().is_none_or(|(bundle, _)| *bundle != case.bundle) {
            reference = Some((case.bundle.clone(), image.clone()));
        }
        let psnr = match &reference {
            Some((_, reference)) => reference.compare(&image).map_err(kiln_runtime::Error::from)?.psnr,
            None => None,
        };
        let mut ratios: Vec<f64> =
            case.runs.iter().zip(&first).map(|(run, first)| per_step(run) / first).collect();
        ratios.sort_by(f64::total_cmp);
        let peak_bytes = case.runs.iter().map(|run| run.recording.peak_bytes).max().unwrap_or(0);
        let Some(fastest) =
            case.runs.into_iter().min_by(|a, b| f64::total_cmp(&a.seconds.steps, &b.seconds.steps))
        else {
            continue;
        };
        rows.push(Row {
            model: case.model,
            offload: offload(&case.choice.memory),
            vae_tile: tile(&case.choice.memory),
            peak_bytes,
            predicted_bytes: case.choice.peak_bytes,
            step_seconds: per_step(&fastest),
            decode_seconds: fastest.seconds.decode,
            total_seconds: fastest.seconds.start + fastest.seconds.steps + fastest.seconds.decode,
            step_ratio: ratios[ratios.len() / 2],
            psnr,
            recording: fastest.recording,
        });
    }
    Ok(rows)
}
