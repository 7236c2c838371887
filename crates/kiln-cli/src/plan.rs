//! What a request takes, before it runs.

use clap::ValueEnum;
use kiln_bundle::Figures;
use kiln_runtime::{Error, MemoryChoice, MemoryOptions, MemoryPlan, Pipeline, Request, process_memory};
use serde_json::{Value, json};

use crate::args::{Budget, ExecutionArgs, OffloadChoice, PlanArgs};
use crate::failure::Failure;
use crate::model::Model;
use crate::models::{self, check_batch, refuse_unused};
use crate::{backends, measure, output, paths};

/// Share of the memory that is free which `auto` takes.
const SHARE: f64 = 0.9;

pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let mut request = Request::new("")
        .prompts(vec![""; check_batch(args.batch_size)?])
        .steps(args.steps)
        .guidance_scale(args.guidance_scale);
    (request.height, request.width) = (args.pixels.height, args.pixels.width);
    request.scheduler = args.scheduler.name()?.map(Into::into);
    request.validate()?;
    let backends = args.execution.backends();
    backends.check()?;
    let model = Model::open(&paths::model(args.model.as_ref())?)?;
    refuse_unused(&args.checkpoint, [&model])?;
    let place = backends::place(&model, &backends, None)?;
    let bundle = models::bundle(model, &args.checkpoint, &args.cache, &place, request.scheduler.as_deref())?;
    let pipeline = models::pipeline(bundle, backends::open(&backends, &place)?)?;
    let plan = pipeline.plan(&request, &figures(&pipeline, args.execution)?)?;
    let budget = args.memory_budget.map(|budget| bytes(budget, &pipeline)).transpose()?;
    let chosen = budget.map(|budget| plan.within(budget));
    match args.json {
        true => output::data(&report(&plan, budget, chosen.as_ref()).to_string()),
        false => show(&plan, budget, chosen.as_ref()),
    }
    match chosen {
        Some(Err(error)) => Err(error.into()),
        _ => Ok(()),
    }
}

/// The fastest way to spend memory that is predicted to fit.
pub(crate) fn choose(
    pipeline: &Pipeline,
    request: &Request,
    budget: Budget,
    execution: ExecutionArgs,
) -> Result<MemoryOptions, Failure> {
    let budget = bytes(budget, pipeline)?;
    let plan = pipeline.plan(request, &figures(pipeline, execution)?)?;
    let choice = plan.within(budget)?;
    output::say(&format!(
        "memory: {}, predicted {} of {}",
        describe(&choice.memory),
        output::bytes(choice.peak_bytes),
        output::bytes(budget)
    ));
    Ok(choice.memory)
}

/// Refuses pictures on the processor that are predicted to take more memory than is free, the way it is spent now.
///
/// Only requests of more pixels than usual are looked at: predicting takes a measurement, once for a bundle.
pub(crate) fn check_free(
    pipeline: &Pipeline,
    request: &Request,
    execution: ExecutionArgs,
) -> Result<(), Failure> {
    const USUAL_PIXELS: u64 = 4 << 20;
    let n_pixels = {
        let job = pipeline.resolve(request)?;
        job.picture_size().area() * job.batch() as u64
    };
    let free = process_memory::available().filter(|_| pipeline.backend().device().is_none());
    let Some(free) = free.filter(|_| n_pixels > USUAL_PIXELS) else { return Ok(()) };
    // What cannot be predicted is tried.
    let Ok(plan) = pipeline.plan(request, &figures(pipeline, execution)?) else { return Ok(()) };
    let memory = pipeline.memory();
    let is_now = |choice: &&MemoryChoice| {
        (choice.memory.offload, choice.memory.vae_tiling) == (memory.offload, memory.vae_tiling)
    };
    match plan.choices.iter().find(is_now) {
        Some(choice) if choice.peak_bytes > free => {
            let [needed, free] = [choice.peak_bytes, free].map(output::bytes);
            Err(Failure::memory(format!("this request is predicted to take {needed}, and {free} are free"))
                .with_hint(
                    "--memory-budget auto spends memory otherwise, if that helps; kiln plan shows the ways",
                ))
        }
        _ => Ok(()),
    }
}

/// What the bundle's engines take with this backend; measured now if it was not.
pub(crate) fn figures(pipeline: &Pipeline, execution: ExecutionArgs) -> Result<Figures, Failure> {
    let mut bundle = pipeline.bundle().clone();
    if let Some(figures) = bundle.figures()?
        && figures.backend == pipeline.backend().name()
        && figures.version == pipeline.backend().version()
    {
        return Ok(figures);
    }
    let figures = measure::in_another_process(&bundle, execution)?;
    if bundle.figures()?.is_none_or(|stored| stored.backend == figures.backend) {
        // A bundle that cannot be written is measured again the next time.
        let _ = bundle.set_figures(&figures, &models::seal_key()?);
    }
    Ok(figures)
}

