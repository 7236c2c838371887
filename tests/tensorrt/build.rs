//! Parsing and building.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use kiln_trt::{
    Builder, BuilderFlag, DataType, Layer, Port, ProfilingVerbosity, ProgressMonitor, TrtErrorKind,
};

use super::library::{RELEASES, Release, Stub};

fn port(name: &str, dtype: DataType, shape: [i64; 2]) -> Port {
    Port { name: name.into(), dtype, shape: shape.into() }
}

#[test]
fn a_network_is_parsed_and_told() {
    for release in RELEASES {
        let stub = Stub::new(release);
        assert_eq!(stub.library.release(), release.name());
        let builder = Builder::new(&stub.library).unwrap();
        let network = builder.parse(&stub.model("unet.onnx")).unwrap();
        assert_eq!(network.inputs().unwrap(), [port("x", DataType::F16, [-1, 7])]);
        assert_eq!(network.outputs().unwrap(), [port("y", DataType::F16, [-1, 14])]);
        let layer = |name: &str, kind: &str| Layer { name: name.into(), kind: kind.into() };
        let layers = [layer("/mid/Relu", "kACTIVATION"), layer("/mid/Attention/output", "kATTENTION_OUTPUT")];
        assert_eq!(network.layers().unwrap(), layers);
        let mut attentions = network.attentions().unwrap();
        assert_eq!(attentions[0].name, "/mid/Attention");
        assert!(attentions[0].is_decomposable().unwrap());
        attentions[0].set_decomposable(false).unwrap();
        assert!(!attentions[0].is_decomposable().unwrap());
        drop(attentions);
        drop((builder, network));
        let expected = "\
createInferBuilder_INTERNAL this version
new IBuilder#1
IBuilder#1.createNetworkV2(kSTRONGLY_TYPED)
new INetworkDefinition#1
createNvOnnxParser_INTERNAL INetworkDefinition#1 this version
new IParser#1
IParser#1.parseFromFile('unet.onnx', 2)
IAttention.setDecomposable(false)
delete IParser#1
delete INetworkDefinition#1
delete IBuilder#1
";
        assert_eq!(stub.log(), expected);
    }
}

#[test]
fn an_engine_is_built_as_configured() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let mut builder = Builder::new(&stub.library).unwrap();
        builder.set_max_threads(2).unwrap();
        let network = builder.parse(&stub.model("unet.onnx")).unwrap();
        let mut config = builder.config().unwrap();
        stub.log();
        config.set_flag(BuilderFlag::Tf32, false).unwrap();
        config.set_flag(BuilderFlag::Refit, true).unwrap();
        config.set_flag(BuilderFlag::StripPlan, true).unwrap();
        assert!(config.flag(BuilderFlag::StripPlan).unwrap());
        assert!(!config.flag(BuilderFlag::WeightStreaming).unwrap());
        config.set_workspace(1 << 20).unwrap();
        config.set_optimization_level(5).unwrap();
        config.set_profiling_verbosity(ProfilingVerbosity::Detailed).unwrap();
        let mut profile = builder.profile().unwrap();
        profile.set("x", &[1, 7], &[2, 7], &[4, 7]).unwrap();
        config.add_profile(&profile).unwrap();
        config.set_timing_cache(b"times").unwrap();
        let engine = builder.build(&network, &config).unwrap();
        assert_eq!(engine.as_bytes(), b"a plan");
        assert_eq!(config.timing_cache().unwrap().serialize().unwrap().as_bytes(), b"times and more");
        drop((builder, network, config, profile, engine));
        let expected = "\
IBuilderConfig#1.clearFlag(kTF32)
IBuilderConfig#1.setFlag(kREFIT)
IBuilderConfig#1.setFlag(kSTRIP_PLAN)
IBuilderConfig#1.getFlag(kSTRIP_PLAN)
IBuilderConfig#1.getFlag(kWEIGHT_STREAMING)
IBuilderConfig#1.setMemoryPoolLimit(kWORKSPACE, 1048576)
IBuilderConfig#1.setBuilderOptimizationLevel(5)
IBuilderConfig#1.setProfilingVerbosity(kDETAILED)
IBuilder#1.createOptimizationProfile()
new IOptimizationProfile#1
IOptimizationProfile#1.setDimensions('x', kMIN, [1, 7])
IOptimizationProfile#1.setDimensions('x', kOPT, [2, 7])
IOptimizationProfile#1.setDimensions('x', kMAX, [4, 7])
IOptimizationProfile#1.isValid()
IBuilderConfig#1.addOptimizationProfile(IOptimizationProfile#1)
IBuilderConfig#1.createTimingCache(times)
new ITimingCache#1
IBuilderConfig#1.setTimingCache(ITimingCache#1, false)
IBuilder#1.buildSerializedNetwork(INetworkDefinition#1, IBuilderConfig#1)
new IHostMemory#1
ITimingCache#1.serialize()
new IHostMemory#2
delete IHostMemory#2
delete IParser#1
delete INetworkDefinition#1
delete IBuilderConfig#1
delete ITimingCache#1
delete IBuilder#1
delete IOptimizationProfile#1
delete IHostMemory#1
";
        assert_eq!(stub.log(), expected);
    }
}

