//! The diffusers folder layout, and single files as what such a folder would hold.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_nets::{AutoencoderKlConfig, ClipTextConfig, UNet2DConditionConfig};
use serde_json::Value;

use crate::weights::{Network, WeightFiles};
use crate::{CompileError, Original, PredictionType};

/// Largest JSON file that is read.
const MAX_JSON: u64 = 64 << 20;

/// A pipeline in the diffusers folder layout or in one file, its configurations read and checked.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    original: Option<Original>,
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
    /// Opens a pipeline folder, in which `variant` prefers files such as `model.fp16.safetensors`, or a single file.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<Checkpoint, CompileError> {
        if root.is_file() {
            return match variant {
                None => Checkpoint::open_original(root, None),
                Some(_) => Err(CompileError::checkpoint(root, "is one file and has no variants")),
            };
        }
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
            original: None,
            class,
        };
        checkpoint.check_widths()?;
        if let Some(variant) = variant.filter(|_| !checkpoint.networks().iter().any(|(_, w)| w.is_variant())) {
            let reason = format!("no component has weights of variant '{variant}'");
            return Err(CompileError::checkpoint(root, reason).with_hint("leave out --variant"));
        }
        Ok(checkpoint)
    }

    /// Opens a single-file checkpoint; `prediction_type` overrides what the file or its family says.
    pub fn open_original(
        path: &Path,
        prediction_type: Option<PredictionType>,
    ) -> Result<Checkpoint, CompileError> {
        let mut original = Original::open(path, prediction_type)?;
        let class = original.class().unwrap_or("ControlNetModel").to_owned();
        if class != "StableDiffusionPipeline" {
            let family = original.family();
            let reason =
                format!("is of {family} ({class}), which is not supported; supported: StableDiffusionPipeline");
            return Err(CompileError::checkpoint(path, reason));
        }
        let origin = |component: &str| format!("{}: {component}", path.display());
        let (text_config, text_encoder) = original.take("text_encoder")?;
        let (unet_config, unet) = original.take("unet")?;
        let (vae_config, vae) = original.take("vae")?;
        let checkpoint = Checkpoint {
            text_config: ClipTextConfig::from_json(&origin("text_encoder"), &text_config)?,
            unet_config: UNet2DConditionConfig::from_json(&origin("unet"), &unet_config)?,
            vae_config: AutoencoderKlConfig::from_json(&origin("vae"), &vae_config)?,
            text_encoder,
            unet,
            vae,
            root: path.into(),
            original: Some(original),
            class,
        };
        checkpoint.check_widths()?;
        Ok(checkpoint)
    }

    /// The single file that the checkpoint is, if it is one.
    pub fn original(&self) -> Option<&Original> {
        self.original.as_ref()
    }

    fn config_path(&self, component: &str) -> PathBuf {
        match self.original {
            Some(_) => self.root.clone(),
            None => self.root.join(component).join("config.json"),
        }
    }

    fn check_widths(&self) -> Result<(), CompileError> {
        let (text, unet) = (self.text_config.hidden_size(), self.unet_config.cross_attention_dim());
        let (vae, latents) = (self.vae_config.latent_channels(), self.unet_config.in_channels());
        let unet_json = self.config_path("unet");
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
            let vae_json = self.config_path("vae");
            return Err(CompileError::checkpoint(&vae_json, format!("out_channels: {colours} is not 3")));
        }
        if vae != latents {
            let reason = format!("in_channels: {latents}, but the autoencoder's latents have {vae} channels");
            return Err(CompileError::checkpoint(&unet_json, reason));
        }
        Ok(())
    }

    /// The folder or file.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// diffusers' class of the pipeline.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// The folder's or file's name without extension, as far as it is fit for a file name.
    pub fn name(&self) -> String {
        let folder = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        let name = if self.original.is_some() { self.root.file_stem() } else { folder.file_name() };
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
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

    /// Small files that the bundle takes over, by their names in the bundle.
    pub(crate) fn companions(&self) -> Result<Vec<(String, Source)>, CompileError> {
        if let Some(original) = &self.original {
            let made = original.companions()?.into_iter();
            let name = |name: String| name.strip_prefix("scheduler/").map_or(name.clone(), Into::into);
            return Ok(made.map(|(file, bytes)| (name(file), Source::Made(bytes))).collect());
        }
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
        let mut files: Vec<(String, Source)> = names
            .into_iter()
            .filter(|name| has(name))
            .map(|name| (format!("tokenizer/{name}"), Source::File(folder.join(name))))
            .collect();
        files.push(("scheduler_config.json".into(), Source::File(scheduler)));
        Ok(files)
    }

    /// Everything that the result depends on, by a name relative to the checkpoint.
    pub(crate) fn sources(&self) -> Result<Vec<(String, Source)>, CompileError> {
        let mut files = self.companions()?;
        for (name, weights) in self.networks() {
            for path in weights.files() {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                files.push((format!("{name}/{file}"), Source::File(path.clone())));
            }
        }
        Ok(files)
    }
}

/// Something that a bundle is made from.
pub(crate) enum Source {
    File(PathBuf),
    /// What kiln made itself, for a checkpoint that does not hold it.
    Made(Vec<u8>),
}

const LAYOUT_HINT: &str = "expected a diffusers folder: model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/; or a checkpoint in one .safetensors file";

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
