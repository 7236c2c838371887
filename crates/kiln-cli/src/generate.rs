use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use kiln_runtime::generator::GeneratorKind;
use kiln_runtime::scheduler::SchedulerClass;
use kiln_runtime::{Error, Output, PromptSyntax, Request, Variation};
use serde_json::{Value, json};

use crate::args::{GenerateArgs, GeneratorChoice, SyntaxChoice};
use crate::draw::Seconds;
use crate::failure::Failure;
use crate::infotext::Infotext;
use crate::memtrace::MemoryTrace;
use crate::model::Model;
use crate::models::{bundle, controlnet_bundle, refuse_unused};
use crate::settings::settings;
use crate::{backends, draw, models, output, paths, plan, tasks};

pub(crate) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let request = request(args)?;
    request.validate()?;
    args.scheduler.as_deref().map(SchedulerClass::named).transpose().map_err(Error::from)?;
    let memory = args.memory.options();
    memory.validate()?;
    let backends = args.execution.backends();
    backends.check()?;
    let files = output_files(args, &request)?;
    let loras = tasks::loras(&args.tasks.lora)?;
    let model = Model::open(&paths::model(args.model.as_ref())?)?;
    let controlnets = args.tasks.controlnet.iter().map(|path| Model::open(path));
    let controlnets = controlnets.collect::<Result<Vec<_>, _>>()?;
    refuse_unused(&args.checkpoint, [&model].into_iter().chain(&controlnets))?;
    let place = backends::place(&model, &backends, on_host(args))?;
    let mut trace = args.memory.memory_trace.as_ref().map(|_| MemoryTrace::start(place.gpu().cloned()));
    let (bundles, backend) = backends::open_while(&backends, &place, || {
        let controlnets = controlnets.into_iter();
        let controlnets = controlnets.map(|net| controlnet_bundle(net, &args.checkpoint, &args.cache));
        Ok((bundle(model, &args.checkpoint, &args.cache, &place)?, controlnets.collect::<Result<Vec<_>, _>>()?))
    })?;
    let (bundle, controlnets) = bundles;
    let mut pipeline = models::pipeline(bundle, backend)?;
    pipeline.set_memory(memory)?;
    for controlnet in controlnets {
        pipeline.add_controlnet(controlnet)?;
    }
    for embedding in &args.tasks.embedding {
        let (file, word) = tasks::file_and_suffix(embedding);
        pipeline.add_embedding(&file, word)?;
    }
    let loras: Vec<_> = loras.into_iter().map(|lora| (lora.file, lora.weight)).collect();
    pipeline.set_loras(&loras)?;
    if let Some(budget) = args.memory.memory_budget {
        pipeline.set_memory(plan::choose(&pipeline, &request, budget, args.execution)?)?;
    }
    draw::warm_up(&mut pipeline, &request, args.warm_up)?;
    let output = draw::draw(&mut pipeline, &request, &mut trace)?;
    if let (Some(trace), Some(file)) = (trace, &args.memory.memory_trace) {
        trace.finish().write(file)?;
    }

    let job = pipeline.resolve(&request)?;
    let settings = settings(&pipeline, &job, args)?;
    let infotext = Infotext::new(&job, &pipeline.bundle().manifest().name, args);
    for (i, (image, file)) in output.images.iter().zip(&files).enumerate() {
        let text = [("parameters", infotext.of(i)), ("kiln", of_picture(&settings, i))];
        image.save_png(file, &text).map_err(Error::from)?;
    }
    match args.json {
        true => output::data(&report(&settings, &files, &output).to_string()),
        false => files.iter().for_each(|file| output::data(&file.display().to_string())),
    }
    Ok(())
}

