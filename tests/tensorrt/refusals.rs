//! Failing methods, and releases that are not known.

use std::path::{Path, PathBuf};

use kiln_trt::{AllocationStrategy, Builder, CudaStream, Library, Runtime, TrtError, TrtErrorKind};
use tempfile::TempDir;

use super::library::{RELEASES, Stub, compile};
use super::run::engine;

#[track_caller]
fn failed(error: TrtError, kind: TrtErrorKind, what: &str, method: &str) {
    assert_eq!(error.kind(), kind);
    assert_eq!(error.node(), Some("/stub/Node"));
    let expected = format!(
        "node '/stub/Node': {what}: IStub::{method}: Error Code 4: Internal Error (/stub/Node: told to fail)"
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_build_that_fails_tells_the_logged_reason() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let builder = Builder::new(&stub.library).unwrap();
        stub.fail("createNetworkV2");
        let error = builder.parse(&stub.model("unet.onnx")).unwrap_err();
        failed(error, TrtErrorKind::Build, "cannot make a network", "createNetworkV2");
        let network = builder.parse(&stub.model("unet.onnx")).unwrap();
        let config = builder.config().unwrap();
        stub.fail("buildSerializedNetwork");
        let error = builder.build(&network, &config).unwrap_err();
        failed(error, TrtErrorKind::Build, "cannot build the engine", "buildSerializedNetwork");
        assert!(builder.build(&network, &config).is_ok());
    }
}

#[test]
fn a_model_that_is_refused_names_its_node() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let builder = Builder::new(&stub.library).unwrap();
        let path = stub.model("broken.onnx");
        let error = builder.parse(&path).unwrap_err();
        assert_eq!((error.kind(), error.node()), (TrtErrorKind::Parse, Some("/mid/Frobnicate")));
        let expected =
            format!("node '/mid/Frobnicate': {}: Frobnicate: Frobnicate is unheard of", path.display());
        assert_eq!(error.to_string(), expected);
        let log = stub.log();
        assert!(log.ends_with("delete IParser#1\ndelete INetworkDefinition#1\n"), "{log}");
    }
}

#[test]
fn a_run_that_fails_tells_the_logged_reason() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let runtime = Runtime::new(&stub.library).unwrap();
        stub.fail("deserializeCudaEngine");
        let error = runtime.deserialize(b"a plan").unwrap_err();
        failed(error, TrtErrorKind::Engine, "cannot load the engine", "deserializeCudaEngine");
        let engine = engine(&stub);
        stub.fail("createExecutionContext");
        let error = engine.create_context(AllocationStrategy::Static).unwrap_err();
        failed(error, TrtErrorKind::Execution, "cannot make a context", "createExecutionContext");
        let mut context = engine.create_context(AllocationStrategy::Static).unwrap();
        stub.fail("setOptimizationProfileAsync");
        let error = context.set_profile(1, CudaStream::DEFAULT).unwrap_err();
        failed(error, TrtErrorKind::Execution, "cannot select profile 1", "setOptimizationProfileAsync");
        stub.fail("setInputShape");
        let error = context.set_input_shape("x", &[9, 7]).unwrap_err();
        failed(error, TrtErrorKind::Execution, "input 'x' cannot have sizes [9, 7]", "setInputShape");
        stub.fail("inferShapes");
        failed(
            context.infer_shapes().unwrap_err(),
            TrtErrorKind::Execution,
            "cannot infer shapes",
            "inferShapes",
        );
        stub.fail("updateDeviceMemorySizeForShapes");
        let error = context.update_device_memory_size().unwrap_err();
        let what = "the device memory's size is not known";
        failed(error, TrtErrorKind::Execution, what, "updateDeviceMemorySizeForShapes");
        stub.fail("setDeviceMemoryV2");
        // SAFETY: the stub does not use addresses.
        let error = unsafe { context.set_device_memory(std::ptr::null_mut(), 0) }.unwrap_err();
        failed(error, TrtErrorKind::Execution, "cannot use the device memory", "setDeviceMemoryV2");
        stub.fail("enqueueV3");
        // SAFETY: the stub runs nothing.
        let error = unsafe { context.enqueue(CudaStream::DEFAULT) }.unwrap_err();
        failed(error, TrtErrorKind::Execution, "cannot run the engine", "enqueueV3");
        stub.fail("refitCudaEngine");
        let error = engine.refitter().unwrap().refit().unwrap_err();
        failed(error, TrtErrorKind::Engine, "cannot refit the engine", "refitCudaEngine");
        stub.fail("setWeightStreamingBudgetV2");
        let error = engine.set_weight_streaming_budget(1).unwrap_err();
        let what = "cannot set a weight streaming budget of 1 bytes";
        failed(error, TrtErrorKind::Engine, what, "setWeightStreamingBudgetV2");
    }
}

/// A library that says a version and has nothing else.
fn versioned(name: &str, [major, minor, patch]: [u32; 3]) -> (PathBuf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("version.cpp");
    let text = format!(
        "extern \"C\" int getInferLibMajorVersion() {{ return {major}; }}\n\
         extern \"C\" int getInferLibMinorVersion() {{ return {minor}; }}\n\
         extern \"C\" int getInferLibPatchVersion() {{ return {patch}; }}\n"
    );
    std::fs::write(&source, text).unwrap();
    let file = folder.path().join(name);
    compile(&["-o", &file.display().to_string(), &source.display().to_string()]);
    (file, folder)
}

fn refusal(path: &Path) -> String {
    let error = Library::open(path).unwrap_err();
    assert_eq!(error.kind(), TrtErrorKind::Library);
    error.to_string()
}

#[test]
fn releases_that_are_not_known_are_refused_in_a_line() {
    let known = [
        ("libnvinfer.so.12", [12, 0, 1], "TensorRT 12.0.1", "10.14 and later, 11.x"),
        ("libnvinfer.so.10", [10, 13, 3], "TensorRT 10.13.3", "10.14 and later, 11.x"),
        ("libtensorrt_rtx.so.1", [1, 8, 0], "TensorRT-RTX 1.8.0", "1.6, 1.7"),
    ];
    for (name, version, release, supported) in known {
        let (file, _folder) = versioned(name, version);
        let expected = format!("{}: {release} is not supported; supported: {supported}", file.display());
        assert_eq!(refusal(&file), expected);
    }
}

#[test]
fn a_later_minor_version_of_tensorrt_11_is_taken_as_the_newest_that_is_known() {
    let (file, _folder) = versioned("libnvinfer.so.11", [11, 9, 0]);
    assert_eq!(Library::open(&file).unwrap().release(), "TensorRT 11.9.0");
}

#[test]
fn a_file_that_is_no_library_is_refused_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libnvinfer.so");
    std::fs::write(&path, "text").unwrap();
    let reason = refusal(&path);
    assert!(reason.starts_with(&path.display().to_string()) && !reason.contains('\n'), "{reason}");
}
