//! The diffusers folder layout.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_nets::{AutoencoderKlConfig, ClipTextConfig, UNet2DConditionConfig};
use serde_json::Value;

use crate::CompileError;
use crate::weights::{Network, WeightFiles};

/// Largest JSON file that is read.
const MAX_JSON: u64 = 64 << 20;

/// A pipeline in the diffusers folder layout, its configurations read and checked.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    class: String,
    pub(crate) text_config: ClipTextConfig,
    pub(crate) unet_config: UNet2DConditionConfig,
    pub(crate) vae_config: AutoencoderKlConfig,
    pub(crate) text_encoder: WeightFiles,
    pub(crate) unet: WeightFiles,
    pub(crate) vae: WeightFiles,
}

/// Classes that the pipeline is made of, by component.
const COMPONENTS: [(&str, &str); 3] =
    [("text_encoder", "CLIPTextModel"), ("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")];

/// Components that change the pictures and that kiln does not run.
const UNSUPPORTED: [&str; 4] = ["text_encoder_2", "image_encoder", "controlnet", "motion_adapter"];

impl Checkpoint {
    /// Opens a pipeline folder; `variant` prefers files such as `model.fp16.safetensors`.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<Checkpoint, CompileError> {
        let index = root.join("model_index.json");
        if !root.is_dir() {
            return Err(CompileError::checkpoint(root, "no such folder").with_hint(LAYOUT_HINT));
        }
        if !index.is_file() {
            return Err(CompileError::checkpoint(root, "has no model_index.json").with_hint(LAYOUT_HINT));
        }
        let value = read_json(&index)?;
        let class = value.get("_class_name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if class != "StableDiffusionPipeline" {
            let reason = format!("_class_name: '{class}' is not supported; supported: StableDiffusionPipeline");
            return Err(CompileError::checkpoint(&index, reason));
        }
        for (component, class) in COMPONENTS {
            match library_class(&value, component) {
                Some(found) if found == class => {}
                found => {
                    let found = found.unwrap_or("null");
                    let reason = format!("{component}: '{found}' is not supported; supported: {class}");
                    return Err(CompileError::checkpoint(&index, reason));
                }
            }
        }
        if let Some(name) = UNSUPPORTED.into_iter().find(|name| library_class(&value, name).is_some()) {
            return Err(CompileError::checkpoint(&index, format!("{name}: is not supported")));
        }