fn request(args: &GenerateArgs) -> Result<Request, Failure> {
    let seeds = match args.seed.as_slice() {
        [] => vec![RandomState::new().hash_one(0) & u64::from(u32::MAX)],
        seeds => seeds.to_vec(),
    };
    let batch_size = args.batch_size.unwrap_or(seeds.len()).min(1 << 16);
    let tasks = &args.tasks;
    let variation = match (args.variation_seed, args.variation_strength) {
        (Some(seed), Some(strength)) => {
            let seeds = (0..seeds.len() as u64).map(|i| seed.wrapping_add(i)).collect();
            Some(Variation { seeds, strength })
        }
        _ => None,
    };
    let mut request = Request::new("")
        .prompts(vec![args.prompt.as_str(); batch_size])
        .prompt_syntax(match args.prompt_syntax {
            SyntaxChoice::Weighted => PromptSyntax::Weighted,
            SyntaxChoice::Plain => PromptSyntax::Plain,
        })
        .clip_skip(args.clip_skip)
        .generator(match args.generator {
            GeneratorChoice::Cpu => GeneratorKind::Cpu,
            GeneratorChoice::Cuda => GeneratorKind::Cuda,
        })
        .variation(variation)
        .seeds(seeds)
        .steps(args.steps)
        .guidance_scale(args.guidance_scale)
        .guidance_rescale(args.guidance_rescale)
        .eta(args.eta)
        .init(tasks.init()?)
        .controls(tasks.controls()?)
        .hires(tasks.hires())
        .micro_conditioning(tasks.micro_conditioning());
    request.negative_prompts = args.negative_prompt.iter().cloned().collect();
    request.scheduler.clone_from(&args.scheduler);
    (request.height, request.width) = (args.height, args.width);
    Ok(request)
}

/// What keeps a checkpoint's engines on the processor.
fn on_host(args: &GenerateArgs) -> Option<&'static str> {
    match (args.tasks.lora.is_empty(), args.tasks.controlnet.is_empty()) {
        (false, _) => {
            Some("--lora changes the weights of a checkpoint there alone; kiln compile takes it for a GPU")
        }
        (true, false) => Some("--controlnet is compiled for the processor alone"),
        (true, true) => None,
    }
}

fn output_files(args: &GenerateArgs, request: &Request) -> Result<Vec<PathBuf>, Failure> {
    let n = request.prompts.len();
    let base = match &args.out {
        Some(out) => png(out)?,
        None => unused(&format!("kiln-{}", request.seeds[0]), n),
    };
    let files: Vec<PathBuf> = (0..n).map(|i| numbered(&base, i, n)).collect();
    paths::check_outputs(&files)?;
    paths::check_outputs(args.memory.memory_trace.as_slice())?;
    Ok(files)
}

/// The path, which must end in `.png` if it has an ending.
fn png(path: &Path) -> Result<PathBuf, Failure> {
    match path.extension() {
        Some(ending) if !ending.eq_ignore_ascii_case("png") => Err(Failure::usage(format!(
            "out: {} does not end in .png, and pictures are PNG files",
            path.display()
        ))),
        _ => Ok(path.into()),
    }
}

fn numbered(base: &Path, i: usize, n: usize) -> PathBuf {
    if n == 1 {
        return base.into();
    }
    let stem = base.file_stem().unwrap_or_default().to_string_lossy();
    let extension = base.extension().map_or("png".into(), |extension| extension.to_string_lossy());
    base.with_file_name(format!("{stem}-{i}.{extension}"))
}

/// A name in the working folder that overwrites nothing.
fn unused(stem: &str, n: usize) -> PathBuf {
    let candidates = (0u64..).map(|k| match k {
        0 => PathBuf::from(format!("{stem}.png")),
        k => PathBuf::from(format!("{stem}-v{}.png", k + 1)),
    });
    let mut free = candidates.filter(|base| (0..n).all(|i| !numbered(base, i, n).exists()));
    free.next().unwrap_or_else(|| PathBuf::from(format!("{stem}.png")))
}

/// The settings of the batch's picture of this index, as JSON.
fn of_picture(settings: &Value, index: usize) -> String {
    let mut settings = settings.clone();
    settings["batch_index"] = json!(index);
    settings.to_string()
}

fn report(settings: &Value, files: &[PathBuf], output: &Output) -> Value {
    let mut report = settings.clone();
    report["images"] = json!(files);
    report["seconds"] = json!(Seconds::from(output.timings));
    report
}
