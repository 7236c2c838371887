//! What each step to faster pictures brings, measured on top of the ones before it.

use std::fmt::Write;
use std::time::Instant;

use kiln_bundle::{Bundle, OutputFolder, Size, Target};
use kiln_compile::{
    AttentionSpec, Bytes, Checkpoint, CpuSpec, CudaSpec, EngineCache, NetworkSpec, OptimizationLevel,
    PrecisionSpec, TargetSpec,
};
use kiln_graph::{AttentionPolicy, ElementType, Precision};
use kiln_runtime::image::RgbImage;
use kiln_runtime::{Backends, MemoryOptions, Place, Placement, Request};
use serde::Serialize;
use serde_json::json;

use super::{PROMPT, check, memory, warm_up_steps, write};
use crate::args::{BenchLadderArgs, BenchMemoryArgs, PixelArgs};
use crate::failure::Failure;
use crate::model::Model;
use crate::models::{self, failure};
use crate::progress::Bar;
use crate::{backends, building, output, paths};

/// Most bytes of weights in a segment of a GPU's engines, for the rows with sequential offload.
const GPU_SEGMENTS: u64 = 256 << 20;

/// One step to faster pictures.
#[derive(Clone)]
struct Rung {
    name: &'static str,
    place: Place,
    spec: TargetSpec,
    placement: Placement,
    records: bool,
}

/// A rung, measured.
#[derive(Serialize)]
struct Row {
    rung: &'static str,
    /// Seconds of a picture with everything loaded, in the fastest round.
    seconds: f64,
    /// Steps a second in that round.
    steps_per_second: f64,
    /// Seconds of the first rung over those of this one, each in the same round; the median of all rounds.
    speed_up: f64,
    /// Peak signal to noise ratio of the picture beside the first rung's, in decibels; none where all is equal.
    psnr: Option<f64>,
}

/// A rung that could not be measured.
#[derive(Serialize)]
struct LeftOut {
    rung: &'static str,
    reason: String,
}

/// A rung whose engines are built.
struct Case {
    rung: Rung,
    bundle: Bundle,
    /// Seconds of the picture and of its steps alone, by round.
    seconds: Vec<(f64, f64)>,
    image: Option<RgbImage>,
}

pub(super) fn run(args: &BenchLadderArgs) -> Result<(), Failure> {
    check(args.steps, args.rounds)?;
    let model = Model::open(&paths::model(args.model.as_ref())?)?;
    if let Model::Bundle(bundle) = &model {
        return Err(Failure::input(bundle.root(), "is a bundle, of which no others can be compiled")
            .with_hint("kiln bench ladder takes the checkpoint that the bundle was made of"));
    }
    let backends = args.execution.backends();
    let place = backends::place(&model, &backends, None)?;
    let checkpoint = model.runnable_checkpoint(&args.checkpoint.options(), args.scheduler.name()?)?;
    let cache = models::cache(&args.cache)?;
    let folder = OutputFolder::open(&args.out)?;
    let mut cases = Vec::new();
    let mut left_out = Vec::new();
    for rung in rungs(&backends, &place, &checkpoint)? {
        match built(&rung.spec, &rung.place, &checkpoint, &cache) {
            Ok(bundle) => cases.push(Case { rung, bundle, seconds: Vec::new(), image: None }),
            Err(failure) if !cases.is_empty() => leave_out(&rung, &failure, &mut left_out),
            Err(failure) => return Err(failure),
        }
    }
    measure(&mut cases, &backends, args, &mut left_out)?;
    let rows = rows(&cases, args.steps)?;
    for (i, case) in cases.iter().enumerate() {
        if let Some(image) = &case.image {
            let file = folder.path().join(format!("rung-{}.png", i + 1));
            image.save_png(&file, &[]).map_err(kiln_runtime::Error::from)?;
        }
    }
    let mut markdown = markdown(&rows);
    let mut report = json!({
        "device": device(&place),
        "steps": args.steps,
        "rounds": args.rounds,
        "kiln": env!("CARGO_PKG_VERSION"),
        "rungs": rows,
        "left_out": left_out,
    });
    write(&folder, "ladder.md", &markdown)?;
    if !args.speed_only {
        let bundles = memory_specs(&place);
        let bundles = bundles.into_iter().map(|spec| built(&spec, &place, &checkpoint, &cache));
        let bundles = bundles.map(|bundle| Ok(bundle?.root().into())).collect::<Result<_, Failure>>()?;
        let found = memory::measure(&memory_args(args, bundles), &folder)?;
        markdown = format!("{markdown}\n{}", found.markdown);
        report["memory"] = found.json;
    }
    write(&folder, "ladder.json", &report.to_string())?;
    folder.publish()?;
    match args.json {
        true => output::data(&report.to_string()),
        false => output::data(markdown.trim_end()),
    }
    Ok(())
}

