//! Loading and running engines.

use std::ffi::c_void;

use kiln_trt::{
    AllocationStrategy, CudaStream, DataType, Engine, Port, ProfileShape, Runtime, SerializationFlag,
    SpecializationStrategy, TensorIoMode, TrtErrorKind,
};

use super::library::{RELEASES, Release, Stub};

pub(super) fn engine(stub: &Stub) -> Engine {
    let engine = Runtime::new(&stub.library).unwrap().deserialize(b"a plan").unwrap();
    stub.log();
    engine
}

/// Streams and addresses mean nothing to the stub.
pub(super) fn stream(number: usize) -> CudaStream {
    // SAFETY: the stub does not use the stream.
    unsafe { CudaStream::from_raw(address(number)) }
}

fn address(number: usize) -> *mut c_void {
    std::ptr::without_provenance_mut(number)
}

#[test]
fn an_engine_is_loaded_and_told() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let runtime = Runtime::new(&stub.library).unwrap();
        let engine = runtime.deserialize(b"a plan").unwrap();
        let facts = engine.facts().unwrap();
        assert_eq!((facts.n_layers, facts.n_profiles), (5, 2));
        let port = |name: &str, dtype, shape: [i64; 2]| Port { name: name.into(), dtype, shape: shape.into() };
        assert_eq!(facts.ports, [port("x", DataType::F16, [-1, 7]), port("y", DataType::I64, [-1, 14])]);
        assert_eq!(engine.io_mode("x").unwrap(), TensorIoMode::Input);
        assert!(engine.is_shape_inference_io("y").unwrap());
        let shape = |n: i64| vec![n, 7];
        let expected = ProfileShape { min: shape(1), opt: shape(2), max: shape(3) };
        assert_eq!(engine.profile_shape("x", 1).unwrap(), expected);
        assert_eq!(engine.device_memory_size(1).unwrap(), 1001);
        assert_eq!(engine.layers_json().unwrap(), "{\"Layers\": []}");
        let flags = [SerializationFlag::ExcludeWeights, SerializationFlag::IncludeRefit];
        assert_eq!(engine.serialize(&flags).unwrap().as_bytes(), b"a plan again");
        drop((runtime, engine));
        let expected = "\
createInferRuntime_INTERNAL this version
new IRuntime#1
IRuntime#1.deserializeCudaEngine(a plan)
new ICudaEngine#1
ICudaEngine#1.getTensorIOMode('x')
ICudaEngine#1.getTensorIOMode('y')
ICudaEngine#1.isShapeInferenceIO('y')
ICudaEngine#1.getProfileShape('x', 1, kMIN)
ICudaEngine#1.getProfileShape('x', 1, kOPT)
ICudaEngine#1.getProfileShape('x', 1, kMAX)
ICudaEngine#1.getDeviceMemorySizeForProfileV2(1)
ICudaEngine#1.createEngineInspector()
new IEngineInspector#1
IEngineInspector#1.getEngineInformation(kJSON)
delete IEngineInspector#1
ICudaEngine#1.createSerializationConfig()
new ISerializationConfig#1
ISerializationConfig#1.setFlags(kEXCLUDE_WEIGHTS kINCLUDE_REFIT)
ICudaEngine#1.serializeWithConfig(ISerializationConfig#1)
new IHostMemory#1
delete ISerializationConfig#1
delete IHostMemory#1
delete ICudaEngine#1
delete IRuntime#1
";
        assert_eq!(stub.log(), expected);
    }
}

#[test]
fn a_context_runs() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let engine = engine(&stub);
        let mut context = engine.create_context(AllocationStrategy::UserManaged).unwrap();
        drop(engine);
        context.set_profile(1, stream(256)).unwrap();
        assert_eq!(context.profile().unwrap(), Some(1));
        context.set_profile(0, CudaStream::DEFAULT).unwrap();
        context.set_input_shape("x", &[2, 7]).unwrap();
        context.infer_shapes().unwrap();
        assert_eq!(context.shape("y").unwrap(), [2, 14]);
        assert_eq!(context.update_device_memory_size().unwrap(), 3333);
        // SAFETY: the stub does not use addresses.
        unsafe {
            context.set_device_memory(address(512), 4096).unwrap();
            context.set_tensor_address("x", address(768)).unwrap();
            context.set_tensor_address("y", address(1024)).unwrap();
            context.enqueue(stream(256)).unwrap();
        }
        drop(context);
        let expected = "\
ICudaEngine#1.createExecutionContext(kUSER_MANAGED)
new IExecutionContext#1
IExecutionContext#1.setOptimizationProfileAsync(1, @256)
IExecutionContext#1.getOptimizationProfile()
IExecutionContext#1.setOptimizationProfileAsync(0, @0)
IExecutionContext#1.setInputShape('x', [2, 7])
IExecutionContext#1.inferShapes(2)
IExecutionContext#1.getTensorShape('y')
IExecutionContext#1.updateDeviceMemorySizeForShapes()
IExecutionContext#1.setDeviceMemoryV2(@512, 4096)
IExecutionContext#1.setTensorAddress('x', @768)
IExecutionContext#1.setTensorAddress('y', @1024)
IExecutionContext#1.enqueueV3(@256)
delete IExecutionContext#1
delete ICudaEngine#1
delete IRuntime#1
";
        assert_eq!(stub.log(), expected);
    }
}

