//! The diffusers folder layout.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_bundle::Role;
use kiln_graph::WeightInfo;
use kiln_lora::ModelWeights;
use kiln_nets::{AutoencoderConfig, ClipTextConfig, ControlNetConfig, TextStates, UNet2DConditionConfig};
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
    pub(crate) text_encoders: Vec<TextEncoder>,
    pub(crate) unet: Part<UNet2DConditionConfig>,
    pub(crate) vae: Part<AutoencoderConfig>,
    pub(crate) controlnets: Vec<ControlNetCheckpoint>,
    pub(crate) force_zeros_for_empty_prompt: bool,
}

/// A ControlNet's folder, its configuration read and checked.
#[derive(Debug)]
pub struct ControlNetCheckpoint {
    root: PathBuf,
    pub(crate) part: Part<ControlNetConfig>,
}

/// One component: its configuration and weights.
#[derive(Debug)]
pub(crate) struct Part<C> {
    /// Name of its folder.
    pub(crate) name: String,
    pub(crate) config: C,
    pub(crate) weights: WeightFiles,
}

/// A text encoder with its tokenizer.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    pub(crate) part: Part<ClipTextConfig>,
    pub(crate) states: TextStates,
    pub(crate) has_projection: bool,
    pub(crate) tokenizer: &'static str,
}

/// The pipelines of one generation of Stable Diffusion.
struct Family {
    /// What the classes' names start with; what follows is the task, which is the runtime's matter.
    classes: &'static [&'static str],
    /// Folder, class, and tokenizer of each text encoder.
    text_encoders: &'static [(&'static str, &'static str, &'static str)],
    states: TextStates,
}

const FAMILIES: [Family; 2] = [
    Family {
        classes: &["StableDiffusionXL"],
        text_encoders: &[
            ("text_encoder", "CLIPTextModel", "tokenizer"),
            ("text_encoder_2", "CLIPTextModelWithProjection", "tokenizer_2"),
        ],
        states: TextStates::Penultimate,
    },
    Family {
        classes: &["StableDiffusion", "LatentConsistencyModel"],
        text_encoders: &[("text_encoder", "CLIPTextModel", "tokenizer")],
        states: TextStates::Last,
    },
];

