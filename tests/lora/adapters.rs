//! Every kind of adapter against its own tool (`references/make_adapters.py`), and all of them in a pipeline.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_bundle::TensorFile;
use kiln_bundle::stable_diffusion::UNET;
use kiln_compile::TraceOptions;
use kiln_graph::EmitPolicy;
use kiln_lora::{Lora, LoraFile, LoraPlan, ModelWeights};
use kiln_nets::Sizes;
use kiln_runtime::{Pipeline, Request, Size};
use ndarray::ArrayD;
use safetensors::Dtype;
use serde_json::Value;
use tempfile::TempDir;

use super::{Tensors, write_tensors};
use crate::cli::{fail, kiln, succeed};
use crate::families::draw;
use crate::fixtures::{backends, bundle, onnxruntime, pipeline, scratch, sd15};
use crate::support::{References, assert_close, references};

const PROBES: usize = 16;
const WEIGHTS: f32 = 1e-5;

/// The maker's layers.
const MODEL: [(&str, &[usize]); 7] = [
    ("time_embedding.linear_1.weight", &[16, 12]),
    ("time_embedding.linear_1.bias", &[16]),
    ("time_embedding.linear_2.weight", &[16, 16]),
    ("conv_in.weight", &[16, 8, 3, 3]),
    ("conv_in.bias", &[16]),
    ("conv_norm_out.weight", &[16]),
    ("conv_norm_out.bias", &[16]),
];

fn drawn(prefix: &str, name: &str, shape: &[usize]) -> (String, (Dtype, Vec<usize>, Vec<u8>)) {
    (name.to_owned(), (Dtype::F16, shape.to_vec(), draw(&format!("{prefix}.{name}"), shape)))
}

/// The maker's weights in a file.
fn base(folder: &Path) -> TensorFile {
    let path = folder.join("base.safetensors");
    let tensors: Tensors = MODEL.iter().map(|(name, shape)| drawn("base", name, shape)).collect();
    write_tensors(&path, &tensors, None);
    TensorFile::open(&path).expect("weights")
}

fn model() -> ModelWeights {
    let mut model = ModelWeights::new();
    model.insert(UNET, MODEL.map(|(name, shape)| (name.to_owned(), shape.to_vec())), []);
    model
}

fn descriptions() -> BTreeMap<String, Value> {
    let text = fs::read_to_string(references().join("adapters.json")).expect("a description");
    serde_json::from_str(&text).expect("JSON")
}

/// Draws an adapter of the description: a file, or peft's folder.
fn write_adapter(folder: &Path, case: &str, description: &Value) -> PathBuf {
    let tensors = description["tensors"].as_object().expect("tensors").iter().map(|(key, shape)| {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).expect("a shape");
        drawn(case, key, &shape)
    });
    let numbers = description["numbers"].as_object().expect("numbers").iter().map(|(key, number)| {
        let bytes = number.as_f64().expect("a number").to_le_bytes().to_vec();
        (key.clone(), (Dtype::F64, vec![], bytes))
    });
    let path = folder.join("adapter_model.safetensors");
    write_tensors(&path, &tensors.chain(numbers).collect(), None);
    match &description["config"] {
        Value::Null => path,
        config => {
            let text = config.as_str().expect("a text");
            fs::write(folder.join("adapter_config.json"), text).expect("a configuration");
            folder.into()
        }
    }
}

fn probes(values: &[f32]) -> ArrayD<f32> {
    let probes = (0..PROBES).map(|k| values[k * (values.len() - 1) / (PROBES - 1)]).collect();
    ArrayD::from_shape_vec(vec![PROBES], probes).expect("as many as probed")
}

