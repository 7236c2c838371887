//! ONNX Runtime's CUDA provider, against one that is the processor's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_native::{Library, locate};
use serde_json::Value;
use tempfile::TempDir;

use super::{draw, kiln_with_gpu, libraries, on_cpu, report};
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{onnxruntime, scratch};
use crate::lora;
use crate::support::references;

/// The small model for the CUDA provider, in 32-bit floats, which the processor has all kernels for.
struct Cuda {
    work: TempDir,
    bundle: PathBuf,
}

impl Cuda {
    fn new(more: &[&str]) -> Cuda {
        Cuda::of(&[&["--precision", "f32"], more].concat())
    }

    /// From arguments of the compiler.
    fn of(more: &[&str]) -> Cuda {
        Cuda::of_model(&references().join("../../models/shapes"), more)
    }

    fn of_model(model: &Path, more: &[&str]) -> Cuda {
        onnxruntime();
        let (model, work) = (model.display().to_string(), scratch());
        let args = ["compile", &model, "--target", "cuda"];
        let bundle = succeed(&mut kiln(&[&args, more].concat(), work.path()));
        Cuda { bundle: PathBuf::from(bundle.trim()), work }
    }

    /// From a specification of the target.
    fn specified(target: &str) -> Cuda {
        let folder = scratch();
        let (model, spec) = (references().join("../../models/shapes"), folder.path().join("spec.yaml"));
        let text = format!(
            "checkpoint: {}\ntargets:\n  cuda: {{precision: {{compute: f32}}, {target}}}\n",
            model.display()
        );
        fs::write(&spec, text).expect("a specification");
        let work = scratch();
        let args = ["compile", &spec.display().to_string()];
        let bundle = succeed(&mut kiln(&args, work.path()));
        Cuda { bundle: PathBuf::from(bundle.trim()), work }
    }

    fn folder(&self) -> &Path {
        self.work.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let real = locate(Library::OnnxRuntimeCpu).expect("ONNX Runtime").expect("ONNX Runtime");
        let mut command = kiln_with_gpu(args, self.folder());
        // What it makes where it was not told is in memory that the driver does not know.
        command
            .env("FAKE_CUDA_FOREIGN", "1")
            .env("FAKE_ONNXRUNTIME", real.path)
            .env("FAKE_ONNXRUNTIME_REPORT", self.folder().join("ort.jsonl"));
        command
    }

    fn draw<'a>(&'a self, out: &'a str, more: &[&'a str]) -> Command {
        let bundle = self.bundle.to_str().expect("a path of text");
        let steps: &[&str] = if more.contains(&"--steps") { &[] } else { &["--steps", "4"] };
        self.command(&[&draw(bundle, out)[..], steps, more].concat())
    }

    /// Draws a picture; what the provider was asked for.
    #[track_caller]
    fn generate(&self, out: &str, more: &[&str]) -> Vec<Value> {
        let lines = self.folder().join("ort.jsonl");
        fs::write(&lines, "").expect("a file");
        succeed(&mut self.draw(out, more));
        let lines = fs::read_to_string(&lines).expect("a report");
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn bytes(&self, picture: &str) -> Vec<u8> {
        fs::read(self.folder().join(picture)).expect("a picture")
    }
}

/// Checks that a picture is that of the processor.
#[track_caller]
fn check(cuda: &Cuda, more: &[&str]) -> Vec<Value> {
    let asked = cuda.generate("gpu.png", more);
    let bundle = on_cpu(false).to_str().expect("a path of text");
    succeed(&mut kiln(&[&draw(bundle, "cpu.png")[..], &["--steps", "4"], more].concat(), cuda.folder()));
    succeed(&mut kiln(&["compare", "gpu.png", "cpu.png", "--max-difference", "1"], cuda.folder()));
    asked
}