/// What may stand between the family's name and `Pipeline`.
const TASKS: [&str; 6] = ["", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint"];

/// Components that change the pictures and that kiln does not run.
const UNSUPPORTED: [&str; 5] =
    ["image_encoder", "motion_adapter", "adapter", "depth_estimator", "low_res_scheduler"];

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
        let refuse = |reason: String| CompileError::checkpoint(&index, reason);
        let class = value.get("_class_name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let family = family(&class).map_err(refuse)?;
        if let Some(name) = UNSUPPORTED.into_iter().find(|name| library_class(&value, name).is_some()) {
            return Err(refuse(format!("{name}: is not supported")));
        }
        require(&value, "unet", &["UNet2DConditionModel"]).map_err(refuse)?;
        require(&value, "vae", &["AutoencoderKL", "AutoencoderTiny"]).map_err(refuse)?;

        let mut text_encoders = Vec::new();
        for &(name, class, tokenizer) in family.text_encoders {
            if library_class(&value, name).is_none() && family.text_encoders.len() > 1 {
                continue;
            }
            require(&value, name, &[class]).map_err(refuse)?;
            text_encoders.push(TextEncoder {
                part: Part::open(root, name, Network::Clip, variant, ClipTextConfig::from_json)?,
                states: family.states,
                has_projection: class.ends_with("WithProjection"),
                tokenizer,
            });
        }
        if text_encoders.is_empty() {
            return Err(refuse("has no text encoder".into()));
        }
        let checkpoint = Checkpoint {
            text_encoders,
            unet: Part::open(root, "unet", Network::Plain, variant, UNet2DConditionConfig::from_json)?,
            vae: Part::open(root, "vae", Network::Vae, variant, AutoencoderConfig::from_json)?,
            controlnets: controlnets(root, &value, variant)?,
            force_zeros_for_empty_prompt: flag(&value, "force_zeros_for_empty_prompt").map_err(refuse)?,
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
        let unet = &self.unet.config;
        let refuse = |part: &str, reason| {
            Err(CompileError::checkpoint(&self.root.join(part).join("config.json"), reason))
        };
        let (text, cross): (u64, u64) =
            (self.text_encoders.iter().map(|t| t.part.config.hidden_size()).sum(), unet.cross_attention_dim());
        if cross != text {
            let whose = match self.text_encoders.len() {
                1 => "the text encoder's hidden_size is",
                _ => "the text encoders' hidden_size add up to",
            };
            return refuse("unet", format!("cross_attention_dim: {cross}, but {whose} {text}"));
        }
        if unet.reads_time_ids() {
            let n_time_ids = self.pooled_width().and_then(|pooled| unet.n_time_ids(pooled));
            if !n_time_ids.is_some_and(|n| n == 5 || n == 6) {
                let reason = match self.pooled_width() {
                    Some(pooled) => format!(
                        "projection_class_embeddings_input_dim: leaves no 5 or 6 time ids beside pooled text of {pooled}"
                    ),
                    None => "addition_embed_type: reads pooled text, which no text encoder makes".into(),
                };
                return refuse("unet", reason);
            }
        }
        let (vae, latents, out) = (self.vae.config.latent_channels(), unet.in_channels(), unet.out_channels());
        if out != vae {
            let reason = format!("out_channels: {out}, but the autoencoder's latents have {vae} channels");
            return refuse("unet", reason);
        }
        if latents != vae && latents != 2 * vae + 1 {
            let reason = format!(
                "in_channels: {latents} is neither {vae}, the autoencoder's latents, nor {}, those with mask and masked \
                 picture",
                2 * vae + 1
            );
            return refuse("unet", reason);
        }
        match self.vae.config.out_channels() {
            3 => Ok(()),
            colours => refuse("vae", format!("out_channels: {colours} is not 3")),
        }
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
        file_name(&self.root)
    }

    /// Pixels per latent along each axis.
    pub fn scale_factor(&self) -> u64 {
        self.vae.config.scale_factor()
    }

    /// Default height and width in pixels.
    pub(crate) fn default_size(&self) -> [u64; 2] {
        self.unet.config.sample_size().unwrap_or([64, 64]).map(|n| n * self.scale_factor())
    }

    /// Width of the pooled text that the UNet reads.
    pub(crate) fn pooled_width(&self) -> Option<u64> {
        self.text_encoders.iter().find(|t| t.has_projection).map(|t| t.part.config.projection_dim())
    }

    pub(crate) fn networks(&self) -> Vec<(&str, &WeightFiles)> {
        let texts = self.text_encoders.iter().map(|t| (t.part.name.as_str(), &t.part.weights));
        texts.chain([("unet", &self.unet.weights), ("vae", &self.vae.weights)]).collect()
    }

    /// The weights that LoRAs can change.
    pub(crate) fn lora_targets(&self) -> ModelWeights {
        let mut model = ModelWeights::new();
        let encoders = self.text_encoders.iter().map(|encoder| (encoder.role(), &encoder.part.weights));
        for (role, weights) in encoders.chain([(Role::Unet, &self.unet.weights)]) {
            let entries = weights.catalog().into_entries();
            let shape = |info: WeightInfo| info.shape.into_iter().map(|n| n as usize).collect();
            model.insert(role, entries.into_iter().map(|(name, info)| (name, shape(info))), []);
        }
        model
    }

    /// Small files that the bundle takes over: name in the bundle and where it lies.
    pub(crate) fn companions(&self) -> Result<Vec<(String, PathBuf)>, CompileError> {
        let mut files = Vec::new();
        for encoder in &self.text_encoders {
            files.append(&mut tokenizer_files(&self.root, encoder.tokenizer)?);
        }
        let scheduler = self.root.join("scheduler/scheduler_config.json");
        if !scheduler.is_file() {
            return Err(CompileError::checkpoint(&scheduler, "no such file"));
        }
        files.push(("scheduler_config.json".into(), scheduler));
        Ok(files)
    }

    /// Every file that the result depends on, by a name relative to the checkpoint.
    pub(crate) fn sources(&self) -> Result<Vec<(String, PathBuf)>, CompileError> {
        let mut files = self.companions()?;
        for (name, weights) in self.networks() {
            files.extend(weights.named_files(name));
        }
        for controlnet in &self.controlnets {
            files.extend(controlnet.part.weights.named_files(&controlnet.part.name));
        }
        Ok(files)
    }
}

impl ControlNetCheckpoint {
    /// Opens a ControlNet's folder; `variant` prefers files such as `diffusion_pytorch_model.fp16.safetensors`.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<ControlNetCheckpoint, CompileError> {
        if !root.join("config.json").is_file() {
            return Err(CompileError::checkpoint(root, "has no config.json").with_hint(
                "a ControlNet is a folder with config.json and diffusion_pytorch_model.safetensors",
            ));
        }
        let part = Part::open(root, "", Network::Plain, variant, ControlNetConfig::from_json)?;
        Ok(ControlNetCheckpoint { root: root.into(), part: Part { name: file_name(root), ..part } })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder's name, as far as it is fit for a file name.
    pub fn name(&self) -> String {
        file_name(&self.root)
    }
}

impl<C> Part<C> {
    fn open(
        root: &Path,
        name: &str,
        network: Network,
        variant: Option<&str>,
        parse: impl FnOnce(&str, &Value) -> Result<C, kiln_graph::TraceError>,
    ) -> Result<Part<C>, CompileError> {
        let folder = root.join(name);
        let path = folder.join("config.json");
        Ok(Part {
            name: name.into(),
            config: parse(&path.display().to_string(), &read_json(&path)?)?,
            weights: WeightFiles::open(&folder, network, variant)?,
        })
    }
}

const LAYOUT_HINT: &str =
    "expected a diffusers folder: model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/";

fn family(class: &str) -> Result<&'static Family, String> {
    let runs = |prefix: &&&str| {
        let task = class.strip_prefix(**prefix).and_then(|rest| rest.strip_suffix("Pipeline"));
        task.is_some_and(|task| TASKS.contains(&task))
    };
    let found = FAMILIES.iter().find(|family| family.classes.iter().any(|prefix| runs(&prefix)));
    found.ok_or_else(|| {
        let supported: Vec<String> = FAMILIES
            .iter()
            .flat_map(|family| family.classes)
            .map(|prefix| format!("{prefix}Pipeline"))
            .collect();
        format!(
            "_class_name: '{class}' is not supported; supported: {} and their Img2Img, Inpaint and ControlNet kin",
            supported.join(", ")
        )
    })
}

