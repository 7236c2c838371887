//! Numbers that are not finite: the message names what made them.

use std::fs;
use std::path::Path;

use super::{UNET, model, rewrite};
use crate::cli::{fail, kiln};
use crate::fixtures::scratch;
use crate::support::references;

const NAN: u16 = 0x7e00;
const INFINITY: u16 = 0x7c00;

/// Replaces the fourth number of a tensor of 16-bit floats.
fn spoil(file: &Path, tensor: &str, bits: u16) {
    let bytes = fs::read(file).expect("weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let old = tensors.tensor(tensor).expect(tensor).data().to_vec();
    let change = |data: &[u8]| match data == old {
        true => [&data[..6], &bits.to_le_bytes(), &data[8..]].concat(),
        false => data.to_vec(),
    };
    rewrite(file, file, |name| Some(name.into()), change);
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let check = |file: &str, tensor: &str, bits: u16, component: &str, extra: &[&str]| {
        let (model, work) = (model(), scratch());
        spoil(&model.path().join(file), tensor, bits);
        let path = model.path().display().to_string();
        let args =
            ["generate", "a circle", "--model", &path, "--steps", "2", "--width", "64", "--height", "64"];
        let message = format!("{component}.data: '{tensor}' of {component} holds NaN or infinity\n");
        fail(&mut kiln(&[&args[..], extra].concat(), work.path()), 3, &message);
    };
    let text = "encoder.layers.0.self_attn.v_proj.weight";
    check("text_encoder/model.safetensors", text, NAN, "text_encoder", &[]);
    check(UNET, "mid_block.resnets.0.conv1.weight", NAN, "unet", &[]);
    check(UNET, "conv_out.weight", INFINITY, "unet", &[]);
    let vae = "vae/diffusion_pytorch_model.safetensors";
    check(vae, "decoder.conv_out.weight", INFINITY, "vae_decoder", &[]);
    let picture = references().join("turned.jpg").display().to_string();
    check(vae, "encoder.conv_in.weight", NAN, "vae_encoder", &["--init-image", &picture]);
}

#[test]
fn numbers_that_grow_too_large_are_told_by_component_and_precision() {
    let (model, work) = (references().join("../../models/shapes").display().to_string(), scratch());
    let args = ["generate", "a circle", "--model", &model, "--steps", "2", "--guidance-scale", "1e37"];
    let message = "error: unet: makes numbers that are not finite, computing in f32\n";
    fail(&mut kiln(&args, work.path()), 1, message);
}

#[test]
fn more_threads_than_cores_are_not_used() {
    let (model, work) = (model(), scratch());
    let path = model.path().display().to_string();
    let args = ["generate", "x", "--model", &path, "--steps", "1", "--width", "64", "--height", "64"];
    let output = kiln(&[&args[..], &["--threads", "1000"]].concat(), work.path()).output().expect("kiln runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let cores = std::thread::available_parallelism().expect("a number");
    let line = format!("using {cores} threads, as many as run at once here, in place of 1000\n");
    assert_eq!(stderr, line);
}
