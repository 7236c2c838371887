//! Checkpoints, bundles and backends that tests share.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use kiln_compile::{Architecture, BuildOptions, Checkpoint, EngineCache, TraceOptions, synthesize};
use kiln_graph::ElementType;
use kiln_native::install;
use kiln_runtime::{Backend, Backends, Bundle, Device, Libraries, Pipeline, Runner, Target};
use serde_json::Value;
use tempfile::TempDir;

use super::references;

/// A folder of this test run, removed by the operating system's or cargo's cleaning.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}

/// ONNX Runtime, fetched if it is not on this machine yet.
pub(crate) fn onnxruntime() -> Arc<dyn Backend> {
    static BACKEND: LazyLock<Arc<dyn Backend>> = LazyLock::new(|| on_host(Runner::OnnxRuntime));
    BACKEND.clone()
}

/// Every backend that runs the CPU target.
pub(crate) fn backends() -> [Arc<dyn Backend>; 2] {
    [onnxruntime(), on_host(Runner::Rten)]
}

fn on_host(runner: Runner) -> Arc<dyn Backend> {
    let fetch = |library| Ok(install(library, &mut |_| {})?.path);
    let libraries = Libraries::new().from_environment().fetch_with(fetch);
    let backends = Backends::new(libraries).device(Device::Cpu).runner(runner);
    backends.open(Target::Cpu).expect("a backend").backend
}

/// diffusers' small random-weight pipeline, whose references lie beside it, with CLIP's vocabulary linked in.
pub(crate) fn sd15() -> PathBuf {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
        let folder = scratch();
        copy_folder(&references().join("sd15"), folder.path());
        copy_folder(&references().join("clip-tokenizer"), &folder.path().join("tokenizer"));
        folder
    });
    FOLDER.path().into()
}

/// A synthetic checkpoint to spoil.
pub(crate) fn tiny() -> TempDir {
    let folder = scratch();
    synthesize(Architecture::Tiny, ElementType::F16, 1, folder.path(), &mut |_, _| {}).expect("a checkpoint");
    folder
}

/// The bundle of a checkpoint under the given options.
#[track_caller]
pub(crate) fn bundle(checkpoint: &Path, options: &TraceOptions) -> Bundle {
    static CACHE: LazyLock<TempDir> = LazyLock::new(scratch);
    let checkpoint = Checkpoint::open(checkpoint).expect("a checkpoint");
    let options = BuildOptions::cpu(options.clone());
    EngineCache::new(CACHE.path()).compile(&checkpoint, &options, &mut |_| {}).expect("a bundle").bundle
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy_folder(&path, &target),
            false => drop(fs::copy(&path, &target).expect("a copy")),
        }
    }
}

pub(crate) fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).expect("JSON")).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("JSON");
}

/// A pipeline of a bundle, with nothing that a caller could add.
#[track_caller]
pub(crate) fn pipeline(bundle: Bundle, backend: Arc<dyn Backend>) -> Pipeline {
    Pipeline::builder(bundle).backend(backend).build().expect("a pipeline")
}
