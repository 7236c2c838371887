//! The diffusers folder layout, and single files as what such a folder would hold.

mod controlnet;
mod index;
mod layout;
mod near;

use std::path::{Path, PathBuf};

use kiln_bundle::ComponentName;
use kiln_bundle::stable_diffusion::{STABLE_DIFFUSION, UNET};
use kiln_graph::WeightInfo;
use kiln_lora::ModelWeights;
use kiln_nets::{AutoencoderConfig, ClipTextConfig, TextStates, UNet2DConditionConfig};
use serde_json::Value;

pub use controlnet::ControlNetCheckpoint;
use controlnet::controlnets;
use index::{Pipelines, UNSUPPORTED, flag, library_class, pipelines, require, scheduler_class};
pub use layout::file_name;
use layout::{Layout, tokenizer_files};
pub(crate) use layout::{Part, Source};

use crate::error::listed;
use crate::files::Network;
use crate::json::read_json;
use crate::original::{Given, Published};
use crate::weights::WeightFiles;
use crate::{CheckpointOptions, CompileError, Family, Original, hub};

const LAYOUT_HINT: &str = "expected a diffusers folder: model_index.json, unet/, vae/, text_encoder/, tokenizer/, \
    scheduler/; or a checkpoint in one .safetensors file";

const UNET_CLASS: &str = "UNet2DConditionModel";
const INDEX: &str = "model_index.json";

/// A pipeline in the diffusers folder layout or in one file, its configurations read and checked.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    original: Option<Original>,
    /// What bundles call its architecture.
    architecture: &'static str,
    class: String,
    pub(crate) text_encoders: Vec<TextEncoder>,
    pub(crate) unet: Part<UNet2DConditionConfig>,
    pub(crate) vae: Part<AutoencoderConfig>,
    pub(crate) controlnets: Vec<ControlNetCheckpoint>,
    pub(crate) force_zeros_for_empty_prompt: bool,
    scheduler_class: Option<String>,
}

/// A text encoder with its tokenizer.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    pub(crate) component: ComponentName,
    pub(crate) part: Part<ClipTextConfig>,
    pub(crate) states: TextStates,
    pub(crate) has_projection: bool,
    pub(crate) tokenizer: &'static str,
}

/// A tokenizer of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerFolder {
    /// Where its files lie.
    pub folder: PathBuf,
    /// Number of token positions of its text encoder.
    pub positions: usize,
    /// Number of tokens that its text encoder knows.
    pub vocabulary: u64,
}

impl Checkpoint {
    /// Opens a pipeline folder or a single file.
    pub fn open(root: &Path) -> Result<Checkpoint, CompileError> {
        Checkpoint::open_with(root, &CheckpointOptions::default())
    }

    /// Opens a pipeline folder or a single file; what has no meaning for the one that it is, is refused.
    pub fn open_with(root: &Path, options: &CheckpointOptions) -> Result<Checkpoint, CompileError> {
        match root.is_file() {
            true => Checkpoint::open_file(root, options),
            false => Checkpoint::open_folder(root, options),
        }
    }

    fn open_file(path: &Path, options: &CheckpointOptions) -> Result<Checkpoint, CompileError> {
        if options.variant.is_some() && options.components.is_empty() {
            return Err(CompileError::checkpoint(path, "is one file and has no variants"));
        }
        if path.file_name().is_some_and(|name| name == INDEX) {
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let reason = "is the index of a folder, and not a checkpoint by itself";
            return Err(CompileError::checkpoint(path, reason)
                .with_hint(format!("give the folder: {}", folder.display())));
        }
        let mut original = Original::open_with(path, options)?;
        if original.class().is_none() {
            return Err(CompileError::checkpoint(path, "is a ControlNet by itself, which makes no pictures")
                .with_hint("--controlnet takes it, beside --model"));
        }
        let index = original.index().clone();
        let checkpoint = Checkpoint::assemble(path, path, &index, Layout::File(&mut original))?;
        Ok(Checkpoint { original: Some(original), ..checkpoint })
    }

