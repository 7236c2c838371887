//! Several pipelines on one GPU at the same time.
#![expect(unsafe_code, reason = "a library is loaded")]

use std::sync::Arc;
use std::thread;

use kiln_bundle::SealKey;
use kiln_runtime::{
    Backend, Backends, Libraries, Library, MemoryOptions, Offload, Pipeline, Request, Size, Target,
};

use super::{OnGpu, libraries};

/// The fake GPU in this process, whose driver is found by name once it is loaded.
fn backend() -> Arc<dyn Backend> {
    // SAFETY: the fake driver's initialisers have no preconditions.
    let library = unsafe { libloading::Library::new(libraries().join("libcuda.so.1")) };
    std::mem::forget(library.expect("the fake driver"));
    let fakes = Libraries::new().with_path(Library::TensorrtRtx, libraries().join("libtensorrt_rtx.so.1"));
    Backends::new(fakes).open(Target::TensorrtRtx).expect("the fake TensorRT-RTX").backend
}

#[test]
fn pipelines_share_a_gpu() {
    let gpu = OnGpu::new(false);
    let cache = kiln_native::cache_dir().expect("a cache folder");
    let key = SealKey::open(&cache.join(SealKey::FILE)).expect("a key");
    gpu.bundle.seal(&key).expect("a seal");
    let backend = backend();
    let draw = &|seed: u64, offload: Offload, side: u32| {
        let builder = Pipeline::builder(gpu.bundle.clone()).backend(backend.clone()).seal_key(key.clone());
        let mut pipeline = builder.build().expect("a pipeline");
        pipeline.set_memory(MemoryOptions::default().offload(offload)).expect("options");
        let request = Request::new("a red circle").seeds(vec![seed]).steps(5).size(Size::new(side, side));
        pipeline.generate(&request).expect("a picture").latents
    };
    let cases =
        [(1, Offload::None, 64), (2, Offload::Model, 96), (3, Offload::None, 48), (4, Offload::Model, 64)];
    let alone = cases.map(|(seed, offload, side)| draw(seed, offload, side));
    for _ in 0..3 {
        let together = thread::scope(|scope| {
            let threads = cases.map(|(seed, offload, side)| scope.spawn(move || draw(seed, offload, side)));
            threads.map(|thread| thread.join().expect("a picture"))
        });
        assert!(alone == together);
    }
}
