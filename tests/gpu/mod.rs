//! Engines on a GPU, against a fake driver, a fake TensorRT-RTX and a fake ONNX Runtime that compute on the processor.

mod cuda;
mod errors;
mod kernels;
mod pictures;
mod residency;
mod tensorrt;
mod threads;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use fake_tensorrt::Plan;
use kiln_bundle::{ComponentName, FileEntry, SealKey, Target};
use kiln_compile::{BuildOptions, Checkpoint, EngineCache, TraceOptions};
use kiln_graph::{Cuts, EmitPolicy};
use kiln_nets::Sizes;
use kiln_runtime::Bundle;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::cli::{kiln, succeed};
use crate::fixtures::{copy_folder, onnxruntime, scratch};
use crate::support::references;
use crate::tensorrt::compile;

/// Where the fake libraries lie: those of CUDA's driver, of TensorRT-RTX and of ONNX Runtime.
fn libraries() -> &'static Path {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
        let folder = scratch();
        let source = references().with_file_name("gpu").join("fake/driver.cpp");
        let kernels = references().join("../../crates/kiln-cuda/src/kernels.cu");
        let digest = Sha256::digest(fs::read(&kernels).expect("kernels"));
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        compile(&[
            "-O1",
            "-Wl,-soname,libcuda.so.1",
            &format!("-DKERNELS=\"{}\"", kernels.display()),
            &format!("-DKERNELS_DIGEST=\"{digest}\""),
            "-o",
            &folder.path().join("libcuda.so.1").display().to_string(),
            &source.display().to_string(),
        ]);
        let program = std::env::current_exe().expect("this binary");
        let fakes = [
            ("libfake_tensorrt.so", "libtensorrt_rtx.so.1"),
            ("libfake_tensorrt.so", "libnvinfer.so.11"),
            ("libfake_onnxruntime.so", "libonnxruntime.so.1.31.1"),
        ];
        for (built, name) in fakes {
            fs::copy(program.with_file_name(built), folder.path().join(name)).expect("a fake library");
        }
        fs::write(folder.path().join("libonnxruntime_providers_cuda.so"), "").expect("a file");
        folder
    });
    FOLDER.path()
}

/// The command on a machine with a fake GPU; engines and keys are in the folder.
fn kiln_with_gpu(args: &[&str], folder: &Path) -> Command {
    let mut command = kiln(args, folder);
    command
        .env("LD_LIBRARY_PATH", libraries())
        .env("KILN_TENSORRT_RTX", libraries().join("libtensorrt_rtx.so.1"))
        .env("KILN_ONNXRUNTIME_CUDA", libraries().join("libonnxruntime.so.1.31.1"))
        .env("KILN_CACHE_DIR", folder)
        .env("FAKE_CUDA_REPORT", folder.join("report.json"));
    command
}

/// What the fake driver counted in the last process.
#[track_caller]
fn report(folder: &Path) -> Value {
    let bytes = fs::read(folder.join("report.json")).expect("a report");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// The small model for the CPU, each component in one engine or in segments of a megabyte.
fn on_cpu(segmented: bool) -> &'static Path {
    static WHOLE: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| compiled(1 << 30));
    static SEGMENTED: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| compiled(1 << 20));
    if segmented { &SEGMENTED.1 } else { &WHOLE.1 }
}

/// Engines of a GPU have no segment for what both halves of a guided batch share.
fn compiled(segment_bytes: u64) -> (TempDir, PathBuf) {
    onnxruntime();
    let work = scratch();
    let checkpoint = Checkpoint::open(&references().join("../../models/shapes")).expect("a checkpoint");
    let policy = EmitPolicy { cuts: Cuts::Every(segment_bytes), ..EmitPolicy::default() };
    let mut options = BuildOptions::cpu(TraceOptions::for_bundle(policy, Sizes::Dynamic));
    options.trace.policy.prompts.clear();
    let cache = EngineCache::new(work.path().join("engines"));
    let compiled = cache.compile(&checkpoint, &options, &mut |_| {}).expect("a bundle");
    (work, compiled.bundle.root().to_owned())
}

/// A folder with a bundle of the small model whose engines the fake TensorRT-RTX runs, sealed by the key in the folder.
struct OnGpu {
    work: TempDir,
    bundle: Bundle,
}

impl OnGpu {
    fn new(segmented: bool) -> OnGpu {
        OnGpu::with(segmented, |_, plan| plan)
    }

    /// With plans that are changed before they are written.
    fn with(segmented: bool, change: impl Fn(ComponentName, Plan) -> Plan) -> OnGpu {
        OnGpu::of(Target::TensorrtRtx, segmented, change)
    }

    /// Of one of NVIDIA's two products.
    fn of(target: Target, segmented: bool, change: impl Fn(ComponentName, Plan) -> Plan) -> OnGpu {
        let work = scratch();
        let source = Bundle::open(on_cpu(segmented)).expect("a bundle");
        let root = work.path().join("bundle");
        copy_folder(source.root(), &root);
        let mut manifest = source.manifest().clone();
        manifest.target = target;
        for (role, component) in &mut manifest.components {
            for segment in &mut component.segments {
                let plan = change(*role, Plan::new(&source.path(&segment.engine)));
                let bytes = plan.to_bytes(segment.weight_bytes);
                manifest.files.remove(&segment.engine);
                segment.engine = format!("{}.engine", segment.engine.trim_end_matches(".onnx"));
                fs::write(root.join(&segment.engine), &bytes).expect("an engine");
                let blake3 = blake3::hash(&bytes).to_hex().to_string();
                manifest.files.insert(segment.engine.clone(), FileEntry { size: bytes.len() as u64, blake3 });
            }
            component.weights = None;
        }
        fs::write(root.join("bundle.yaml"), manifest.to_yaml()).expect("a manifest");
        let bundle = Bundle::open(&root).expect("a bundle");
        let key = SealKey::open(&work.path().join(SealKey::FILE)).expect("a key");
        bundle.seal(&key).expect("a seal");
        OnGpu { work, bundle }
    }

    fn folder(&self) -> &Path {
        self.work.path()
    }

    /// Arguments that draw a picture with it, or with another bundle.
    fn draw<'a>(&'a self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let bundle = self.bundle.root().to_str().expect("a path of text");
        [&draw(bundle, out)[..], steps(more), more].concat()
    }

    /// Draws a picture on the GPU.
    #[track_caller]
    fn generate(&self, out: &str, more: &[&str]) -> Value {
        let args = self.draw(out, more);
        succeed(&mut kiln_with_gpu(&args, self.folder()));
        report(self.folder())
    }

    /// Draws the same picture on the CPU with the same arithmetic, and tells how close another is.
    #[track_caller]
    fn compare_to_cpu(&self, segmented: bool, picture: &str, more: &[&str]) -> Value {
        let bundle = on_cpu(segmented).to_str().expect("a path of text");
        let args = [&draw(bundle, "cpu.png")[..], &["--backend", "rten"], steps(more), more].concat();
        succeed(&mut kiln(&args, self.folder()));
        let args = ["compare", picture, "cpu.png", "--json"];
        serde_json::from_str(&succeed(&mut kiln(&args, self.folder()))).expect("JSON")
    }
}

/// Few steps, unless they are given.
fn steps(more: &[&str]) -> &'static [&'static str] {
    if more.contains(&"--steps") { &[] } else { &["--steps", "4"] }
}

fn draw<'a>(bundle: &'a str, out: &'a str) -> Vec<&'a str> {
    vec!["generate", "a red circle", "--model", bundle, "--seed", "1", "--out", out]
}
