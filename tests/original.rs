//! Single-file checkpoints against what diffusers makes of the same keys (`references/make_original.py`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use kiln_compile::{
    Checkpoint, EngineCache, Family, Original, PredictionType, TraceOptions, inspect_original, trace,
};
use kiln_runtime::tokenizer::ClipTokenizer;
use kiln_runtime::{Pipeline, Request};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::fixtures::{copy_folder, edit_json, onnxruntime, quietly, scratch, sd15};
use crate::support::references;

/// The models of `original.json.gz`.
fn reference() -> &'static Value {
    static REFERENCE: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| {
        let packed = fs::read(references().join("original.json.gz")).expect("original.json.gz");
        let mut text = String::new();
        GzDecoder::new(packed.as_slice()).read_to_string(&mut text).expect("gzip");
        serde_json::from_str(&text).expect("JSON")
    });
    &REFERENCE
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("a map")
}

fn shape(value: &Value) -> Vec<u64> {
    value.as_array().expect("a shape").iter().map(|n| n.as_u64().expect("a size")).collect()
}

/// A single file to be: tensors by key, and metadata.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) tensors: BTreeMap<String, (&'static str, Vec<u64>)>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Draft {
    /// The tensors of a reference model, in half precision.
    pub(crate) fn of(model: &str) -> Draft {
        let keys = object(&reference()["models"][model]["keys"]);
        let tensors = keys.iter().map(|(key, dims)| (key.clone(), ("F16", shape(dims)))).collect();
        Draft { tensors, metadata: BTreeMap::new() }
    }

    pub(crate) fn with(mut self, key: &str, dtype: &'static str, dims: &[u64]) -> Draft {
        self.tensors.insert(key.into(), (dtype, dims.to_vec()));
        self
    }

    fn without(mut self, prefix: &str) -> Draft {
        let before = self.tensors.len();
        self.tensors.retain(|key, _| !key.starts_with(prefix));
        assert!(self.tensors.len() < before, "{prefix}");
        self
    }

    fn saying(mut self, key: &str, value: &str) -> Draft {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The file's header, and first byte in the file and size of each tensor.
    fn header(&self) -> (Vec<u8>, BTreeMap<&str, (u64, u64)>) {
        let mut entries = Map::new();
        if !self.metadata.is_empty() {
            entries.insert("__metadata__".into(), json!(self.metadata));
        }
        let mut end = 0u64;
        let mut places = BTreeMap::new();
        for (key, (dtype, dims)) in &self.tensors {
            let size = match *dtype {
                "I64" | "F64" => 8,
                "F32" => 4,
                "F16" | "BF16" => 2,
                _ => 1,
            };
            let (start, length) = (end, dims.iter().product::<u64>() * size);
            end += length;
            places.insert(key.as_str(), (start, length));
            let entry = json!({ "dtype": dtype, "shape": dims, "data_offsets": [start, end] });
            entries.insert(key.clone(), entry);
        }
        let json = Value::Object(entries).to_string().into_bytes();
        let header = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
        let base = header.len() as u64;
        (header, places.into_iter().map(|(key, (start, length))| (key, (base + start, length))).collect())
    }

    /// Writes the file as a header and nothing but a hole behind it.
    pub(crate) fn write_hollow(&self, path: &Path) {
        let (header, places) = self.header();
        let end = places.values().map(|(start, length)| start + length).max().unwrap_or(header.len() as u64);
        let mut file = File::create(path).expect("a file");
        file.write_all(&header).expect("a header");
        file.set_len(end).expect("a hole");
    }

    /// Writes the file, `fill` making each tensor's bytes from its key and their number.
    fn write(&self, path: &Path, fill: impl Fn(&str, u64) -> Vec<u8>) {
        let (mut bytes, places) = self.header();
        for (key, (start, length)) in places {
            assert_eq!(bytes.len() as u64, start);
            let tensor = fill(key, length);
            assert_eq!(tensor.len() as u64, length, "{key}");
            bytes.extend(tensor);
        }
        fs::write(path, bytes).expect("a file");
    }
}

fn hollow(draft: &Draft) -> (TempDir, PathBuf) {
    let folder = scratch();
    let path = folder.path().join("model.safetensors");
    draft.write_hollow(&path);
    (folder, path)
}

