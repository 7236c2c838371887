//! Reading a file's header: each component in its turn, from the file or from elsewhere.

use std::path::{Path, PathBuf};

use kiln_bundle::TensorFile;
use kiln_nets::{AutoencoderConfig, ClipTextConfig};
use serde_json::{Value, json};

use super::detect::{self, CLIP, CONTROL, OPEN_CLIP, REFINER_OPEN_CLIP, UNET, VAE, XL_CLIP, XL_OPEN_CLIP};
use super::given::{Given, GivenPart};
use super::index::model_index;
use super::keys::{Keys, Piece};
use super::scheduler;
use super::text::{first_clip, first_open_clip, second_open_clip};
use super::tokenizer::Padding;
use super::{Original, Published, refuse_pickle, unet, vae};
use crate::{CheckpointOptions, CompileError, Family, PredictionType};

type Read = fn(&mut Keys<'_>, &str) -> Result<Piece, CompileError>;

/// A text encoder of a family.
struct Slot {
    component: &'static str,
    prefix: &'static str,
    tokenizer: &'static str,
    padding: Padding,
    read: Read,
}

fn slots(family: Family) -> Vec<Slot> {
    let first = |prefix, padding, read| Slot {
        component: "text_encoder",
        prefix,
        tokenizer: "tokenizer",
        padding,
        read,
    };
    let second = |prefix| Slot {
        component: "text_encoder_2",
        prefix,
        tokenizer: "tokenizer_2",
        padding: Padding::Zero,
        read: second_open_clip,
    };
    match family {
        Family::Sd1 => vec![first(CLIP, Padding::End, first_clip)],
        Family::Sd2 => vec![first(OPEN_CLIP, Padding::Zero, first_open_clip)],
        Family::SdxlBase => vec![first(XL_CLIP, Padding::End, first_clip), second(XL_OPEN_CLIP)],
        Family::SdxlRefiner => vec![second(REFINER_OPEN_CLIP)],
        Family::ControlNet => vec![],
    }
}

/// The components as they are found.
struct Reader<'a> {
    keys: Keys<'a>,
    given: Given,
    original: Original,
}

impl Reader<'_> {
    /// A component from elsewhere, or else of the file.
    fn part(
        &mut self,
        component: &'static str,
        prefix: &str,
        read: impl FnOnce(&mut Keys<'_>, &str) -> Result<Piece, CompileError>,
    ) -> Result<GivenPart, CompileError> {
        match self.given.take(component) {
            Some(part) => {
                self.keys.discard(prefix);
                self.original.elsewhere.insert(component, part.origin.clone());
                Ok(part)
            }
            None => Ok(GivenPart {
                origin: self.original.path.clone(),
                piece: read(&mut self.keys, prefix)?,
                is_inferred: true,
                remarks: Vec::new(),
            }),
        }
    }

    fn insert(&mut self, component: &'static str, part: GivenPart) {
        self.original.configs.insert(component, part.piece.config);
        self.original.weights.insert(component, part.piece.weights);
        self.original.remarks.extend(part.remarks);
    }

    fn control(&mut self, prefix: &str) -> Result<(), CompileError> {
        let mut control = self.part("controlnet", prefix, unet::controlnet)?;
        if !control.piece.config["projection_class_embeddings_input_dim"].is_null() {
            control.piece.config["addition_time_embed_dim"] = 256.into();
        }
        self.insert("controlnet", control);
        Ok(())
    }

    /// Refuses a UNet that does not belong to the text encoders, and finishes what both together say.
    fn check_conditioning(&self, unet: &mut Value, encoders: &[ClipTextConfig]) -> Result<(), CompileError> {
        let keys = &self.keys;
        let width = encoders.iter().fold(0u64, |sum, encoder| sum.saturating_add(encoder.hidden_size()));
        if let Some(context) = unet["cross_attention_dim"].as_u64().filter(|context| *context != width) {
            let reason =
                format!("the UNet ({UNET}*) reads text {context} wide, the text encoders are {width} wide");
            return Err(keys.error(reason));
        }
        let added = unet["projection_class_embeddings_input_dim"].as_u64();
        // Original size, crop and target size; the refiner has an aesthetic score instead of the target size.
        let n_ids = match self.original.family {
            Family::SdxlBase => 6,
            Family::SdxlRefiner => 5,
            _ if added.is_some() => {
                let reason = format!(
                    "'{UNET}label_emb.0.0.weight' asks for a class embedding (unCLIP), which is not supported"
                );
                return Err(keys.error(reason));
            }
            _ => return Ok(()),
        };
        let pooled = encoders.last().map_or(0, ClipTextConfig::projection_dim);
        let Some(added) = added else {
            return Err(keys.error(format!("missing weight '{UNET}label_emb.0.0.weight'")));
        };
        match added.checked_sub(pooled).filter(|rest| *rest > 0 && rest % n_ids == 0) {
            Some(rest) => unet["addition_time_embed_dim"] = (rest / n_ids).into(),
            None => {
                let key = format!("{UNET}label_emb.0.0.weight");
                let parts = format!("{pooled} of text and {n_ids} times as many of sizes");
                return Err(keys.error(format!("'{key}' reads {added} numbers, which are not {parts}")));
            }
        }
        Ok(())
    }
}

