//! Checkpoints in one file, in the layout of the models' own training code (LDM, SGM).
//!
//! Such a file holds UNet, autoencoder and text encoders under the names that CompVis's and Stability AI's code gave them,
//! and nothing else: no configuration, no tokenizer, no scheduler. [`Original::open`] reads the header alone and makes of it
//! what a diffusers folder would hold, as diffusers' `from_single_file` does (`loaders/single_file_utils.py`):
//!
//! - each weight's canonical name, as a view of the file's tensor: the tensor itself, a third of its rows (OpenCLIP's fused
//!   projections), or its transpose (`text_projection`), so that weights stream from file to file like a folder's;
//! - each component's `config.json`, inferred from the shapes, and where shapes cannot tell, from the family;
//! - the scheduler's configuration and CLIP's tokenizer.
//!
//! Keys are taken one by one, by structure: what is missing is named as the file would name it, and what is left over and
//! not known to be harmless is refused.

mod detect;
mod keys;
mod scheduler;
mod text;
mod tokenizer;
mod unet;
mod vae;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use kiln_bundle::fs::create_folder;
use kiln_bundle::{OutputFolder, TensorFile};
use kiln_graph::{ElementType, StoredWeight};
use serde_json::{Value, json};

use crate::weights::WeightFiles;
use crate::{CompileError, Family};

use detect::{CLIP, CONTROL, OPEN_CLIP, REFINER_OPEN_CLIP, UNET, VAE, XL_CLIP, XL_OPEN_CLIP};
use keys::Keys;
pub use scheduler::PredictionType;
use text::{Projection, TextEncoder};
use tokenizer::Padding;

/// A single-file checkpoint, its header read and understood.
#[derive(Debug)]
pub struct Original {
    path: PathBuf,
    family: Family,
    index: Value,
    configs: BTreeMap<&'static str, Value>,
    weights: BTreeMap<&'static str, WeightFiles>,
    tokenizers: Vec<(&'static str, Padding)>,
    passed_over: Vec<String>,
}

/// A weight as a network asks for it, and the tensor of the file that it is a view of.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightView<'a> {
    /// diffusers' name, without `text_model.` in text encoders.
    pub name: &'a str,
    /// The file's name of the tensor.
    pub key: &'a str,
    /// Shape of the view.
    pub shape: &'a [u64],
    /// Stored type.
    pub dtype: ElementType,
    /// First byte of the view in the file.
    pub offset: u64,
    /// Whether rows and columns are exchanged.
    pub is_transposed: bool,
}

