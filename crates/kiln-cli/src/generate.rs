use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use kiln_runtime::generator::GeneratorKind;
use kiln_runtime::infotext::{Infotext, NamedLora, Names, lora_hash};
use kiln_runtime::{Output, PromptSyntax, Request, Variation};
use serde_json::{Value, json};

use crate::args::{GenerateArgs, GeneratorChoice, SyntaxChoice};
use crate::draw::Seconds;
use crate::failure::Failure;
use crate::memtrace::MemoryTrace;
use crate::model::Model;
use crate::models::{bundle, check_batch, controlnet_bundle, refuse_unused};
use crate::pictures::Pictures;
use crate::settings::settings;
use crate::{backends, draw, models, output, paths, plan, tasks};

pub(crate) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let request = request(args)?;
    request.validate()?;
    let memory = args.memory.options();
    memory.validate()?;
    let backends = args.execution.backends();
    backends.check()?;
    let pictures = Pictures::check(args, request.prompts.len(), request.seeds[0])?;
    let loras = tasks::loras(&args.tasks.lora)?;
    let model = Model::open(&paths::model(args.model.as_ref())?)?;
    let controlnets = args.tasks.controlnet.iter().map(|path| Model::open(path));
    let controlnets = controlnets.collect::<Result<Vec<_>, _>>()?;
    refuse_unused(&args.checkpoint, [&model].into_iter().chain(&controlnets))?;
    let place = backends::place(&model, &backends, on_host(args))?;
    let is_bundle = matches!(model, Model::Bundle(_));
    let mut trace = args.memory.memory_trace.as_ref().map(|_| MemoryTrace::start(place.gpu().cloned()));
    let (bundles, backend) = backends::open_while(&backends, &place, || {
        let controlnets = controlnets.into_iter();
        let controlnets = controlnets.map(|net| controlnet_bundle(net, &args.checkpoint, &args.cache));
        let scheduler = request.scheduler.as_deref();
        let bundle = bundle(model, &args.checkpoint, &args.cache, &place, scheduler)?;
        Ok((bundle, controlnets.collect::<Result<Vec<_>, _>>()?))
    })?;
    let (bundle, controlnets) = bundles;
    let mut pipeline = models::pipeline(bundle, backend)?;
    pipeline.scheduler_note().iter().filter(|_| is_bundle).for_each(|note| output::say(note));
    pipeline.set_memory(memory)?;
    for controlnet in controlnets {
        pipeline.add_controlnet(controlnet)?;
    }
    for embedding in &args.tasks.embedding {
        let (file, word) = tasks::file_and_suffix(embedding);
        pipeline.add_embedding(&file, word)?;
    }
    let loras: Vec<_> = loras.into_iter().map(|lora| (lora.file, lora.weight)).collect();
    pipeline.set_loras(&loras)?.iter().for_each(|notice| output::say(notice));
    match args.memory.memory_budget {
        Some(budget) => pipeline.set_memory(plan::choose(&pipeline, &request, budget, args.execution)?)?,
        None => plan::check_free(&pipeline, &request, args.execution)?,
    }
    draw::warm_up(&mut pipeline, &request, args.warm_up)?;
    let output = draw::draw(&mut pipeline, &request, &mut trace)?;
    let recording = trace.map(MemoryTrace::finish);

    let job = pipeline.resolve(&request)?;
    let settings = settings(&pipeline, &job, args)?;
    let infotext = Infotext::new(&job, &names(&pipeline.bundle().manifest().name, args));
    let text = |i: usize| [("parameters", infotext.of(i)), ("kiln", of_picture(&settings, i))];
    let files = pictures.save(&output.images, &text)?;
    match args.json {
        true => output::data(&report(&settings, &files, &output).to_string()),
        false => files.iter().for_each(|file| output::data(&file.display().to_string())),
    }
    match (recording, &args.memory.memory_trace) {
        (Some(recording), Some(file)) => recording.write(file),
        _ => Ok(()),
    }
}

fn request(args: &GenerateArgs) -> Result<Request, Failure> {
    let new = |i: usize| RandomState::new().hash_one(i) & u64::from(u32::MAX);
    let seeds: Vec<u64> = match args.seed.as_slice() {
        [] => vec![new(0)],
        seeds => seeds.iter().enumerate().map(|(i, seed)| seed.0.unwrap_or_else(|| new(i))).collect(),
    };
    let batch_size = check_batch(args.batch_size.unwrap_or(seeds.len()))?;
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
        .guidance_interval(args.guidance_start, args.guidance_end)
        .deep_every(args.deep_every)
        .eta(args.eta)
        .init(tasks.init()?)
        .controls(tasks.controls()?)
        .hires(tasks.hires())
        .micro_conditioning(tasks.micro_conditioning());
    request.negative_prompts = args.negative_prompt.iter().cloned().collect();
    request.scheduler = args.scheduler.name()?.map(Into::into);
    (request.height, request.width) = (args.height, args.width);
    Ok(request)
}

/// What pictures' files name; the hash of a LoRA where its file still can be read.
fn names(model: &str, args: &GenerateArgs) -> Names {
    let stem = |file: &Path| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let loras = args.tasks.lora.iter().map(|lora| tasks::file_and_weight(lora));
    let named =
        |(file, weight): (PathBuf, f32)| NamedLora { name: stem(&file), weight, hash: lora_hash(&file).ok() };
    Names {
        model: model.to_owned(),
        vae: args.checkpoint.components.vae.as_deref().map(stem),
        loras: loras.map(named).collect(),
    }
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
