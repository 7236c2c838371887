//! What shapes, metadata and families say beyond the weights.

use std::fs;
use std::path::PathBuf;

use kiln_compile::{CheckpointOptions, Original, PredictionType};
use kiln_runtime::tokenizer::ClipTokenizer;
use serde_json::{Value, json};

use super::weights::bytes_of;
use super::{Draft, check_refused, hollow, open};
use crate::fixtures::scratch;
use crate::support::references;

#[test]
fn channels_and_guidance_embeddings_are_told_by_their_shapes() {
    const CONV_IN: &str = "model.diffusion_model.input_blocks.0.0.weight";
    for (model, class, scheduler, size) in [
        ("sd15", "StableDiffusionInpaintPipeline", "PNDMScheduler", 64),
        ("sd21", "StableDiffusionInpaintPipeline", "PNDMScheduler", 64),
        ("sdxl", "StableDiffusionXLInpaintPipeline", "EulerDiscreteScheduler", 128),
    ] {
        let original = open(&Draft::of(model).with(CONV_IN, "F16", &[320, 9, 3, 3]));
        assert_eq!(original.class(), Some(class));
        let configs = original.configs();
        assert_eq!(
            (&configs["unet"]["in_channels"], &configs["unet"]["sample_size"]),
            (&9.into(), &size.into())
        );
        assert_eq!(configs["scheduler"]["_class_name"], scheduler);
        assert_eq!(configs["scheduler"]["prediction_type"], "epsilon");
    }
    check_refused(
        &Draft::of("sd15").with(CONV_IN, "F16", &[320, 8, 3, 3]),
        &format!("'{CONV_IN}' reads 8 channels; supported: 4, 9"),
    );

    let original =
        open(&Draft::of("sd15").with("model.diffusion_model.time_embed.cond_proj.weight", "F16", &[320, 256]));
    assert_eq!(original.configs()["unet"]["time_cond_proj_dim"], 256);
    assert_eq!(original.configs()["scheduler"]["_class_name"], "LCMScheduler");
    assert!(original.weights("unet").any(|view| view.name == "time_embedding.cond_proj.weight"));

    let refiner = open(&Draft::of("refiner"));
    assert_eq!(refiner.index()["requires_aesthetics_score"], true);
    assert_eq!(refiner.index()["text_encoder"], json!([null, null]));
}

#[test]
fn controlnets_come_alone_with_and_without_prefix_and_inside_checkpoints() {
    let alone = Draft::of("controlnet");
    let mut bare = alone.clone();
    let cut = |key: String| key.strip_prefix("control_model.").expect("a ControlNet's key").to_owned();
    bare.tensors = bare.tensors.into_iter().map(|(key, tensor)| (cut(key), tensor)).collect();
    let mut inside = Draft::of("sd15");
    inside.tensors.extend(alone.tensors.clone());
    let [alone, bare, inside] = [&alone, &bare, &inside].map(open);
    assert_eq!(inside.class(), Some("StableDiffusionControlNetPipeline"));
    assert_eq!(inside.index()["controlnet"], json!(["diffusers", "ControlNetModel"]));
    for other in [&bare, &inside] {
        assert_eq!(other.configs()["controlnet"], alone.configs()["controlnet"]);
        let names = |original: &Original| {
            let weights = original.weights("controlnet");
            weights.map(|view| (view.name.to_owned(), view.shape.to_vec())).collect::<Vec<_>>()
        };
        assert_eq!(names(other), names(&alone));
    }
}

#[test]
fn depths_that_differ_from_block_to_block_are_lists() {
    let block = "model.diffusion_model.output_blocks.1.1.transformer_blocks.1.";
    let config = open(&Draft::of("sdxl-small").without(block)).configs()["unet"].clone();
    assert_eq!(config["transformer_layers_per_block"], 2);
    assert_eq!(config["reverse_transformer_layers_per_block"], json!([[2, 1], 1]));
    let block = "model.diffusion_model.middle_block.1.transformer_blocks.1.";
    check_refused(
        &Draft::of("sdxl-small").without(block),
        "'model.diffusion_model.middle_block.1' is 1 layers deep, the last level 2",
    );
}

