//! The forms of ONNX that other tools take: weights inside, opsets, finite masks, and `kiln trace --for`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_compile::{Checkpoint, TraceOptions, inspect_onnx, trace, trace_inside};
use kiln_engine::{LoadOptions, Tensor, TensorView};
use kiln_graph::proto::{ModelProto, TensorProto, decode};
use kiln_graph::{AttentionPolicy, Cuts, EmitPolicy, Flavor};
use ndarray::ArrayD;
use serde_json::Value;

use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{edit_json, onnxruntime, scratch, sd15, tiny};
use crate::support::{References, assert_close};

fn standard(attention: AttentionPolicy) -> EmitPolicy {
    EmitPolicy { attention, flavor: Flavor::Standard, ..EmitPolicy::default() }
}

fn options(policy: EmitPolicy) -> TraceOptions {
    TraceOptions { policy, ..TraceOptions::default() }
}

#[track_caller]
fn run(model: &Path, inputs: &[(&str, TensorView<'_>)]) -> Vec<ArrayD<f32>> {
    let mut engine = onnxruntime().load(model, &LoadOptions::default()).expect("an engine");
    let outputs = engine.run(inputs).expect("a run");
    outputs.into_iter().map(|output| output.into_f32().expect("floats")).collect()
}

/// What the UNet and the text encoder in a folder compute.
#[track_caller]
fn outputs(folder: &Path) -> Vec<ArrayD<f32>> {
    let references = References::open("sd15/reference.safetensors");
    let timestep = references.f32("unet.timestep").into_shape_with_order(vec![1]).expect("one timestep");
    let [sample, states] =
        ["unet.sample", "unet.encoder_hidden_states"].map(|key| Tensor::from(references.f32(key)));
    let ids = references.i64("text_encoder.input_ids");
    let ids = Tensor::from(ArrayD::from_shape_vec(vec![ids.len() / 77, 77], ids).expect("rows of 77 tokens"));
    let timestep = Tensor::from(timestep);
    let inputs =
        [("sample", sample.view()), ("timestep", timestep.view()), ("encoder_hidden_states", states.view())];
    let mut outputs = run(&folder.join("unet.onnx"), &inputs);
    outputs.extend(run(&folder.join("text_encoder.onnx"), &[("input_ids", ids.view())]));
    outputs
}

fn model(path: &Path) -> ModelProto {
    decode(&fs::read(path).expect("a file")).expect("an ONNX model")
}

fn initializers(path: &Path) -> Vec<TensorProto> {
    model(path).graph.expect("a graph").initializer
}

#[track_caller]
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn weights_inside_compute_what_weights_beside_do() {
    let checkpoint = Checkpoint::open(&sd15()).expect("a checkpoint");
    for attention in [AttentionPolicy::Fused, AttentionPolicy::Plain] {
        let [beside, inside] = [scratch(), scratch()];
        let options = options(standard(attention));
        trace(&checkpoint, &options, beside.path(), &mut |_| {}).expect("ONNX files");
        let models = trace_inside(&checkpoint, &options, inside.path(), &mut |_| {}).expect("ONNX files");
        assert_eq!(outputs(inside.path()), outputs(beside.path()), "{attention}");
        let files: BTreeSet<String> = models.iter().map(|model| model.file.clone()).collect();
        assert_eq!(names(inside.path()), files);
        for file in files {
            let around = model(&beside.path().join(&file)).graph.expect("a graph");
            let within = model(&inside.path().join(&file)).graph.expect("a graph");
            assert_eq!(around.node, within.node, "{file}");
            for (one, other) in around.initializer.iter().zip(&within.initializer) {
                assert!(other.external_data.is_empty() && other.data_location == 0, "{file}: {}", other.name);
                assert_eq!((&one.name, &one.dims, one.data_type), (&other.name, &other.dims, other.data_type));
                let n_bytes = other.raw_data.as_ref().map_or(0, Vec::len);
                let width = if other.data_type == 7 { 8 } else { 4 };
                let expected = other.dims.iter().product::<i64>() as usize * width;
                assert_eq!(n_bytes, expected, "{file}: {}", other.name);
            }
        }
    }
}

#[test]
fn segments_hold_their_own_weights() {
    let checkpoint = Checkpoint::open(&sd15()).expect("a checkpoint");
    let folder = scratch();
    let policy = EmitPolicy { cuts: Cuts::At(vec!["mid_block".into()]), ..standard(AttentionPolicy::Plain) };
    let models = trace_inside(&checkpoint, &options(policy), folder.path(), &mut |_| {}).expect("ONNX files");
    let parts: Vec<_> = models.iter().filter(|model| model.file.starts_with("unet.")).collect();
    assert_eq!(parts.len(), 2);
    for part in parts {
        let size = fs::metadata(folder.path().join(&part.file)).expect("a file").len();
        assert!(
            size > part.weight_bytes && size < part.weight_bytes + (1 << 20),
            "{size} {}",
            part.weight_bytes
        );
    }
}

#[test]
fn every_opset_computes_the_same() {
    use AttentionPolicy::{Fused, Plain};
    let checkpoint = Checkpoint::open(&sd15()).expect("a checkpoint");
    let mut first: Option<Vec<ArrayD<f32>>> = None;
    for (attention, opset) in [(Plain, 17), (Plain, 18), (Plain, 23), (Plain, 24), (Fused, 23), (Fused, 24)] {
        let folder = scratch();
        let policy = EmitPolicy { opset: Some(opset), ..standard(attention) };
        trace(&checkpoint, &options(policy), folder.path(), &mut |_| {}).expect("ONNX files");
        let summary = inspect_onnx(&folder.path().join("unet.onnx")).expect("an ONNX model");
        assert_eq!(summary.opsets["ai.onnx"], opset);
        let found = outputs(folder.path());
        let expected = first.get_or_insert_with(|| found.clone());
        for (found, expected) in found.iter().zip(expected) {
            assert_close(&format!("{attention} in {opset}"), found.view(), expected.view(), 1e-4);
        }
    }
    let refused = |attention, opset| {
        let policy = EmitPolicy { opset: Some(opset), ..standard(attention) };
        let folder = scratch();
        trace(&checkpoint, &options(policy), folder.path(), &mut |_| {}).expect_err("refused").to_string()
    };
    assert!(refused(Fused, 18).contains("opset 18 has no Attention"));
    assert!(refused(Plain, 25).contains("opset 25 is not one from 17 to 24"));
}

#[test]
fn finite_masks_mask_as_infinite_ones_do() {
    let checkpoint = Checkpoint::open(&sd15()).expect("a checkpoint");
    let traced = |finite_masks| {
        let folder = scratch();
        let policy = EmitPolicy { finite_masks, ..standard(AttentionPolicy::Plain) };
        trace(&checkpoint, &options(policy), folder.path(), &mut |_| {}).expect("ONNX files");
        let masks = initializers(&folder.path().join("text_encoder.onnx")).into_iter();
        let masks: Vec<TensorProto> = masks.filter(|tensor| tensor.dims == [77, 77]).collect();
        assert_eq!(masks.len(), 1);
        let bytes = masks[0].raw_data.clone().expect("numbers");
        let least =
            bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).fold(0.0, f32::min);
        (least, outputs(folder.path()))
    };
    let ((infinite, expected), (finite, found)) = (traced(false), traced(true));
    assert_eq!((infinite, finite), (f32::NEG_INFINITY, -64.0));
    for (found, expected) in found.iter().zip(&expected) {
        assert_close("finite masks", found.view(), expected.view(), 1e-6);
    }
}

/// What `kiln trace --for` writes: attention, opset, whether sizes are fixed and weights inside.
#[track_caller]
fn check_tool(tool: &str, has_attention: bool, opset: i64, is_fixed: bool, is_inside: bool) {
    let (checkpoint, work) = (tiny(), scratch());
    let checkpoint = checkpoint.path().display().to_string();
    succeed(&mut kiln(&["trace", &checkpoint, "--out", "out", "--for", tool], work.path()));
    let folder = work.path().join("out");
    let data: Vec<String> = names(&folder).into_iter().filter(|name| name.ends_with(".data")).collect();
    assert_eq!(data.is_empty(), is_inside, "{tool}: {data:?}");
    for part in ["text_encoder", "unet", "vae_decoder"] {
        let path: PathBuf = folder.join(format!("{part}.onnx"));
        let summary = inspect_onnx(&path).expect("an ONNX model");
        assert_eq!(summary.operators.contains_key("Attention"), has_attention, "{tool}: {part}");
        assert_eq!(
            summary.opsets.iter().collect::<Vec<_>>(),
            [(&"ai.onnx".to_owned(), &opset)],
            "{tool}: {part}"
        );
        assert!(!summary.operators.contains_key("GroupNormalization"), "{tool}: {part}");
        let sizes = summary.inputs.concat();
        assert_eq!(!sizes.contains("batch"), is_fixed, "{tool}: {part}: {sizes}");
        assert_eq!(summary.n_external_weights == 0, is_inside, "{tool}: {part}");
    }
    let finite = |tensor: &TensorProto| {
        let bytes = tensor.raw_data.as_deref().unwrap_or_default();
        tensor.data_type != 1
            || bytes.chunks(4).all(|b| f32::from_le_bytes(b.try_into().expect("four")).is_finite())
    };
    let is_finite = initializers(&folder.join("text_encoder.onnx")).iter().all(finite);
    assert_eq!(is_finite, has_attention || tool == "quantization", "{tool}");
}

#[test]
fn every_tool_gets_what_it_takes() {
    check_tool("openvino", true, 23, false, false);
    check_tool("tract", true, 23, true, false);
    check_tool("iree", false, 18, true, false);
    check_tool("mnn", false, 18, false, false);
    check_tool("pnnx", false, 18, false, true);
    check_tool("ort-web", true, 23, false, true);
    check_tool("quantization", false, 18, false, true);
}

#[test]
fn what_a_tool_does_not_take_is_refused_by_name() {
    let (checkpoint, work) = (tiny(), scratch());
    let checkpoint = checkpoint.path().display().to_string();
    let refuse = |tool: &str, option: &[&str]| {
        let args = ["trace", &checkpoint, "--out", "out", "--for", tool];
        let message = format!("error: for: {tool} does not take {}", option[..option.len().min(2)].join(" "));
        drop(fail(&mut kiln(&[&args[..], option].concat(), work.path()), 2, &message));
        assert!(!work.path().join("out").exists());
    };
    for tool in ["iree", "mnn", "pnnx", "quantization"] {
        refuse(tool, &["--attention", "fused"]);
        refuse(tool, &["--flavor", "onnxruntime"]);
    }
    for tool in ["iree", "tract", "mnn", "pnnx", "quantization"] {
        refuse(tool, &["--precision", "f16"]);
        refuse(tool, &["--storage", "f16"]);
    }
    for tool in ["pnnx", "ort-web", "quantization"] {
        refuse(tool, &["--weights", "beside"]);
    }
    for tool in ["iree", "pnnx", "quantization"] {
        refuse(tool, &["--opset", "23"]);
    }
    refuse("tract", &["--opset", "24"]);
    refuse("openvino", &["--flavor", "onnxruntime-cuda"]);
    let args = ["trace", &checkpoint, "--out", "out"];
    let sized = ["--for", "pnnx", "--height", "64", "--width", "64"];
    let message = "error: for: pnnx does not take --height and --width";
    drop(fail(&mut kiln(&[&args[..], &sized].concat(), work.path()), 2, message));
    let message = "error: opset: 18 has no Attention, which fused attention needs";
    drop(fail(&mut kiln(&[&args[..], &["--opset", "18"]].concat(), work.path()), 2, message));
    drop(fail(
        &mut kiln(&[&args[..], &["--opset", "25"]].concat(), work.path()),
        2,
        "[possible values: 17, 18, 23, 24]",
    ));
}

/// Gives tensors other shapes; their bytes are a hole in the file.
fn reshape(path: &Path, shape: impl Fn(&str, &mut Vec<u64>)) {
    let bytes = fs::read(path).expect("a file");
    let n_header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + n_header]).expect("JSON");
    let (mut start, tensors) = (0, header.as_object_mut().expect("an object"));
    for (name, entry) in tensors.iter_mut().filter(|(name, _)| *name != "__metadata__") {
        let mut sides: Vec<u64> = serde_json::from_value(entry["shape"].take()).expect("a shape");
        shape(name, &mut sides);
        let end = start + sides.iter().product::<u64>() * if entry["dtype"] == "F32" { 4 } else { 2 };
        entry["shape"] = sides.into();
        entry["data_offsets"] = vec![start, end].into();
        start = end;
    }
    let header = header.to_string().into_bytes();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).expect("a file");
    let file = fs::File::options().write(true).open(path).expect("a file");
    file.set_len(8 + header.len() as u64 + start).expect("a sparse file");
}

