//! TensorRT-RTX engines, really built; no GPU is needed until they run.

use kiln_bundle::stable_diffusion::{TEXT_ENCODER, UNET};
use std::path::Path;
use std::process::Command;

use kiln_bundle::{Bundle, Target};
use kiln_native::{Library, install, locate};
use serde_json::Value;

use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{scratch, tiny};
use crate::support::references;

/// TensorRT-RTX, fetched if it is not on this machine yet.
fn toolkit() {
    let library = Library::TensorrtRtx;
    if locate(library).expect("KILN_TENSORRT_RTX names a library").is_none() {
        install(library, &mut |_| {}).expect("pip fetches TensorRT-RTX for the tests");
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn the_small_model_becomes_engines_with_fused_attention() {
    toolkit();
    let work = scratch();
    let model = references().join("../../models/shapes").display().to_string();
    let args = ["compile", &model, "--target", "tensorrt-rtx", "--compute-capability", "8.9", "--json"];
    let compile = |more: &[&str]| {
        let printed = succeed(&mut kiln(&[&args[..], more].concat(), work.path()));
        serde_json::from_str::<Value>(&printed).expect("JSON")["bundles"][0].take()
    };
    let report = compile(&[]);
    assert_eq!(report["cached"], false);
    let bundle = Bundle::open(report["bundle"].as_str().expect("a path")).expect("a bundle");
    let manifest = bundle.manifest();
    assert_eq!(
        (manifest.target, manifest.provenance.toolkit.as_deref()),
        (Target::TensorrtRtx, Some("TensorRT-RTX 1.7.1"))
    );
    for (role, n_attentions) in [(TEXT_ENCODER, 2), (UNET, 14)] {
        let component = bundle.component(role).expect("a component");
        assert_eq!(
            (component.attention().fused, component.attention().decomposed),
            (n_attentions, 0),
            "{role}"
        );
    }
    for (role, component) in &manifest.components {
        let engine = std::fs::metadata(bundle.path(&component.segments[0].engine)).expect("an engine").len();
        assert!(
            engine > component.weight_bytes,
            "{role}: {engine} bytes hold {} of weights",
            component.weight_bytes
        );
        assert_eq!((component.precision.as_str(), &component.weights), ("f16", &None), "{role}");
    }
    assert_eq!(compile(&[])["cached"], true);
    let why = compile(&["--why", "--precision", "f16"]);
    assert!(why["parts"].as_array().expect("parts").iter().all(|part| part["cached"] == true), "{why}");

    let shown = succeed(&mut kiln(&["cache", "show", "unet"], work.path()));
    assert!(shown.contains("toolkit: TensorRT-RTX 1.7.1") && shown.contains("held up to"), "{shown}");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn segments_become_engines_that_pass_tensors_on() {
    let work = scratch();
    toolkit();
    let model = references().join("../../models/shapes").display().to_string();
    let args = ["compile", &model, "--target", "tensorrt-rtx", "--segment-size", "4MiB"];
    let root = succeed(&mut kiln(&args, work.path()));
    let bundle = Bundle::open(Path::new(root.trim())).expect("a bundle");
    let unet = bundle.component(UNET).expect("a UNet");
    assert!(unet.segments.len() > 2, "{:?}", unet.segments.len());
    for (segment, next) in unet.segments.iter().zip(&unet.segments[1..]) {
        assert!(bundle.path(&segment.engine).is_file() && segment.weight_bytes <= 4 << 20);
        assert!(segment.makes.iter().any(|name| next.reads.contains(name)), "{segment:?}");
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn engines_are_built_on_another_machine_than_the_one_that_traced() {
    toolkit();
    let (here, there) = (scratch(), scratch());
    let model = references().join("../../models/shapes").display().to_string();
    let traced = succeed(&mut kiln(&["compile", &model, "--target", "onnx"], here.path()));
    let packed = there.path().join("traced.kiln").display().to_string();
    succeed(&mut kiln(&["bundle", "pack", traced.trim(), "--out", &packed], here.path()));

    succeed(&mut kiln(&["bundle", "unpack", "traced.kiln", "--out", "traced"], there.path()));
    let build = ["compile", "traced", "--target", "tensorrt-rtx", "--compute-capability", "8.9"];
    let plan = succeed(&mut kiln(&[&build[..], &["--dry-run"]].concat(), there.path()));
    assert_eq!(plan.matches("to build: there is none like it").count(), 4, "{plan}");
    let bundle = succeed(&mut kiln(&build, there.path()));
    assert_eq!(succeed(&mut kiln(&build, there.path())), bundle);
    let bundle = Bundle::open(bundle.trim()).expect("a bundle");
    assert_eq!(bundle.manifest().target, Target::TensorrtRtx);
    assert_eq!(bundle.component(UNET).expect("a UNet").attention().fused, 14);
    assert_eq!(bundle.pipeline().expect("a pipeline").size.width, 64);

    let refused = |more: &[&str], code, message| {
        fail(&mut kiln(&[&["compile", "traced"][..], more].concat(), there.path()), code, message);
    };
    refused(&[], 2, "a bundle can only be compiled with --target tensorrt-rtx");
    refused(
        &["--target", "tensorrt-rtx", "--precision", "f32"],
        2,
        "--precision: a bundle of ONNX was decided",
    );
    let built = bundle.root().display().to_string();
    fail(
        &mut kiln(&["compile", &built, "--target", "tensorrt-rtx"], there.path()),
        3,
        "is a bundle for tensorrt-rtx",
    );
    fail(
        &mut kiln(&["generate", "x", "--model", "traced"], there.path()),
        3,
        "for onnx: engines are built from it",
    );
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn what_the_builder_refuses_is_told_in_one_line() {
    toolkit();
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let rtx = ["compile", &model, "--target", "tensorrt-rtx"];
    let refused = |more: &[&str], code, message| {
        let output = fail(&mut kiln(&[&rtx[..], more].concat(), work.path()), code, message);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.lines().filter(|line| line.starts_with("error: ")).count() == 1, "{stderr}");
    };
    refused(&["--attention", "plain"], 3, "of its attentions would not be fused");
    refused(&[], 1, "hint: TensorRT has no fused kernel for an attention of this size and type");
    refused(&["--compute-capability", "1.0"], 1, "TensorRT-RTX 1.7.1 has no ComputeCapability::kSM10");
    let mut broken = kiln(&rtx, work.path());
    broken.env("KILN_TENSORRT_RTX", env!("CARGO_BIN_EXE_kiln"));
    let output = broken.output().expect("kiln runs");
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let left = work.path().join("engines/entries");
    let left: Vec<_> = std::fs::read_dir(left).expect("entries").map(|e| e.expect("an entry").path()).collect();
    assert!(left.iter().all(|path| path.extension().is_some_and(|ending| ending == "lock")), "{left:?}");
}

#[test]
fn the_builders_process_answers_for_what_it_is_given() {
    let work = scratch();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"));
    child.args(["work", "build-engine"]).stdin(std::process::Stdio::null()).current_dir(work.path());
    fail(&mut child, 2, "standard input: ");
}