        let open = |network, name: &str| WeightFiles::open(&root.join(name), network, variant);
        let checkpoint = Checkpoint {
            text_config: config(root, "text_encoder", ClipTextConfig::from_json)?,
            unet_config: config(root, "unet", UNet2DConditionConfig::from_json)?,
            vae_config: config(root, "vae", AutoencoderKlConfig::from_json)?,
            text_encoder: open(Network::Clip, "text_encoder")?,
            unet: open(Network::Unet, "unet")?,
            vae: open(Network::Vae, "vae")?,
            root: root.into(),
            class,
        };
        checkpoint.check_widths()?;
        if let Some(variant) = variant.filter(|_| !checkpoint.networks().iter().any(|(_, w)| w.is_variant())) {
            let reason = format!("no component has weights of variant '{variant}'");
            return Err(CompileError::checkpoint(root, reason).with_hint("leave out --variant"));
        }
        Ok(checkpoint)
    }

    fn check_widths(&self) -> Result<(), CompileError> {
        let (text, unet) = (self.text_config.hidden_size(), self.unet_config.cross_attention_dim());
        let (vae, latents) = (self.vae_config.latent_channels(), self.unet_config.in_channels());
        let unet_json = self.root.join("unet/config.json");
        if text != unet {
            let reason = format!("cross_attention_dim: {unet}, but the text encoder's hidden_size is {text}");
            return Err(CompileError::checkpoint(&unet_json, reason));
        }
        let out = self.unet_config.out_channels();
        if out != latents {
            let reason = format!("out_channels: {out}, but in_channels is {latents}");
            return Err(CompileError::checkpoint(&unet_json, reason));
        }
        let colours = self.vae_config.out_channels();
        if colours != 3 {
            let vae_json = self.root.join("vae/config.json");
            return Err(CompileError::checkpoint(&vae_json, format!("out_channels: {colours} is not 3")));
        }
        if vae != latents {
            let reason = format!("in_channels: {latents}, but the autoencoder's latents have {vae} channels");
            return Err(CompileError::checkpoint(&unet_json, reason));
        }
        Ok(())
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// diffusers' class of the pipeline.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// The folder's name, as far as it is fit for a file name.
    pub fn name(&self) -> String {
        let path = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let safe: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
            .take(64)
            .collect();
        match safe.trim_matches('.') {
            "" => "checkpoint".into(),
            safe => safe.into(),
        }
    }

    /// Pixels per latent along each axis.
    pub fn scale_factor(&self) -> u64 {
        self.vae_config.scale_factor()
    }

    /// Default height and width in pixels.
    pub(crate) fn default_size(&self) -> [u64; 2] {
        let factor = self.vae_config.scale_factor();
        self.unet_config.sample_size().unwrap_or([64, 64]).map(|n| n * factor)
    }

    pub(crate) fn networks(&self) -> [(&'static str, &WeightFiles); 3] {
        [("text_encoder", &self.text_encoder), ("unet", &self.unet), ("vae", &self.vae)]
    }

    /// Small files that the bundle takes over: name in the bundle and where it lies.
    pub(crate) fn companions(&self) -> Result<Vec<(String, PathBuf)>, CompileError> {
        let folder = self.root.join("tokenizer");
        let has = |name: &str| folder.join(name).is_file();
        if !(has("tokenizer.json") || has("vocab.json") && has("merges.txt")) {
            let reason = "has neither tokenizer.json nor vocab.json and merges.txt";
            return Err(CompileError::checkpoint(&folder, reason));
        }
        let scheduler = self.root.join("scheduler/scheduler_config.json");
        if !scheduler.is_file() {
            return Err(CompileError::checkpoint(&scheduler, "no such file"));
        }
        let names =
            ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];
        let mut files: Vec<(String, PathBuf)> = names
            .into_iter()
            .filter(|name| has(name))
            .map(|name| (format!("tokenizer/{name}"), folder.join(name)))
            .collect();
        files.push(("scheduler_config.json".into(), scheduler));
        Ok(files)
    }

    /// Every file that the result depends on, by a name relative to the checkpoint.
    pub(crate) fn sources(&self) -> Result<Vec<(String, PathBuf)>, CompileError> {
        let mut files = self.companions()?;
        for (name, weights) in self.networks() {
            for path in weights.files() {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                files.push((format!("{name}/{file}"), path.clone()));
            }
        }
        Ok(files)
    }
}

const LAYOUT_HINT: &str =
    "expected a diffusers folder: model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/";

fn library_class<'a>(index: &'a Value, component: &str) -> Option<&'a str> {
    index.get(component)?.get(1)?.as_str()
}

fn config<T>(
    root: &Path,
    component: &str,
    parse: impl FnOnce(&str, &Value) -> Result<T, kiln_graph::TraceError>,
) -> Result<T, CompileError> {
    let path = root.join(component).join("config.json");
    Ok(parse(&path.display().to_string(), &read_json(&path)?)?)
}

pub(crate) fn read_json(path: &Path) -> Result<Value, CompileError> {
    let size = fs::metadata(path).map_err(|e| CompileError::io(path, &e))?.len();
    if size > MAX_JSON {
        return Err(CompileError::checkpoint(path, format!("has {size} bytes, more than any configuration")));
    }
    let text = fs::read(path).map_err(|e| CompileError::io(path, &e))?;
    serde_json::from_slice(&text).map_err(|e| CompileError::checkpoint(path, e.to_string()))
}