#[test]
fn allocation_strategies_are_those_of_the_release() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let engine = engine(&stub);
        for (strategy, name) in [
            (AllocationStrategy::Static, "kSTATIC"),
            (AllocationStrategy::OnProfileChange, "kON_PROFILE_CHANGE"),
        ] {
            engine.create_context(strategy).unwrap();
            assert!(stub.log().starts_with(&format!("ICudaEngine#1.createExecutionContext({name})\n")));
        }
    }
}

#[test]
fn wrong_questions_are_errors() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let engine = engine(&stub);
        let mut context = engine.create_context(AllocationStrategy::Static).unwrap();
        let refused = |error: kiln_trt::TrtError, kind, text: &str| {
            assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
        };
        let argument = TrtErrorKind::Argument;
        refused(
            context.set_profile(2, CudaStream::DEFAULT).unwrap_err(),
            argument,
            "profile 2 of an engine with 2",
        );
        refused(engine.device_memory_size(7).unwrap_err(), argument, "profile 7 of an engine with 2");
        refused(engine.profile_shape("y", 0).unwrap_err(), argument, "'y' is not an input");
        refused(engine.io_mode("z").unwrap_err(), argument, "'z' is neither input nor output of the engine");
        refused(context.shape("z").unwrap_err(), TrtErrorKind::Execution, "the shape of 'z' is not known");
        let many = context.set_input_shape("x", &[1; 9]).unwrap_err();
        refused(many, argument, "input 'x': [1, 1, 1, 1, 1, 1, 1, 1, 1] are too many sizes");
        context.set_profile(1, CudaStream::DEFAULT).unwrap();
        refused(context.infer_shapes().unwrap_err(), argument, "inputs without sizes or addresses: x");
    }
}

#[test]
fn tensorrt_rtx_keeps_the_kernels_that_it_compiles() {
    let stub = Stub::new(Release::Rtx);
    let engine = engine(&stub);
    let mut config = engine.runtime_config().unwrap();
    config.set_allocation_strategy(AllocationStrategy::UserManaged).unwrap();
    for strategy in [SpecializationStrategy::Lazy, SpecializationStrategy::Eager, SpecializationStrategy::None]
    {
        config.set_specialization(strategy).unwrap();
    }
    let mut cache = config.create_cache().unwrap();
    assert!(cache.deserialize(b"kernels").unwrap());
    assert!(!cache.deserialize(b"of another device").unwrap());
    let context = engine.create_context_with(&config).unwrap();
    assert_eq!(cache.serialize().unwrap().as_bytes(), b"kernels");
    drop((engine, config, cache, context));
    let expected = "\
ICudaEngine#1.createRuntimeConfig()
new IRuntimeConfig#1
IRuntimeConfig#1.setExecutionContextAllocationStrategy(kUSER_MANAGED)
IRuntimeConfig#1.setDynamicShapesKernelSpecializationStrategy(kLAZY)
IRuntimeConfig#1.setDynamicShapesKernelSpecializationStrategy(kEAGER)
IRuntimeConfig#1.setDynamicShapesKernelSpecializationStrategy(kNONE)
IRuntimeConfig#1.createRuntimeCache()
new IRuntimeCache#1
IRuntimeConfig#1.setRuntimeCache(IRuntimeCache#1)
IRuntimeCache#1.deserialize(kernels)
IRuntimeCache#1.deserialize(of another device)
ICudaEngine#1.createExecutionContextWithRuntimeConfig(IRuntimeConfig#1)
new IExecutionContext#1
IRuntimeCache#1.serialize()
delete IRuntimeConfig#1
delete IRuntimeCache#1
delete IExecutionContext#1
delete ICudaEngine#1
delete IRuntime#1
";
    let found: String =
        stub.log().lines().filter(|line| !line.contains("IHostMemory")).map(|l| format!("{l}\n")).collect();
    assert_eq!(found, expected);
}

#[test]
fn tensorrt_rtx_tells_whether_a_run_can_be_captured() {
    let stub = Stub::new(Release::Rtx);
    let context = engine(&stub).create_context(AllocationStrategy::Static).unwrap();
    assert!(context.is_stream_capturable(stream(256)).unwrap());
    assert!(stub.log().ends_with("IExecutionContext#1.isStreamCapturable(@256)\n"));
}

#[test]
fn tensorrt_does_not_tell_whether_a_run_can_be_captured() {
    let stub = Stub::new(Release::Enterprise);
    let context = engine(&stub).create_context(AllocationStrategy::Static).unwrap();
    let error = context.is_stream_capturable(stream(256)).unwrap_err();
    assert_eq!(error.kind(), TrtErrorKind::Unsupported);
    assert_eq!(error.to_string(), "TensorRT 11.4.0 has no ExecutionContext::isStreamCapturable");
}
