//! What is built again when something changes, and what is said about it.

use kiln_bundle::stable_diffusion::VAE_DECODER;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kiln_compile::{
    BuildOptions, Checkpoint, EngineCache, EngineSpec, ProfileSpec, RangeSpec, Step, TargetOptions,
    TraceOptions,
};
use kiln_graph::{AttentionPolicy, ElementType, EmitPolicy, PrecisionPolicy};
use kiln_lora::{Lora, LoraFile};
use kiln_nets::Sizes;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use super::rtx;
use crate::fixtures::{edit_json, scratch, tiny};
use crate::lora::{Tensors, write_tensors};

const ALL: [&str; 4] = ["text_encoder", "unet", "vae_decoder", "vae_encoder"];

fn cpu() -> BuildOptions {
    BuildOptions::cpu(TraceOptions::for_bundle(EmitPolicy::default(), Sizes::Dynamic))
}

fn gpu() -> BuildOptions {
    BuildOptions { target: TargetOptions::Engines(rtx()), ..cpu() }
}

fn steps(checkpoint: &Path, options: &BuildOptions, cache: &EngineCache) -> Vec<Step> {
    let checkpoint = Checkpoint::open(checkpoint).expect("a checkpoint");
    let plan = cache.plan(&checkpoint, options, &mut |_| {}).expect("a plan");
    plan.steps(cache).expect("steps")
}

/// Keys by part.
fn keys(checkpoint: &Path, options: &BuildOptions) -> BTreeMap<String, String> {
    let cache = scratch();
    let steps = steps(checkpoint, options, &EngineCache::new(cache.path()));
    steps.into_iter().map(|step| (step.recipe.part.clone(), step.recipe.key())).collect()
}

/// The parts whose keys differ.
fn changed(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    before.iter().filter(|(part, key)| after[*part] != **key).map(|(part, _)| part.clone()).collect()
}

#[track_caller]
fn check_options(what: &str, options: BuildOptions, change: impl FnOnce(&mut BuildOptions), expected: &[&str]) {
    let model = tiny();
    let mut after = options.clone();
    change(&mut after);
    assert_eq!(changed(&keys(model.path(), &options), &keys(model.path(), &after)), expected, "{what}");
}

fn rtx_of(options: &mut BuildOptions) -> &mut kiln_compile::EngineOptions {
    match &mut options.target {
        TargetOptions::Engines(rtx) => rtx,
        _ => unreachable!("the options are for GPUs"),
    }
}