/// The weights that an adapter changes, at a weight of its own.
fn changed(base: &TensorFile, file: &Arc<LoraFile>, weight: f32) -> BTreeMap<String, Vec<f32>> {
    let plan = LoraPlan::new(&[Lora { file: file.clone(), weight }], &model()).expect("an adapter that fits");
    assert_eq!(plan.notices(), <[String; 0]>::default());
    let changes = plan.changes(UNET).expect("changes");
    let change = |name: &str| {
        let mut values = base.read_f32(name).expect("floats");
        changes.apply(name, &mut values).expect("a change");
        (name.to_owned(), values)
    };
    changes.names().map(change).collect()
}

/// Whether tools disagree on weights between 0 and 1, and kiln follows others than the maker's.
fn is_mixed(case: &str) -> bool {
    case.starts_with("lycoris_dora")
}

#[test]
fn every_kind_is_what_its_own_tool_computes() {
    let references = References::open("adapters.safetensors");
    let names: BTreeSet<String> = references.names().into_iter().collect();
    let descriptions = descriptions();
    assert!(descriptions.len() > 50, "{}", descriptions.len());
    for (case, description) in &descriptions {
        let folder = scratch();
        let base = base(folder.path());
        let file = LoraFile::open(write_adapter(folder.path(), case, description)).expect(case);
        let file = Arc::new(file);
        for share in [1.0, 0.5] {
            let prefix = format!("{case}.{share:?}.");
            let expected: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(&prefix)).collect();
            if expected.is_empty() || share != 1.0 && is_mixed(case) {
                continue;
            }
            let changed = changed(&base, &file, share);
            for name in &expected {
                let values =
                    changed.get(*name).cloned().unwrap_or_else(|| base.read_f32(name).expect("floats"));
                let reference = references.f32(&format!("{prefix}{name}"));
                assert_close(&format!("{prefix}{name}"), probes(&values).view(), reference.view(), WEIGHTS);
            }
            assert!(changed.keys().all(|name| expected.contains(&name.as_str())), "{case}: {changed:?}");
        }
    }
}

#[test]
fn trainers_lengths_are_mixed_as_the_webuis_mix_them() {
    for (case, description) in descriptions().iter().filter(|(case, _)| is_mixed(case)) {
        let folder: TempDir = scratch();
        let base = base(folder.path());
        let file = Arc::new(LoraFile::open(write_adapter(folder.path(), case, description)).expect(case));
        let (half, whole) = (changed(&base, &file, 0.5), changed(&base, &file, 1.0));
        for (name, half) in half {
            let old = base.read_f32(&name).expect("floats");
            let mean: Vec<f32> = old.iter().zip(&whole[&name]).map(|(old, new)| (old + new) / 2.0).collect();
            assert_close(case, probes(&half).view(), probes(&mean).view(), WEIGHTS);
        }
    }
}

