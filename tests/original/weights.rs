//! Weights and their configurations, of the published models and byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_compile::{
    BuildOptions, Checkpoint, EngineCache, Family, Original, TraceOptions, inspect_original, trace,
};
use kiln_runtime::{Request, Size};
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

use super::{Draft, object, open, reference, shape};
use crate::fixtures::{copy_folder, edit_json, onnxruntime, pipeline, scratch, sd15};

/// Where diffusers takes a weight from: key, first row, whether it is transposed, shape.
fn expected_view<'a>(view: &'a Value, keys: &'a Value) -> (&'a str, u64, bool, Vec<u64>) {
    match view.as_str() {
        Some(key) => (key, 0, false, shape(&keys[key])),
        None => (
            view[0].as_str().expect("a key"),
            view[1].as_u64().expect("a row"),
            view[2].as_bool().expect("a bool"),
            shape(&view[3]),
        ),
    }
}

/// Names, shapes and places of all weights, and every key of every configuration, are diffusers'.
#[track_caller]
fn check_model(model: &str, family: Family, class: Option<&str>) {
    let expected = &reference()["models"][model];
    let draft = Draft::of(model);
    let (_, places) = draft.header();
    let original = open(&draft);
    assert_eq!((original.family(), original.class()), (family, class));
    for (component, weights) in object(&expected["weights"]) {
        let found: BTreeMap<_, _> = original.weights(component).map(|view| (view.name, view)).collect();
        let names: Vec<&str> = found.keys().copied().collect();
        assert_eq!(names, object(weights).keys().map(String::as_str).collect::<Vec<_>>(), "{component}");
        for (name, view) in object(weights) {
            let (key, row, is_transposed, dims) = expected_view(view, &expected["keys"]);
            let found = &found[name.as_str()];
            let row_bytes = draft.tensors[key].1[1..].iter().product::<u64>() * 2;
            assert_eq!(found.key, key, "{name}");
            assert_eq!(found.shape, dims, "{name}");
            assert_eq!(found.is_transposed, is_transposed, "{name}");
            assert_eq!(found.offset, places[key].0 + row * row_bytes, "{name}");
        }
        check_config(component, &original.configs()[component.as_str()], &expected["configs"][component]);
    }
    let n_weights: usize = inspect_original(&original).iter().map(|component| component.n_weights).sum();
    assert_eq!(
        n_weights,
        object(&expected["weights"]).values().map(|weights| object(weights).len()).sum::<usize>()
    );
}

/// With its class's defaults the configuration is the expected one, key by key.
#[track_caller]
fn check_config(component: &str, found: &Value, expected: &Value) {
    let class = if component.starts_with("text_encoder") { "text_encoder" } else { component };
    let mut merged = object(&reference()["defaults"][class]).clone();
    merged.extend(object(found).clone());
    for (key, expected) in object(expected) {
        let found = merged.get(key).unwrap_or(&Value::Null);
        let same = found == expected || found.as_f64().is_some_and(|n| Some(n) == expected.as_f64());
        assert!(same, "{component}: {key}: {found} is not {expected}");
    }
    for key in object(found).keys() {
        let known = ["_class_name", "architectures", "model_type"].contains(&key.as_str());
        assert!(known || expected.get(key).is_some(), "{component}: {key} is not a key of diffusers");
    }
}

#[test]
fn both_ways_to_store_the_autoencoders_attention_are_one() {
    let key = "first_stage_model.encoder.mid.attn_1.q.weight";
    let draft = Draft::of("sd15-small");
    assert_eq!(draft.tensors[key].1, [64, 64, 1, 1]);
    let linear = open(&draft.with(key, "F16", &[64, 64]));
    let query = linear.weights("vae").find(|view| view.key == key).expect("a weight");
    assert_eq!((query.name, query.shape), ("encoder.mid_block.attentions.0.to_q.weight", &[64, 64][..]));
}

#[test]
fn published_models_have_diffusers_names_shapes_and_configurations() {
    check_model("sd15", Family::Sd1, Some("StableDiffusionPipeline"));
    check_model("sd21", Family::Sd2, Some("StableDiffusionPipeline"));
    check_model("sdxl", Family::SdxlBase, Some("StableDiffusionXLPipeline"));
    check_model("refiner", Family::SdxlRefiner, Some("StableDiffusionXLImg2ImgPipeline"));
    check_model("controlnet", Family::ControlNet, None);
}

/// Bytes that tell key and position.
pub(crate) fn bytes_of(key: &str, length: u64) -> Vec<u8> {
    let mut state =
        key.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// The bytes that a view of a tensor of 16-bit numbers has.
fn view_of(tensor: &[u8], row: u64, is_transposed: bool, dims: &[u64]) -> Vec<u8> {
    let columns = dims[1..].iter().product::<u64>() as usize;
    let rows = dims[0] as usize;
    let element = |r: usize, c: usize| match is_transposed {
        false => (row as usize + r) * columns + c,
        true => c * rows + r,
    };
    let cells = (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c)));
    cells.flat_map(|(r, c)| tensor[2 * element(r, c)..][..2].to_vec()).collect()
}