#[track_caller]
fn open(draft: &Draft) -> Original {
    let (_folder, path) = hollow(draft);
    Original::open(&path, None).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn check_refused(draft: &Draft, message: &str) {
    let (_folder, path) = hollow(draft);
    let error = Original::open(&path, None).expect_err("refused").to_string();
    assert!(error.contains(message), "{error}");
    assert!(error.starts_with(&path.display().to_string()), "no path in: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

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
        assert!(known || expected.get(key).is_some(), "{component}: {key} is no key of diffusers");
    }
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
fn bytes_of(key: &str, length: u64) -> Vec<u8> {
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
        let original = Original::open(&path, None).expect("a checkpoint");
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
        let index = fs::read(saved.join("model_index.json")).expect("an index");
        assert_eq!(serde_json::from_slice::<Value>(&index).expect("JSON"), *original.index());
        let error = original.save(&saved, &mut |_, _| {}).expect_err("refused").to_string();
        assert!(error.ends_with("exists and is not empty"), "{error}");
    }
}

/// The fixture as a folder whose text encoder has heads that a file implies, and as a file.
fn fixture(nested: bool) -> (TempDir, PathBuf) {
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

fn traced(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let folder = scratch();
    let models = trace(checkpoint, &TraceOptions::default(), folder.path(), &mut |_| {}).expect("models");
    let files = models.into_iter().flat_map(|model| [model.file, model.weights]);
    files.map(|file| (file.clone(), fs::read(folder.path().join(file)).expect("a file"))).collect()
}

#[test]
fn a_file_gives_the_models_and_pictures_of_its_folder() {
    let draw = |checkpoint: &Path| {
        let cache = scratch();
        let checkpoint = Checkpoint::open(checkpoint, None).expect("a checkpoint");
        let compiled = EngineCache::new(cache.path())
            .compile(&checkpoint, &TraceOptions::default(), &mut |_| {})
            .expect("a bundle");
        let mut pipeline = Pipeline::new(compiled.bundle, onnxruntime()).expect("a pipeline");
        let request = Request {
            seed: 7,
            steps: 3,
            height: Some(64),
            width: Some(64),
            ..Request::new("a photo of an astronaut riding a horse on mars")
        };
        pipeline.generate(&request, &mut quietly).expect("a picture").latents
    };
    for nested in [true, false] {
        let (folder, file) = fixture(nested);
        let scheduler = Original::open(&file, None).expect("a file").configs()["scheduler"].to_string();
        fs::write(folder.path().join("scheduler/scheduler_config.json"), scheduler).expect("a scheduler");
        let (a, b) = (Checkpoint::open(folder.path(), None), Checkpoint::open(&file, None));
        assert!(traced(&a.expect("a folder")) == traced(&b.expect("a file")));
        assert_eq!(draw(folder.path()), draw(&file));
    }
}

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
fn the_prediction_type_is_asked_for_or_said_or_the_familys() {
    let predicts = |draft: &Draft, asked| {
        let (_folder, path) = hollow(draft);
        let original = Original::open(&path, asked).expect("a checkpoint");
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
        let original = Original::open(&path, None).expect("a checkpoint");
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
    let saved = Original::open(&path, None).expect("a checkpoint");
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

    check_refused(&Draft::of("sd15").with("extra", "F16", &[1]), "unknown key 'extra'");
    let adapter = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight";
    check_refused(
        &Draft::of("sd15").with(adapter, "F16", &[1]).with("extra", "F16", &[1]),
        "unknown key 'extra' (and 1 more)",
    );
    check_refused(
        &Draft::of("sd15").with("model.diffusion_model.out.0.bias", "F8_E4M3", &[320]),
        "weight 'model.diffusion_model.out.0.bias' is stored as F8_E4M3; supported: F32, F16, BF16",
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
    let checkpoint = Checkpoint::open(&path, None).expect("a checkpoint");
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
        "'edm_mean' asks for Playground 2.5's EDM sampling",
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
        check_refused(&file(key), &format!("is no checkpoint: it seems to be {what}"));
    }
    check_refused(&file("weight"), "is no Stable Diffusion checkpoint: its first key is 'weight'");
    check_refused(&Draft { tensors: BTreeMap::new(), metadata: BTreeMap::new() }, "holds no tensors");
}

#[test]
fn files_that_are_cut_or_pickled_are_refused() {
    let draft = Draft::of("sd15");
    let n_bytes: u64 = draft.header().1.values().map(|(_, length)| length).sum();
    let (folder, path) = hollow(&draft);
    let size = fs::metadata(&path).expect("a file").len();
    File::options().write(true).open(&path).expect("a file").set_len(size - 1).expect("cut");
    let error = Checkpoint::open(&path, None).expect_err("refused").to_string();
    let lie = format!("says that it holds {n_bytes} bytes of weights; the file has {}", n_bytes - 1);
    assert!(error.ends_with(&lie), "{error}");
    for (name, bytes) in [
        ("model.ckpt", &b"PK\x03\x04 and so on"[..]),
        ("model.safetensors", &b"PK\x03\x04 and so on"[..]),
        ("model.pt", &b"\x80\x02}q\x00X\n\x00\x00\x00"[..]),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("a file");
        let error = Checkpoint::open(&path, None).expect_err("refused");
        assert!(error.to_string().contains("pickled weights can run code"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("safetensors")), "{error}");
    }
}
