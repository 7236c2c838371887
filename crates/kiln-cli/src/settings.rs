//! How a picture was made, as its file and `--json` tell it.

use clap::ValueEnum;
use kiln_runtime::{Error, Pipeline, Request, VaeTiling};
use serde_json::{Map, Value, json};

use crate::args::GenerateArgs;

/// All that is needed to draw the picture again; defaults as what they came to.
pub(crate) fn settings(pipeline: &Pipeline, request: &Request, args: &GenerateArgs) -> Result<Value, Error> {
    let [height, width] = pipeline.picture_size(request)?;
    let (backend, manifest) = (pipeline.backend(), pipeline.bundle().manifest());
    let mut settings = Settings::default();
    settings.put("prompt", &request.prompts[0]);
    settings.put("negative_prompt", request.negative_prompts.first().map_or("", String::as_str));
    settings.put("seed", request.seeds[0]);
    settings.put_if(request.seeds.len() > 1, "seeds", &request.seeds);
    settings.put("steps", pipeline.steps(request)?);
    settings.put("guidance_scale", pipeline.guidance_scale(request)?);
    settings.put("eta", request.eta);
    settings.put("width", width);
    settings.put("height", height);
    settings.put("batch_size", request.prompts.len());
    match &args.scheduler {
        Some(name) => settings.put("scheduler", name),
        None => settings.put("scheduler", pipeline.scheduler(request)?.class().name()),
    }
    settings.put("generator", name(args.generator));
    settings.put("prompt_syntax", name(args.prompt_syntax));
    settings.put_if(args.clip_skip > 0, "clip_skip", args.clip_skip);
    settings.put_if(args.guidance_rescale > 0.0, "guidance_rescale", args.guidance_rescale);
    settings.put_if(args.variation_seed.is_some(), "variation_seed", args.variation_seed);
    settings.put_if(args.variation_strength.is_some(), "variation_strength", args.variation_strength);
    tasks(&mut settings, pipeline, request, args)?;
    if let Some(VaeTiling { tile, overlap }) = pipeline.memory().vae_tiling {
        let default = pipeline.bundle().pipeline()?;
        settings.put("vae_tile", tile.unwrap_or(default.size.longest()));
        settings.put("vae_tile_overlap", overlap);
    }
    settings.put("model", &manifest.name);
    settings.put("model_key", &manifest.provenance.key);
    settings.put("backend", format!("{} {}", backend.name(), backend.version()));
    if let Some(device) = backend.device() {
        settings.put("device", &device.info().name);
    }
    settings.put("software", concat!("kiln ", env!("CARGO_PKG_VERSION")));
    Ok(settings.0.into())
}

fn tasks(
    settings: &mut Settings,
    pipeline: &Pipeline,
    request: &Request,
    args: &GenerateArgs,
) -> Result<(), Error> {
    let tasks = &args.tasks;
    settings.put_if(tasks.init_image.is_some(), "init_image", &tasks.init_image);
    settings.put_if(tasks.init_image.is_some(), "strength", pipeline.strength(request)?);
    settings.put_if(tasks.mask.is_some(), "mask", &tasks.mask);
    settings.put_if(!tasks.controlnet.is_empty(), "controlnet", &tasks.controlnet);
    if !request.controls.is_empty() {
        let shares =
            |of: fn(&kiln_runtime::Control) -> f64| request.controls.iter().map(of).collect::<Vec<_>>();
        settings.put("control_image", &tasks.control_image);
        settings.put("control_scale", pipeline.control_scales(request)?);
        settings.put("control_start", shares(|control| control.start));
        settings.put("control_end", shares(|control| control.end));
    }
    settings.put_if(!tasks.embedding.is_empty(), "embedding", &tasks.embedding);
    settings.put_if(!tasks.lora.is_empty(), "lora", &tasks.lora);
    if let Some(hires) = &request.hires {
        let [height, width] = pipeline.size(request)?;
        settings.put("hires", hires.scale);
        settings.put("hires_strength", hires.strength);
        settings.put("hires_steps", hires.steps.map_or_else(|| pipeline.steps(request), Ok)?);
        settings.put("hires_upscaler", name(tasks.hires_upscaler));
        settings.put("first_pass_width", width);
        settings.put("first_pass_height", height);
    }
    let time_ids = kiln_bundle::stable_diffusion::Settings::of(pipeline.bundle().pipeline()?)?.time_ids;
    let Some(n_time_ids) = time_ids else { return Ok(()) };
    let ([height, width], micro) = (pipeline.size(request)?, &request.micro_conditioning);
    let [original, target] =
        [micro.original_size, micro.target_size].map(|size| size.unwrap_or([height, width]));
    settings.put("original_size", format!("{}x{}", original[1], original[0]));
    settings.put("crop", format!("{},{}", micro.crop[1], micro.crop[0]));
    if n_time_ids == 5 {
        settings.put("aesthetic_score", micro.aesthetic_score);
        settings.put("negative_aesthetic_score", micro.negative_aesthetic_score);
    } else {
        settings.put("target_size", format!("{}x{}", target[1], target[0]));
    }
    Ok(())
}

/// The settings as the text chunks of the batch's picture of this index.
pub(crate) fn text_chunks(settings: &Value, index: usize) -> Vec<(&str, String)> {
    let mut chunks: Vec<(&str, String)> = settings
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    chunks.push(("batch_index", index.to_string()));
    chunks
}

/// The value as the command line spells it.
fn name(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[derive(Default)]
struct Settings(Map<String, Value>);

impl Settings {
    fn put(&mut self, key: &str, value: impl serde::Serialize) {
        self.0.insert(key.into(), json!(value));
    }

    fn put_if(&mut self, is_set: bool, key: &str, value: impl serde::Serialize) {
        if is_set {
            self.put(key, value);
        }
    }
}