/// The budget in bytes, of the memory in which the engines compute.
fn bytes(budget: Budget, pipeline: &Pipeline) -> Result<u64, Failure> {
    let free = || match pipeline.backend().device() {
        Some(device) => device.memory().ok().map(|memory| memory.free_bytes),
        None => process_memory::available(),
    };
    match budget {
        Budget::Bytes(n) => Ok(n),
        Budget::Auto => match free() {
            Some(free) => Ok((free as f64 * SHARE) as u64),
            None => Err(Failure::usage("memory budget: this system does not tell how much is free")
                .with_hint("--memory-budget 2GiB says it")),
        },
    }
}

pub(crate) fn offload(memory: &MemoryOptions) -> String {
    let choice = OffloadChoice::from(memory.offload);
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

pub(crate) fn tile(memory: &MemoryOptions) -> Option<u32> {
    memory.vae_tiling.and_then(|tiling| tiling.tile)
}

fn describe(memory: &MemoryOptions) -> String {
    let tile = tile(memory).map(|tile| format!(" --vae-tile {tile}"));
    let kept = (memory.keep_bytes > 0).then(|| format!(" --keep {}MiB", memory.keep_bytes >> 20));
    format!("--offload {}{}{}", offload(memory), kept.unwrap_or_default(), tile.unwrap_or_default())
}

/// Whether they are the same row of the table: what is kept is decided by the budget.
fn is_same(a: &MemoryChoice, b: &MemoryChoice) -> bool {
    (a.memory.offload, a.memory.vae_tiling) == (b.memory.offload, b.memory.vae_tiling)
}

fn show(plan: &MemoryPlan, budget: Option<u64>, chosen: Option<&Result<MemoryChoice, Error>>) {
    output::data(&format!("{:<11} {:<9} {:>10} {:>10}", "OFFLOAD", "VAE TILE", "PEAK", "SECONDS"));
    for choice in &plan.choices {
        let tile = tile(&choice.memory).map_or_else(|| "none".into(), |tile| tile.to_string());
        let reason = reason(choice, budget.map(|budget| plan.usable(budget)), chosen);
        let choice = as_chosen(choice, chosen);
        output::data(&format!(
            "{:<11} {tile:<9} {:>10} {:>10.1}  {reason}",
            offload(&choice.memory),
            output::bytes(choice.peak_bytes),
            choice.seconds
        ));
    }
}

/// The row itself, or what is chosen of it, which also spends the rest of the budget.
fn as_chosen<'a>(
    choice: &'a MemoryChoice,
    chosen: Option<&'a Result<MemoryChoice, Error>>,
) -> &'a MemoryChoice {
    match chosen {
        Some(Ok(best)) if is_same(best, choice) => best,
        _ => choice,
    }
}

fn reason(choice: &MemoryChoice, usable: Option<u64>, chosen: Option<&Result<MemoryChoice, Error>>) -> String {
    let peak = format!("peak while {} runs", choice.peak_component);
    match (usable, chosen) {
        (Some(usable), _) if choice.peak_bytes > usable => {
            format!("{} too much; {peak}", output::bytes(choice.peak_bytes - usable))
        }
        (Some(_), Some(Ok(best))) if is_same(best, choice) => match best.memory.keep_bytes {
            0 => format!("chosen: the fastest that fits; {peak}"),
            kept => format!("chosen: the fastest that fits, keeping {} loaded; {peak}", output::bytes(kept)),
        },
        (Some(_), Some(Ok(best))) if choice.seconds > 1.01 * best.seconds => {
            format!("fits, {:.0}% slower; {peak}", 100.0 * (choice.seconds / best.seconds - 1.0))
        }
        (Some(_), _) => format!("fits, about as fast; {peak}"),
        _ => peak,
    }
}

fn report(plan: &MemoryPlan, budget: Option<u64>, chosen: Option<&Result<MemoryChoice, Error>>) -> Value {
    let choices = plan.choices.iter().map(|choice| as_chosen(choice, chosen)).map(|choice| {
        json!({
            "offload": offload(&choice.memory),
            "vae_tile": tile(&choice.memory),
            "peak_bytes": choice.peak_bytes,
            "peak_component": choice.peak_component.to_string(),
            "seconds": choice.seconds,
            "fits": budget.map(|budget| choice.peak_bytes <= plan.usable(budget)),
            "chosen": matches!(chosen, Some(Ok(best)) if is_same(best, choice)),
        })
    });
    let kept = chosen.and_then(|chosen| chosen.as_ref().ok()).map(|choice| choice.memory.keep_bytes);
    json!({ "budget_bytes": budget, "keep_bytes": kept, "choices": choices.collect::<Vec<_>>() })
}