    fn open_folder(root: &Path, options: &CheckpointOptions) -> Result<Checkpoint, CompileError> {
        let root = &*hub::snapshot(root)?;
        let path = root.join(INDEX);
        if root.exists() && !root.is_dir() {
            return Err(CompileError::checkpoint(root, "is neither a folder nor a regular file"));
        }
        if !root.is_dir() {
            return Err(CompileError::absent(root, "folder", LAYOUT_HINT));
        }
        if !path.exists() {
            let hint = near::hint(root).unwrap_or_else(|| LAYOUT_HINT.into());
            return Err(CompileError::checkpoint(root, "has no model_index.json").with_hint(hint));
        }
        if options.prediction_type.is_some() {
            return Err(CompileError::checkpoint(
                root,
                "says what its UNet predicts in scheduler/scheduler_config.json",
            ));
        }
        let index = read_json(&path)?;
        let variant = options.variant.as_deref();
        let given = Given::open(&options.components, variant)?;
        let checkpoint = Checkpoint::assemble(root, &path, &index, Layout::Folder { root, variant, given })?;
        if let Some(variant) = variant.filter(|_| !checkpoint.networks().iter().any(|(_, w)| w.is_variant())) {
            let reason = format!("no component has weights of variant '{variant}'");
            return Err(CompileError::checkpoint(root, reason).with_hint("leave out --variant"));
        }
        Ok(checkpoint)
    }

    /// `origin` names `index`, the content of model_index.json, in errors.
    fn assemble(
        root: &Path,
        origin: &Path,
        index: &Value,
        mut layout: Layout<'_>,
    ) -> Result<Checkpoint, CompileError> {
        let refuse = |reason: String| CompileError::checkpoint(origin, reason);
        let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = pipelines(&class).map_err(refuse)?;
        if let Some(name) = UNSUPPORTED.into_iter().find(|name| library_class(index, name).is_some()) {
            return Err(refuse(format!("{name}: is not supported")));
        }
        let text_encoders = text_encoders(kind, origin, index, &mut layout)?;
        let published = Published::of(family(kind.states, &text_encoders), false, false);
        let vae = class_of("vae", &["AutoencoderKL", "AutoencoderTiny"], (origin, index), &layout)?;
        let vae = layout.raw("vae", &vae, Network::Vae)?.completed(|config| published.complete_vae(config));
        let vae = vae.parse(AutoencoderConfig::from_json)?;
        class_of("unet", &[UNET_CLASS], (origin, index), &layout)?;
        let unet = layout.raw("unet", UNET_CLASS, Network::Plain)?;
        let unet = unet.completed(|config| published.complete_unet(config, vae.config.scale_factor()));
        let checkpoint = Checkpoint {
            text_encoders,
            unet: unet.parse(UNet2DConditionConfig::from_json)?,
            vae,
            controlnets: controlnets(origin, index, &mut layout)?,
            force_zeros_for_empty_prompt: flag(index, "force_zeros_for_empty_prompt").map_err(refuse)?,
            scheduler_class: scheduler_class(index).map_err(refuse)?,
            root: root.into(),
            original: None,
            architecture: kind.architecture,
            class,
        };
        layout.finish(&checkpoint.class)?;
        checkpoint.check_widths()?;
        Ok(checkpoint)
    }