impl Original {
    /// Opens a `.safetensors` file that holds all components.
    ///
    /// Nothing but the header is read, and of the weights `global_step`, where there is one.
    pub fn open(path: &Path) -> Result<Original, CompileError> {
        Original::open_with(path, &CheckpointOptions::default())
    }

    /// Opens a `.safetensors` file, to which other files may add components.
    pub fn open_with(path: &Path, options: &CheckpointOptions) -> Result<Original, CompileError> {
        refuse_pickle(path)?;
        let file = TensorFile::open(path)?;
        let keys = Keys::new(path, &file)?;
        let given = Given::open(&options.components, options.variant.as_deref())?;
        let family = detect::family(&keys, &given)?;
        let mut reader = Reader { keys, given, original: Original::empty(path, family) };
        if family == Family::ControlNet {
            let prefix = if reader.keys.first_with(CONTROL).is_some() { CONTROL } else { "" };
            reader.control(prefix)?;
            reader.original.index = json!({ "controlnet": ["diffusers", "ControlNetModel"] });
            return reader.finish(&[UNET, CONTROL]);
        }
        reader.pipeline(&file, options.prediction_type)
    }

    fn empty(path: &Path, family: Family) -> Original {
        Original {
            path: PathBuf::from(path),
            family,
            index: Value::Null,
            configs: Default::default(),
            weights: Default::default(),
            tokenizers: Vec::new(),
            elsewhere: Default::default(),
            remarks: Vec::new(),
            passed_over: Vec::new(),
        }
    }
}

impl Reader<'_> {
    fn pipeline(mut self, file: &TensorFile, asked: Option<PredictionType>) -> Result<Original, CompileError> {
        if let Some(key) = ["edm_mean", "edm_std"].into_iter().find(|key| self.keys.get(key).is_some()) {
            return Err(self.keys.error(format!(
                "'{key}' asks for Playground 2.5's scaling of latents, which is not supported"
            )));
        }
        if self.keys.first_with(VAE).is_none() && !self.given.has("vae") {
            return Err(self
                .keys
                .error(format!("has no autoencoder ({VAE}*)"))
                .with_hint("--vae takes one from elsewhere: a folder or a file"));
        }
        let family = self.original.family;
        let unet_prefix = detect::unet_prefix(&self.keys).unwrap_or(UNET);
        let mut unet = self.part("unet", unet_prefix, unet::unet)?;
        let mut encoders = Vec::new();
        for Slot { component, prefix, tokenizer, padding, read } in slots(family) {
            let encoder = self.part(component, prefix, read)?;
            let origin = encoder.origin.display().to_string();
            encoders.push(ClipTextConfig::from_json(&origin, &encoder.piece.config)?);
            self.original.tokenizers.push((tokenizer, padding));
            self.insert(component, encoder);
        }
        if unet.is_inferred {
            self.check_conditioning(&mut unet.piece.config, &encoders)?;
        }
        let is_inpainting = unet.piece.config["in_channels"] == unet::INPAINTING;
        let prediction = scheduler::prediction_type(&self.keys, file, family, is_inpainting, asked)?;
        let published = Published::of(family, prediction == PredictionType::VPrediction, is_inpainting);
        let mut vae = self.part("vae", VAE, vae::read)?;
        if vae.is_inferred {
            published.complete_vae(&mut vae.piece.config);
        }
        let autoencoder = AutoencoderConfig::from_json(&vae.origin.display().to_string(), &vae.piece.config)?;
        if unet.is_inferred {
            published.complete_unet(&mut unet.piece.config, autoencoder.scale_factor());
        }
        let is_distilled = unet.piece.config["time_cond_proj_dim"].is_u64();
        let has_control = self.keys.first_with(CONTROL).is_some();
        if has_control {
            self.control(CONTROL)?;
        }
        let zero_snr = self.keys.get("ztsnr").is_some();
        let scheduler = scheduler::config(family, is_inpainting, is_distilled, prediction, zero_snr);
        let original = &mut self.original;
        original.index = model_index(family, is_inpainting, has_control);
        original.index["vae"] = json!(["diffusers", autoencoder.class()]);
        original.index["scheduler"] = json!(["diffusers", scheduler["_class_name"]]);
        original.configs.insert("scheduler", scheduler);
        self.insert("unet", unet);
        self.insert("vae", vae);
        self.finish(&[unet_prefix, UNET, CONTROL])
    }

    fn finish(self, drawing: &[&str]) -> Result<Original, CompileError> {
        let Reader { keys, given, mut original } = self;
        given.finish(&original.family.to_string())?;
        original.passed_over = keys.finish(drawing)?;
        Ok(original)
    }
}