/// A text encoder of a million words of width 544, which 32-bit floats make larger than 2 GB.
#[test]
fn weights_that_no_message_holds_are_refused_before_anything_is_written() {
    let (checkpoint, work) = (tiny(), scratch());
    let at = |name: &str| checkpoint.path().join(name);
    edit_json(&at("text_encoder/config.json"), |config| {
        (config["vocab_size"], config["hidden_size"]) = ((1 << 20).into(), 544.into());
    });
    edit_json(&at("unet/config.json"), |config| config["cross_attention_dim"] = 544.into());
    reshape(&at("text_encoder/model.safetensors"), |name, sides| {
        sides.iter_mut().filter(|side| **side == 32).for_each(|side| *side = 544);
        if name.ends_with("token_embedding.weight") {
            sides[0] = 1 << 20;
        }
    });
    reshape(&at("unet/diffusion_pytorch_model.safetensors"), |name, sides| {
        if name.ends_with("attn2.to_k.weight") || name.ends_with("attn2.to_v.weight") {
            sides[1] = 544;
        }
    });
    let checkpoint = checkpoint.path().display().to_string();
    let args = ["trace", &checkpoint, "--out", "out", "--weights", "inside"];
    let output = fail(&mut kiln(&args, work.path()), 2, ": text_encoder.onnx would have 22");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains(" bytes with its weights inside, and ONNX files have at most 2147483647\n"),
        "{said}"
    );
    assert!(!work.path().join("out").exists());
}