impl Original {
    /// Whether a file is one for [`Original::open`] by its name or first bytes, be it only to be refused by it.
    pub fn is_candidate(path: &Path) -> bool {
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_lowercase);
        match extension.as_deref() {
            Some("safetensors" | "ckpt" | "pt" | "pth") => path.is_file(),
            Some("onnx") => false,
            _ => path.is_file() && first_bytes(path).is_some_and(|bytes| bytes[8] == b'{'),
        }
    }

    /// Opens a `.safetensors` file; `prediction_type` overrides what the file or its family says.
    ///
    /// Nothing but the header is read, and of the weights `global_step`, where there is one.
    pub fn open(path: &Path, prediction_type: Option<PredictionType>) -> Result<Original, CompileError> {
        refuse_pickle(path)?;
        let file = TensorFile::open(path)?;
        let mut keys = Keys::new(path, &file)?;
        let family = detect::family(&keys)?;
        let mut original = Original {
            path: path.into(),
            family,
            index: Value::Null,
            configs: BTreeMap::new(),
            weights: BTreeMap::new(),
            tokenizers: Vec::new(),
            passed_over: Vec::new(),
        };
        if family == Family::ControlNet {
            let prefix = if keys.first_with(CONTROL).is_some() { CONTROL } else { "" };
            original.control(&mut keys, prefix)?;
            original.index = json!({ "controlnet": ["diffusers", "ControlNetModel"] });
            original.passed_over = keys.finish()?;
            return Ok(original);
        }
        if let Some(key) = ["edm_mean", "edm_std"].into_iter().find(|key| keys.get(key).is_some()) {
            return Err(keys.error(format!(
                "'{key}' asks for Playground 2.5's scaling of latents, which is not supported"
            )));
        }
        if keys.first_with(VAE).is_none() {
            return Err(keys.error(format!("has no autoencoder ({VAE}*)")).with_hint(
                "merge one into the file under that prefix, or make a diffusers folder whose vae/ holds it",
            ));
        }
        let mut unet = unet::unet(&mut keys, UNET)?;
        let is_inpainting = unet.in_channels == unet::INPAINTING;
        let encoders = original.encoders(&mut keys)?;
        original.check_conditioning(&keys, &mut unet, &encoders)?;
        let prediction = scheduler::prediction_type(&keys, &file, family, is_inpainting, prediction_type)?;
        let pixels: u64 = match family {
            Family::SdxlBase | Family::SdxlRefiner => 1024,
            Family::Sd2 if prediction == PredictionType::VPrediction => 768,
            _ => 512,
        };
        let scaling_factor = match family {
            Family::SdxlBase | Family::SdxlRefiner => 0.13025,
            _ => 0.18215,
        };
        let known = vae::Vae { sample_size: pixels, scaling_factor };
        let (vae_weights, vae, n_levels) = vae::read(&mut keys, VAE, &known)?;
        unet.config["sample_size"] = (pixels >> (n_levels.min(16) - 1)).max(1).into();
        if family == Family::Sd2 && !is_inpainting {
            unet.config["upcast_attention"] = true.into();
        }
        let is_distilled = unet.config["time_cond_proj_dim"].is_u64();
        let has_control = keys.first_with(CONTROL).is_some();
        if has_control {
            original.control(&mut keys, CONTROL)?;
        }
        let zero_snr = keys.get("ztsnr").is_some();
        original.index = model_index(family, is_inpainting, has_control);
        let scheduler = scheduler::config(family, is_inpainting, is_distilled, prediction, zero_snr);
        original.index["scheduler"] = json!(["diffusers", scheduler["_class_name"]]);
        original.insert("unet", unet.config, Some(unet.weights));
        original.insert("vae", vae, Some(vae_weights));
        original.insert("scheduler", scheduler, None);
        for (name, encoder) in encoders {
            original.insert(name, encoder.config, Some(encoder.weights));
        }
        original.passed_over = keys.finish()?;
        Ok(original)
    }

    fn insert(&mut self, component: &'static str, config: Value, weights: Option<WeightFiles>) {
        self.configs.insert(component, config);
        if let Some(weights) = weights {
            self.weights.insert(component, weights);
        }
    }

    fn control(&mut self, keys: &mut Keys<'_>, prefix: &str) -> Result<(), CompileError> {
        let mut control = unet::controlnet(keys, prefix)?;
        if control.added.is_some() {
            control.config["addition_time_embed_dim"] = 256.into();
        }
        self.insert("controlnet", control.config, Some(control.weights));
        Ok(())
    }

    fn encoders(&mut self, keys: &mut Keys<'_>) -> Result<Vec<(&'static str, TextEncoder)>, CompileError> {
        let (first, second) = ("text_encoder", "text_encoder_2");
        self.tokenizers = match self.family {
            Family::Sd1 => vec![("tokenizer", Padding::End)],
            Family::Sd2 => vec![("tokenizer", Padding::Zero)],
            Family::SdxlBase => vec![("tokenizer", Padding::End), ("tokenizer_2", Padding::Zero)],
            Family::SdxlRefiner => vec![("tokenizer_2", Padding::Zero)],
            Family::ControlNet => vec![],
        };
        Ok(match self.family {
            Family::Sd1 => vec![(first, text::clip(keys, CLIP)?)],
            Family::Sd2 => vec![(first, text::open_clip(keys, OPEN_CLIP, Projection::Dropped)?)],
            Family::SdxlBase => vec![
                (first, text::clip(keys, XL_CLIP)?),
                (second, text::open_clip(keys, XL_OPEN_CLIP, Projection::Kept)?),
            ],
            Family::SdxlRefiner => {
                vec![(second, text::open_clip(keys, REFINER_OPEN_CLIP, Projection::Kept)?)]
            }
            Family::ControlNet => vec![],
        })
    }

    /// Refuses a UNet that does not belong to the text encoders, and finishes what both together say.
    fn check_conditioning(
        &self,
        keys: &Keys<'_>,
        unet: &mut unet::Denoiser,
        encoders: &[(&'static str, TextEncoder)],
    ) -> Result<(), CompileError> {
        let width = encoders.iter().fold(0u64, |sum, (_, encoder)| sum.saturating_add(encoder.width));
        if let Some(context) = unet.context.filter(|context| *context != width) {
            let reason =
                format!("the UNet ({UNET}*) reads text {context} wide, the text encoders are {width} wide");
            return Err(keys.error(reason));
        }
        // Original size, crop and target size; the refiner has an aesthetic score instead of the target size.
        let n_ids = match self.family {
            Family::SdxlBase => 6,
            Family::SdxlRefiner => 5,
            _ if unet.added.is_some() => {
                let reason = format!(
                    "'{UNET}label_emb.0.0.weight' asks for a class embedding (unCLIP), which is not supported"
                );
                return Err(keys.error(reason));
            }
            _ => return Ok(()),
        };
        let pooled = encoders.last().map_or(0, |(_, encoder)| encoder.projection);
        let Some(added) = unet.added else {
            return Err(keys.error(format!("missing weight '{UNET}label_emb.0.0.weight'")));
        };
        match added.checked_sub(pooled).filter(|rest| *rest > 0 && rest % n_ids == 0) {
            Some(rest) => unet.config["addition_time_embed_dim"] = (rest / n_ids).into(),
            None => {
                let key = format!("{UNET}label_emb.0.0.weight");
                let parts = format!("{pooled} of text and {n_ids} times as many of sizes");
                return Err(keys.error(format!("'{key}' reads {added} numbers, which are not {parts}")));
            }
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keys that belong to no network and are passed over.
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// Which line of models it belongs to.
    pub fn family(&self) -> Family {
        self.family
    }

    /// diffusers' class of the pipeline; a ControlNet by itself has none.
    pub fn class(&self) -> Option<&str> {
        self.index["_class_name"].as_str()
    }

    /// `model_index.json`.
    pub fn index(&self) -> &Value {
        &self.index
    }

    /// `config.json` of each network and `scheduler_config.json`, by component.
    pub fn configs(&self) -> &BTreeMap<&'static str, Value> {
        &self.configs
    }

    /// What each weight of a network is a view of, in the order of the names that networks ask for.
    pub fn weights(&self, component: &str) -> impl Iterator<Item = WeightView<'_>> {
        let places = self.weights.get(component).into_iter().flat_map(WeightFiles::places);
        places.map(|(name, place)| WeightView {
            name,
            key: place.key.as_deref().unwrap_or(name),
            shape: &place.info.shape,
            dtype: place.info.dtype,
            offset: place.offset,
            is_transposed: place.is_transposed,
        })
    }

    pub(crate) fn networks(&self) -> impl Iterator<Item = (&'static str, &WeightFiles)> {
        self.weights.iter().map(|(name, weights)| (*name, weights))
    }

    /// A network's configuration and weights; the weights can be taken once.
    pub(crate) fn take(&mut self, component: &str) -> Result<(Value, WeightFiles), CompileError> {
        let weights = self.weights.remove(component);
        let found = self.configs.get(component).cloned().zip(weights);
        found.ok_or_else(|| CompileError::checkpoint(&self.path, format!("has no {component}")))
    }

    /// Tokenizers and the scheduler's configuration: path in a diffusers folder, and content.
    pub(crate) fn companions(&self) -> Result<Vec<(String, Vec<u8>)>, CompileError> {
        let mut files = Vec::new();
        for (folder, padding) in &self.tokenizers {
            let made = tokenizer::files(*padding).map_err(|e| CompileError::io(&self.path, &e))?;
            files.extend(made.into_iter().map(|(name, bytes)| (format!("{folder}/{name}"), bytes)));
        }
        if let Some(scheduler) = self.configs.get("scheduler") {
            files.push(("scheduler/scheduler_config.json".into(), pretty(scheduler)));
        }
        Ok(files)
    }

    /// Writes the checkpoint as a diffusers folder, weights in the types they are stored in; an existing folder is refused
    /// unless it is empty. `progress` is told the bytes written and the bytes in all.
    pub fn save(&self, folder: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<PathBuf, CompileError> {
        let total = self.weights.values().map(|weights| weights.summary().2).sum();
        let mut done = 0;
        let output = OutputFolder::open(folder)?;
        let root = output.path();
        let mut files = self.companions()?;
        if self.class().is_some() {
            files.push(("model_index.json".into(), pretty(&self.index)));
        }
        for (component, weights) in &self.weights {
            files.push((format!("{component}/config.json"), pretty(&self.configs[component])));
            create_folder(&root.join(component))?;
            let (base, prefix) = match component.starts_with("text_encoder") {
                true => ("model", "text_model."),
                false => ("diffusion_pytorch_model", ""),
            };
            // Readers before transformers 5.6 know CLIP's weights by this prefix only, later ones by both.
            let weights = weights.renamed(|name| match name.starts_with("text_projection.") {
                true => name.to_owned(),
                false => format!("{prefix}{name}"),
            });
            let stored: Vec<StoredWeight> = weights
                .places()
                .map(|(name, place)| StoredWeight {
                    name: name.into(),
                    dtype: place.info.dtype,
                    dims: place.info.shape.clone(),
                })
                .collect();
            let path = root.join(component).join(format!("{base}.safetensors"));
            weights.write(&path, &stored.iter().collect::<Vec<_>>(), None, &mut |bytes| {
                done += bytes;
                progress(done, total);
            })?;
        }
        for (name, bytes) in files {
            let path = root.join(name);
            create_folder(path.parent().unwrap_or(root))?;
            std::fs::write(&path, bytes).map_err(|e| CompileError::io(&path, &e))?;
        }
        Ok(output.publish()?)
    }
}

/// The pipeline's `model_index.json`, as diffusers publishes it for the family.
fn model_index(family: Family, is_inpainting: bool, has_control: bool) -> Value {
    let is_xl = matches!(family, Family::SdxlBase | Family::SdxlRefiner);
    let xl = if is_xl { "XL" } else { "" };
    let task = match (family, is_inpainting, has_control) {
        (_, true, true) => "ControlNetInpaint",
        (_, true, false) => "Inpaint",
        (_, false, true) => "ControlNet",
        (Family::SdxlRefiner, ..) => "Img2Img",
        _ => "",
    };
    let none = || json!([null, null]);
    let given = |on: bool, library: &str, class: &str| if on { json!([library, class]) } else { none() };
    let has_first = family != Family::SdxlRefiner;
    let mut index = json!({
        "_class_name": format!("StableDiffusion{xl}{task}Pipeline"),
        "feature_extractor": none(),
        "image_encoder": none(),
        "text_encoder": given(has_first, "transformers", "CLIPTextModel"),
        "tokenizer": given(has_first, "transformers", "CLIPTokenizer"),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    if is_xl {
        index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
        index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
        index["force_zeros_for_empty_prompt"] = has_first.into();
    } else {
        index["requires_safety_checker"] = false.into();
        index["safety_checker"] = none();
    }
    if family == Family::SdxlRefiner {
        index["requires_aesthetics_score"] = true.into();
    }
    if has_control {
        index["controlnet"] = json!(["diffusers", "ControlNetModel"]);
    }
    index
}

/// Heads of width 64, as CLIP's encoders and all UNets since Stable Diffusion 2 have them; narrower than that, one.
fn heads_of_64(width: u64) -> Option<u64> {
    match width {
        1..64 => Some(1),
        width => width.is_multiple_of(64).then_some(width / 64),
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    (serde_json::to_string_pretty(value).unwrap_or_default() + "\n").into_bytes()
}

fn first_bytes(path: &Path) -> Option<[u8; 9]> {
    let mut bytes = [0; 9];
    kiln_bundle::read::open(path).ok()?.0.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// Refuses what torch pickled, by name or by its first bytes: a ZIP archive, or a pickle of protocol 2 and up.
fn refuse_pickle(path: &Path) -> Result<(), CompileError> {
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_lowercase);
    let named = matches!(extension.as_deref(), Some("ckpt" | "pt" | "pth" | "bin" | "pkl"));
    let looks = first_bytes(path).is_some_and(|bytes| {
        bytes[8] != b'{'
            && (bytes.starts_with(b"PK\x03\x04") || (bytes[0] == 0x80 && (2..=5).contains(&bytes[1])))
    });
    if !path.is_file() || !(named || looks) {
        return Ok(());
    }
    let reason = "pickled weights can run code when they are read, and kiln refuses them";
    Err(CompileError::checkpoint(path, reason).with_hint("convert the checkpoint to safetensors"))
}
