//! Checkpoints in every layout that is out there, and spoilt ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kiln_compile::{
    BuildOptions, Checkpoint, CheckpointOptions, CompileError, EngineCache, TraceOptions, trace,
};
use kiln_graph::{ElementType, EmitPolicy, PrecisionPolicy};
use safetensors::tensor::TensorView;
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Value, json};

use crate::fixtures::{copy_folder, edit_json, scratch, tiny};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const CLIP: &str = "text_encoder/model.safetensors";

fn options(variant: Option<&str>) -> CheckpointOptions {
    CheckpointOptions { variant: variant.map(str::to_owned), ..CheckpointOptions::default() }
}

fn trace_all(checkpoint: &Path, variant: Option<&str>) -> Result<BTreeMap<String, Vec<u8>>, CompileError> {
    let folder = scratch();
    let checkpoint = Checkpoint::open_with(checkpoint, &options(variant))?;
    let models = trace(&checkpoint, &TraceOptions::default(), folder.path(), &mut |_| {})?;
    let files = models.into_iter().flat_map(|model| [model.file, model.weights]);
    Ok(files.map(|file| (file.clone(), fs::read(folder.path().join(file)).expect("a file"))).collect())
}

/// Rewrites a safetensors file: each weight under the name, type and shape that `change` gives it, or without it.
fn rewrite(path: &Path, change: impl Fn(&str, &TensorView<'_>) -> Option<String>) {
    let bytes = fs::read(path).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let kept: Vec<(String, TensorView<'_>)> = tensors
        .tensors()
        .into_iter()
        .filter_map(|(name, tensor)| Some((change(&name, &tensor)?, tensor)))
        .collect();
    serialize_to_file(kept, None, path).expect("weights");
}

#[test]
fn old_and_new_weight_names_give_the_same_models() {
    let folder = tiny();
    let expected = trace_all(folder.path(), None).expect("models");
    rewrite(&folder.path().join(CLIP), |name, _| Some(format!("text_model.{name}")));
    rewrite(&folder.path().join(VAE), |name, _| {
        let mut name = name.to_owned();
        if name.contains(".attentions.") {
            for (new, old) in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
            {
                name = name.replace(&format!(".{new}."), &format!(".{old}."));
            }
        }
        Some(name)
    });
    assert!(fs::read(folder.path().join(VAE)).expect("weights").windows(9).any(|w| w == b"proj_attn"));
    assert!(trace_all(folder.path(), None).expect("models") == expected);
}

#[test]
fn shards_give_the_same_models_as_one_file() {
    let folder = tiny();
    let expected = trace_all(folder.path(), None).expect("models");
    let path = folder.path().join(UNET);
    let names: Vec<String> = {
        let bytes = fs::read(&path).expect("weights");
        SafeTensors::deserialize(&bytes).expect("safetensors").names().into_iter().map(Into::into).collect()
    };
    let mut map = BTreeMap::new();
    for shard in 0..3 {
        let file = format!("diffusion_pytorch_model-{shard:05}-of-00003.safetensors");
        let shard_path = path.with_file_name(&file);
        fs::copy(&path, &shard_path).expect("a shard");
        let is_mine = |name: &str| names.iter().position(|n| n == name).is_some_and(|i| i % 3 == shard);
        rewrite(&shard_path, |name, _| is_mine(name).then(|| name.to_owned()));
        map.extend(names.iter().filter(|name| is_mine(name)).map(|name| (name.clone(), file.clone())));
    }
    fs::remove_file(&path).expect("gone");
    let index = path.with_file_name("diffusion_pytorch_model.safetensors.index.json");
    fs::write(&index, json!({ "metadata": {}, "weight_map": map }).to_string()).expect("an index");
    assert!(trace_all(folder.path(), None).expect("models") == expected);

    edit_json(&index, |index| index["weight_map"]["conv_in.bias"] = "../elsewhere.safetensors".into());
    let error = trace_all(folder.path(), None).expect_err("refused").to_string();
    assert!(
        error.ends_with(r#"weight 'conv_in.bias': "../elsewhere.safetensors" is not a file beside the index"#),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn checkpoints_of_the_hub_cache_are_symlinks_and_work() {
    let folder = tiny();
    let expected = trace_all(folder.path(), None).expect("models");
    let blobs = scratch();
    let snapshot = scratch();
    copy_folder(folder.path(), blobs.path());
    for (i, file) in walk(folder.path()).into_iter().enumerate() {
        let relative = file.strip_prefix(folder.path()).expect("inside");
        let blob = blobs.path().join(format!("blob{i}"));
        fs::copy(&file, &blob).expect("a blob");
        let link = snapshot.path().join(relative);
        fs::create_dir_all(link.parent().expect("a folder")).expect("a folder");
        std::os::unix::fs::symlink(&blob, &link).expect("a link");
    }
    assert!(trace_all(snapshot.path(), None).expect("models") == expected);

    let cache = scratch();
    let checkpoint = Checkpoint::open(snapshot.path()).expect("a checkpoint");
    let compiled = EngineCache::new(cache.path())
        .compile(&checkpoint, &BuildOptions::cpu(TraceOptions::default()), &mut |_| {})
        .expect("a bundle");
    for file in walk(compiled.bundle.root()) {
        assert!(fs::symlink_metadata(&file).expect("a file").is_file(), "{}", file.display());
    }
}

#[cfg(unix)]
fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn a_variant_is_preferred_when_it_is_asked_for() {
    let folder = tiny();
    let expected = trace_all(folder.path(), None).expect("models");
    for (path, variant) in [(UNET, "diffusion_pytorch_model.fp16"), (VAE, "diffusion_pytorch_model.fp16")] {
        let path = folder.path().join(path);
        fs::rename(&path, path.with_file_name(format!("{variant}.safetensors"))).expect("renamed");
    }
    assert!(trace_all(folder.path(), Some("fp16")).expect("models") == expected);
    let error = Checkpoint::open(folder.path()).expect_err("refused");
    assert!(error.hint().is_some_and(|hint| hint.contains("--variant fp16")), "{error}");
    let error = Checkpoint::open_with(tiny().path(), &options(Some("bf16"))).expect_err("refused").to_string();
    assert!(error.ends_with("no component has weights of variant 'bf16'"), "{error}");
}

#[track_caller]
fn check_refused(spoil: impl FnOnce(&Path), message: &str) {
    let folder = tiny();
    spoil(folder.path());
    let error = trace_all(folder.path(), None).expect_err("refused").to_string();
    assert!(error.contains(message), "{error}");
    assert!(error.contains(&folder.path().display().to_string()), "no path in: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn weights_that_do_not_fit_are_named() {
    check_refused(
        |root| rewrite(&root.join(UNET), |name, _| (name != "conv_in.weight").then(|| name.to_owned())),
        "missing weight 'conv_in.weight'",
    );
    check_refused(
        |root| {
            rewrite(&root.join(UNET), |name, _| {
                Some(if name == "conv_in.bias" { "extra" } else { name }.into())
            })
        },
        "missing weight 'conv_in.bias'",
    );
    check_refused(
        |root| edit_json(&root.join("unet/config.json"), |c| c["mid_block_type"] = Value::Null),
        "is not part of UNet2DConditionModel (and",
    );
    check_refused(
        |root| edit_json(&root.join("vae/config.json"), |c| c["in_channels"] = 1.into()),
        "weight 'encoder.conv_in.weight' has shape [32, 3, 3, 3], the configuration asks for [32, 1, 3, 3]",
    );
}

#[test]
fn broken_weight_files_are_named() {
    let write = |bytes: Vec<u8>| move |root: &Path| fs::write(root.join(UNET), bytes).expect("a file");
    check_refused(write(vec![]), "is empty");
    check_refused(
        write(u64::MAX.to_le_bytes().to_vec()),
        "says that its header has 18446744073709551615 bytes",
    );
    check_refused(write([&8u64.to_le_bytes()[..], b"not json"].concat()), "malformed header");
    let lying = br#"{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#;
    check_refused(
        write([&(lying.len() as u64).to_le_bytes()[..], lying, &[0; 16]].concat()),
        "malformed header",
    );
    check_refused(
        |root| {
            let bytes = fs::read(root.join(UNET)).expect("weights");
            fs::write(root.join(UNET), &bytes[..bytes.len() - 1]).expect("a file");
        },
        "says that it holds",
    );
    check_refused(
        |root| fs::rename(root.join(CLIP), root.join("text_encoder/pytorch_model.bin")).expect("renamed"),
        "pickled weights can run code when they are read, and kiln refuses them",
    );
}

#[test]
fn classes_and_values_that_are_not_supported_are_named() {
    let edit = |file: &'static str, key: &'static str, value: Value| {
        move |root: &Path| edit_json(&root.join(file), |config| config[key] = value)
    };
    let (unet, vae, index) = ("unet/config.json", "vae/config.json", "model_index.json");
    check_refused(
        edit(index, "_class_name", "FluxPipeline".into()),
        "_class_name: 'FluxPipeline' is not supported",
    );
    check_refused(edit(index, "unet", json!(["diffusers", "UNet3D"])), "unet: 'UNet3D' is not supported");
    check_refused(
        edit(index, "image_encoder", json!(["transformers", "X"])),
        "image_encoder: is not supported",
    );
    check_refused(
        edit(unet, "act_fn", "gelu".into()),
        "act_fn: 'gelu' is not supported; supported: silu, swish",
    );
    check_refused(
        edit(unet, "class_embed_type", "timestep".into()),
        r#"class_embed_type: "timestep" is not supported"#,
    );
    check_refused(edit(unet, "num_attention_heads", 8.into()), "num_attention_heads: 8 is not supported");
    check_refused(
        edit(unet, "attention_head_dim", 5.into()),
        "attention_head_dim: 5 heads do not divide 32 channels",
    );
    check_refused(edit(unet, "block_out_channels", json!([32])), "down_block_types: has 2 entries for 1");
    check_refused(
        edit(unet, "block_out_channels", json!([32, 1u64 << 60])),
        "is not a number from 1 to 1048576",
    );
    check_refused(edit(unet, "layers_per_block", 1000.into()), "layers_per_block: 1000 is over 64");
    check_refused(edit(unet, "cross_attention_dim", 48.into()), "the text encoder's hidden_size is 32");
    check_refused(
        edit(unet, "down_block_types", json!(["AttnDownBlock2D", "DownBlock2D"])),
        "down_block_types: 'AttnDownBlock2D' is not supported; supported: DownBlock2D, CrossAttnDownBlock2D",
    );
    let depths = |value| edit(unet, "transformer_layers_per_block", value);
    let key = "transformer_layers_per_block: ";
    check_refused(depths(json!([1])), &format!("{key}has 1 entries for 2 levels"));
    check_refused(depths(json!([65, 65])), &format!("{key}65 is not a number from 0 to 64"));
    check_refused(depths(json!([[], []])), &format!("{key}[] has 0 entries for 1 transformers"));
    check_refused(depths(json!([[[2]], [[2]]])), &format!("{key}[2] is not a number from 0 to 64"));
    check_refused(
        depths(json!([1, [1]])),
        "reverse_transformer_layers_per_block: is missing, which transformer_layers_per_block with a list for one level",
    );
    let reversed = |value| edit(unet, "reverse_transformer_layers_per_block", value);
    check_refused(reversed(1.into()), "reverse_transformer_layers_per_block: 1 is not a list of 1 to 8");
    check_refused(
        reversed(json!([[1], [1]])),
        "reverse_transformer_layers_per_block: [1] has 1 entries for 2 transformers",
    );
    check_refused(edit(vae, "scaling_factor", "big".into()), r#"scaling_factor: "big" is not a finite number"#);
    // The class of model_index.json decides.
    let model = tiny();
    edit_json(&model.path().join(vae), |config| config["_class_name"] = "VQModel".into());
    Checkpoint::open(model.path()).expect("a checkpoint");
}

#[test]
fn values_that_half_precision_does_not_have_are_refused() {
    for (value, reason) in [
        (1e6, "holds 1000000, which overflows f16"),
        (f32::INFINITY, "holds inf, which is not a finite number"),
        (f32::NAN, "holds NaN, which is not a finite number"),
    ] {
        let error = half_precision_error(value);
        assert!(error.contains(reason), "{error}");
    }
}

/// What tracing in half precision says of an autoencoder whose last weight is `value`.
fn half_precision_error(value: f32) -> String {
    let folder = scratch();
    kiln_compile::synthesize(
        kiln_compile::Architecture::Tiny,
        ElementType::F32,
        1,
        folder.path(),
        &mut |_, _| {},
    )
    .expect("a checkpoint");
    let path = folder.path().join(VAE);
    let mut bytes = fs::read(&path).expect("weights");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
    fs::write(&path, bytes).expect("weights");
    let precision = PrecisionPolicy::uniform(ElementType::F16);
    let policy = EmitPolicy { precision, ..EmitPolicy::default() };
    let options = TraceOptions { policy, ..TraceOptions::default() };
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    trace(&checkpoint, &options, scratch().path(), &mut |_| {}).expect_err("refused").to_string()
}
