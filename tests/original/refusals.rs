//! Files that are not checkpoints, or not whole ones.

use std::collections::BTreeMap;
use std::fs::{self, File};

use kiln_compile::{Checkpoint, CheckpointOptions, Original, TraceOptions, trace};
use proptest::prelude::*;
use proptest::sample::select;

use super::{Draft, check_refused, hollow, open};
use crate::fixtures::scratch;

#[test]
fn what_no_network_reads_is_passed_over_and_anything_else_is_named() {
    let harmless = Draft::of("sd15")
        .with("model_ema.diffusion_modelinput_blocks00weight", "F32", &[4])
        .with("alphas_cumprod", "F64", &[1000])
        .with("cond_stage_model.transformer.text_model.embeddings.position_ids", "I64", &[1, 77])
        .with("cond_stage_model.logit_scale", "F32", &[])
        .with("first_stage_model.loss.logvar", "F32", &[]);
    assert_eq!(open(&harmless).weights("text_encoder").count(), 196);
    let dropped = Draft::of("sd21").with("cond_stage_model.model.logit_scale", "F32", &[]);
    assert!(open(&dropped).weights("text_encoder").all(|view| !view.key.contains("resblocks.23.")));

    assert_eq!(open(&Draft::of("sd15").with("extra", "F16", &[1])).passed_over(), ["extra"]);
    let adapter = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight";
    check_refused(
        &Draft::of("sd15").with(adapter, "F16", &[1]).with("extra", "F16", &[1]),
        &format!("unknown key '{adapter}'"),
    );
    check_refused(
        &Draft::of("sd15").with("model.diffusion_model.out.0.bias", "U8", &[320]),
        "weight 'model.diffusion_model.out.0.bias' is stored as U8; supported: F32, F16, BF16, F64, F8_E4M3, F8_E5M2",
    );
}

#[test]
fn what_is_missing_or_does_not_fit_is_named_as_the_file_names_it() {
    for key in [
        "model.diffusion_model.time_embed.2.bias",
        "model.diffusion_model.input_blocks.4.0.in_layers.0.bias",
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.2.weight",
        "first_stage_model.decoder.up.3.block.2.conv2.weight",
        "first_stage_model.encoder.mid.attn_1.q.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.bias",
    ] {
        check_refused(&Draft::of("sd15").without(key), &format!("missing weight '{key}'"));
    }
    let key = "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight";
    check_refused(&Draft::of("sdxl").without(key), &format!("missing weight '{key}'"));
    check_refused(
        &Draft::of("sdxl").with(key, "F16", &[3841, 1280]),
        &format!("'{key}' has shape [3841, 1280], whose rows are not 3 equal parts"),
    );
    let key = "model.diffusion_model.input_blocks.0.0.weight";
    check_refused(&Draft::of("sd15").with(key, "F16", &[320]), &format!("'{key}' has shape [320]"));

    let key = "model.diffusion_model.input_blocks.1.0.in_layers.2.bias";
    let (_folder, path) = hollow(&Draft::of("sd15").with(key, "F16", &[321]));
    let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
    let error =
        trace(&checkpoint, &TraceOptions::default(), scratch().path(), &mut |_| {}).expect_err("refused");
    assert!(error.to_string().contains(&format!("weight '{key}' has shape [321]")), "{error}");
}

