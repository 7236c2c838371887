//! How a picture was made, as its file and `--json` tell it.

use clap::ValueEnum;
use kiln_runtime::{Control, Error, Job, Pipeline, VaeTiling};
use serde_json::{Map, Value, json};

use crate::args::{GenerateArgs, MaskFillChoice};

/// All that is needed to draw the picture again; defaults as what they came to.
pub(crate) fn settings(pipeline: &Pipeline, job: &Job<'_>, args: &GenerateArgs) -> Result<Value, Error> {
    let (request, size) = (job.request, job.picture_size());
    let (backend, manifest) = (pipeline.backend(), pipeline.bundle().manifest());
    let mut settings = Settings::default();
    settings.put("prompt", &request.prompts[0]);
    settings.put("negative_prompt", request.negative_prompts.first().map_or("", String::as_str));
    settings.put("seed", request.seeds[0]);
    settings.put_if(request.seeds.len() > 1, "seeds", &request.seeds);
    settings.put("steps", job.first.steps);
    settings.put("guidance_scale", job.guidance.scale);
    settings.put("eta", request.eta);
    settings.put("width", size.width);
    settings.put("height", size.height);
    settings.put("batch_size", job.batch());
    settings.put("scheduler", job.scheduler());
    settings.put("generator", name(args.generator));
    settings.put("prompt_syntax", name(args.prompt_syntax));
    settings.put_if(args.clip_skip > 0, "clip_skip", args.clip_skip);
    settings.put_if(args.guidance_rescale > 0.0, "guidance_rescale", args.guidance_rescale);
    settings.put_if(args.guidance_start > 0.0, "guidance_start", args.guidance_start);
    settings.put_if(args.guidance_end < 1.0, "guidance_end", args.guidance_end);
    settings.put_if(args.deep_every > 1, "deep_every", args.deep_every);
    settings.put_if(args.variation_seed.is_some(), "variation_seed", args.variation_seed);
    settings.put_if(args.variation_strength.is_some(), "variation_strength", args.variation_strength);
    tasks(&mut settings, job, args);
    job.settings.iter().for_each(|(key, value)| settings.put(key, value));
    if let Some(VaeTiling { tile, overlap, .. }) = pipeline.memory().vae_tiling {
        settings.put("vae_tile", tile.unwrap_or(pipeline.bundle().pipeline()?.size.longest()));
        settings.put("vae_tile_overlap", overlap);
    }
    settings.put("model", &manifest.name);
    for (component, path) in args.checkpoint.components.components().iter() {
        settings.put(component, path);
    }
    settings.put("model_key", &manifest.provenance.key);
    settings.put("backend", format!("{} {}", backend.name(), backend.version()));
    if let Some(device) = backend.device() {
        settings.put("device", &device.info().name);
    }
    settings.put("software", concat!("kiln ", env!("CARGO_PKG_VERSION")));
    Ok(settings.0.into())
}

fn tasks(settings: &mut Settings, job: &Job<'_>, args: &GenerateArgs) {
    let (tasks, controls) = (&args.tasks, &job.request.controls);
    settings.put_if(tasks.init_image.is_some(), "init_image", &tasks.init_image);
    settings.put_if(job.strength.is_some(), "strength", job.strength);
    settings.put_if(tasks.mask.is_some(), "mask", &tasks.mask);
    settings.put_if(tasks.mask_fill != MaskFillChoice::Picture, "mask_fill", name(tasks.mask_fill));
    settings.put_if(!tasks.controlnet.is_empty(), "controlnet", &tasks.controlnet);
    if job.task.controlled {
        let shares = |of: fn(&Control) -> f64| controls.iter().map(of).collect::<Vec<_>>();
        settings.put("control_image", &tasks.control_image);
        settings.put("control_scale", &job.control_scales);
        settings.put("control_start", shares(|control| control.start));
        settings.put("control_end", shares(|control| control.end));
    }
    settings.put_if(!tasks.embedding.is_empty(), "embedding", &tasks.embedding);
    settings.put_if(!tasks.lora.is_empty(), "lora", &tasks.lora);
    if let (Some(hires), Some(second)) = (&job.request.hires, &job.second) {
        settings.put("hires", hires.scale);
        settings.put("hires_strength", hires.strength);
        settings.put("hires_steps", second.steps);
        settings.put("hires_upscaler", name(tasks.hires_upscaler));
        settings.put("first_pass_width", job.first.size.width);
        settings.put("first_pass_height", job.first.size.height);
    }
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