#[test]
fn tensorrt_rtx_builds_for_named_devices() {
    let stub = Stub::new(Release::Rtx);
    let builder = Builder::new(&stub.library).unwrap();
    let mut config = builder.config().unwrap();
    stub.log();
    config.set_compute_capabilities(&[[8, 9]]).unwrap();
    let expected = "\
IBuilderConfig#1.setNbComputeCapabilities(1)
IBuilderConfig#1.setComputeCapability(kSM89, 0)
";
    assert_eq!(stub.log(), expected);
}

#[test]
fn tensorrt_does_not_build_for_named_devices() {
    let stub = Stub::new(Release::Enterprise);
    let builder = Builder::new(&stub.library).unwrap();
    let error = builder.config().unwrap().set_compute_capabilities(&[[8, 9]]).unwrap_err();
    assert_eq!(error.kind(), TrtErrorKind::Unsupported);
    assert_eq!(error.to_string(), "TensorRT 11.4.0 has no BuilderConfig::setNbComputeCapabilities");
}

/// What a monitor was told, and after how many steps it stops the build.
struct Monitor {
    told: Mutex<Vec<String>>,
    stops_at: Option<&'static str>,
}

impl Monitor {
    fn tell(&self, what: String) {
        self.told.lock().unwrap().push(what);
    }
}

impl ProgressMonitor for Monitor {
    fn phase_start(&self, phase: &str, parent: Option<&str>, n_steps: usize) {
        self.tell(format!("start {phase} in {parent:?} of {n_steps}"));
    }

    fn step_complete(&self, phase: &str, step: usize) -> ControlFlow<()> {
        self.tell(format!("step {phase} {step}"));
        match self.stops_at {
            Some("panic") => panic!("the monitor is broken"),
            Some(stop) if stop == phase => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn phase_finish(&self, phase: &str) {
        self.tell(format!("finish {phase}"));
    }
}

#[test]
fn builds_tell_their_progress_and_can_be_stopped() {
    for release in RELEASES {
        for stops_at in [None, Some("Timing"), Some("panic")] {
            let stub = Stub::new(release);
            let builder = Builder::new(&stub.library).unwrap();
            let network = builder.parse(&stub.model("unet.onnx")).unwrap();
            let mut config = builder.config().unwrap();
            let monitor = Arc::new(Monitor { told: Mutex::default(), stops_at });
            config.set_progress_monitor(monitor.clone()).unwrap();
            let built = builder.build(&network, &config);
            let mut expected = vec![
                "start Building engine in None of 2",
                "start Timing in Some(\"Building engine\") of 1",
                "step Timing 0",
                "finish Timing",
                "finish Building engine",
            ];
            match stops_at {
                None => {
                    expected.insert(4, "step Building engine 0");
                    assert_eq!(built.unwrap().as_bytes(), b"a plan");
                }
                Some(_) => {
                    let error = built.unwrap_err();
                    assert_eq!(error.kind(), TrtErrorKind::Cancelled);
                    assert_eq!(error.to_string(), "the build was stopped: Build canceled by user");
                }
            }
            assert_eq!(*monitor.told.lock().unwrap(), expected);
            assert!(stub.log().contains("IBuilderConfig#1.setProgressMonitor(IProgressMonitor 1.0)\n"));
            drop(config);
            assert_eq!(Arc::strong_count(&monitor), 1);
        }
    }
}