/// One module of every kind for the small checkpoint, drawn anew for each seed.
fn every_kind(folder: &Path, seed: &str) -> Arc<LoraFile> {
    let checkpoint =
        TensorFile::open(&sd15().join("unet/diffusion_pytorch_model.safetensors")).expect("weights");
    let block = "down_blocks.0.attentions.0";
    let of = |module: &str| {
        let shape = &checkpoint.tensors()[&format!("{module}.weight")].shape;
        let prefix = format!("lora_unet_{}", module.replace('.', "_"));
        (prefix, shape[0], shape.iter().skip(1).product::<usize>())
    };
    let mut tensors = Tensors::new();
    let mut put = |prefix: &str, parts: &[(&str, Vec<usize>)]| {
        tensors.extend(parts.iter().map(|(part, shape)| drawn(seed, &format!("{prefix}.{part}"), shape)));
    };
    let (prefix, rows, columns) = of(&format!("{block}.transformer_blocks.0.attn1.to_q"));
    let pair = |r: usize| [("lora_down.weight", vec![r, columns]), ("lora_up.weight", vec![rows, r])];
    put(&prefix, &[&pair(2)[..], &[("dora_scale", vec![rows, 1])]].concat());
    let (prefix, rows, columns) = of(&format!("{block}.transformer_blocks.0.attn1.to_v"));
    let of_loha = ["hada_w1", "hada_w2"];
    let names: Vec<String> = of_loha.iter().flat_map(|w| [format!("{w}_a"), format!("{w}_b")]).collect();
    let shapes = [vec![rows, 2], vec![2, columns], vec![rows, 2], vec![2, columns]];
    let parts: Vec<(&str, Vec<usize>)> = names.iter().map(String::as_str).zip(shapes).collect();
    put(&prefix, &parts);
    let (prefix, rows, columns) = of(&format!("{block}.transformer_blocks.0.attn2.to_q"));
    put(&prefix, &[("lokr_w1", vec![2, 2]), ("lokr_w2", vec![rows / 2, columns / 2])]);
    let (prefix, rows, _) = of(&format!("{block}.transformer_blocks.0.attn2.to_v"));
    put(&prefix, &[("oft_blocks", vec![rows / 4, 4, 4])]);
    let (prefix, rows, _) = of(&format!("{block}.transformer_blocks.0.attn1.to_k"));
    put(&prefix, &[("oft_blocks", vec![2, rows / 4, 4, 4])]);
    let (prefix, rows, columns) = of(&format!("{block}.transformer_blocks.0.attn1.to_out.0"));
    let glora = [("a1.weight", vec![columns, 2]), ("a2.weight", vec![2, columns])];
    put(&prefix, &[&glora[..], &[("b1.weight", vec![rows, 2]), ("b2.weight", vec![2, columns])]].concat());
    let (prefix, rows, columns) = of(&format!("{block}.transformer_blocks.0.ff.net.2"));
    put(&prefix, &[("diff", vec![rows, columns]), ("diff_b", vec![rows])]);
    for norm in [format!("{block}.norm"), format!("{block}.transformer_blocks.0.norm1")] {
        let (prefix, rows, _) = of(&norm);
        put(&prefix, &[("w_norm", vec![rows]), ("b_norm", vec![rows])]);
    }
    let (prefix, rows, _) = of("conv_in");
    put(&prefix, &[("weight", vec![1, rows, 1, 1])]);
    tensors.insert(format!("{prefix}.on_input"), (Dtype::I64, vec![], 0i64.to_le_bytes().to_vec()));
    let path = folder.join(format!("{seed}.safetensors"));
    write_tensors(&path, &tensors, None);
    Arc::new(LoraFile::open(&path).expect("every kind"))
}

fn latents(pipeline: &mut Pipeline) -> ArrayD<f32> {
    let request = Request::new("a red circle").seeds(vec![3]).steps(2).size(Size::new(32, 32));
    pipeline.generate(&request).expect("a picture").latents
}

#[test]
fn every_kind_is_the_same_fused_and_swapped_and_goes_back() {
    let folder = scratch();
    let [a, b] = ["a", "b"].map(|seed| every_kind(folder.path(), seed));
    let kinds: BTreeSet<&str> = a.modules().iter().map(|module| module.kind()).collect();
    assert_eq!(kinds, ["(IA)^3", "BOFT", "DoRA", "GLoRA", "LoHa", "LoKr", "OFT", "difference"].into());
    let options = TraceOptions::for_bundle(EmitPolicy::default(), Sizes::Dynamic);
    let fused = TraceOptions { loras: vec![Lora { file: a.clone(), weight: 0.25 }], ..options.clone() };
    for backend in backends() {
        let fused = latents(&mut pipeline(bundle(&sd15(), &fused), backend.clone()));
        let mut swapped = pipeline(bundle(&sd15(), &options), backend);
        let plain = latents(&mut swapped);
        let mut with = |loras: &[(Arc<LoraFile>, f32)]| {
            assert_eq!(swapped.set_loras(loras).expect("adapters that fit"), <[String; 0]>::default());
            latents(&mut swapped)
        };
        let first = with(&[(a.clone(), 0.25)]);
        assert_eq!(first, fused);
        assert_ne!(first, plain);
        assert_ne!(with(&[(b.clone(), 0.25)]), first);
        let both = with(&[(a.clone(), 0.25), (b.clone(), 0.25)]);
        assert_ne!(
            with(&[(b.clone(), 0.25), (a.clone(), 0.25)]),
            both,
            "what turns a weight reads what came before"
        );
        assert_eq!(with(&[(a.clone(), 0.25)]), first, "A, B, A");
        assert_eq!(with(&[]), plain);
    }
}