    fn check_widths(&self) -> Result<(), CompileError> {
        let unet = &self.unet.config;
        let refuse = |path: &Path, reason| Err(CompileError::checkpoint(path, reason));
        let (text, cross): (u64, u64) =
            (self.text_encoders.iter().map(|t| t.part.config.hidden_size()).sum(), unet.cross_attention_dim());
        if cross != text {
            let whose = match self.text_encoders.len() {
                1 => "the text encoder's hidden_size is",
                _ => "the text encoders' hidden_size add up to",
            };
            return refuse(&self.unet.path, format!("cross_attention_dim: {cross}, but {whose} {text}"));
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
                return refuse(&self.unet.path, reason);
            }
        }
        let (vae, latents, out) = (self.vae.config.latent_channels(), unet.in_channels(), unet.out_channels());
        if out != vae {
            let reason = format!("out_channels: {out}, but the autoencoder's latents have {vae} channels");
            return refuse(&self.unet.path, reason);
        }
        if latents != vae && latents != 2 * vae + 1 {
            let reason = format!(
                "in_channels: {latents} is neither {vae}, the autoencoder's latents, nor {}, those with mask and masked \
                 picture",
                2 * vae + 1
            );
            return refuse(&self.unet.path, reason);
        }
        match self.vae.config.out_channels() {
            3 => Ok(()),
            colours => refuse(&self.vae.path, format!("out_channels: {colours} is not 3")),
        }
    }

    /// The folder or file.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The single file that the checkpoint is, if it is one.
    pub fn original(&self) -> Option<&Original> {
        self.original.as_ref()
    }

    /// The architecture, as bundles call it.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// diffusers' class of the pipeline.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// Which line of models it belongs to.
    pub fn family(&self) -> Family {
        family(self.text_encoders[0].states, &self.text_encoders)
    }

    /// The folder's name, or the file's without its ending, as far as it is fit for a file name.
    pub fn name(&self) -> String {
        file_name(&self.root)
    }

    /// What of it is passed over that may be taken for more: a line each, beginning with the path.
    pub fn remarks(&self) -> Vec<String> {
        let texts = self.text_encoders.iter().flat_map(|text| &text.part.remarks);
        let nets = self.controlnets.iter().flat_map(|net| &net.part.remarks);
        let others = self.original.iter().flat_map(Original::remarks);
        let keys = self.original.as_ref().map(Original::passed_over).unwrap_or_default();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let keys = (!keys.is_empty())
            .then(|| format!("{}: no network has {}, passed over", self.root.display(), listed(&keys)));
        let parts = texts.chain(&self.unet.remarks).chain(&self.vae.remarks).chain(nets).chain(others);
        parts.cloned().chain(keys).collect()
    }

    /// Pixels per latent along each axis.
    pub fn scale_factor(&self) -> u64 {
        self.vae.config.scale_factor()
    }

    /// Token positions of the first text encoder.
    pub(crate) fn text_positions(&self) -> u64 {
        self.text_encoders[0].part.config.max_positions()
    }

    /// Whether the autoencoder leaves the range of 16-bit floats, as Stable Diffusion XL's does.
    pub(crate) fn vae_overflows(&self) -> bool {
        let is_xl = matches!(self.family(), Family::SdxlBase | Family::SdxlRefiner);
        is_xl && matches!(&self.vae.config, AutoencoderConfig::Kl(config) if config.force_upcast())
    }

    /// Default height and width in pixels, with the correction of diffusers' Stable Diffusion pipelines
    /// (`pipelines/stable_diffusion/pipeline_stable_diffusion.py`), which those with ControlNets do not make.
    pub fn default_size(&self) -> [u64; 2] {
        let is_corrected = self.architecture == STABLE_DIFFUSION && !self.class.contains("ControlNet");
        let latents = match self.unet.config.sample_size() {
            Some(size) if !(is_corrected && self.unet.config.has_old_sample_size()) => size,
            _ => [64, 64],
        };
        latents.map(|n| n * self.scale_factor())
    }

    /// Width of the pooled text that the UNet reads.
    pub(crate) fn pooled_width(&self) -> Option<u64> {
        self.text_encoders.iter().find(|t| t.has_projection).map(|t| t.part.config.projection_dim())
    }

    pub(crate) fn networks(&self) -> Vec<(&str, &WeightFiles)> {
        let texts = self.text_encoders.iter().map(|t| (t.part.name.as_str(), &t.part.weights));
        let nets = self.controlnets.iter().map(|net| (net.part.name.as_str(), &net.part.weights));
        texts.chain([("unet", &self.unet.weights), ("vae", &self.vae.weights)]).chain(nets).collect()
    }

    /// The weights that LoRAs can change.
    pub(crate) fn lora_targets(&self) -> ModelWeights {
        let mut model = ModelWeights::new();
        let encoders = self.text_encoders.iter().map(|encoder| (encoder.component, &encoder.part.weights));
        for (name, weights) in encoders.chain([(UNET, &self.unet.weights)]) {
            let entries = weights.catalog().into_entries();
            let shape = |info: WeightInfo| info.shape.into_iter().map(|n| n as usize).collect();
            model.insert(name, entries.into_iter().map(|(name, info)| (name, shape(info))), []);
        }
        model
    }

    /// Small files that the bundle takes over, by their names in the bundle.
    pub(crate) fn companions(&self) -> Result<Vec<(String, Source)>, CompileError> {
        if let Some(original) = &self.original {
            let made = original.companions()?.into_iter();
            let name = |name: String| name.strip_prefix("scheduler/").map_or(name.clone(), Into::into);
            return Ok(made.map(|(file, bytes)| (name(file), Source::Made(bytes))).collect());
        }
        let mut files = Vec::new();
        for encoder in &self.text_encoders {
            files.append(&mut tokenizer_files(&self.root, encoder.tokenizer)?);
        }
        files.push(("scheduler_config.json".into(), Source::File(self.scheduler()?)));
        Ok(files)
    }

    /// The class of the scheduler that `model_index.json` names, which decides, whichever its configuration names.
    pub fn scheduler_class(&self) -> Option<&str> {
        self.scheduler_class.as_deref()
    }

    /// A folder's `model_index.json`.
    pub fn index_path(&self) -> PathBuf {
        self.root.join(INDEX)
    }

    /// A folder's scheduler configuration, which is the runtime's to read.
    pub fn scheduler(&self) -> Result<PathBuf, CompileError> {
        let path = self.root.join("scheduler/scheduler_config.json");
        match path.is_file() {
            true => Ok(path),
            false => Err(CompileError::checkpoint(&path, "no such file")),
        }
    }

    /// A folder's tokenizers, one per text encoder, which are the runtime's to read.
    pub fn tokenizers(&self) -> Result<Vec<TokenizerFolder>, CompileError> {
        let folder = |encoder: &TextEncoder| {
            tokenizer_files(&self.root, encoder.tokenizer)?;
            Ok(TokenizerFolder {
                folder: self.root.join(encoder.tokenizer),
                positions: encoder.part.config.max_positions() as usize,
                vocabulary: encoder.part.config.vocab_size(),
            })
        };
        self.text_encoders.iter().map(folder).collect()
    }
}

