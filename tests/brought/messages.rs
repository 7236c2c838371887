//! What is refused is called by its name, and the hint says what to do.

use std::fs;
use std::path::Path;

use safetensors::serialize_to_file;
use safetensors::tensor::{Dtype, TensorView};

use super::{UNET, model};
use crate::cli::{fail, kiln};
use crate::fixtures::{copy_folder, edit_json, scratch};
use crate::support::references;

/// Runs `kiln generate` with arguments, which must fail with the code, and returns what it says.
#[track_caller]
fn refused(work: &Path, args: &[&str], code: i32) -> String {
    let output = fail(&mut kiln(&[&["generate", "x"], args].concat(), work), code, "error: ");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines.len() <= 2 && lines[0].starts_with("error: "), "{said}");
    assert!(lines.get(1).is_none_or(|hint| hint.starts_with("hint: ")), "{said}");
    said
}

/// Writes a file of empty tensors of these names and shapes.
fn file(path: &Path, tensors: &[(&str, &[usize])]) {
    let zeros = [0; 4096];
    let views = tensors.iter().map(|(name, shape)| {
        let n: usize = shape.iter().product();
        (*name, TensorView::new(Dtype::F16, shape.to_vec(), &zeros[..2 * n]).expect("a tensor"))
    });
    serialize_to_file(views, None, path).expect("a file");
}