#[test]
fn a_picture_is_that_of_the_cpu_and_the_provider_is_tuned() {
    let asked = check(&Cuda::new(&[]), &[]);
    let provider = asked.iter().rev().find(|line| line["provider"].is_object()).expect("a provider");
    let expected = [
        ("cudnn_conv_algo_search", "EXHAUSTIVE"),
        ("use_tf32", "true"),
        ("has_user_compute_stream", "1"),
        ("device_id", "0"),
    ];
    for (key, value) in expected {
        assert_eq!(provider["provider"][key], value, "{key}");
    }
}

#[test]
fn a_specification_turns_what_is_tuned_off() {
    let plain = Cuda::specified("channels_last: false, tf32: false, optimization_level: 0");
    let asked = check(&plain, &["--scheduler", "euler-a"]);
    let provider = asked.iter().rev().find(|line| line["provider"].is_object()).expect("a provider");
    for (key, value) in [("cudnn_conv_algo_search", "HEURISTIC"), ("use_tf32", "false")] {
        assert_eq!(provider["provider"][key], value, "{key}");
    }
}

#[test]
fn the_unet_is_recorded_and_latents_stay_on_the_device() {
    let cuda = Cuda::new(&[]);
    let number = |report: &Value, key: &str| report[key].as_u64().expect("a number");
    let of = |steps: &str| {
        let asked = cuda.generate("a.png", &["--steps", steps]);
        let report = report(cuda.folder());
        (asked.len(), number(&report, "graphs"), number(&report, "from_device"))
    };
    let ((calls, few, less), (more_calls, many, more)) = (of("5"), of("11"));
    assert_eq!((few, many), (2, 8), "runs of the UNet after the third");
    // A flag of four bytes per step says whether its prediction was finite.
    assert_eq!(more - less, 6 * 4, "bytes that were copied from the device");
    assert_eq!(calls, more_calls, "calls of ONNX Runtime, which more steps do not take");
}

#[test]
fn a_warmed_up_run_starts_with_what_was_recorded() {
    let cuda = Cuda::new(&[]);
    cuda.generate("cold.png", &[]);
    cuda.generate("warm.png", &["--warm-up", "3"]);
    assert_eq!(report(cuda.folder())["graphs"], 4, "runs of the UNet after the third");
    assert!(cuda.bytes("warm.png") == cuda.bytes("cold.png"), "another picture");
}

#[test]
fn offload_draws_the_same_picture() {
    let cuda = Cuda::new(&["--segment-size", "1MiB"]);
    cuda.generate("none.png", &[]);
    for offload in ["model", "sequential"] {
        let asked = cuda.generate("other.png", &["--offload", offload]);
        let provider = asked.iter().rev().find(|line| line["provider"].is_object()).expect("a provider");
        assert_eq!(provider["provider"]["cudnn_conv_algo_search"], "HEURISTIC", "what is dropped soon");
        assert!(cuda.bytes("other.png") == cuda.bytes("none.png"), "{offload} offload draws another picture");
        let left = report(cuda.folder());
        assert_eq!(left["used"], 0, "{offload}: {left}");
    }
}

#[test]
fn half_precision_is_the_default_and_close() {
    let cuda = Cuda::of(&[]);
    cuda.generate("gpu.png", &[]);
    let bundle = on_cpu(false).to_str().expect("a path of text");
    succeed(&mut kiln(&[&draw(bundle, "cpu.png")[..], &["--steps", "4"]].concat(), cuda.folder()));
    succeed(&mut kiln(&["compare", "gpu.png", "cpu.png", "--min-psnr", "45"], cuda.folder()));
}

#[test]
fn loras_change_its_weights_when_it_is_loaded() {
    let case = lora::Case::new("kohya");
    let cuda = Cuda::of_model(&case.checkpoint, &["--precision", "f32"]);
    let (lora, model) = (case.path().display().to_string(), case.checkpoint.display().to_string());
    let more = ["--lora", &lora, "--height", "64", "--width", "64"];
    cuda.generate("gpu.png", &more);
    cuda.generate("plain.png", &more[2..]);
    succeed(&mut kiln(&[&draw(&model, "cpu.png")[..], &["--steps", "4"], &more].concat(), cuda.folder()));
    succeed(&mut kiln(&["compare", "gpu.png", "cpu.png", "--max-difference", "1"], cuda.folder()));
    assert!(cuda.bytes("gpu.png") != cuda.bytes("plain.png"), "the LoRA changes nothing");
}

