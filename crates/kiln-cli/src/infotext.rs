//! How a picture was made, in the words of Stable Diffusion's web UIs (AUTOMATIC1111's `infotext`), which others read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use kiln_runtime::Job;
use sha2::{Digest, Sha256};

use crate::args::{GenerateArgs, GeneratorChoice, UpscalerChoice};
use crate::tasks::file_and_weight;

/// The text of a batch's pictures.
pub(crate) struct Infotext {
    prompts: String,
    before_seed: Vec<(&'static str, String)>,
    seeds: Vec<u64>,
    n_pictures: usize,
    after_seed: Vec<(&'static str, String)>,
}

impl Infotext {
    pub(crate) fn new(job: &Job<'_>, model: &str, args: &GenerateArgs) -> Infotext {
        let sampler = &job.first.schedule.sampler;
        let mut before_seed =
            vec![("Steps", job.first.steps.to_string()), ("Sampler", sampler.web_ui_sampler().to_owned())];
        before_seed.extend(sampler.web_ui_schedule().map(|schedule| ("Schedule type", schedule.to_owned())));
        before_seed.push(("CFG scale", job.guidance.scale.to_string()));
        Infotext {
            prompts: prompts(job, args),
            before_seed,
            seeds: job.request.seeds.clone(),
            n_pictures: job.batch(),
            after_seed: after_seed(job, model, args),
        }
    }

    /// The text of the picture of this index.
    pub(crate) fn of(&self, index: usize) -> String {
        let seed = self.seeds.get(index).or(self.seeds.first()).copied().unwrap_or_default();
        let mut pairs = self.before_seed.clone();
        pairs.push(("Seed", seed.to_string()));
        pairs.extend(self.after_seed.iter().cloned());
        if self.n_pictures > self.seeds.len() {
            let place = [("Batch size", self.n_pictures.to_string()), ("Batch pos", index.to_string())];
            pairs.splice(pairs.len() - 1..pairs.len() - 1, place);
        }
        let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
        format!("{}\n{}", self.prompts, pairs.join(", "))
    }
}

/// The prompts, with LoRAs as web UIs name them there.
fn prompts(job: &Job<'_>, args: &GenerateArgs) -> String {
    let mut text = job.request.prompts[0].clone();
    for (file, weight) in args.tasks.lora.iter().map(|lora| file_and_weight(lora)) {
        text += &format!(" <lora:{}:{weight}>", stem(&file));
    }
    if let Some(negative) = job.request.negative_prompts.first().filter(|negative| !negative.is_empty()) {
        text += &format!("\nNegative prompt: {negative}");
    }
    text
}

fn after_seed(job: &Job<'_>, model: &str, args: &GenerateArgs) -> Vec<(&'static str, String)> {
    let (request, size) = (job.request, job.first.size);
    let mut pairs = vec![("Size", format!("{}x{}", size.width, size.height)), ("Model", model.to_owned())];
    let mut put = |key, value: Option<String>| pairs.extend(value.map(|value| (key, value)));
    put("VAE", args.checkpoint.components.vae.as_deref().map(stem));
    put("Variation seed", args.variation_seed.map(|seed| seed.to_string()));
    put("Variation seed strength", args.variation_strength.map(|strength| strength.to_string()));
    let strength = job.strength.or(request.hires.map(|hires| hires.strength));
    put("Denoising strength", strength.map(|strength| strength.to_string()));
    put("Clip skip", (args.clip_skip > 0).then(|| (args.clip_skip + 1).to_string()));
    put("Eta DDIM", (request.eta > 0.0).then(|| request.eta.to_string()));
    put("Hires upscale", request.hires.map(|hires| hires.scale.to_string()));
    put("Hires steps", job.second.as_ref().map(|second| second.steps.to_string()));
    let upscaler = match args.tasks.hires_upscaler {
        UpscalerChoice::Latents => "Latent",
        UpscalerChoice::Pixels => "Lanczos",
    };
    put("Hires upscaler", request.hires.map(|_| upscaler.to_owned()));
    put("Lora hashes", lora_hashes(&args.tasks.lora));
    put("RNG", (args.generator == GeneratorChoice::Cpu).then(|| "CPU".to_owned()));
    put("Version", Some(concat!("kiln ", env!("CARGO_PKG_VERSION")).to_owned()));
    pairs
}

/// A value as it stands among others.
fn quoted(value: &str) -> String {
    match value.contains([',', ':', '\n']) {
        true => serde_json::Value::from(value).to_string(),
        false => value.to_owned(),
    }
}

/// `name: hash` of each file that still can be read.
fn lora_hashes(loras: &[String]) -> Option<String> {
    let hashes = loras.iter().filter_map(|lora| {
        let (file, _) = file_and_weight(lora);
        Some(format!("{}: {}", stem(&file), hash(&file).ok()?))
    });
    let hashes: Vec<String> = hashes.collect();
    (!hashes.is_empty()).then(|| hashes.join(", "))
}

/// What web UIs tell LoRAs apart by: 12 digits of the SHA-256 digest of what follows the header of a safetensors file.
fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut n_header = [0; 8];
    file.read_exact(&mut n_header)?;
    file.seek(SeekFrom::Start(u64::from_le_bytes(n_header).saturating_add(8)))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
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