#[test]
fn half_a_checkpoint_and_a_mixed_one_are_told() {
    check_refused(&Draft::of("sd15").without("first_stage_model."), "has no autoencoder (first_stage_model.*)");
    check_refused(&Draft::of("sd15").without("cond_stage_model."), "but no text encoder (cond_stage_model.*");
    check_refused(
        &Draft::of("sd15").without("model."),
        "has a text encoder (cond_stage_model.transformer.*) but no UNet",
    );
    check_refused(
        &Draft::of("sdxl").without("conditioner.embedders.0."),
        "has the text encoder conditioner.embedders.1.model.* but not conditioner.embedders.0.transformer.*",
    );
    let mut mixed = Draft::of("sd15");
    mixed
        .tensors
        .extend(Draft::of("sd21").tensors.into_iter().filter(|(key, _)| key.starts_with("cond_stage_model.")));
    check_refused(
        &mixed,
        "mixes text encoders of different families: 'cond_stage_model.transformer.text_model.embeddings.\
         position_embedding.weight' and 'cond_stage_model.model.ln_final.bias'",
    );
    let mut swapped = Draft::of("sd15").without("cond_stage_model.");
    swapped
        .tensors
        .extend(Draft::of("sd21").tensors.into_iter().filter(|(key, _)| key.starts_with("cond_stage_model.")));
    check_refused(&swapped, "reads text 768 wide, the text encoders are 1024 wide");
    check_refused(
        &Draft::of("sdxl").with("edm_mean", "F32", &[1, 4, 1, 1]),
        "'edm_mean' asks for Playground 2.5's scaling of latents",
    );
}

#[test]
fn other_files_are_told_what_they_seem_to_be() {
    let file =
        |key: &str| Draft { tensors: BTreeMap::new(), metadata: BTreeMap::new() }.with(key, "F16", &[4, 4]);
    for (key, what) in [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "a LoRA"),
        ("encoder.down.0.block.0.conv1.weight", "an autoencoder (VAE) alone"),
        ("first_stage_model.encoder.conv_in.weight", "an autoencoder (VAE) alone"),
        ("emb_params", "a textual inversion embedding"),
        ("down_blocks.0.resnets.0.conv1.weight", "a UNet in diffusers' layout"),
        ("text_model.embeddings.token_embedding.weight", "a text encoder alone"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "a Flux model"),
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "a Stable Diffusion 3 model"),
    ] {
        check_refused(&file(key), &format!("is not a checkpoint: it seems to be {what}"));
    }
    check_refused(&file("weight"), "is not a checkpoint: its first key is 'weight'");
    check_refused(&Draft { tensors: BTreeMap::new(), metadata: BTreeMap::new() }, "holds no tensors");
}

#[test]
fn files_that_are_cut_or_pickled_are_refused() {
    let draft = Draft::of("sd15");
    let (_folder, whole) = hollow(&draft);
    let options = CheckpointOptions { variant: Some("fp16".into()), ..CheckpointOptions::default() };
    let error = Checkpoint::open_with(&whole, &options).expect_err("refused").to_string();
    assert!(error.ends_with("is one file and has no variants"), "{error}");
    let n_bytes: u64 = draft.header().1.values().map(|(_, length)| length).sum();
    let (folder, path) = hollow(&draft);
    let size = fs::metadata(&path).expect("a file").len();
    File::options().write(true).open(&path).expect("a file").set_len(size - 1).expect("cut");
    let error = Checkpoint::open(&path).expect_err("refused").to_string();
    let found = n_bytes - 1;
    let lie = format!("says that it holds {n_bytes} bytes of weights; the file has {found}, so it is cut off");
    assert!(error.ends_with(&lie), "{error}");
    for (name, bytes) in [
        ("model.ckpt", &b"PK\x03\x04 and so on"[..]),
        ("model.safetensors", &b"PK\x03\x04 and so on"[..]),
        ("model.pt", &b"\x80\x02}q\x00X\n\x00\x00\x00"[..]),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("a file");
        let error = Checkpoint::open(&path).expect_err("refused");
        assert!(error.to_string().contains("pickled weights can run code"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("safetensors")), "{error}");
    }
}

/// Something that may happen to a checkpoint's tensors.
#[derive(Clone, Debug)]
enum Spoil {
    Remove(prop::sample::Index),
    Reshape(prop::sample::Index, Vec<u64>),
    Retype(prop::sample::Index, &'static str),
    Rename(prop::sample::Index, String),
    Add(String, Vec<u64>),
}

fn dims() -> impl Strategy<Value = Vec<u64>> {
    let size = prop_oneof![0u64..3, 1u64..400, Just(1 << 11), Just(1 << 19)];
    let fits =
        |dims: &Vec<u64>| dims.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim)).is_some_and(|n| n < 1 << 38);
    prop::collection::vec(size, 0..5).prop_filter("a file of a size that the disk can say", fits)
}

