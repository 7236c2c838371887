//! Memory comes back: after pictures, swaps, cancelled runs, errors and dropped pipelines.

use std::ops::ControlFlow;

use kiln_engine::heap;
use kiln_runtime::{Error, Event, MemoryOptions, Offload, Placement, Request, Watch, process_memory};

use super::{by_itself, open_small};
use crate::fixtures::{onnxruntime, pipeline};

/// What a process may keep of bookkeeping that grows to its final size, and what the C library does not give back of the
/// heaps of threads that load engines.
const SLACK: u64 = 8 << 20;

fn resident() -> u64 {
    heap::trim();
    process_memory::resident().expect("Linux")
}

fn request() -> Request {
    Request::new("a red circle").steps(2)
}

#[track_caller]
fn assert_back(what: &str, before: u64) {
    let now = resident();
    assert!(now <= before + SLACK, "{what}: {before} bytes became {now}");
}

#[test]
fn pictures_do_not_add_up() {
    by_itself("memory::growth::a_hundred_pictures");
}

#[test]
#[ignore = "runs in a process of its own"]
fn a_hundred_pictures() {
    let mut pipeline = pipeline(open_small(), onnxruntime());
    let mut draw = || drop(pipeline.generate(&request()).expect("a picture"));
    (0..5).for_each(|_| draw());
    let before = resident();
    (0..100).for_each(|_| draw());
    assert_back("a hundred pictures", before);
}

#[test]
fn swaps_do_not_add_up() {
    by_itself("memory::growth::ten_swaps");
}

#[test]
#[ignore = "runs in a process of its own"]
fn ten_swaps() {
    let mut pipeline = pipeline(open_small(), onnxruntime());
    let mut swap = || {
        for (offload, placement) in [
            (Offload::None, Placement::Packed),
            (Offload::Model, Placement::Mapped),
            (Offload::Sequential, Placement::Mapped),
        ] {
            let memory = MemoryOptions::default().offload(offload).placement(placement);
            pipeline.set_memory(memory).expect("options");
            pipeline.generate(&request()).expect("a picture");
        }
        pipeline.release();
    };
    (0..2).for_each(|_| swap());
    let before = resident();
    (0..10).for_each(|_| swap());
    assert_back("ten swaps of all engines", before);
}

#[test]
fn what_ends_early_leaves_nothing() {
    by_itself("memory::growth::ending_early");
}

#[test]
#[ignore = "runs in a process of its own"]
fn ending_early() {
    let open = || pipeline(open_small(), onnxruntime());
    for _ in 0..2 {
        let mut pipeline = open();
        pipeline.generate(&request()).expect("a picture");
    }
    let before = resident();
    for offload in [Offload::None, Offload::Model, Offload::Sequential] {
        let memory = MemoryOptions::default().offload(offload);
        let mut pipeline = open();
        pipeline.set_memory(memory).expect("options");
        let mut held = 0;
        let mut watch = |event| match event {
            Event::Step { .. } => {
                held = process_memory::resident().expect("Linux");
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        };
        let cancelled = pipeline.generate_with(&request(), Watch::new().on_event(&mut watch));
        assert!(matches!(cancelled, Err(Error::Cancelled { step: 1, .. })), "{cancelled:?}");
        match offload {
            Offload::None => {
                assert!(held > before + (20 << 20), "the engines of {held} bytes are loaded, from {before}");
                pipeline.release();
                assert_back("released", before);
            }
            _ => assert_back(&format!("cancelled under {offload:?}"), before),
        }
        let huge = request().guidance_scale(f32::MAX).eta(1.0);
        let failed = pipeline.generate(&huge);
        assert!(matches!(failed, Err(Error::NotFinite { .. })), "{failed:?}");
        drop(pipeline);
        assert_back("a failed pipeline was dropped", before);
    }
}
