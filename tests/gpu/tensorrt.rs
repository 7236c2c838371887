//! TensorRT, whose weights stream where they do not fit.

use std::fs;
use std::process::Command;

use kiln_bundle::Target;
use serde_json::Value;

use super::{OnGpu, kiln_with_gpu, libraries, report};
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::scratch;
use crate::support::references;

fn gpu() -> OnGpu {
    OnGpu::of(Target::Tensorrt, false, |_, plan| plan)
}

fn command(gpu: &OnGpu, args: &[&str]) -> Command {
    let mut command = kiln_with_gpu(args, gpu.folder());
    command.env("FAKE_TENSORRT", "11").env("KILN_TENSORRT", libraries().join("libnvinfer.so.11"));
    command
}

#[track_caller]
fn generate(gpu: &OnGpu, out: &str, more: &[&str]) -> Value {
    succeed(&mut command(gpu, &gpu.draw(out, more)));
    report(gpu.folder())
}

#[test]
fn a_picture_is_that_of_the_cpu() {
    let gpu = gpu();
    let report = generate(&gpu, "gpu.png", &[]);
    let found = gpu.compare_to_cpu(false, "gpu.png", &[]);
    assert!(found["max_difference"].as_u64().is_some_and(|most| most <= 1), "{found}");
    assert_eq!(report["used"], 0, "{report}");
}

#[test]
fn weights_stream_within_what_may_stay() {
    let gpu = gpu();
    let peak = |out: &str, more: &[&str]| generate(&gpu, out, more)["peak"].as_u64().expect("bytes");
    let none = peak("none.png", &[]);
    let model = peak("model.png", &["--offload", "model"]);
    let kept = peak("kept.png", &["--offload", "sequential", "--keep", "8MiB"]);
    let sequential = peak("sequential.png", &["--offload", "sequential"]);
    assert!(none > model && model > kept && kept > sequential, "{none}, {model}, {kept}, {sequential}");
    let difference = (kept - sequential) as f64 / f64::from(8 << 20);
    assert!((0.9..1.1).contains(&difference), "{kept} and {sequential}");
    let bytes = |name: &str| fs::read(gpu.folder().join(name)).expect("a picture");
    for other in ["model.png", "kept.png", "sequential.png"] {
        assert!(bytes(other) == bytes("none.png"), "{other}");
    }
}

#[test]
fn the_library_is_named_and_not_fetched() {
    let gpu = gpu();
    let mut unnamed = kiln_with_gpu(&gpu.draw("a.png", &[]), gpu.folder());
    let output = fail(&mut unnamed, 4, "TensorRT 11: has no wheel for linux");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("hint: name a library with KILN_TENSORRT"), "{said}");
    let listed = succeed(&mut kiln_with_gpu(&["devices"], gpu.folder()));
    let said = "tensorrt: does not run: TensorRT 11 is not found; KILN_TENSORRT names it";
    assert!(listed.contains(said), "{listed}");
    let (model, work) = (references().join("../../models/shapes"), scratch());
    let args = ["compile", &model.display().to_string(), "--target", "tensorrt"];
    fail(&mut kiln(&args, work.path()), 4, "TensorRT 11: has no wheel for linux");
}
