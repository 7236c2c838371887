//! What goes wrong with GPUs, as a user reads it.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{OnGpu, kiln_with_gpu};
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{scratch, tiny};

fn on(gpu: &OnGpu, more: &[&str]) -> Command {
    kiln_with_gpu(&gpu.draw("a.png", more), gpu.folder())
}

/// The command where the driver's library cannot be loaded, even if the machine has one.
fn without_driver(args: &[&str], folder: &Path) -> Command {
    for name in ["libcuda.so", "libcuda.so.1"] {
        fs::write(folder.join(name), "").expect("a file");
    }
    let mut command = kiln(args, folder);
    command.env("LD_LIBRARY_PATH", folder);
    command
}

#[test]
fn no_driver() {
    let gpu = OnGpu::new(false);
    let mut command = without_driver(&gpu.draw("a.png", &[]), gpu.folder());
    fail(command.env("KILN_CACHE_DIR", gpu.folder()), 4, "error: this machine has no NVIDIA driver\n");
}

#[test]
fn no_device() {
    let gpu = OnGpu::new(false);
    fail(on(&gpu, &[]).env("FAKE_CUDA_DEVICES", "0"), 4, "error: this machine has no NVIDIA GPU\n");
    fail(&mut on(&gpu, &["--device", "cuda:3"]), 4, "cuda:3");
}

#[test]
fn an_old_driver() {
    let gpu = OnGpu::new(false);
    let said = "the NVIDIA driver supports CUDA up to 12.4, and TensorRT-RTX 1.7.1 needs 13.0\n";
    fail(on(&gpu, &[]).env("FAKE_CUDA_VERSION", "12040"), 4, said);
}

#[test]
fn an_engine_for_another_device() {
    let gpu = OnGpu::with(false, |_, plan| fake_tensorrt::Plan { capability: 120, ..plan });
    let output = fail(&mut on(&gpu, &[]), 3, "it was not built for this device's compute capability\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("hint: kiln compile"));
}

#[test]
fn an_engine_of_another_release() {
    let gpu = OnGpu::with(false, |_, plan| fake_tensorrt::Plan { release: "1.6".into(), ..plan });
    fail(&mut on(&gpu, &[]), 3, "it was built by another release\n");
}

#[test]
fn an_engine_that_nobody_vouches_for() {
    let gpu = OnGpu::new(false);
    fs::remove_file(gpu.bundle.path("bundle.seal")).expect("a seal");
    fail(&mut on(&gpu, &[]), 3, "seal");
}

#[test]
fn a_device_that_is_lost() {
    let gpu = OnGpu::new(false);
    let output = fail(on(&gpu, &[]).env("FAKE_CUDA_LOST_AFTER", "9"), 1, "unspecified launch failure");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
    assert!(!gpu.folder().join("a.png").exists());
}

#[test]
fn devices_and_bundles_that_do_not_fit() {
    let gpu = OnGpu::new(false);
    fail(&mut on(&gpu, &["--device", "cpu"]), 2, "the engines are for tensorrt-rtx, which run on a GPU");
    fail(&mut on(&gpu, &["--backend", "rten"]), 2, "backend: rten runs on the processor alone");
    let said = "backend: onnxruntime does not run engines for tensorrt-rtx";
    fail(&mut on(&gpu, &["--backend", "onnxruntime"]), 2, said);
    let cpu = super::on_cpu(false).to_str().expect("a path of text");
    let args = ["generate", "x", "--model", cpu, "--device", "cuda:0"];
    fail(&mut kiln_with_gpu(&args, gpu.folder()), 2, "the engines are for cpu, which run on the processor");
    let args = ["generate", "x", "--device", "gpu"];
    fail(&mut kiln_with_gpu(&args, gpu.folder()), 2, "expected auto, cpu, cuda or cuda:N");
    let lora = on(&gpu, &["--lora", "none.safetensors"]).output().expect("kiln runs");
    assert_eq!(lora.status.code(), Some(3));
}

#[test]
fn a_gpu_that_a_checkpoint_is_not_drawn_on_is_told_of_in_one_line() {
    let (work, model) = (scratch(), tiny());
    let model = model.path().display().to_string();
    let draw = |more: &[&str], variables: &[(&str, &str)]| {
        let args = ["generate", "x", "--model", &model, "--steps", "1", "--out", "a.png"];
        let mut command = kiln_with_gpu(&[&args[..], more].concat(), work.path());
        // Without pip, and so without ONNX Runtime, which is not in the folder for downloads.
        command.env("PATH", "").env_remove("KILN_ONNXRUNTIME").envs(variables.iter().copied());
        let output = command.output().expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said.lines().filter(|line| line.starts_with("using ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let said = |lines: &[String], reason: &str| {
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0], format!("using the processor: {reason}"));
        assert!(lines[1].starts_with("using the built-in backend rten: "), "{lines:?}");
    };
    let old = "TensorRT-RTX 1.7.1 needs compute capability 7.5, and the device has 7.0";
    said(&draw(&[], &[("FAKE_CUDA_CAPABILITY", "70")]), old);
    let driver = "the NVIDIA driver supports CUDA up to 12.4, and TensorRT-RTX 1.7.1 needs 13.0";
    said(&draw(&[], &[("FAKE_CUDA_VERSION", "12040")]), driver);
    assert_eq!(draw(&[], &[("FAKE_CUDA_DEVICES", "0")]).len(), 1, "a machine without a GPU has none to miss");
    assert_eq!(draw(&["--device", "cpu"], &[]).len(), 1, "nor has who asks for the processor");
    assert_eq!(draw(&["--backend", "rten"], &[]), Vec::<String>::new());
}

#[test]
fn sizes_that_no_profile_has() {
    let gpu = OnGpu::with(false, |_, plan| fake_tensorrt::Plan { most: 7, ..plan });
    let said = "and the engine was built for";
    let output = fail(&mut on(&gpu, &["--width", "64", "--height", "64"]), 2, said);
    assert!(String::from_utf8_lossy(&output.stderr).contains("[1..7, 4, 1..7, 1..7]"), "{output:?}");
}

#[test]
fn devices_are_listed_with_what_runs_where() {
    let work = scratch();
    let list = |variables: &[(&str, &str)]| {
        let mut command = kiln_with_gpu(&["devices"], work.path());
        command.envs(variables.iter().copied());
        succeed(&mut command)
    };
    let said = list(&[("FAKE_CUDA_MEMORY", "2000000000")]);
    let expected = "cuda:0   Fake GPU, 2.00 GB of memory, 2.00 GB free, compute capability 8.9, driver for CUDA up to 13.0\n";
    assert!(said.contains(expected), "{said}");
    assert!(said.contains("tensorrt-rtx: runs"), "{said}");
    let said = succeed(&mut kiln_with_gpu(&["devices", "--check"], work.path()));
    assert!(said.contains("from pinned memory") && said.contains("e-7 off"), "{said}");
    let said = list(&[("FAKE_CUDA_CAPABILITY", "70"), ("FAKE_CUDA_DEVICES", "2")]);
    let expected = "does not run: TensorRT-RTX 1.7.1 needs compute capability 7.5, and the device has 7.0";
    assert_eq!(said.matches(expected).count(), 2, "{said}");
    let said = succeed(&mut without_driver(&["devices"], work.path()));
    assert!(said.contains("cuda     none: this machine has no NVIDIA driver"), "{said}");
}
