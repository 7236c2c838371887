//! One network of a file: of a whole checkpoint, or of a file that holds nothing else.

use std::path::Path;

use kiln_bundle::TensorFile;

use super::detect::{CLIP, OPEN_CLIP, REFINER_OPEN_CLIP, UNET, VAE, XL_CLIP, XL_OPEN_CLIP, foreign};
use super::keys::{Keys, Piece};
use super::text::{Projection, clip, first_clip, first_open_clip, second_open_clip};
use super::{refuse_pickle, unet, vae};
use crate::CompileError;

/// Width of OpenCLIP's encoder of Stable Diffusion 2.x; OpenAI's CLIP, which approximates GELU, is narrower.
const SD2_WIDTH: u64 = 1024;

/// How a network's keys are known, and read.
struct Form {
    component: &'static str,
    prefix: &'static str,
    /// Keys behind the prefix; no other layout has one of them.
    probes: &'static [&'static str],
    read: fn(&mut Keys<'_>, &str) -> Result<Piece, CompileError>,
}

impl Form {
    const fn new(
        component: &'static str,
        prefix: &'static str,
        probes: &'static [&'static str],
        read: fn(&mut Keys<'_>, &str) -> Result<Piece, CompileError>,
    ) -> Form {
        Form { component, prefix, probes, read }
    }
}

const DENOISER: &[&str] = &["input_blocks.0.0.weight"];
const AUTOENCODER: &[&str] = &["decoder.mid.block_1.conv1.weight"];
const TRANSFORMERS: &[&str] =
    &["text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"];
const RESBLOCKS: &[&str] = &["transformer.resblocks.0.mlp.c_fc.weight"];

const FORMS: [Form; 13] = [
    Form::new("unet", UNET, DENOISER, unet::unet),
    Form::new("unet", "", DENOISER, unet::unet),
    Form::new("vae", VAE, AUTOENCODER, vae::read),
    Form::new("vae", "", AUTOENCODER, vae::read),
    Form::new("text_encoder", CLIP, TRANSFORMERS, any_first_clip),
    Form::new("text_encoder", XL_CLIP, TRANSFORMERS, any_first_clip),
    Form::new("text_encoder", "", TRANSFORMERS, any_first_clip),
    Form::new("text_encoder", OPEN_CLIP, RESBLOCKS, first_open_clip),
    Form::new("text_encoder", "", RESBLOCKS, first_open_clip),
    Form::new("text_encoder_2", XL_OPEN_CLIP, RESBLOCKS, second_open_clip),
    Form::new("text_encoder_2", REFINER_OPEN_CLIP, RESBLOCKS, second_open_clip),
    Form::new("text_encoder_2", "", RESBLOCKS, second_open_clip),
    Form::new("text_encoder_2", "", TRANSFORMERS, |keys, prefix| clip(keys, prefix, Projection::Kept)),
];

/// OpenAI's CLIP, or OpenCLIP under transformers' keys: what a file with nothing else holds, its width tells.
fn any_first_clip(keys: &mut Keys<'_>, prefix: &str) -> Result<Piece, CompileError> {
    let mut piece = first_clip(keys, prefix)?;
    if piece.config["hidden_size"] == SD2_WIDTH {
        piece.config["hidden_act"] = "gelu".into();
    }
    Ok(piece)
}

/// The form of a component in a file.
fn form(keys: &Keys<'_>, component: &str) -> Option<&'static Form> {
    let fits =
        |form: &&Form| form.probes.iter().any(|probe| keys.get(&format!("{}{probe}", form.prefix)).is_some());
    FORMS.iter().filter(|form| form.component == component).find(fits)
}

/// Whether a file has a component in a layout whose shapes tell its configuration best: the original one.
pub(crate) fn is_original(path: &Path, component: &str) -> Result<bool, CompileError> {
    refuse_pickle(path)?;
    let keys = TensorFile::open(path)?;
    let form = form(&Keys::new(path, &keys)?, component);
    Ok(form.is_some_and(|form| !(form.prefix.is_empty() && form.probes == TRANSFORMERS)))
}

/// A component of a file, and keys that are passed over where the file holds nothing else.
///
/// The configuration has what shapes tell; [`super::Published`] has the rest.
pub(crate) fn piece(path: &Path, component: &str) -> Result<(Piece, Vec<String>), CompileError> {
    refuse_pickle(path)?;
    let file = TensorFile::open(path)?;
    let mut keys = Keys::new(path, &file)?;
    let Some(form) = form(&keys, component) else {
        let mut forms = FORMS.iter().filter(|form| form.component == component);
        let expected = forms.next().map(|form| format!("{}{}", form.prefix, form.probes[0]));
        let wanted = match component {
            "unet" => "a UNet",
            "vae" => "an autoencoder",
            _ => "a text encoder",
        };
        return Err(foreign(&keys, wanted, &expected.unwrap_or_default()));
    };
    let piece = (form.read)(&mut keys, form.prefix)?;
    let passed_over = match (form.prefix, component) {
        ("", "unet") => keys.finish(&[""])?,
        ("", _) => keys.finish(&[])?,
        _ => Vec::new(),
    };
    Ok((piece, passed_over))
}
