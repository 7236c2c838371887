//! `model_index.json`, configurations and the index of weights of a checkpoint's folder.
#![no_main]

use kiln_compile::{Checkpoint, inspect_checkpoint};
use kiln_fuzz::{Spoilt, within_a_second};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 5] = [
    "model_index.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors.index.json",
];

fuzz_target!(|text: &str| within_a_second(|| {
    let folder = Spoilt::new(text, &FILES);
    let Ok(checkpoint) = Checkpoint::open(folder.path()) else { return };
    let _ = (checkpoint.remarks(), checkpoint.default_size(), inspect_checkpoint(&checkpoint));
}));