#[test]
fn every_rung_of_the_ladder_is_climbed() {
    let cuda = Cuda::new(&[]);
    let model = references().join("../../models/shapes").display().to_string();
    let device = ["--device", "cuda:0", "--backend", "onnxruntime"];
    let few = ["--steps", "2", "--rounds", "1", "--speed-only", "--json", "--out", "ladder"];
    let args = [&["bench", "ladder", &model][..], &device, &few].concat();
    let found: Value = serde_json::from_str(&succeed(&mut cuda.command(&args))).expect("JSON");
    let names: Vec<&str> =
        found["rungs"].as_array().expect("rungs").iter().filter_map(|rung| rung["rung"].as_str()).collect();
    let steps = ["fp32", "autotuned convolutions", "TF32", "fp16", "channels last"];
    assert_eq!(names, [&steps[..], &["memory-efficient attention", "CUDA graph"]].concat());
    assert_eq!(found["device"], "Fake GPU");
}

#[test]
fn components_are_those_of_the_cpu() {
    let cuda = Cuda::new(&[]);
    let (bundle, cpu) = (cuda.bundle.display().to_string(), on_cpu(false).display().to_string());
    let said = succeed(&mut cuda.command(&["verify", &bundle, "--against", &cpu]));
    assert_eq!(said.lines().filter(|line| line.contains("drift")).count(), 4, "{said}");
}

#[test]
fn a_checkpoint_is_compiled_for_the_provider_that_is_asked_for() {
    let cuda = Cuda::new(&[]);
    let model = references().join("../../models/shapes").display().to_string();
    let plan = |backend| ["plan", &model, "--device", "cuda:0", "--backend", backend];
    fail(&mut cuda.command(&plan("rten")), 2, "backend: rten runs on the processor alone");
}

#[test]
fn what_is_missing_is_named() {
    let cuda = Cuda::new(&[]);
    let cpu = "the engines are for cuda, which run on a GPU";
    fail(&mut cuda.draw("a.png", &["--device", "cpu"]), 2, cpu);
    fail(cuda.draw("a.png", &[]).env("FAKE_CUDA_DEVICES", "0"), 4, "error: this machine has no NVIDIA GPU\n");
    let said = "and ONNX Runtime for CUDA 1.31.1 needs 13.0\n";
    fail(cuda.draw("a.png", &[]).env("FAKE_CUDA_VERSION", "12040"), 4, said);
    let alone = scratch();
    let library = alone.path().join("libonnxruntime.so.1.31.1");
    fs::copy(libraries().join("libonnxruntime.so.1.31.1"), &library).expect("a library");
    let said = "has no libonnxruntime_providers_cuda.so beside it";
    fail(cuda.draw("a.png", &[]).env("KILN_ONNXRUNTIME_CUDA", &library), 4, said);
    let text = succeed(&mut cuda.command(&["devices"]));
    assert!(text.contains("cuda: runs; library: "), "{text}");
}

#[test]
fn failures_are_what_they_mean() {
    let cuda = Cuda::new(&[]);
    let failing = |reason: &str| {
        let mut command = cuda.draw("a.png", &[]);
        command.env("FAKE_ONNXRUNTIME_FAILURE", reason);
        command
    };
    let full = "bfc_arena.cc:359 Failed to allocate memory for requested buffer of size 1048576";
    let output = fail(&mut failing(full), 7, "cuda:0 has not enough memory left: ");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("hint: --offload model"), "{said}");
    let said = "Non-zero status code returned while running Conv node";
    fail(&mut failing(said), 1, &format!("text_encoder.onnx: {said}\n"));
    fail(cuda.draw("a.png", &[]).env("FAKE_CUDA_LOST_AFTER", "9"), 1, "unspecified launch failure");
    assert!(!cuda.folder().join("a.png").exists());
}