#[test]
fn every_option_changes_the_parts_that_depend_on_it_and_no_other() {
    let with_attention = ["text_encoder", "unet", "vae_decoder", "vae_encoder"];
    check_options("nothing", cpu(), |_| {}, &[]);
    check_options("rehash", cpu(), |o| o.rehash = true, &[]);
    check_options("the target", cpu(), |o| o.target = TargetOptions::Engines(rtx()), &ALL);
    check_options("attention", cpu(), |o| o.trace.policy.attention = AttentionPolicy::Plain, &with_attention);
    check_options(
        "precision",
        cpu(),
        |o| o.trace.policy.precision = PrecisionPolicy::uniform(ElementType::F16),
        &ALL,
    );
    check_options("storage", cpu(), |o| o.trace.policy.precision.storage = Some(ElementType::Bf16), &ALL);
    let of_decoder = |o: &mut BuildOptions| {
        o.trace.precisions.insert(VAE_DECODER, PrecisionPolicy::uniform(ElementType::F16));
    };
    check_options("one component's precision", cpu(), of_decoder, &["vae_decoder"]);
    let scope =
        |o: &mut BuildOptions| o.trace.policy.precision.scopes.push(("conv_norm_out".into(), ElementType::F16));
    check_options("a scope of the UNet", cpu(), scope, &["unet"]);
    let fixed = |o: &mut BuildOptions| o.trace.sizes = Sizes::Static { batch: 1, height: 8, width: 8 };
    check_options("sizes", cpu(), fixed, &ALL);
    check_options("the UNet for ControlNets", cpu(), |o| o.trace.controlled = false, &["unet"]);
    check_options("what networks read", cpu(), |o| o.trace.runtime_ports = false, &["text_encoder", "unet"]);

    check_options("the toolkit", gpu(), |o| rtx_of(o).release = "TensorRT-RTX 1.7.2".into(), &ALL);
    check_options("the toolkit's place", gpu(), |o| rtx_of(o).library = "elsewhere.so".into(), &[]);
    check_options("devices", gpu(), |o| rtx_of(o).compute_capabilities = vec![[12, 0]], &ALL);
    let sized = ["unet", "vae_decoder", "vae_encoder"];
    check_options("a profile's height", gpu(), |o| rtx_of(o).profiles[0].height.max = 64, &sized);
    check_options("a profile's width", gpu(), |o| rtx_of(o).profiles[0].width.opt = 9, &sized);
    check_options("a profile's tokens", gpu(), |o| rtx_of(o).profiles[0].tokens.max = 99, &["unet"]);
    let batched = ["text_encoder", "unet", "vae_decoder"];
    check_options("a profile's batch", gpu(), |o| rtx_of(o).profiles[0].batch.max = 3, &batched);
    check_options(
        "a second profile",
        gpu(),
        |o| {
            let first = rtx_of(o).profiles[0];
            rtx_of(o).profiles.push(first);
        },
        &ALL,
    );
    check_options("the order of devices", gpu(), |o| rtx_of(o).compute_capabilities.reverse(), &[]);
    check_options("workspace", gpu(), |o| rtx_of(o).workspace = Some(1 << 30), &ALL);
    check_options("level", gpu(), |o| rtx_of(o).optimization_level = Some(5), &ALL);
    check_options("TF32", gpu(), |o| rtx_of(o).tf32 = false, &ALL);
    check_options("slow attention", gpu(), |o| rtx_of(o).allow_slow_attention = true, &ALL);
}

/// Changes the first byte of a weight.
fn spoil(folder: &Path, file: &str, weight: &str) {
    let path = folder.join(file);
    let mut bytes = std::fs::read(&path).expect("weights");
    let start = {
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        let data = tensors.tensor(weight).expect("the weight").data();
        data.as_ptr() as usize - bytes.as_ptr() as usize
    };
    bytes[start] ^= 1;
    std::fs::write(&path, bytes).expect("weights");
}

#[test]
fn one_changed_weight_changes_the_parts_that_read_it() {
    for (file, weight, expected) in [
        ("unet/diffusion_pytorch_model.safetensors", "conv_in.weight", &["unet"][..]),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight", &["vae_decoder"]),
        ("vae/diffusion_pytorch_model.safetensors", "encoder.conv_in.bias", &["vae_encoder"]),
        ("text_encoder/model.safetensors", "final_layer_norm.weight", &["text_encoder"]),
    ] {
        for options in [cpu(), gpu()] {
            let model = tiny();
            let before = keys(model.path(), &options);
            spoil(model.path(), file, weight);
            assert_eq!(changed(&before, &keys(model.path(), &options)), expected, "{weight}");
        }
    }
}

#[test]
fn a_lora_changes_the_parts_that_it_changes() {
    let (model, folder) = (tiny(), scratch());
    let path = folder.path().join("x.safetensors");
    let config = std::fs::read(model.path().join("unet/config.json")).expect("JSON");
    let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    let n = config["block_out_channels"][0].as_u64().expect("channels") as usize;
    let part = |name: &str, shape: Vec<usize>| {
        let bytes = vec![0; shape.iter().product::<usize>() * 4];
        (format!("lora_unet_conv_in.lora_{name}.weight"), (Dtype::F32, shape, bytes))
    };
    let tensors: Tensors = [part("down", vec![1, 4, 3, 3]), part("up", vec![n, 1, 1, 1])].into();
    write_tensors(&path, &tensors, None);
    let with = |weight: f32| {
        let mut options = cpu();
        options.trace.loras = vec![Lora { file: Arc::new(LoraFile::open(&path).expect("a LoRA")), weight }];
        keys(model.path(), &options)
    };
    let plain = keys(model.path(), &cpu());
    assert_eq!(changed(&plain, &with(1.0)), ["unet"]);
    assert_eq!(changed(&with(1.0), &with(0.5)), ["unet"]);
    assert_eq!(changed(&plain, &with(0.0)), Vec::<String>::new());
}

