//! Fields of this API's bodies.

use kiln_runtime::limits::MAX_SIDE;

use super::options::{FIXED, MAX_CLIP_LAYERS, OFF};
use crate::http::schema::{COUNT, Field, Kind, MAX_NUMBER, NUMBER, SHARE, Table, field, needed};

/// Largest deviation of a mask's blur, and largest padding, in pixels.
const MAX_PIXELS: f64 = 8192.0;

/// Most pictures and iterations that are counted; fewer are allowed.
const MAX_COUNT: i128 = 1 << 16;

const PIXELS: Kind = Kind::Number(0.0, MAX_PIXELS);
const NONE: Kind = Kind::Number(-MAX_NUMBER, 0.0);
const ONE: Kind = Kind::Number(1.0, 1.0);

pub(super) static TXT2IMG: Table = Table::loose(&[CALL, HIRES]);
pub(super) static IMG2IMG: Table = Table::loose(&[CALL, INIT]);

const CALL: &[Field] = &[
    field("prompt", Kind::Text, "what to draw, with LoRAs as <lora:name:factor>"),
    field("negative_prompt", Kind::Text, "what not to draw"),
    field("model", Kind::Text, "a model's name, title or digest"),
    field("seed", Kind::Seed, "of the first picture; -1 for a new one"),
    field("subseed", Kind::Seed, "of the first variation; -1 for a new one"),
    field("subseed_strength", SHARE, "how much of the variation is mixed in"),
    field("sampler_name", Kind::Text, "one of samplers"),
    field("sampler_index", Kind::Text, "as sampler_name, which has precedence"),
    field("scheduler", Kind::Text, "one of schedulers"),
    field("batch_size", Kind::Whole(1, MAX_COUNT), "pictures of an iteration; 1 by default"),
    field("n_iter", Kind::Whole(1, MAX_COUNT), "iterations; 1 by default"),
    field("steps", COUNT, "denoising steps; the model's own by default"),
    field("cfg_scale", NUMBER, "weight of the prompt; 7 by default"),
    field("width", Kind::Whole(1, MAX_SIDE as i128), "in pixels; the model's own by default"),
    field("height", Kind::Whole(1, MAX_SIDE as i128), "in pixels; the model's own by default"),
    field("eta", SHARE, "noise of DDIM"),
    field("clip_skip", Kind::Whole(-1, 64), "layers of the text encoder, counted from its end"),
    field("denoising_strength", SHARE, "how much is changed; 0.75 by default"),
    field("send_images", Kind::Flag, "whether pictures are part of the answer"),
    field("disable_extra_networks", Kind::Flag, "whether LoRAs of the prompt are passed over"),
    field("override_settings", Kind::Object(&OPTIONS), "options of this call"),
    field("override_settings_restore_afterwards", Kind::Flag, "false keeps these options for later calls"),
    field("alwayson_scripts", Kind::Object(&SCRIPTS), "ControlNets"),
    field("styles", Kind::Empties, "empty texts: there are no styles"),
    field("restore_faces", Kind::Off, "off"),
    field("tiling", Kind::Off, "off"),
    field("mask_round", Kind::On, "on"),
    field("s_churn", NONE, "0"),
    field("s_min_uncond", NONE, "0"),
    field("seed_resize_from_h", NONE, "0 or less"),
    field("seed_resize_from_w", NONE, "0 or less"),
    field("s_noise", ONE, "1"),
    field("initial_noise_multiplier", ONE, "1"),
    field("refiner_checkpoint", Kind::Unset, "none"),
    field("script_name", Kind::Unset, "none"),
    field("infotext", Kind::Unset, "none"),
    field("latent_mask", Kind::Unset, "none"),
];

const HIRES: &[Field] = &[
    field("enable_hr", Kind::Flag, "whether a second pass over larger pictures follows"),
    field("hr_scale", NUMBER, "the second pass's factor, from 1 to 8; 2 by default"),
    field("hr_resize_x", Kind::Number(0.0, 1e6), "the second pass's width, instead of the factor"),
    field("hr_resize_y", Kind::Number(0.0, 1e6), "the second pass's height, instead of the factor"),
    field("hr_second_pass_steps", Kind::Whole(0, u32::MAX as i128), "0 for as many as in the first pass"),
    field("hr_upscaler", Kind::Word(&["Latent", "latent", "Lanczos", "lanczos", ""]), "Latent by default"),
    field("hr_prompt", Kind::Text, "empty, or the first pass's"),
    field("hr_negative_prompt", Kind::Text, "empty, or the first pass's"),
    field("hr_sampler_name", Kind::Text, "empty, or the first pass's"),
    field("hr_scheduler", Kind::Text, "empty, or the first pass's"),
    field("hr_checkpoint_name", Kind::Text, "empty, or the first pass's"),
    field("firstphase_width", NUMBER, "0 where there is a second pass"),
    field("firstphase_height", NUMBER, "0 where there is a second pass"),
];

