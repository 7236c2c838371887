//! What `txt2img` and `img2img` answer: pictures, `parameters` and `info`.

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::image::RgbImage;
use kiln_runtime::infotext;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::paint::Paste;
use super::progress::timestamp;
use crate::http::encode::{Format, encode};
use crate::http::error::ApiError;
use crate::http::error::internal;
use crate::{Fault, FaultKind, Finished, Ticket};

/// Quality of JPEG files.
const QUALITY: u8 = 80;

/// What is known of a call before it is drawn.
pub(super) struct Answer {
    /// As it was sent.
    pub(super) prompt: String,
    pub(super) negative_prompt: String,
    /// Of each picture.
    pub(super) seeds: Vec<u64>,
    pub(super) subseeds: Vec<u64>,
    pub(super) subseed_strength: f32,
    pub(super) batch_size: usize,
    pub(super) strength: Option<f64>,
    pub(super) clip_skip: usize,
    pub(super) model: String,
    pub(super) model_hash: String,
    pub(super) format: Format,
    pub(super) sends_images: bool,
    pub(super) comments: Vec<String>,
    pub(super) parameters: Value,
    /// What the pictures are laid upon.
    pub(super) paste: Option<Paste>,
}

/// A picture of a call.
struct Drawn {
    /// Among all that were asked for.
    index: usize,
    image: RgbImage,
    infotext: String,
}

impl Answer {
    /// Waits for the iterations. Those that somebody stopped are left out, unless all are.
    pub(super) async fn of(self, tickets: Vec<Ticket>) -> Result<Value, ApiError> {
        let mut drawn = Vec::new();
        let mut stopped = None;
        for (i, ticket) in tickets.iter().enumerate() {
            match ticket.pictures().await {
                Ok(finished) => drawn.extend(self.drawn(i, &finished)),
                Err(fault) if fault.kind == FaultKind::Interrupted => stopped = Some(fault),
                Err(fault) => return Err(fault.into()),
            }
        }
        match (drawn.is_empty(), stopped) {
            (true, stopped) => {
                let none = || Fault::new(FaultKind::Interrupted, "the job was cancelled");
                Err(stopped.unwrap_or_else(none).into())
            }
            (false, _) => spawn_blocking(move || self.put(drawn)).await.map_err(|_| internal())?,
        }
    }

    fn drawn(&self, iteration: usize, finished: &Arc<Finished>) -> Vec<Drawn> {
        let pictures = finished.images.iter().zip(&finished.infotexts).enumerate();
        let drawn = |(i, (image, infotext)): (usize, (&RgbImage, &String))| Drawn {
            index: iteration * self.batch_size + i,
            image: image.clone(),
            infotext: infotext.clone(),
        };
        pictures.map(drawn).collect()
    }

    fn put(&self, drawn: Vec<Drawn>) -> Result<Value, ApiError> {
        let info = self.info(&drawn);
        let mut images = Vec::new();
        for Drawn { image, infotext, .. } in drawn.into_iter().filter(|_| self.sends_images) {
            let image = match &self.paste {
                Some(paste) => paste.under(&image),
                None => image,
            };
            let file = encode(&image, self.format, QUALITY, &infotext).map_err(|_| internal())?;
            images.push(BASE64_STANDARD.encode(file));
        }
        Ok(json!({ "images": images, "parameters": self.parameters, "info": info.to_string() }))
    }

    fn info(&self, drawn: &[Drawn]) -> Value {
        let each = |of: &[u64]| drawn.iter().filter_map(|one| of.get(one.index).copied()).collect::<Vec<u64>>();
        let (seeds, subseeds) = (each(&self.seeds), each(&self.subseeds));
        let first = drawn.first();
        let said = infotext::parse(first.map_or("", |one| &one.infotext));
        let number = |key: &str| said.get(key).and_then(|text| text.parse::<f64>().ok());
        let size = match &self.paste {
            Some(paste) => Some(paste.size()),
            None => first.map(|one| one.image.size()),
        };
        json!({
            "prompt": self.prompt,
            "all_prompts": vec![&self.prompt; drawn.len()],
            "negative_prompt": self.negative_prompt,
            "all_negative_prompts": vec![&self.negative_prompt; drawn.len()],
            "seed": seeds.first(),
            "all_seeds": seeds,
            "subseed": subseeds.first(),
            "all_subseeds": subseeds,
            "subseed_strength": self.subseed_strength,
            "width": size.map(|size| size.width),
            "height": size.map(|size| size.height),
            "sampler_name": said.get("Sampler"),
            "cfg_scale": number("CFG scale"),
            "steps": number("Steps").map(|steps| steps as u64),
            "batch_size": self.batch_size,
            "restore_faces": false,
            "face_restoration_model": null,
            "sd_model_name": self.model,
            "sd_model_hash": self.model_hash,
            "sd_vae_name": null,
            "sd_vae_hash": null,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": self.strength,
            "extra_generation_params": said.settings.iter().filter(|(key, _)| is_extra(key)).cloned()
                .map(|(key, value)| (key, value.into())).collect::<serde_json::Map<String, Value>>(),
            "index_of_first_image": 0,
            "infotexts": drawn.iter().map(|one| &*one.infotext).collect::<Vec<&str>>(),
            "styles": [],
            "job_timestamp": timestamp(SystemTime::now()),
            "clip_skip": self.clip_skip,
            "is_using_inpainting_conditioning": false,
            "comments": self.comments,
        })
    }
}

/// Settings that have no key of their own.
fn is_extra(key: &str) -> bool {
    key.starts_with("Hires") || ["Schedule type", "Lora hashes", "Eta DDIM"].contains(&key)
}
