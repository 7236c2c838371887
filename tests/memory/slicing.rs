//! Batches and large pictures are decoded in the memory of small ones.

use kiln_engine::heap;
use kiln_runtime::{Bundle, MemoryOptions, Offload, Pipeline, VaeTiling, Watch, process_memory};
use ndarray::ArrayD;

use super::{by_itself, open_small};
use crate::fixtures::{onnxruntime, pipeline};

/// Pixels on a side of the pictures that are compared.
const SIDE: usize = 256;

/// Most bytes on top of what the process holds already that decoding takes.
fn peak_of_decoding(pipeline: &mut Pipeline, batch: usize, side: usize) -> u64 {
    let info = pipeline.bundle().pipeline().expect("a pipeline").clone();
    let side = side / info.latents.scale_factor as usize;
    let shape = [batch, info.latents.channels as usize, side, side];
    let latents = ArrayD::from_shape_fn(shape.to_vec(), |i| ((i[2] * i[3] + i[0]) as f32).sin());
    heap::trim();
    assert!(process_memory::reset_peak(), "Linux");
    let before = process_memory::resident().expect("Linux");
    let images = pipeline.decode_latents(&latents, Watch::new()).expect("pictures");
    assert_eq!(images.len(), batch);
    process_memory::peak().expect("Linux") - before
}

fn bytes_of(batch: usize, side: usize) -> u64 {
    (batch * 3 * side * side) as u64
}

#[test]
fn thirty_two_pictures_take_what_one_takes() {
    by_itself("memory::slicing::a_batch_of_32");
}

#[test]
#[ignore = "runs in a process of its own"]
fn a_batch_of_32() {
    let mut pipeline = pipeline(open_small(), onnxruntime());
    pipeline.set_memory(MemoryOptions::default().offload(Offload::Model)).expect("options");
    // Which worker is first decides where buffers come to lie: one decode takes more than another.
    let singles = (0..16).map(|_| peak_of_decoding(&mut pipeline, 1, SIDE));
    let one = singles.max().expect("a decode");
    let many = peak_of_decoding(&mut pipeline, 32, SIDE);
    assert!(many <= one + one / 10 + bytes_of(32, SIDE), "{many} bytes for 32, {one} for one");
}

#[test]
fn a_large_picture_in_tiles_takes_what_a_small_one_takes() {
    by_itself("memory::slicing::four_times_the_side");
}

#[test]
#[ignore = "runs in a process of its own"]
fn four_times_the_side() {
    let mut pipeline = pipeline(open_small(), onnxruntime());
    let tiled = Some(VaeTiling::of(SIDE as u32));
    let memory = MemoryOptions::default().offload(Offload::Model).vae_tiling(tiled);
    pipeline.set_memory(memory).expect("options");
    peak_of_decoding(&mut pipeline, 1, SIDE);
    let small = peak_of_decoding(&mut pipeline, 1, SIDE);
    let large = peak_of_decoding(&mut pipeline, 1, 4 * SIDE);
    assert!(large <= small + small / 10 + beside_tiles(4 * SIDE), "{large} bytes in tiles, {small} for one");
}

/// The picture as floats and as bytes, and two of four rows of tiles, a third larger than their parts of the picture.
fn beside_tiles(side: usize) -> u64 {
    5 * bytes_of(1, side) + 4 * bytes_of(1, side) * 2 / 3
}

/// The same for the bundle that `KILN_BUNDLE` names, at 512 and 2048 pixels.
#[test]
#[ignore = "for bundles that take minutes"]
#[expect(clippy::print_stdout, reason = "whoever runs it wants the figures")]
fn of_another_bundle() {
    let path = std::env::var("KILN_BUNDLE").expect("KILN_BUNDLE names a bundle");
    let bundle = Bundle::open(path).expect("a bundle");
    let mut pipeline = pipeline(bundle, onnxruntime());
    let memory = MemoryOptions::default().offload(Offload::Model);
    pipeline.set_memory(memory).expect("options");
    let one = peak_of_decoding(&mut pipeline, 1, 512);
    let vae_tiling = Some(VaeTiling::of(512));
    pipeline.set_memory(memory.vae_tiling(vae_tiling)).expect("options");
    let tiled = peak_of_decoding(&mut pipeline, 1, 2048);
    println!("{one} bytes for one of 512x512, {tiled} for one of 2048x2048 in tiles of 512");
    assert!(tiled <= one + one / 10 + beside_tiles(2048));
    pipeline.set_memory(memory).expect("options");
    let many = peak_of_decoding(&mut pipeline, 32, 512);
    println!("{many} bytes for 32 of 512x512");
    assert!(many <= one + one / 10 + bytes_of(32, 512));
}
