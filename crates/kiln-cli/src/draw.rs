//! Drawing under a progress bar, here or in another process that is watched.

use std::ops::ControlFlow;
use std::path::PathBuf;

use kiln_runtime::{Event, MemoryOptions, Output, Pipeline, Request, Timings, VaeTiling, Watch};
use serde::{Deserialize, Serialize};

use crate::args::{ExecutionArgs, OffloadChoice};
use crate::failure::Failure;
use crate::memtrace::{MemoryTrace, Recording};
use crate::model::open_bundle;
use crate::progress::Bar;
use crate::{backends, models, output};

/// A picture to draw in another process.
#[derive(Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) bundle: PathBuf,
    pub(crate) prompt: String,
    pub(crate) steps: usize,
    pub(crate) scheduler: Option<String>,
    /// Steps to draw before what is timed.
    pub(crate) warm_up: Option<u32>,
    pub(crate) width: Option<u32>,
    pub(crate) height: Option<u32>,
    pub(crate) offload: OffloadChoice,
    pub(crate) vae_tile: Option<u32>,
    /// The PNG file to write.
    pub(crate) picture: PathBuf,
    pub(crate) execution: ExecutionArgs,
}

/// What drawing it took.
#[derive(Serialize, Deserialize)]
pub(crate) struct Drawn {
    pub(crate) seconds: Seconds,
    pub(crate) recording: Recording,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Seconds {
    pub(crate) start: f64,
    pub(crate) steps: f64,
    pub(crate) decode: f64,
}

impl From<Timings> for Seconds {
    fn from(timings: Timings) -> Seconds {
        let [start, steps, decode] =
            [timings.start, timings.steps, timings.decode].map(|duration| duration.as_secs_f64());
        Seconds { start, steps, decode }
    }
}

/// Draws a picture here.
pub(crate) fn work(job: Job) -> Result<Drawn, Failure> {
    let mut request = Request::new(&job.prompt).seed(0).steps(job.steps).width(job.width).height(job.height);
    request.scheduler.clone_from(&job.scheduler);
    let bundle = open_bundle(&job.bundle)?;
    let backends = job.execution.backends();
    let place = backends.place_for(&bundle)?;
    let trace = MemoryTrace::start(place.gpu().cloned());
    let mut pipeline = models::pipeline(bundle, backends::open(&backends, &place)?)?;
    let memory = MemoryOptions::new().offload(job.offload.into()).vae_tiling(job.vae_tile.map(VaeTiling::of));
    pipeline.set_memory(memory)?;
    warm_up(&mut pipeline, &request, job.warm_up)?;
    let mut trace = Some(trace);
    let output = draw(&mut pipeline, &request, &mut trace)?;
    let recording = trace.map(MemoryTrace::finish).unwrap_or_default();
    output.images[0].save_png(&job.picture, &[]).map_err(kiln_runtime::Error::from)?;
    Ok(Drawn { seconds: output.timings.into(), recording })
}

/// Draws so many steps of a request and throws them away.
pub(crate) fn warm_up(pipeline: &mut Pipeline, request: &Request, steps: Option<u32>) -> Result<(), Failure> {
    let Some(steps) = steps else { return Ok(()) };
    let request = request.clone().steps(steps as usize);
    draw(pipeline, &request, &mut None).map(drop)
}

/// Draws the pictures of a request.
pub(crate) fn draw(
    pipeline: &mut Pipeline,
    request: &Request,
    trace: &mut Option<MemoryTrace>,
) -> Result<Output, Failure> {
    let mut bar = None;
    let mut watch = |event: Event| {
        if let Some(trace) = trace {
            trace_phase(trace, &event);
        }
        if let Some(notice) = event.notice() {
            output::say(&notice);
        }
        match event {
            Event::Started { steps } => bar = Some(Bar::steps(steps)),
            Event::Step { step, .. } => bar.iter().for_each(|bar| bar.step(step)),
            Event::Decoding { .. } => bar = None,
            _ => {}
        }
        ControlFlow::Continue(())
    };
    Ok(pipeline.generate_with(request, Watch::new().on_event(&mut watch))?)
}

fn trace_phase(trace: &mut MemoryTrace, event: &Event) {
    match event {
        Event::Loading(role) => trace.phase(format!("load {role}")),
        Event::Started { .. } => trace.phase("steps"),
        Event::Decoding { done, total } if done < total => trace.phase("decode"),
        _ => {}
    }
}