const INIT: &[Field] = &[
    needed("init_images", Kind::OnePicture, "the picture to start from"),
    field("mask", Kind::Picture, "where to paint: light"),
    field("resize_mode", Kind::Whole(0, 2), "how the picture is brought to size: stretched, cut or filled"),
    field("mask_blur", PIXELS, "deviation in pixels; 4 by default"),
    field("mask_blur_x", PIXELS, "deviation in pixels; 4 by default"),
    field("mask_blur_y", PIXELS, "deviation in pixels; 4 by default"),
    field(
        "inpainting_fill",
        Kind::Whole(0, 3),
        "what is painted over, with a mask: colours around (0), the picture (1), noise (2) or nothing (3)",
    ),
    field("inpaint_full_res", Kind::Flag, "whether only what is around the mask is drawn; true by default"),
    field("inpaint_full_res_padding", PIXELS, "pixels around the mask; 0 by default"),
    field("inpainting_mask_invert", Kind::Flag, "whether the mask is light where nothing is painted"),
    field("include_init_images", Kind::Flag, "whether the answer repeats the pictures"),
];

static SCRIPTS: Table =
    Table::loose(&[&[field("controlnet", Kind::Object(&SCRIPT), "the model's ControlNets")]]);

static SCRIPT: Table = Table::loose(&[&[field("args", Kind::Objects(&UNIT), "units, one per ControlNet")]]);

/// A unit of `sd-webui-controlnet`.
pub(super) static UNIT: Table = Table::loose(&[&[
    field("enabled", Kind::Flag, "true by default"),
    field("model", Kind::Text, "one of /controlnet/model_list; the first that is free by default"),
    field("module", Kind::Text, "none where the unit is enabled"),
    field("weight", NUMBER, "1 by default"),
    field("guidance_start", SHARE, "0 by default"),
    field("guidance_end", SHARE, "1 by default"),
]]);

/// Options of all later calls.
pub(super) static OPTIONS: Table = Table::loose(&[
    &[
        field("sd_model_checkpoint", Kind::Text, "a model's name, title or digest"),
        field("sd_vae", Kind::Text, "the model's own is used"),
        field("CLIP_stop_at_last_layers", Kind::Whole(0, MAX_CLIP_LAYERS), "1 for all layers"),
        field("samples_format", Kind::Text, "png, jpg or webp"),
        field("randn_source", Kind::Text, "CPU, GPU or NV"),
        field("eta_ddim", SHARE, "noise of DDIM"),
    ],
    &FIXED,
    &OFF,
]);

pub(super) static PNG_INFO: Table = Table::loose(&[&[needed("image", Kind::Picture, "a PNG file")]]);

pub(super) static EXTRA_SINGLE: Table =
    Table::loose(&[&[needed("image", Kind::Picture, "the picture to resize")], EXTRA]);

pub(super) static EXTRA_BATCH: Table =
    Table::loose(&[&[field("imageList", Kind::Objects(&LISTED), "the pictures to resize")], EXTRA]);

static LISTED: Table = Table::loose(&[&[needed("data", Kind::Picture, "a picture")]]);

const EXTRA: &[Field] = &[
    field("upscaler_1", Kind::Word(&["None", "none", "Lanczos", "lanczos", ""]), "None by default"),
    field("resize_mode", Kind::Whole(0, 1), "by a factor (0) or to a size (1)"),
    field("upscaling_resize", Kind::Number(0.01, MAX_SIDE as f64), "the factor; 2 by default"),
    field("upscaling_resize_w", Kind::Number(1.0, MAX_SIDE as f64), "in pixels; 512 by default"),
    field("upscaling_resize_h", Kind::Number(1.0, MAX_SIDE as f64), "in pixels; 512 by default"),
    field("upscaling_crop", Kind::Flag, "whether pictures are cut to the size; true by default"),
    field("gfpgan_visibility", NONE, "0"),
    field("codeformer_visibility", NONE, "0"),
    field("extras_upscaler_2_visibility", NONE, "0"),
];