#[test]
fn a_converted_file_holds_every_weight_byte_for_byte() {
    for model in ["sd15-small", "sd21-small", "sdxl-small", "refiner-small"] {
        let expected = &reference()["models"][model];
        let folder = scratch();
        let path = folder.path().join("model.safetensors");
        Draft::of(model).write(&path, bytes_of);
        let original = Original::open(&path).expect("a checkpoint");
        let saved = original.save(&folder.path().join("saved"), &mut |_, _| {}).expect("a folder");
        for (component, weights) in object(&expected["weights"]) {
            let (base, prefix) = match component.starts_with("text_encoder") {
                true => ("model", "text_model."),
                false => ("diffusion_pytorch_model", ""),
            };
            let file = fs::read(saved.join(component).join(format!("{base}.safetensors"))).expect("weights");
            let tensors = SafeTensors::deserialize(&file).expect("safetensors");
            assert_eq!(tensors.len(), object(weights).len());
            for (name, view) in object(weights) {
                let (key, row, is_transposed, dims) = expected_view(view, &expected["keys"]);
                let tensor = bytes_of(key, shape(&expected["keys"][key]).iter().product::<u64>() * 2);
                let name =
                    if name == "text_projection.weight" { name.clone() } else { format!("{prefix}{name}") };
                let found =
                    tensors.tensor(&name).unwrap_or_else(|e| panic!("{model}: {component}: {name}: {e}"));
                assert_eq!(found.shape(), dims.iter().map(|&n| n as usize).collect::<Vec<_>>(), "{name}");
                assert!(
                    found.data() == view_of(&tensor, row, is_transposed, &dims),
                    "{model}: {component}: {name}"
                );
            }
            let config = fs::read(saved.join(component).join("config.json")).expect("a configuration");
            check_config(
                component,
                &serde_json::from_slice(&config).expect("JSON"),
                &expected["configs"][component],
            );
        }
        if original.class() == Some("StableDiffusionPipeline") {
            let [file, folder] = [&path, &saved].map(|path| Checkpoint::open(path).expect("a checkpoint"));
            assert!(traced(&file) == traced(&folder), "{model}");
        }
        let index = fs::read(saved.join("model_index.json")).expect("an index");
        assert_eq!(serde_json::from_slice::<Value>(&index).expect("JSON"), *original.index());
        let error = original.save(&saved, &mut |_, _| {}).expect_err("refused").to_string();
        assert!(error.ends_with("exists and is not empty"), "{error}");
    }
}

/// The fixture as a folder whose text encoder has heads that a file implies, and as a file.
pub(crate) fn fixture(nested: bool) -> (TempDir, PathBuf) {
    let folder = scratch();
    copy_folder(&sd15(), folder.path());
    edit_json(&folder.path().join("text_encoder/config.json"), |config| {
        config["num_attention_heads"] = 1.into()
    });
    let expected = &reference()["models"]["sd15-small"];
    let mut stored = BTreeMap::new();
    for (component, weights) in object(&expected["weights"]) {
        let base = if component == "text_encoder" { "model" } else { "diffusion_pytorch_model" };
        let bytes =
            fs::read(folder.path().join(component).join(format!("{base}.safetensors"))).expect("weights");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        for (name, view) in object(weights) {
            let (key, ..) = expected_view(view, &expected["keys"]);
            stored.insert(key.to_owned(), tensors.tensor(name).expect("a weight").data().to_vec());
        }
    }
    let mut draft = Draft::of("sd15-small").with("model_ema.decay", "F32", &[]).with("betas", "F64", &[1000]);
    if !nested {
        let flat = |key: String| key.replace("transformer.text_model.", "transformer.");
        draft.tensors = draft.tensors.into_iter().map(|(key, tensor)| (flat(key), tensor)).collect();
        stored = stored.into_iter().map(|(key, bytes)| (flat(key), bytes)).collect();
    }
    let path = folder.path().join("single.safetensors");
    draft.write(&path, |key, length| stored.get(key).cloned().unwrap_or_else(|| vec![0; length as usize]));
    (folder, path)
}

pub(crate) fn traced(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let folder = scratch();
    let models = trace(checkpoint, &TraceOptions::default(), folder.path(), &mut |_| {}).expect("models");
    let files = models.into_iter().flat_map(|model| [model.file, model.weights]);
    files.map(|file| (file.clone(), fs::read(folder.path().join(file)).expect("a file"))).collect()
}

#[test]
fn a_file_gives_the_models_and_pictures_of_its_folder() {
    let draw = |checkpoint: &Path| {
        let cache = scratch();
        let checkpoint = Checkpoint::open(checkpoint).expect("a checkpoint");
        let compiled = EngineCache::new(cache.path())
            .compile(&checkpoint, &BuildOptions::cpu(TraceOptions::default()), &mut |_| {})
            .expect("a bundle");
        let mut pipeline = pipeline(compiled.bundle, onnxruntime());
        let request = Request::new("a photo of an astronaut riding a horse on mars")
            .seeds(vec![7])
            .steps(3)
            .size(Size::new(64, 64));
        pipeline.generate(&request).expect("a picture").latents
    };
    for nested in [true, false] {
        let (folder, file) = fixture(nested);
        let scheduler = Original::open(&file).expect("a file").configs()["scheduler"].clone();
        edit_json(&folder.path().join("model_index.json"), |index| {
            index["scheduler"][1] = scheduler["_class_name"].clone();
        });
        let path = folder.path().join("scheduler/scheduler_config.json");
        fs::write(path, scheduler.to_string()).expect("a scheduler");
        let (a, b) = (Checkpoint::open(folder.path()), Checkpoint::open(&file));
        assert!(traced(&a.expect("a folder")) == traced(&b.expect("a file")));
        assert_eq!(draw(folder.path()), draw(&file));
    }
}