fn library_class<'a>(index: &'a Value, component: &str) -> Option<&'a str> {
    index.get(component)?.get(1)?.as_str()
}

fn require(index: &Value, component: &str, classes: &[&str]) -> Result<(), String> {
    match library_class(index, component) {
        Some(found) if classes.contains(&found) => Ok(()),
        found => {
            let (found, classes) = (found.unwrap_or("null"), classes.join(", "));
            Err(format!("{component}: '{found}' is not supported; supported: {classes}"))
        }
    }
}

fn flag(index: &Value, key: &str) -> Result<bool, String> {
    match index.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| format!("{key}: {value} is neither true nor false")),
    }
}

/// The ControlNets of a pipeline; diffusers numbers the folders of several from the second on.
fn controlnets(
    root: &Path,
    index: &Value,
    variant: Option<&str>,
) -> Result<Vec<ControlNetCheckpoint>, CompileError> {
    let open = |name: String| ControlNetCheckpoint::open(&root.join(name), variant);
    match library_class(index, "controlnet") {
        None => Ok(Vec::new()),
        Some("ControlNetModel") => Ok(vec![open("controlnet".into())?]),
        Some("MultiControlNetModel") => {
            let folders = (0..).map(|i| if i == 0 { "controlnet".into() } else { format!("controlnet_{i}") });
            folders
                .take_while(|name: &String| root.join(name).is_dir())
                .take(MAX_CONTROLNETS)
                .map(open)
                .collect()
        }
        Some(found) => {
            let reason = format!("controlnet: '{found}' is not supported; supported: ControlNetModel");
            Err(CompileError::checkpoint(&root.join("model_index.json"), reason))
        }
    }
}

/// Most ControlNets that one pipeline may bring.
const MAX_CONTROLNETS: usize = 16;

fn tokenizer_files(root: &Path, name: &str) -> Result<Vec<(String, PathBuf)>, CompileError> {
    let folder = root.join(name);
    let has = |file: &str| folder.join(file).is_file();
    if !(has("tokenizer.json") || has("vocab.json") && has("merges.txt")) {
        let reason = "has neither tokenizer.json nor vocab.json and merges.txt";
        return Err(CompileError::checkpoint(&folder, reason));
    }
    let files =
        ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];
    let found = files.into_iter().filter(|file| has(file));
    Ok(found.map(|file| (format!("{name}/{file}"), folder.join(file))).collect())
}

/// The last part of a path, as far as it is fit for a file name.
fn file_name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
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

pub(crate) fn read_json(path: &Path) -> Result<Value, CompileError> {
    let size = fs::metadata(path).map_err(|e| CompileError::io(path, &e))?.len();
    if size > MAX_JSON {
        return Err(CompileError::checkpoint(path, format!("has {size} bytes, more than any configuration")));
    }
    let text = fs::read(path).map_err(|e| CompileError::io(path, &e))?;
    serde_json::from_slice(&text).map_err(|e| CompileError::checkpoint(path, e.to_string()))
}