/// OpenCLIP's text encoder tells Stable Diffusion 2.x from 1.x.
fn family(states: TextStates, text_encoders: &[TextEncoder]) -> Family {
    let encoders: Vec<bool> = text_encoders.iter().map(|t| t.part.config.is_open_clip()).collect();
    match (states, encoders.as_slice()) {
        (TextStates::Last, [false, ..]) => Family::Sd1,
        (TextStates::Last, _) => Family::Sd2,
        (TextStates::Penultimate, [_]) => Family::SdxlRefiner,
        (TextStates::Penultimate, _) => Family::SdxlBase,
    }
}

fn text_encoders(
    kind: &Pipelines,
    origin: &Path,
    index: &Value,
    layout: &mut Layout<'_>,
) -> Result<Vec<TextEncoder>, CompileError> {
    let mut text_encoders = Vec::new();
    for (component, class, tokenizer) in kind.text_encoders {
        let is_there = library_class(index, component).is_some() || layout.given(component).is_some();
        if !is_there && kind.text_encoders.len() > 1 {
            continue;
        }
        class_of(component, &[class], (origin, index), layout)?;
        let raw = layout.raw(component, class, Network::Clip)?.completed(|_| ());
        text_encoders.push(TextEncoder {
            component: *component,
            part: raw.parse(ClipTextConfig::from_json)?,
            states: kind.states,
            has_projection: class.ends_with("WithProjection"),
            tokenizer,
        });
    }
    match text_encoders.is_empty() {
        false => Ok(text_encoders),
        true => Err(CompileError::checkpoint(origin, "has no text encoder")),
    }
}

/// The class of a component, one of those that run: by `model_index.json`, or by the configuration of one from elsewhere.
fn class_of(
    name: &str,
    classes: &[&str],
    (origin, index): (&Path, &Value),
    layout: &Layout<'_>,
) -> Result<String, CompileError> {
    let Some(given) = layout.given(name) else {
        let class = require(index, name, classes).map_err(|reason| CompileError::checkpoint(origin, reason))?;
        return Ok(class.into());
    };
    // Configurations of text encoders name no class.
    let class = given.piece.config["_class_name"].as_str().unwrap_or(classes[0]);
    match classes.contains(&class) {
        true => Ok(class.into()),
        false => {
            let reason = format!("'{class}' cannot be the {name}; supported: {}", classes.join(", "));
            Err(CompileError::checkpoint(&given.origin, reason))
        }
    }
}