/// A LoRA of one module, and words beside it.
fn with_words(folder: &Path, name: &str, words: &[(&str, &[usize])]) -> PathBuf {
    let module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let checkpoint =
        TensorFile::open(&sd15().join("unet/diffusion_pytorch_model.safetensors")).expect("weights");
    let width =
        checkpoint.tensors()["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"].shape[0];
    let shapes = [("lora_down", vec![2, width]), ("lora_up", vec![width, 2])];
    let pair = shapes.map(|(part, shape)| drawn("x", &format!("{module}.{part}.weight"), &shape));
    let words = words.iter().map(|(key, shape)| drawn("x", &format!("bundle_emb.{key}"), shape));
    let path = folder.join(name);
    write_tensors(&path, &pair.into_iter().chain(words).collect(), None);
    path
}

#[test]
fn bundled_words_are_learned_with_their_lora() {
    let folder = scratch();
    let encoder = TensorFile::open(&sd15().join("text_encoder/model.safetensors")).expect("weights");
    let mut names = encoder.tensors().iter();
    let (_, table) = names.find(|(name, _)| name.ends_with("token_embedding.weight")).expect("embeddings");
    let width = table.shape[1];
    let open = |name: &str, words: &[(&str, &[usize])]| LoraFile::open(with_words(folder.path(), name, words));
    let plain = Arc::new(open("plain.safetensors", &[]).expect("a LoRA"));
    let two = &[2, width][..];
    let bundled = open("bundle.safetensors", &[("my.toy.string_to_param.*", two)]).expect("a bundle");
    assert_eq!(bundled.word_names().collect::<Vec<_>>(), ["my.toy"]);
    let (bundled, backend) = (Arc::new(bundled), onnxruntime());
    let options = TraceOptions::for_bundle(EmitPolicy::default(), Sizes::Dynamic);
    let mut pipeline = pipeline(bundle(&sd15(), &options), backend);
    let mut draw = |file: &Arc<LoraFile>, prompt: &str| {
        pipeline.set_loras(&[(file.clone(), 1.0)]).expect("a LoRA that fits");
        let request = Request::new(prompt).seeds(vec![3]).steps(2).size(Size::new(32, 32));
        pipeline.generate(&request).expect("a picture").latents
    };
    let (before, circle) = (draw(&plain, "a my.toy"), draw(&plain, "a circle"));
    assert_eq!(draw(&bundled, "a circle"), circle, "the same change");
    assert_ne!(draw(&bundled, "a my.toy"), before, "and a word");
    assert_eq!(draw(&bundled, "a circle"), circle, "given twice");
    let error = open("wide.safetensors", &[("toy.t5", two)]).expect_err("another encoder").to_string();
    assert!(error.ends_with("'bundle_emb.toy.t5' is a learned word's, for no text encoder of CLIP"), "{error}");
    let error = open("long.safetensors", &[("toy.clip_l", &[76, width])]).expect_err("a long word").to_string();
    assert!(error.ends_with("has shape [76, 32], which is not up to 75 vectors"), "{error}");
    let wrong = Arc::new(open("g.safetensors", &[("toy.clip_g", two)]).expect("a bundle"));
    let error = pipeline.set_loras(&[(wrong, 1.0)]).expect_err("no second encoder").to_string();
    assert!(error.contains("'clip_g' holds vectors"), "{error}");
}