#[test]
fn what_lies_in_place_of_weights_is_named() {
    let work = scratch();
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".as_slice();
    for (bytes, message) in [
        (b"# xet version 0\nfilesize = 12\n".as_slice(), "is a Git Xet pointer, not the file itself"),
        (b"".as_slice(), "is empty"),
        (b"Invalid username or password.", "expected: it begins 'Invalid username or password.'"),
        (b"{\"error\":\"Repository not found\"}", "is JSON where a safetensors file is expected"),
        (gzip, "is a gzip archive, which has to be unpacked first"),
        (b"PK\x03\x04\0\0\0\0\x08\0", "is a ZIP archive, as torch writes pickled weights"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "is a GGUF file, and kiln reads safetensors"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", "is a picture"),
        (b"\x40\0\0\0\0\0\0\0{\"a\":", "says that its header has 64 bytes; the file has 13, so it is cut off"),
    ] {
        let model = model();
        fs::write(model.path().join(UNET), bytes).expect("a file");
        let said = refused(work.path(), &["--model", &model.path().display().to_string()], 3);
        assert!(said.contains(message) && said.contains(UNET), "{said}");
    }
    for (text, message) in [
        ("Entry not found", "model_index.json: is not JSON: it begins 'Entry not found'"),
        ("", "model_index.json: is empty"),
        ("{\"error\": \"no\"}", "model_index.json: has no _class_name"),
    ] {
        let model = model();
        fs::write(model.path().join("model_index.json"), text).expect("a file");
        let said = refused(work.path(), &["--model", &model.path().display().to_string()], 3);
        assert!(said.contains(message), "{said}");
    }
}

#[test]
fn a_cut_file_of_weights_is_called_cut() {
    let (model, work) = (model(), scratch());
    let bytes = fs::read(model.path().join(UNET)).expect("weights");
    fs::write(model.path().join(UNET), &bytes[..bytes.len() - 100]).expect("a file");
    let said = refused(work.path(), &["--model", &model.path().display().to_string()], 3);
    assert!(said.contains("bytes of weights; the file has") && said.contains(", so it is cut off\n"), "{said}");
}

#[test]
fn exports_for_other_programs_are_named() {
    let work = scratch();
    for (name, message) in [
        ("model.onnx", "hint: model.onnx there is an ONNX export"),
        ("openvino_model.xml", "hint: openvino_model.xml there is an OpenVINO export"),
        ("diffusion_flax_model.msgpack", "hint: diffusion_flax_model.msgpack there is of Flax"),
    ] {
        let model = model();
        fs::rename(model.path().join(UNET), model.path().join("unet").join(name)).expect("renamed");
        let said = refused(work.path(), &["--model", &model.path().display().to_string()], 3);
        assert!(said.contains("unet: has no diffusion_pytorch_model.safetensors\n"), "{said}");
        assert!(said.contains(message), "{said}");
    }
    for (class, message) in [
        ("OnnxStableDiffusionPipeline", "is an export for ONNX Runtime"),
        ("OVStableDiffusionPipeline", "is an export for OpenVINO"),
        ("FlaxStableDiffusionPipeline", "is an export for JAX"),
        ("FluxPipeline", "'FluxPipeline' is not supported; supported: StableDiffusionXLPipeline"),
        ("StableDiffusionInstructPix2PixPipeline", "is not supported; supported"),
    ] {
        let model = model();
        edit_json(&model.path().join("model_index.json"), |index| index["_class_name"] = class.into());
        let said = refused(work.path(), &["--model", &model.path().display().to_string()], 3);
        assert!(said.contains(message), "{said}");
    }
}

#[test]
fn paths_that_lead_to_nothing_get_a_hint_of_what_was_meant() {
    let work = scratch();
    for (path, message, hint) in [
        ("owner/name@fp16", "no such folder", "kiln downloads no models"),
        ("https://huggingface.co/owner/name", "no such folder", "kiln downloads nothing; fetch it first"),
        ("https://civitai.com/a.safetensors", "no such file\n", "kiln downloads nothing; fetch it first"),
        ("file:///models/a", "no such folder", "kiln takes paths, not addresses: /models/a"),
        ("~/models/a", "no such folder", "only a shell reads ~"),
        ("'/models/a'", "no such folder", "the quotation marks are part of what kiln was given"),
        ("a.safetensors", "no such file\n", "expected a diffusers folder"),
    ] {
        let said = refused(work.path(), &["--model", path], 3);
        assert!(said.contains(&format!("error: {path}: {message}")) && said.contains(hint), "{said}");
    }
    let model = model();
    let path = model.path().display().to_string();
    let picture = references().join("turned.jpg").display().to_string();
    for (args, message) in [
        (&["--lora", "owner/name"][..], "error: owner/name: no such file or folder"),
        (&["--lora", "~/a.safetensors:0.5"], "error: ~/a.safetensors: no such file or folder"),
        (&["--embedding", "a.pt"], "error: a.pt: no such file\n"),
        (&["--controlnet", "owner/name", "--control-image", &picture], "error: owner/name: no such folder"),
    ] {
        let said = refused(work.path(), &[&["--model", &path][..], args].concat(), 3);
        assert!(said.starts_with(message), "{said}");
    }
}

#[test]
fn checkpoints_near_a_folder_are_named() {
    let (source, work) = (model(), scratch());
    for name in ["nest/a", "nests/a", "nests/b"] {
        copy_folder(source.path(), &work.path().join(name));
    }
    fs::create_dir(work.path().join("files")).expect("a folder");
    fs::write(work.path().join("files/a.safetensors"), "").expect("a file");
    for (path, hint) in [
        ("nest", "hint: it holds nest/a\n"),
        ("nests", "hint: it holds nests/a, nests/b; give one of them\n"),
        ("files", "hint: it holds files/a.safetensors\n"),
        ("nest/a/unet", "hint: it is part of a checkpoint; give the folder above it: nest/a\n"),
    ] {
        let said = refused(work.path(), &["--model", path], 3);
        assert!(said.contains("has no model_index.json\n") && said.contains(hint), "{said}");
    }
    let said = refused(work.path(), &["--model", "nest/a/model_index.json"], 3);
    assert!(
        said.contains("is the index of a folder") && said.contains("hint: give the folder: nest/a\n"),
        "{said}"
    );
}

#[test]
fn files_given_for_something_else_are_told_what_they_seem_to_be() {
    let (model, work) = (model(), scratch());
    let path = model.path().display().to_string();
    let in_work = |name: &str| work.path().join(name);
    file(&in_work("t2i.safetensors"), &[("adapter.conv_in.weight", &[2, 2, 3, 3])]);
    file(
        &in_work("ip.safetensors"),
        &[("image_proj.proj.weight", &[4, 4]), ("ip_adapter.1.k.weight", &[4, 4])],
    );
    let control = [("lora_controlnet", &[1][..]), ("input_hint_block.0.weight", &[16, 3, 3, 3])];
    file(&in_work("control.safetensors"), &control);
    file(&in_work("word.safetensors"), &[("emb_params", &[2, 32])]);
    let lora =
        [("lora_unet_conv_in.lora_down.weight", &[4, 16][..]), ("lora_unet_conv_in.lora_up.weight", &[16, 4])];
    file(&in_work("lora.safetensors"), &lora);
    file(&in_work("esrgan.safetensors"), &[("conv_first.weight", &[4, 3, 3, 3])]);
    let flux = [
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", &[1, 32][..]),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", &[32, 1]),
    ];
    file(&in_work("flux.safetensors"), &flux);
    let unet = model.path().join(UNET).display().to_string();
    for (args, message) in [
        (["--lora", "t2i.safetensors"], "is not a LoRA: it seems to be a T2I-Adapter\n"),
        (["--lora", "ip.safetensors"], "is not a LoRA: it seems to be an IP-Adapter\n"),
        (["--lora", "control.safetensors"], "is not a LoRA: it seems to be a Control-LoRA\n"),
        (["--lora", "word.safetensors"], "a textual inversion embedding\n\nhint: --embedding takes it"),
        (["--lora", &unet], "is not a LoRA: it seems to be a UNet in diffusers' layout\n"),
        (["--lora", "esrgan.safetensors"], "is not a LoRA: it seems to be an upscaler such as ESRGAN\n"),
        (
            ["--lora", "flux.safetensors"],
            "matches no weight of this model's unet; the file is a LoRA for FLUX\n",
        ),
        (["--embedding", "lora.safetensors"], "it seems to be a LoRA\n\nhint: --lora takes it"),
        (["--embedding", &unet], "is not an embedding: it seems to be a UNet"),
    ] {
        let said = refused(work.path(), &[&["--model", &path][..], &args].concat(), 3);
        assert!(said.contains(message), "{args:?}: {said}");
    }
    for (file, message) in [
        ("word.safetensors", "hint: --embedding takes it, beside --model"),
        ("lora.safetensors", "hint: --lora takes it, beside --model"),
        ("control.safetensors", "is not a checkpoint: it seems to be a Control-LoRA"),
        ("esrgan.safetensors", "is not a checkpoint: it seems to be an upscaler such as ESRGAN"),
    ] {
        let said = refused(work.path(), &["--model", file], 3);
        assert!(said.contains(message), "{file}: {said}");
    }
}

#[test]
fn offending_values_are_told_as_they_were_given() {
    let work = scratch();
    for (args, message) in [
        (["--eta", "-0.1"], "error: eta: -0.1 is not a number from 0 to 1\n"),
        (["--guidance-rescale", "1.1"], "error: guidance rescale: 1.1 is not a number from 0 to 1\n"),
        (["--batch-size", "100000"], "error: batch size: 100000 is not a number from 1 to 256\n"),
    ] {
        let said = refused(work.path(), &args, 2);
        assert!(said.contains(message), "{said}");
    }
    fs::write(work.path().join("a.safetensors"), "").expect("a file");
    let said = refused(work.path(), &["--lora", "a.safetensors:strong"], 2);
    assert!(said.contains("error: lora: 'strong' behind a.safetensors is not a number\n"), "{said}");
    for flag in ["--threads", "--clip-skip"] {
        let args = ["generate", "x", flag, "-1"];
        fail(&mut kiln(&args, work.path()), 2, &format!("error: invalid value '-1' for '{flag} <N>'"));
    }
}