#[test]
fn the_middle_may_be_one_residual_block_or_absent() {
    let middle =
        |draft: Draft, rest: &str| draft.without(&format!("model.diffusion_model.middle_block.{rest}"));
    let draft = middle(middle(Draft::of("sdxl-small"), "1."), "2.");
    let config = open(&draft).configs()["unet"].clone();
    assert_eq!(config["mid_block_type"], "UNetMidBlock2D");
    assert_eq!(config["transformer_layers_per_block"], 2);
    let names = open(&draft).weights("unet").map(|view| view.name.to_owned()).collect::<Vec<_>>();
    assert!(names.iter().any(|name| name.starts_with("mid_block.resnets.0.")));
    assert!(!names.iter().any(|name| name.starts_with("mid_block.resnets.1.")));
    let config = open(&middle(draft, "")).configs()["unet"].clone();
    assert_eq!(config["mid_block_type"], Value::Null);
    check_refused(
        &middle(Draft::of("sdxl-small"), "1."),
        "unknown key 'model.diffusion_model.middle_block.2.emb_layers.1.bias' (and 9 more)",
    );
}

#[test]
fn the_prediction_type_is_asked_for_or_said_or_the_familys() {
    let predicts = |draft: &Draft, asked| {
        let (_folder, path) = hollow(draft);
        let options = CheckpointOptions { prediction_type: asked, ..CheckpointOptions::default() };
        let original = Original::open_with(&path, &options).expect("a checkpoint");
        let scheduler = &original.configs()["scheduler"];
        scheduler["prediction_type"].as_str().expect("a name").to_owned()
    };
    let said = |model, value| Draft::of(model).saying("modelspec.prediction_type", value);
    let architecture = |value| Draft::of("sd21").saying("modelspec.architecture", value);
    let (epsilon, velocity) = ("epsilon", "v_prediction");
    assert_eq!(predicts(&Draft::of("sd15"), None), epsilon);
    assert_eq!(predicts(&Draft::of("sdxl"), None), epsilon);
    assert_eq!(predicts(&Draft::of("sd21"), None), velocity);
    assert_eq!(predicts(&Draft::of("sd21"), Some(PredictionType::Epsilon)), epsilon);
    assert_eq!(predicts(&said("sd21", "epsilon"), None), epsilon);
    assert_eq!(predicts(&said("sdxl", "v"), None), velocity);
    assert_eq!(predicts(&said("sdxl", "v"), Some(PredictionType::Epsilon)), epsilon);
    assert_eq!(predicts(&architecture("stable-diffusion-v2-512"), None), epsilon);
    assert_eq!(predicts(&architecture("stable-diffusion-v2-768-v"), None), velocity);
    check_refused(
        &said("sd15", "x0"),
        "modelspec.prediction_type: 'x0' is not supported; supported: epsilon, v",
    );

    let marked = Draft::of("sdxl").with("v_pred", "F32", &[0]).with("ztsnr", "F32", &[0]);
    assert_eq!(predicts(&marked, None), velocity);
    assert_eq!(open(&marked).configs()["scheduler"]["rescale_betas_zero_snr"], true);

    for (step, expected, size) in [(875_000i64, epsilon, 64), (140_000, velocity, 96)] {
        let folder = scratch();
        let path = folder.path().join("model.safetensors");
        let draft = Draft::of("sd21-small").with("global_step", "I64", &[]);
        draft.write(
            &path,
            |key, n| if key == "global_step" { step.to_le_bytes().into() } else { vec![0; n as usize] },
        );
        let original = Original::open(&path).expect("a checkpoint");
        assert_eq!(original.configs()["scheduler"]["prediction_type"], expected);
        assert_eq!(
            original.configs()["unet"]["sample_size"],
            size * 4,
            "two levels of the autoencoder halve once"
        );
    }
}

#[test]
fn tokenizers_are_clips_own() {
    let folder = scratch();
    let path = folder.path().join("model.safetensors");
    Draft::of("sdxl-small").write(&path, bytes_of);
    let saved = Original::open(&path).expect("a checkpoint");
    let saved = saved.save(&folder.path().join("saved"), &mut |_, _| {}).expect("a folder");
    for (tokenizer, cases) in [("tokenizer", "clip_tokens.json"), ("tokenizer_2", "clip_tokens_sd2.json")] {
        let read = |path: PathBuf| fs::read(path).expect("a file");
        let theirs = references().join("clip-tokenizer");
        assert!(read(saved.join(tokenizer).join("merges.txt")) == read(theirs.join("merges.txt")));
        let vocabulary = |folder: PathBuf| -> Value {
            serde_json::from_slice(&read(folder.join("vocab.json"))).expect("JSON")
        };
        assert!(vocabulary(saved.join(tokenizer)) == vocabulary(theirs));
        let ours = ClipTokenizer::from_dir(&saved.join(tokenizer), 77).expect("a tokenizer");
        let cases: Vec<Value> = serde_json::from_slice(&read(references().join(cases))).expect("JSON");
        for case in cases {
            let text = case["text"].as_str().expect("a text");
            assert_eq!(json!(ours.encode(text).expect("ids").ids), case["ids"], "{text}");
        }
    }
}
