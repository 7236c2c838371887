//! How a picture was made, in the words of Stable Diffusion's web UIs (AUTOMATIC1111's `infotext`), which others read.

#[cfg(feature = "hashes")]
mod hash;
mod read;

use crate::generator::GeneratorKind;
use crate::{Approximations, Job, Upscaler};
#[cfg(feature = "hashes")]
pub use hash::lora_hash;
pub use read::{Parameters, parse};

/// Names of what a job was drawn with, which the job does not know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    /// The model.
    pub model: String,
    /// An autoencoder in the place of the model's own.
    pub vae: Option<String>,
    /// LoRAs, in their order.
    pub loras: Vec<NamedLora>,
}

/// A LoRA as web UIs name it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedLora {
    /// The name of its file, without ending.
    pub name: String,
    /// Factor of its changes.
    pub weight: f32,
    /// The hash of its file, if known.
    pub hash: Option<String>,
}

/// The texts of a batch's pictures.
pub struct Infotext {
    prompts: Vec<String>,
    tags: String,
    negative_prompts: Vec<String>,
    before_seed: Vec<(&'static str, String)>,
    seeds: Vec<u64>,
    size: (&'static str, String),
    variation_seeds: Vec<u64>,
    after_seed: Vec<(&'static str, String)>,
}

impl Infotext {
    /// The texts of a job's pictures.
    pub fn new(job: &Job<'_>, names: &Names) -> Infotext {
        let (request, sampler, size) = (job.request, &job.first.schedule.sampler, job.first.size);
        let mut before_seed =
            vec![("Steps", job.first.steps.to_string()), ("Sampler", sampler.web_ui_sampler().to_owned())];
        before_seed.extend(sampler.web_ui_schedule().map(|schedule| ("Schedule type", schedule.to_owned())));
        before_seed.push(("CFG scale", job.guidance.scale.to_string()));
        let tags = names.loras.iter().map(|lora| format!(" <lora:{}:{}>", lora.name, lora.weight));
        Infotext {
            prompts: request.prompts.clone(),
            tags: tags.collect(),
            negative_prompts: request.negative_prompts.clone(),
            before_seed,
            seeds: request.seeds.clone(),
            size: ("Size", format!("{}x{}", size.width, size.height)),
            variation_seeds: request.variation.iter().flat_map(|v| v.seeds.clone()).collect(),
            after_seed: after_seed(job, names),
        }
    }

    /// The text of the picture of this index.
    pub fn of(&self, index: usize) -> String {
        let seed = one_of(&self.seeds, index).copied().unwrap_or_default();
        let mut pairs = self.before_seed.clone();
        pairs.extend([("Seed", seed.to_string()), self.size.clone()]);
        pairs.extend(self.after_seed.iter().cloned());
        if let Some(at) = pairs.iter().position(|(key, _)| *key == "Variation seed strength") {
            let seed = one_of(&self.variation_seeds, index).copied().unwrap_or_default();
            pairs.insert(at, ("Variation seed", seed.to_string()));
        }
        if self.prompts.len() > self.seeds.len() {
            let place = [("Batch size", self.prompts.len().to_string()), ("Batch pos", index.to_string())];
            pairs.splice(pairs.len() - 1..pairs.len() - 1, place);
        }
        let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
        format!("{}\n{}", self.texts(index), pairs.join(", "))
    }

    /// The prompts, with LoRAs as web UIs name them there.
    fn texts(&self, index: usize) -> String {
        let mut text = one_of(&self.prompts, index).cloned().unwrap_or_default() + &self.tags;
        if let Some(negative) = one_of(&self.negative_prompts, index).filter(|negative| !negative.is_empty()) {
            text += &format!("\nNegative prompt: {negative}");
        }
        text
    }
}

/// The picture's own value, or that of all pictures.
fn one_of<T>(values: &[T], index: usize) -> Option<&T> {
    values.get(index).or(values.first())
}

fn after_seed(job: &Job<'_>, names: &Names) -> Vec<(&'static str, String)> {
    let request = job.request;
    let mut pairs = vec![("Model", names.model.clone())];
    let mut put = |key, value: Option<String>| pairs.extend(value.map(|value| (key, value)));
    put("VAE", names.vae.clone());
    put("Variation seed strength", request.variation.as_ref().map(|v| v.strength.to_string()));
    let strength = job.strength.or(request.hires.map(|hires| hires.strength));
    put("Denoising strength", strength.map(|strength| strength.to_string()));
    put("Clip skip", (request.clip_skip > 0).then(|| (request.clip_skip + 1).to_string()));
    put("Eta DDIM", (request.eta > 0.0).then(|| request.eta.to_string()));
    let Approximations { deep_every, guidance_start, guidance_end } = request.approximations;
    put("Guidance start", (guidance_start > 0.0).then(|| guidance_start.to_string()));
    put("Guidance end", (guidance_end < 1.0).then(|| guidance_end.to_string()));
    put("Deep every", (deep_every > 1).then(|| deep_every.to_string()));
    put("Hires upscale", request.hires.map(|hires| hires.scale.to_string()));
    put("Hires steps", job.second.as_ref().map(|second| second.steps.to_string()));
    put("Hires upscaler", request.hires.map(|hires| upscaler(hires.upscaler).to_owned()));
    put("Lora hashes", lora_hashes(&names.loras));
    put("RNG", (request.generator == GeneratorKind::Cpu).then(|| "CPU".to_owned()));
    put("Version", Some(concat!("kiln ", env!("CARGO_PKG_VERSION")).to_owned()));
    pairs
}

fn upscaler(upscaler: Upscaler) -> &'static str {
    match upscaler {
        Upscaler::Latents => "Latent",
        Upscaler::Pixels => "Lanczos",
    }
}

/// A value as it stands among others.
fn quoted(value: &str) -> String {
    match value.contains([',', ':', '\n']) {
        true => serde_json::Value::from(value).to_string(),
        false => value.to_owned(),
    }
}

/// `name: hash` of each that has a hash.
fn lora_hashes(loras: &[NamedLora]) -> Option<String> {
    let hashes = loras.iter().filter_map(|lora| Some(format!("{}: {}", lora.name, lora.hash.as_ref()?)));
    let hashes: Vec<String> = hashes.collect();
    (!hashes.is_empty()).then(|| hashes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_could_be_taken_for_pairs_are_quoted() {
        assert_eq!(quoted("Euler a"), "Euler a");
        assert_eq!(quoted("a: 12, \"b\""), r#""a: 12, \"b\"""#);
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
    }
}
