//! Weights of loaded engines.

use std::ffi::c_void;

use kiln_trt::{
    CudaStream, DataType, Runtime, SeekPosition, StreamReader, TrtErrorKind, Weights, WeightsPrototype,
};

use super::library::{RELEASES, Release, Stub};
use super::run::{engine, stream};

/// Reads from memory; fails after so many bytes.
struct Reader {
    bytes: &'static [u8],
    at: usize,
    asked: Vec<String>,
    is_broken: bool,
}

// SAFETY: reads write as many bytes as they say, of static memory.
unsafe impl StreamReader for Reader {
    fn read(&mut self, destination: *mut c_void, n_bytes: usize, stream: CudaStream) -> Option<usize> {
        self.asked.push(format!("read {n_bytes} on {}", stream.as_raw().addr()));
        let rest = &self.bytes[self.at..];
        let n = rest.len().min(n_bytes);
        // SAFETY: there is room for `n_bytes`.
        unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), destination.cast(), n) }
        self.at += n;
        (!self.is_broken).then_some(n)
    }

    fn seek(&mut self, position: SeekPosition) -> bool {
        self.asked.push(format!("seek {position:?}"));
        match position {
            SeekPosition::Set(offset) => self.at = offset as usize,
            SeekPosition::Current(offset) => self.at = self.at.saturating_add_signed(offset as isize),
            SeekPosition::End(_) => return false,
        }
        true
    }
}

#[test]
fn tensorrt_rtx_unloads_and_loads_weights() {
    let stub = Stub::new(Release::Rtx);
    let mut runtime = Runtime::new(&stub.library).unwrap();
    runtime.set_deferred_weights_loading(true).unwrap();
    assert!(runtime.deferred_weights_loading().unwrap());
    let engine = runtime.deserialize(b"a plan").unwrap();
    stub.log();
    assert!(!engine.are_weights_loaded().unwrap());
    engine.load_weights(b"a plan").unwrap();
    assert!(engine.are_weights_loaded().unwrap());
    engine.unload_weights().unwrap();
    assert!(!engine.are_weights_loaded().unwrap());
    let mut reader = Reader { bytes: b"0123456789", at: 0, asked: Vec::new(), is_broken: false };
    // SAFETY: nothing runs.
    unsafe { engine.load_weights_async(&mut reader, stream(256)) }.unwrap();
    let asked = ["seek Set(2)", "seek Current(-1)", "seek End(5)", "read 4 on 256", "read 9 on 256"];
    assert_eq!(reader.asked, asked);
    let expected = "\
ICudaEngine#1.areWeightsLoaded()
ICudaEngine#1.loadWeights(a plan)
ICudaEngine#1.areWeightsLoaded()
ICudaEngine#1.unloadWeights()
ICudaEngine#1.areWeightsLoaded()
ICudaEngine#1.loadWeightsAsync(IStreamReaderV2 1.0, @256)
stream true 4 5 '123456789'
";
    assert_eq!(stub.log(), expected);

    reader.is_broken = true;
    // SAFETY: nothing runs.
    let error = unsafe { engine.load_weights_async(&mut reader, stream(256)) }.unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (TrtErrorKind::Engine, "cannot load the weights".into()));
}

#[test]
fn other_releases_name_what_they_lack() {
    let stub = Stub::new(Release::Enterprise);
    let engine = engine(&stub);
    let mut reader = Reader { bytes: b"", at: 0, asked: Vec::new(), is_broken: false };
    // SAFETY: nothing runs.
    let loaded = unsafe { engine.load_weights_async(&mut reader, CudaStream::DEFAULT) };
    let mut runtime = Runtime::new(&stub.library).unwrap();
    let refused = [
        (engine.are_weights_loaded().map(drop), "CudaEngine::areWeightsLoaded"),
        (engine.load_weights(b"a plan"), "CudaEngine::loadWeights"),
        (engine.unload_weights(), "CudaEngine::unloadWeights"),
        (loaded, "CudaEngine::loadWeightsAsync"),
        (runtime.set_deferred_weights_loading(true), "Runtime::setDeferredWeightsLoading"),
    ];
    for (result, method) in refused {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), TrtErrorKind::Unsupported);
        assert_eq!(error.to_string(), format!("TensorRT 11.4.0 has no {method}"));
    }
}