/// Keys that look like a checkpoint's.
fn key() -> impl Strategy<Value = String> {
    let prefixes = [
        "",
        "model.diffusion_model.",
        "first_stage_model.",
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.model.",
        "conditioner.embedders.1.model.",
        "control_model.",
        "lora_",
    ];
    let part = select(vec![
        "input_blocks",
        "output_blocks",
        "middle_block",
        "input_hint_block",
        "zero_convs",
        "label_emb",
        "time_embed",
        "encoder",
        "decoder",
        "down",
        "up",
        "block",
        "mid",
        "attn_1",
        "transformer",
        "resblocks",
        "text_model",
        "layers",
        "transformer_blocks",
        "in_layers",
        "op",
        "conv",
        "norm",
        "proj_in",
        "weight",
        "bias",
        "cond_proj",
        "0",
        "1",
        "2",
        "3",
        "11",
        "18446744073709551616",
    ]);
    (select(prefixes.to_vec()), prop::collection::vec(part, 1..6))
        .prop_map(|(prefix, parts)| format!("{prefix}{}", parts.join(".")))
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        index().prop_map(Spoil::Remove),
        (index(), dims()).prop_map(|(i, dims)| Spoil::Reshape(i, dims)),
        (index(), select(vec!["F64", "I64", "F32", "BF16", "U8"]))
            .prop_map(|(i, dtype)| Spoil::Retype(i, dtype)),
        (index(), key()).prop_map(|(i, key)| Spoil::Rename(i, key)),
        (key(), dims()).prop_map(|(key, dims)| Spoil::Add(key, dims)),
    ]
}

fn spoilt(mut draft: Draft, spoils: Vec<Spoil>) -> Draft {
    for spoil in spoils {
        let keys: Vec<String> = draft.tensors.keys().cloned().collect();
        match spoil {
            Spoil::Remove(i) => drop(draft.tensors.remove(i.get(&keys))),
            Spoil::Reshape(i, dims) => draft.tensors.get_mut(i.get(&keys)).expect("a tensor").1 = dims,
            Spoil::Retype(i, dtype) => draft.tensors.get_mut(i.get(&keys)).expect("a tensor").0 = dtype,
            Spoil::Rename(i, key) => {
                let tensor = draft.tensors.remove(i.get(&keys)).expect("a tensor");
                draft.tensors.insert(key, tensor);
            }
            Spoil::Add(key, dims) => drop(draft.tensors.insert(key, ("F16", dims))),
        }
    }
    draft
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_keys_and_shapes_are_a_checkpoint_or_refused_by_path(
        model in select(vec!["sd15-small", "sd21-small", "sdxl-small", "refiner-small", "controlnet"]),
        spoils in prop::collection::vec(spoil(), 0..4),
    ) {
        let (_folder, path) = hollow(&spoilt(Draft::of(model), spoils));
        match Original::open(&path) {
            Ok(original) => {
                let is_whole = |name: &str| original.weights(name).count() > 0 || name == "scheduler";
                prop_assert!(original.configs().keys().all(|name| is_whole(name)));
                if let Ok(checkpoint) = Checkpoint::open(&path) {
                    let traced = trace(&checkpoint, &TraceOptions::default(), &path, &mut |_| {});
                    prop_assert!(traced.is_err(), "a file is not a folder to write to");
                }
            }
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.contains("model.safetensors: "), "{}", error);
                prop_assert_eq!(error.lines().count(), 1, "{}", error);
            }
        }
    }

    #[test]
    fn any_tensors_at_all_are_refused_by_path(tensors in prop::collection::btree_map(key(), dims(), 0..12)) {
        let tensors: BTreeMap<_, _> = tensors.into_iter().map(|(key, dims)| (key, ("F16", dims))).collect();
        let (_folder, path) = hollow(&Draft { tensors, metadata: BTreeMap::new() });
        let error = Original::open(&path).expect_err("refused").to_string();
        prop_assert!(error.contains("model.safetensors: "), "{}", error);
    }
}