#[test]
fn the_command_takes_pefts_folders_and_says_what_it_leaves_out() {
    onnxruntime();
    let work = scratch();
    let module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let key = |module: &str, part: &str| format!("base_model.model.{module}.lora_{part}.default.weight");
    let of = |module: &str| [(key(module, "A"), vec![2, 32]), (key(module, "B"), vec![32, 2])];
    let tensor =
        |(key, shape): (String, Vec<usize>)| (key.clone(), (Dtype::F16, shape.clone(), draw(&key, &shape)));
    let all: Tensors = of(module).map(tensor).into();
    let folder = work.path().join("adapter");
    fs::create_dir(&folder).expect("a folder");
    write_tensors(&folder.join("adapter_model.safetensors"), &all, None);
    fs::write(folder.join("adapter_config.json"), r#"{"r": 2, "lora_alpha": 6}"#).expect("a configuration");
    let described = succeed(&mut kiln(&["inspect", "adapter"], work.path()));
    assert!(described.contains("1 modules (0 with a kernel), LoRA, rank 2, scale 3"), "{described}");
    let lacking = "down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q";
    let more: Tensors = all.into_iter().chain(of(lacking).map(tensor)).collect();
    write_tensors(&folder.join("adapter_model.safetensors"), &more, None);
    let model = sd15().display().to_string();
    for args in [
        &["generate", "x", "--model", &model, "--lora", "adapter:0.5", "--steps", "1", "--out", "a.png"][..],
        &["compile", &model, "--lora", "adapter", "--no-reference"],
    ] {
        let output = kiln(args, work.path()).output().expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let notice =
            "1 of its 2 modules do not fit this model and are left out: base_model.model.down_blocks.7.";
        assert_eq!(said.matches(notice).count(), 1, "{args:?}: {said}");
    }
    with_words(work.path(), "bundle.safetensors", &[("mytoy.clip_l", &[1, 32])]);
    let args = ["compile", &model, "--lora", "bundle.safetensors", "--no-reference"];
    let output = kiln(&args, work.path()).output().expect("kiln runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("its words (mytoy) are not fused; kiln generate --lora learns them"), "{said}");
    fs::create_dir(work.path().join("empty")).expect("a folder");
    let args = ["generate", "x", "--model", &model, "--lora", "empty"];
    fail(&mut kiln(&args, work.path()), 3, "empty: holds no adapter_model.safetensors");
}

/// The component of a text encoder's module in peft's folder.
fn role_in(folder: &Path, config: &str) -> String {
    fs::create_dir_all(folder).expect("a folder");
    let module = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj";
    let shapes: [(&str, &[usize]); 2] = [("lora_A", &[2, 8]), ("lora_B", &[8, 2])];
    let pair = shapes.map(|(part, shape)| drawn("peft", &format!("{module}.{part}.weight"), shape));
    write_tensors(&folder.join("adapter_model.safetensors"), &pair.into_iter().collect(), None);
    fs::write(folder.join("adapter_config.json"), config).expect("a configuration");
    LoraFile::open(folder).expect("a LoRA").modules()[0].role().to_string()
}

#[test]
fn pefts_folder_of_a_second_text_encoder_reaches_it() {
    let work = scratch();
    let mapping = |class: &str| format!(r#"{{"r": 2, "auto_mapping": {{"base_model_class": "{class}"}}}}"#);
    for (folder, config, role) in [
        ("text_encoder", "{}", "text_encoder"),
        ("text_encoder_2", "{}", "text_encoder_2"),
        ("text_encoder_2/default", "{}", "text_encoder_2"),
        ("a", &mapping("CLIPTextModelWithProjection"), "text_encoder_2"),
        ("b", &mapping("CLIPTextModel"), "text_encoder"),
        ("c", r#"{"base_model_name_or_path": "/models/xl/text_encoder_2"}"#, "text_encoder_2"),
        ("d", r#"{"auto_mapping": null, "base_model_name_or_path": null}"#, "text_encoder"),
    ] {
        assert_eq!(role_in(&work.path().join(folder), config), role, "{folder}: {config}");
    }
}