#[test]
fn weights_stream_within_a_budget() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let engine = engine(&stub);
        assert_eq!(engine.streamable_weights_size().unwrap(), 500);
        assert_eq!(engine.automatic_weight_streaming_budget().unwrap(), 300);
        engine.set_weight_streaming_budget(200).unwrap();
        assert_eq!(engine.weight_streaming_budget().unwrap(), 200);
        assert_eq!(engine.weight_streaming_scratch_size().unwrap(), 64);
        let expected = "\
ICudaEngine#1.getStreamableWeightsSize()
ICudaEngine#1.getWeightStreamingAutomaticBudget()
ICudaEngine#1.setWeightStreamingBudgetV2(200)
ICudaEngine#1.getWeightStreamingBudgetV2()
ICudaEngine#1.getWeightStreamingScratchMemorySize()
";
        assert_eq!(stub.log(), expected);
    }
}

#[test]
fn an_engine_is_refitted() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let engine = engine(&stub);
        assert!(engine.is_refittable().unwrap());
        let values: Vec<u16> = vec![1, 2, 515];
        // SAFETY: all bits of integers are bytes.
        let bytes = unsafe { values.align_to::<u8>() }.1;
        let weights = Weights { dtype: DataType::F16, bytes };
        let mut refitter = engine.refitter().unwrap();
        assert_eq!(refitter.all_weights().unwrap(), ["down.weight", "down.bias"]);
        let prototype = Some(WeightsPrototype { dtype: DataType::F16, count: 3 });
        assert_eq!(refitter.prototype("down.weight").unwrap(), prototype);
        assert_eq!(refitter.prototype("up.weight").unwrap(), None);
        refitter.set_weights("down.weight", weights).unwrap();
        assert_eq!(refitter.missing_weights().unwrap(), ["down.bias"]);
        let error = refitter.refit().unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (TrtErrorKind::Engine, "cannot refit the engine".into()));
        refitter.set_weights("down.bias", weights).unwrap();
        refitter.refit().unwrap();
        refitter.unset_weights("down.bias").unwrap();
        // SAFETY: the stub does nothing on the stream.
        unsafe { refitter.refit_async(stream(256)) }.unwrap();
        drop(engine);
        drop(refitter);
        let expected = "\
ICudaEngine#1.isRefittable()
createInferRefitter_INTERNAL ICudaEngine#1 this version
new IRefitter#1
IRefitter#1.getWeightsPrototype('down.weight')
IRefitter#1.getWeightsPrototype('up.weight')
IRefitter#1.setNamedWeights('down.weight', kHALF, 3, 515)
IRefitter#1.refitCudaEngine()
IRefitter#1.setNamedWeights('down.bias', kHALF, 3, 515)
IRefitter#1.refitCudaEngine()
IRefitter#1.unsetNamedWeights('down.bias')
IRefitter#1.refitCudaEngineAsync(@256)
delete IRefitter#1
delete ICudaEngine#1
delete IRuntime#1
";
        assert_eq!(stub.log(), expected);
    }
}

#[test]
fn weights_that_are_no_elements_do_not_reach_tensorrt() {
    let stub = Stub::new(Release::Enterprise);
    let engine = engine(&stub);
    let values: Vec<u32> = vec![1, 2];
    // SAFETY: all bits of integers are bytes.
    let bytes = unsafe { values.align_to::<u8>() }.1;
    let mut refitter = engine.refitter().unwrap();
    stub.log();
    for (dtype, bytes) in [(DataType::F32, &bytes[1..5]), (DataType::F32, &bytes[..6])] {
        let error = refitter.set_weights("down.weight", Weights { dtype, bytes }).unwrap_err();
        assert_eq!(error.kind(), TrtErrorKind::Argument);
        let expected = "weights 'down.weight': length or address does not fit elements of 4 bytes";
        assert_eq!(error.to_string(), expected);
    }
    assert!(refitter.set_weights("down.weight", Weights { dtype: DataType::I4, bytes }).is_err());
    assert_eq!(stub.log(), "");
}