/// From everything off to everything on.
fn rungs(backends: &Backends, place: &Place, checkpoint: &Checkpoint) -> Result<Vec<Rung>, Failure> {
    if place.gpu().is_none() {
        return Ok(rungs_of_host(place));
    }
    let mut targets = vec![place.target()];
    if targets == [Target::TensorrtRtx] {
        targets.insert(0, Target::Cuda);
    }
    let n_targets = targets.len();
    let mut rungs = Vec::new();
    for target in targets {
        let place = place.with_target(target);
        match (backends::open(backends, &place), target) {
            (Ok(_), Target::Cuda) => rungs.extend(rungs_of_onnxruntime(&place)),
            (Ok(_), _) => rungs.extend(rungs_of_tensorrt(&place, checkpoint)),
            (Err(failure), Target::Cuda) if n_targets > 1 => {
                output::say(&format!("without {target}: {}", failure.message()));
            }
            (Err(failure), _) => return Err(failure),
        }
    }
    Ok(rungs)
}

fn rung(name: &'static str, place: &Place, spec: &TargetSpec) -> Rung {
    let (place, spec) = (place.clone(), spec.clone());
    Rung { name, place, spec, placement: Placement::Packed, records: false }
}

fn plain() -> NetworkSpec {
    NetworkSpec { attention: Some(AttentionSpec(AttentionPolicy::Plain)), ..NetworkSpec::default() }
}

fn fused() -> NetworkSpec {
    NetworkSpec { attention: Some(AttentionSpec(AttentionPolicy::Fused)), ..NetworkSpec::default() }
}

fn rungs_of_host(place: &Place) -> Vec<Rung> {
    let spec = |networks| TargetSpec::Cpu(CpuSpec { networks, ..CpuSpec::default() });
    let precision = PrecisionSpec { storage: Some(ElementType::F16), ..PrecisionSpec::default() };
    let (plain, stored) = (spec(plain()), spec(NetworkSpec { precision, ..fused() }));
    let fused = spec(fused());
    let mapped = |name, spec| Rung { placement: Placement::Mapped, ..rung(name, place, spec) };
    vec![
        mapped("fp32", &plain),
        rung("layouts and kernels chosen for the processor", place, &plain),
        rung("memory-efficient attention", place, &fused),
        mapped("weights mapped, rows one by one", &fused),
        mapped("weights stored in fp16", &stored),
    ]
}

/// The steps of diffusers' page, one on top of the other.
fn rungs_of_onnxruntime(place: &Place) -> Vec<Rung> {
    let computed_in = |compute| PrecisionSpec { compute: Some(compute), ..PrecisionSpec::default() };
    let f32 = CudaSpec {
        networks: NetworkSpec { precision: computed_in(Precision::F32), ..plain() },
        tf32: Some(false),
        channels_last: Some(false),
        optimization_level: Some(OptimizationLevel::NONE),
        ..CudaSpec::default()
    };
    let tuned = CudaSpec { optimization_level: None, ..f32.clone() };
    let tf32 = CudaSpec { tf32: None, ..tuned.clone() };
    let in_f16 = NetworkSpec { precision: computed_in(Precision::F16), ..plain() };
    let f16 = CudaSpec { networks: in_f16, ..tf32.clone() };
    let channels_last = CudaSpec { channels_last: None, ..f16.clone() };
    let in_f16 = NetworkSpec { precision: computed_in(Precision::F16), ..fused() };
    let fused = CudaSpec { networks: in_f16, ..channels_last.clone() };
    let rung = |name, spec: &CudaSpec| rung(name, place, &TargetSpec::Cuda(spec.clone()));
    vec![
        rung("fp32", &f32),
        rung("autotuned convolutions", &tuned),
        rung("TF32", &tf32),
        rung("fp16", &f16),
        rung("channels last", &channels_last),
        rung("memory-efficient attention", &fused),
        Rung { records: true, ..rung("CUDA graph", &fused) },
    ]
}

fn rungs_of_tensorrt(place: &Place, checkpoint: &Checkpoint) -> Vec<Rung> {
    let mut spec = TargetSpec::new(place.target());
    *spec.networks_mut() = fused();
    let [height, width] = checkpoint.default_size().map(|side| side as u32);
    let mut of_one_size = spec.clone();
    of_one_size.fix_sizes(1, Size::new(width, height));
    vec![
        rung("compiled by TensorRT-RTX", place, &spec),
        Rung { records: true, ..rung("compiled by TensorRT-RTX, CUDA graph", place, &spec) },
        Rung { records: true, ..rung("compiled by TensorRT-RTX for one size", place, &of_one_size) },
    ]
}

/// What memory is measured of: fused attention, and sliced attention.
fn memory_specs(place: &Place) -> Vec<TargetSpec> {
    let spec = |attention| {
        let mut spec = TargetSpec::new(place.target());
        spec.networks_mut().attention = attention;
        if let (Some(_), Some(segments)) = (place.gpu(), spec.segments_mut()) {
            *segments = Some(Bytes(GPU_SEGMENTS));
        }
        if let Some(engines) = spec.engines_mut() {
            engines.allow_slow_attention = true;
        }
        spec
    };
    vec![spec(None), spec(Some(AttentionSpec(AttentionPolicy::Halved)))]
}

