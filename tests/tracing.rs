//! Emission policies: every variant of a network computes the same.

use kiln_bundle::stable_diffusion::UNET;
use std::collections::HashMap;
use std::path::Path;

use kiln_compile::{Checkpoint, TraceOptions, TracedModel, inspect_onnx, trace};
use kiln_engine::{LoadOptions, Tensor, TensorView};
use kiln_graph::{AttentionPolicy, Cuts, ElementType, EmitPolicy, Flavor, Precision, PrecisionPolicy};
use kiln_nets::Sizes;
use kiln_runtime::Backend;
use ndarray::ArrayD;

use crate::fixtures::{backends, copy_folder, edit_json, onnxruntime, scratch, sd15};
use crate::support::{References, assert_close};

fn options(policy: EmitPolicy) -> TraceOptions {
    TraceOptions { policy, sizes: Sizes::Dynamic, ..TraceOptions::default() }
}

#[track_caller]
fn traced(options: &TraceOptions, folder: &Path) -> Vec<TracedModel> {
    let checkpoint = Checkpoint::open(&sd15()).expect("a checkpoint");
    trace(&checkpoint, options, folder, &mut |_| {}).expect("ONNX files")
}

/// Runs the segments of the UNet one after the other, each fed by name from the inputs and what came before.
#[track_caller]
fn run_unet(backend: &dyn Backend, folder: &Path, models: &[TracedModel]) -> ArrayD<f32> {
    let references = References::open("sd15/reference.safetensors");
    let timestep = references.f32("unet.timestep").into_shape_with_order(vec![1]).expect("one timestep");
    let mut values: HashMap<String, Tensor> = HashMap::from([
        ("sample".into(), references.f32("unet.sample").into()),
        ("timestep".into(), timestep.into()),
        ("encoder_hidden_states".into(), references.f32("unet.encoder_hidden_states").into()),
    ]);
    for model in models.iter().filter(|model| model.name == UNET) {
        let mut engine = backend.load(&folder.join(&model.file), &LoadOptions::default()).expect("an engine");
        let names: Vec<String> = engine.inputs().iter().map(|port| port.name.clone()).collect();
        let inputs: Vec<(&str, TensorView<'_>)> =
            names.iter().map(|name| (name.as_str(), values[name].view())).collect();
        let outputs = engine.run(&inputs).expect("a run");
        let names: Vec<String> = engine.outputs().iter().map(|port| port.name.clone()).collect();
        values.extend(names.into_iter().zip(outputs));
    }
    values.remove("out_sample").and_then(Tensor::into_f32).expect("the prediction")
}

#[track_caller]
fn check(options: &TraceOptions, backend: &dyn Backend, tolerance: f32) -> Vec<TracedModel> {
    let folder = scratch();
    let models = traced(options, folder.path());
    let found = run_unet(backend, folder.path(), &models);
    let expected = References::open("sd15/reference.safetensors").f32("unet.output");
    assert_close(&format!("{options:?} on {}", backend.name()), found.view(), expected.view(), tolerance);
    models
}

#[test]
fn every_attention_policy_computes_the_same() {
    use AttentionPolicy::{Fused, Halved, Plain, Sliced};
    for attention in [Fused, Plain, Halved, Sliced(1), Sliced(3), Sliced(100)] {
        for backend in backends() {
            check(&options(EmitPolicy { attention, ..EmitPolicy::default() }), &*backend, 1e-4);
        }
    }
}

#[test]
fn the_standard_flavor_needs_no_contrib_operators() {
    for attention in [AttentionPolicy::Fused, AttentionPolicy::Plain] {
        let policy = EmitPolicy { attention, flavor: Flavor::Standard, ..EmitPolicy::default() };
        check(&options(policy.clone()), &*onnxruntime(), 1e-4);
        let folder = scratch();
        for model in traced(&options(policy), folder.path()) {
            let summary = inspect_onnx(&folder.path().join(&model.file)).expect("an ONNX model");
            assert_eq!(summary.opsets.keys().collect::<Vec<_>>(), ["ai.onnx"]);
            let fused = summary.operators.get("Attention").copied().unwrap_or(0);
            assert_eq!(fused > 0, attention == AttentionPolicy::Fused, "{}", model.file);
        }
    }
}

#[test]
fn fixed_sizes_compute_the_same_and_need_no_shapes_at_run_time() {
    let sizes = Sizes::Static { batch: 1, height: 32, width: 32 };
    let folder = scratch();
    for backend in backends() {
        check(&TraceOptions { sizes, ..TraceOptions::default() }, &*backend, 1e-4);
    }
    for model in traced(&TraceOptions { sizes, ..TraceOptions::default() }, folder.path()) {
        let summary = inspect_onnx(&folder.path().join(&model.file)).expect("an ONNX model");
        assert!(!summary.operators.contains_key("Shape"), "{}: {:?}", model.file, summary.operators);
    }
}

#[test]
fn half_precision_stays_close() {
    let half = PrecisionPolicy {
        scopes: vec![("mid_block.attentions".into(), ElementType::F32)],
        ..PrecisionPolicy::uniform(ElementType::F16)
    };
    for attention in [AttentionPolicy::Fused, AttentionPolicy::Plain] {
        let policy = EmitPolicy {
            attention,
            precision: half.clone(),
            flavor: Flavor::Standard,
            ..EmitPolicy::default()
        };
        check(&options(policy), &*onnxruntime(), 2e-2);
    }
}

#[test]
fn weights_stored_in_half_precision_compute_in_single() {
    let precision = PrecisionPolicy { storage: Some(ElementType::F16), ..PrecisionPolicy::default() };
    for backend in backends() {
        let stored = EmitPolicy { precision: precision.clone(), ..EmitPolicy::default() };
        let half: u64 = check(&options(stored), &*backend, 1e-4).iter().map(|model| model.weight_bytes).sum();
        let folder = scratch();
        let full: u64 = traced(&TraceOptions::default(), folder.path()).iter().map(|m| m.weight_bytes).sum();
        assert_eq!(full, 2 * half);
    }
}

#[test]
fn products_of_bf16_store_their_weights_in_it_and_no_others() {
    let folder = scratch();
    let bytes = |models: &[TracedModel]| -> u64 { models.iter().map(|model| model.weight_bytes).sum() };
    let full = bytes(&traced(&TraceOptions::default(), folder.path()));
    let of = |scopes: Vec<(String, ElementType)>, storage| {
        let precision = PrecisionPolicy { scopes, storage, ..PrecisionPolicy::with_products(Precision::Bf16) };
        let policy = EmitPolicy { precision, ..EmitPolicy::default() };
        bytes(&check(&options(policy), &*onnxruntime(), 3e-2))
    };
    let rounded = of(vec![], None);
    // Embeddings, norms and biases stay, and embeddings are the most of so small a model.
    assert!(rounded < full && 2 * rounded > full, "{rounded} of {full}");
    assert_eq!(
        of(vec![], Some(ElementType::F16)),
        rounded,
        "what is no factor stays in the type it is used in"
    );
    assert!(of(vec![("mid_block".into(), ElementType::F32)], None) > rounded, "scopes that are kept");
}

#[test]
fn attention_that_wants_its_scores_exact_keeps_them_beside_products_of_bf16() {
    let work = scratch();
    let says = |upcast: bool| {
        let checkpoint = work.path().join(format!("checkpoint-{upcast}"));
        copy_folder(&sd15(), &checkpoint);
        edit_json(&checkpoint.join("unet/config.json"), |config| config["upcast_attention"] = upcast.into());
        let policy =
            EmitPolicy { precision: PrecisionPolicy::with_products(Precision::Bf16), ..EmitPolicy::default() };
        let folder = work.path().join(format!("traced-{upcast}"));
        let checkpoint = Checkpoint::open(&checkpoint).expect("a checkpoint");
        trace(&checkpoint, &options(policy), &folder, &mut |_| {}).expect("ONNX files");
        ["unet", "text_encoder"].map(|name| {
            let model = std::fs::read(folder.join(format!("{name}.onnx"))).expect("a model");
            model.windows(11).any(|bytes| bytes == b"kiln.scores")
        })
    };
    assert_eq!([says(true), says(false)], [[true, false], [false, false]]);
}

#[test]
fn segments_in_turn_compute_the_same() {
    let cuts = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"];
    let cuts: Vec<String> = cuts.into_iter().map(Into::into).collect();
    for backend in backends() {
        let models = check(
            &options(EmitPolicy { cuts: Cuts::At(cuts.clone()), ..EmitPolicy::default() }),
            &*backend,
            1e-4,
        );
        let segments: Vec<&str> = models.iter().filter(|m| m.name == UNET).map(|m| m.file.as_str()).collect();
        assert_eq!(segments, ["unet.0.onnx", "unet.1.onnx", "unet.2.onnx", "unet.3.onnx", "unet.4.onnx"]);
    }
}

#[test]
fn a_cut_point_that_does_not_exist_is_named() {
    let checkpoint = Checkpoint::open(&sd15()).expect("a checkpoint");
    let policy = EmitPolicy { cuts: Cuts::At(vec!["down_blocks.7".into()]), ..EmitPolicy::default() };
    let folder = scratch();
    let error = trace(&checkpoint, &options(policy), folder.path(), &mut |_| {}).expect_err("refused");
    assert!(error.to_string().ends_with("has no cut point 'down_blocks.7'"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("down_blocks.1, mid_block")), "{error:?}");
}

#[test]
fn equal_checkpoints_give_equal_bytes() {
    let (first, second) = (scratch(), scratch());
    for model in traced(&TraceOptions::default(), first.path()) {
        traced(&TraceOptions::default(), second.path());
        for file in [&model.file, &model.weights] {
            let read = |folder: &Path| std::fs::read(folder.join(file)).expect("a file");
            assert!(read(first.path()) == read(second.path()), "{file}");
        }
    }
}
