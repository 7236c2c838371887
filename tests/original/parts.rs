//! Components that come from elsewhere than the checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_compile::{Checkpoint, CheckpointOptions, Components, Original, Specification};
use serde_json::Value;
use tempfile::TempDir;

use super::weights::{bytes_of, fixture, traced};
use super::{Draft, object, reference};
use crate::cli::{fail, kiln, succeed, text_chunks};
use crate::fixtures::{copy_folder, onnxruntime, scratch};

/// Prefixes of the components that a model's file holds.
fn prefixes(model: &str) -> &'static [(&'static str, &'static str)] {
    match model {
        "sd15-small" => &[("text_encoder", "cond_stage_model.transformer.")],
        "sd21-small" => &[("text_encoder", "cond_stage_model.model.")],
        "sdxl-small" => &[
            ("text_encoder", "conditioner.embedders.0.transformer."),
            ("text_encoder_2", "conditioner.embedders.1.model."),
        ],
        _ => &[("text_encoder_2", "conditioner.embedders.0.model.")],
    }
}

/// The tensors under a prefix, with it or without it.
fn under(draft: &Draft, prefix: &str, is_bare: bool) -> Draft {
    let kept = draft.tensors.iter().filter(|(key, _)| key.starts_with(prefix));
    let name = |key: &str| key.strip_prefix(prefix).filter(|_| is_bare).unwrap_or(key).to_owned();
    let tensors = kept.map(|(key, tensor)| (name(key), tensor.clone())).collect();
    Draft { tensors, ..draft.clone() }
}

/// Each component of a model in a file of its own; the UNet's file is the checkpoint.
fn split(model: &str, is_bare: bool) -> (TempDir, PathBuf, CheckpointOptions) {
    let (folder, draft) = (scratch(), Draft::of(model));
    let write = |name: &str, prefix: &str| {
        let path = folder.path().join(format!("{name}.safetensors"));
        let full = |key: &str| if is_bare { format!("{prefix}{key}") } else { key.to_owned() };
        under(&draft, prefix, is_bare).write(&path, |key, length| bytes_of(&full(key), length));
        path
    };
    let unet = write("unet", "model.diffusion_model.");
    let mut components = Components { vae: Some(write("vae", "first_stage_model.")), ..Components::default() };
    for (name, prefix) in prefixes(model) {
        match *name {
            "text_encoder" => components.text_encoder = Some(write(name, prefix)),
            _ => components.text_encoder_2 = Some(write(name, prefix)),
        }
    }
    (folder, unet, CheckpointOptions { components, ..CheckpointOptions::default() })
}

fn saved(original: &Original) -> Vec<(PathBuf, Vec<u8>)> {
    let out = scratch();
    let root = original.save(&out.path().join("saved"), &mut |_, _| {}).expect("a folder");
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push((
                    path.strip_prefix(&root).expect("below").to_owned(),
                    fs::read(&path).expect("a file"),
                )),
            }
        }
    }
    files.sort();
    files
}

#[test]
fn files_of_one_component_each_make_up_the_file_of_all() {
    for model in ["sd15-small", "sd21-small", "sdxl-small", "refiner-small"] {
        let folder = scratch();
        let whole = folder.path().join("whole.safetensors");
        Draft::of(model).write(&whole, bytes_of);
        let whole = Original::open(&whole).expect("a checkpoint");
        for is_bare in [false, true] {
            let (_folder, unet, options) = split(model, is_bare);
            let parts = Original::open_with(&unet, &options).unwrap_or_else(|e| panic!("{model}: {e}"));
            assert_eq!((parts.index(), parts.family()), (whole.index(), whole.family()), "{model}");
            assert_eq!(parts.configs(), whole.configs(), "{model}");
            assert!(saved(&parts) == saved(&whole), "{model}");
            assert!(parts.weights("vae").all(|view| Some(view.path) == options.components.vae.as_deref()));
        }
    }
}

#[test]
fn a_folders_components_can_come_from_files_and_other_folders() {
    let (folder, file) = fixture(true);
    let expected = traced(&Checkpoint::open(folder.path()).expect("a folder"));
    let part = |name: &str| Some(folder.path().join(name));
    let whole = || Some(file.clone());
    let in_file = Components { unet: whole(), vae: whole(), text_encoder: whole(), ..Components::default() };
    let in_folders = Components {
        unet: part("unet"),
        vae: part("vae/diffusion_pytorch_model.safetensors"),
        text_encoder: Some(folder.path().into()),
        ..Components::default()
    };
    for components in [in_file, in_folders] {
        let options = CheckpointOptions { components, ..CheckpointOptions::default() };
        let base = scratch();
        copy_folder(folder.path(), base.path());
        // What is replaced need not be there, but for what shapes do not tell.
        for (name, base_name) in [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")] {
            fs::remove_file(base.path().join(name).join(format!("{base_name}.safetensors"))).expect("removed");
        }
        let checkpoint = Checkpoint::open_with(base.path(), &options).expect("a checkpoint");
        assert!(traced(&checkpoint) == expected, "{options:?}");
    }
}

#[test]
fn an_autoencoder_without_a_configuration_gets_the_scale_of_the_models_family() {
    let published = &reference()["models"];
    for (model, expected) in [("sd15-small", 0.18215), ("sdxl-small", 0.13025)] {
        let (_folder, unet, options) = split(model, true);
        let original = Original::open_with(&unet, &options).expect("a checkpoint");
        assert_eq!(original.configs()["vae"]["scaling_factor"], expected);
        assert_eq!(published[model]["configs"]["vae"]["scaling_factor"], expected);
    }
}