#[test]
fn a_scheduler_changes_the_bundle_and_no_part() {
    let (model, cache) = (tiny(), scratch());
    let cache = EngineCache::new(cache.path());
    let compile = || {
        let checkpoint = Checkpoint::open(model.path()).expect("a checkpoint");
        cache.compile(&checkpoint, &cpu(), &mut |_| {}).expect("a bundle")
    };
    let before = compile();
    assert!(compile().was_cached);
    edit_json(&model.path().join("scheduler/scheduler_config.json"), |config| {
        config["timestep_spacing"] = "trailing".into();
    });
    assert!(steps(model.path(), &cpu(), &cache).iter().all(|step| step.is_cached));
    let after = compile();
    assert!(!after.was_cached);
    assert_ne!(after.bundle.root(), before.bundle.root());
}

#[test]
fn what_differs_is_named() {
    let (model, folder) = (tiny(), scratch());
    let cache = EngineCache::new(folder.path());
    let checkpoint = Checkpoint::open(model.path()).expect("a checkpoint");
    assert!(
        steps(model.path(), &cpu(), &cache).iter().all(|step| !step.is_cached && step.differences.is_empty())
    );
    cache.compile(&checkpoint, &cpu(), &mut |_| {}).expect("a bundle");
    assert!(steps(model.path(), &cpu(), &cache).iter().all(|step| step.is_cached));

    let named = |options: &BuildOptions, part: &str| -> Vec<String> {
        let steps = steps(model.path(), options, &cache);
        let step = steps.into_iter().find(|step| step.recipe.part == part).expect("the part");
        step.differences.into_iter().map(|difference| difference.name).collect()
    };
    let mut options = cpu();
    options.trace.policy.attention = AttentionPolicy::Sliced(2);
    let graphs =
        ["unet.0", "unet.1", "unet_controlled.0", "unet_controlled.1"].map(|name| format!("graph {name}"));
    assert_eq!(named(&options, "unet"), [&graphs[..], &["attention".into()]].concat());
    spoil(model.path(), "unet/diffusion_pytorch_model.safetensors", "conv_in.weight");
    assert_eq!(named(&cpu(), "unet"), ["weights"]);
    assert_eq!(named(&cpu(), "vae_decoder"), Vec::<String>::new());
}

#[test]
fn the_same_weights_in_one_file_or_in_a_folder_are_one_entry() {
    let (folder, file): (TempDir, _) = crate::original::weights::fixture(true);
    assert_eq!(keys(folder.path(), &cpu()), keys(&file, &cpu()));
}

#[test]
fn profiles_in_pixels_are_checked_and_become_latents() {
    let model = tiny();
    let checkpoint = Checkpoint::open(model.path()).expect("a checkpoint");
    let factor = checkpoint.scale_factor();
    let side =
        |pixels| ProfileSpec { batch: None, height: RangeSpec::Fixed(pixels), width: RangeSpec::Fixed(64) };
    let spec = EngineSpec { profiles: vec![side(64)].try_into().unwrap(), ..EngineSpec::default() };
    let profile = spec.profiles(&checkpoint).expect("a profile")[0];
    assert_eq!((profile.height.opt, profile.width.max), (64 / factor, 64 / factor));
    let spec = EngineSpec { profiles: vec![side(60)].try_into().unwrap(), ..EngineSpec::default() };
    let error = spec.profiles(&checkpoint).expect_err("no multiple").to_string();
    assert!(error.ends_with("height: 60 is not a multiple of 8"), "{error}");
}