fn memory_args(args: &BenchLadderArgs, bundles: Vec<std::path::PathBuf>) -> BenchMemoryArgs {
    BenchMemoryArgs {
        bundles,
        out: args.out.clone(),
        steps: args.steps.min(4),
        rounds: 1,
        pixels: PixelArgs { width: None, height: None },
        scheduler: args.scheduler.clone(),
        execution: args.execution,
        json: args.json,
    }
}

fn built(
    spec: &TargetSpec,
    place: &Place,
    checkpoint: &Checkpoint,
    cache: &EngineCache,
) -> Result<Bundle, Failure> {
    let options = building::options_for(place, checkpoint, spec.clone())?;
    let bar = Bar::bytes("compiling");
    let compiled = cache.compile(checkpoint, &options, &mut |progress| bar.compiling(progress));
    Ok(compiled.map_err(|e| failure(e, cache))?.bundle)
}

/// Measures every rung in turn. Those that fail are left out, but for the first, beside which all others are measured.
fn measure(
    cases: &mut Vec<Case>,
    backends: &Backends,
    args: &BenchLadderArgs,
    left_out: &mut Vec<LeftOut>,
) -> Result<(), Failure> {
    let (bar, n_cases) = (Bar::count("measuring"), cases.len());
    for round in 0..args.rounds {
        let mut measured = Vec::new();
        for (i, mut case) in cases.drain(..).enumerate() {
            bar.at((round * n_cases + i) as u64, (args.rounds * n_cases) as u64);
            match draw(&case, backends, args) {
                Ok((seconds, image)) => {
                    case.seconds.push(seconds);
                    case.image = Some(image);
                    measured.push(case);
                }
                Err(failure) if i > 0 => leave_out(&case.rung, &failure, left_out),
                Err(failure) => return Err(failure),
            }
        }
        *cases = measured;
    }
    Ok(())
}

fn leave_out(rung: &Rung, failure: &Failure, left_out: &mut Vec<LeftOut>) {
    output::say(&format!("without '{}': {}", rung.name, failure.message()));
    left_out.push(LeftOut { rung: rung.name, reason: failure.message().to_string() });
}

/// Seconds of a picture and of its steps, after a short one.
fn draw(case: &Case, backends: &Backends, args: &BenchLadderArgs) -> Result<((f64, f64), RgbImage), Failure> {
    let backends = backends.clone().recording(case.rung.records);
    let backend = backends::open(&backends, &case.rung.place)?;
    let mut pipeline = models::pipeline(case.bundle.clone(), backend)?;
    let placement = Some(case.rung.placement);
    pipeline.set_memory(MemoryOptions::new().placement(placement))?;
    let scheduler = args.scheduler.name()?;
    let request = |steps| {
        let mut request = Request::new(PROMPT).steps(steps);
        request.scheduler = scheduler.map(Into::into);
        request
    };
    let warm_up = request(warm_up_steps(&case.rung.place) as usize);
    // On a GPU twice: the decoder's first run may move the memory that all engines of TensorRT compute in.
    let n_warm_ups = if case.rung.place.gpu().is_some() { 2 } else { 1 };
    for _ in 0..n_warm_ups {
        pipeline.generate(&warm_up)?;
    }
    let start = Instant::now();
    let mut output = pipeline.generate(&request(args.steps))?;
    let seconds = (start.elapsed().as_secs_f64(), output.timings.steps.as_secs_f64());
    Ok((seconds, output.images.swap_remove(0)))
}

fn rows(cases: &[Case], steps: usize) -> Result<Vec<Row>, Failure> {
    let first = &cases[0];
    let row = |case: &Case| {
        let pairs = case.seconds.iter().zip(&first.seconds);
        let mut ratios: Vec<f64> = pairs.map(|((seconds, _), (base, _))| base / seconds).collect();
        ratios.sort_by(f64::total_cmp);
        let fastest = case.seconds.iter().copied().min_by(|a, b| f64::total_cmp(&a.0, &b.0));
        let (seconds, in_steps) = fastest.unwrap_or((0.0, 0.0));
        let psnr = match (&first.image, &case.image) {
            (Some(base), Some(image)) => base.compare(image).map_err(kiln_runtime::Error::from)?.psnr,
            _ => None,
        };
        Ok(Row {
            rung: case.rung.name,
            seconds,
            steps_per_second: steps as f64 / in_steps,
            speed_up: ratios[ratios.len() / 2],
            psnr,
        })
    };
    cases.iter().map(row).collect()
}

fn device(place: &Place) -> String {
    place.gpu().map_or_else(|| "cpu".into(), |gpu| gpu.name().to_owned())
}

fn markdown(rows: &[Row]) -> String {
    let mut text =
        String::from("| rung | seconds | steps a second | speed-up | picture |\n|---|---|---|---|---|\n");
    for row in rows {
        let picture = row.psnr.map_or_else(|| "identical".into(), |psnr| format!("{psnr:.1} dB"));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {:.3} | {:.2} | {:.2} x | {picture} |",
            row.rung, row.seconds, row.steps_per_second, row.speed_up
        );
    }
    text
}