#[test]
fn what_is_missing_or_does_not_fit_is_named() {
    let refuse = |path: &Path, options: &CheckpointOptions| {
        let error = Original::open_with(path, options).expect_err("refused");
        (error.to_string(), error.hint().unwrap_or_default().to_owned())
    };
    let (_folder, unet, options) = split("sdxl-small", true);
    let without = |change: fn(&mut Components)| {
        let mut options = options.clone();
        change(&mut options.components);
        options
    };
    let (error, hint) = refuse(&unet, &without(|given| given.vae = None));
    assert!(error.ends_with("has no autoencoder (first_stage_model.*)"), "{error}");
    assert!(hint.starts_with("--vae takes one"), "{hint}");
    let (error, hint) = refuse(&unet, &without(|given| given.text_encoder_2 = None));
    assert!(error.ends_with("has a UNet of Stable Diffusion XL but no second text encoder"), "{error}");
    assert!(hint.starts_with("--text-encoder-2 takes one"), "{hint}");
    let (error, hint) = refuse(&unet, &CheckpointOptions::default());
    assert!(error.contains("but no text encoder"), "{error}");
    assert_eq!(hint, "--text-encoder, --text-encoder-2 and --vae take them from elsewhere");
    let (error, _) = refuse(&unet, &without(|given| given.vae.clone_from(&given.text_encoder)));
    assert!(
        error.ends_with("text_encoder.safetensors: is not an autoencoder: it seems to be a text encoder alone"),
        "{error}"
    );

    let (_small, unet, mut options) = split("sd15-small", false);
    options.components.text_encoder_2 = options.components.text_encoder.clone();
    let (error, _) = refuse(&unet, &options);
    assert!(error.contains("text_encoder.safetensors: is not a text encoder: it seems to be"), "{error}");
    let extra = unet.with_file_name("extra.safetensors");
    let draft = Draft::of("sd15-small").with("input_blocks.99.weight", "F16", &[1]);
    let draft = under(&draft, "model.diffusion_model.", true).with("input_blocks.99.weight", "F16", &[1]);
    draft.write_hollow(&extra);
    options.components.text_encoder_2 = None;
    let (error, _) = refuse(&extra, &options);
    assert!(error.ends_with("unknown key 'input_blocks.99.weight'"), "{error}");
}

#[test]
fn a_specification_names_components_beside_itself() {
    let (_folder, unet, options) = split("sd15-small", true);
    let spec = unet.with_file_name("spec.yaml");
    let text = "checkpoint: unet.safetensors\ncomponents: {vae: vae.safetensors, text_encoder: text_encoder.safetensors}\n";
    fs::write(&spec, text).expect("a specification");
    let read = Specification::read(&spec).expect("a specification");
    assert_eq!(read.components, options.components);
    fs::write(&spec, "checkpoint: unet.safetensors\ncomponents: {clip: vae.safetensors}\n").expect("a file");
    let error = Specification::read(&spec).expect_err("an unknown component").to_string();
    assert!(error.contains("clip"), "{error}");
}

#[test]
fn the_command_draws_with_components_from_elsewhere() {
    onnxruntime();
    let ((folder, file), work) = (fixture(true), scratch());
    let parts = |prefix: &str| {
        let bytes = fs::read(&file).expect("a file");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let kept: Vec<_> = tensors.tensors().into_iter().filter(|(key, _)| key.starts_with(prefix)).collect();
        let path = work.path().join(format!("{prefix}safetensors"));
        safetensors::serialize_to_file(kept, None, &path).expect("a file");
        path.display().to_string()
    };
    let (unet, vae) = (parts("model.diffusion_model."), parts("first_stage_model."));
    let text = parts("cond_stage_model.");
    let draw = |model: &str, options: &[&str]| {
        let args = ["generate", "a cat", "--model", model, "--steps", "2", "--seed", "1", "--json"];
        let args = [&args[..], &["--width", "64", "--height", "64", "--out", "a.png"], options].concat();
        let json: Value = serde_json::from_str(&succeed(&mut kiln(&args, work.path()))).expect("JSON");
        let picture = work.path().join("a.png");
        let parameters =
            text_chunks(&picture).into_iter().find(|(key, _)| key == "parameters").expect("a text").1;
        let file = std::io::BufReader::new(fs::File::open(picture).expect("a picture"));
        let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("pixels");
        (pixels, json, parameters)
    };
    let (expected, ..) = draw(&file.display().to_string(), &[]);
    let (found, json, parameters) = draw(&unet, &["--vae", &vae, "--text-encoder", &text]);
    assert!(found == expected);
    assert_eq!((json["vae"].as_str(), json["text_encoder"].as_str()), (Some(&*vae), Some(&*text)), "{json}");
    assert!(parameters.contains("VAE: first_stage_model, "), "{parameters}");

    let folder = folder.path().display().to_string();
    let bundle = succeed(&mut kiln(&["compile", &folder, "--no-reference"], work.path()));
    let args = ["generate", "a cat", "--model", bundle.trim(), "--vae", &vae];
    fail(&mut kiln(&args, work.path()), 2, "--vae: ");
    let refused =
        fail(&mut kiln(&["compile", &folder, "--vae", "org/name"], work.path()), 3, "org/name: no such");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("hf download"));
    let wrong = format!("{folder}/unet");
    let message = "unet/config.json: 'UNet2DConditionModel' cannot be the vae";
    fail(&mut kiln(&["compile", &folder, "--vae", &wrong], work.path()), 3, message);
    let out = work.path().join("converted").display().to_string();
    let args = ["convert", &unet, "--vae", &vae, "--text-encoder", &text, "--out", &out];
    succeed(&mut kiln(&args, work.path()));
    assert!(
        object(
            &serde_json::from_slice(&fs::read(format!("{out}/vae/config.json")).expect("a file"))
                .expect("JSON")
        )
        .contains_key("scaling_factor")
    );
}
