//! The autoencoder in tiles, beside diffusers'.

use kiln_runtime::image::RgbImage;
use kiln_runtime::{Init, MemoryOptions, Offload, Picture, Request, VaeTiling};

use super::open_small;
use crate::fixtures::{onnxruntime, pipeline};
use crate::support::References;

fn tiled() -> VaeTiling {
    VaeTiling::of(64)
}

fn picture(references: &References, name: &str) -> RgbImage {
    let (data, shape) = references.u8(name);
    RgbImage::from_raw(shape[1] as u32, shape[0] as u32, data).expect("a picture")
}

fn request() -> Request {
    let mut request = Request::new("a red circle and a blue square");
    (request.seeds, request.steps) = (vec![5], Some(4));
    (request.height, request.width) = (Some(112), Some(160));
    request
}

#[test]
fn tiles_are_decoded_and_encoded_as_in_diffusers() {
    let references = References::open("tiling.safetensors");
    let mut pipeline = pipeline(open_small(), onnxruntime());
    let mut check = |name: &str, request: &Request, memory: MemoryOptions| {
        pipeline.set_memory(memory).expect("options");
        let output = pipeline.generate(request).expect("a picture");
        let comparison = output.images[0].compare(&picture(&references, name)).expect("one size");
        assert!(comparison.max_difference <= 2, "{name}: {comparison:?}");
    };
    let tiled = MemoryOptions::default().vae_tiling(tiled());
    check("whole", &request(), MemoryOptions::default());
    check("text", &request(), tiled);
    check("text", &request(), tiled.offload(Offload::Sequential));
    let init = picture(&references, "init");
    let init = Picture::Rgb(init);
    let image = request().init(Init::new(init).strength(0.5));
    check("image", &image, tiled);
}

#[test]
fn tiles_leave_the_picture_close_and_without_seams() {
    let mut pipeline = pipeline(open_small(), onnxruntime());
    let mut draw = |vae_tiling| {
        pipeline.set_memory(MemoryOptions::default().vae_tiling(vae_tiling)).expect("options");
        let request = request().steps(20);
        pipeline.generate(&request).expect("a picture").images.swap_remove(0)
    };
    let (whole, in_tiles) = (draw(None), draw(Some(tiled())));
    let comparison = whole.compare(&in_tiles).expect("one size");
    assert!(comparison.psnr.is_some_and(|psnr| psnr >= 25.0), "{comparison:?}");
    let hard = draw(Some(tiled().overlap(0.0)));
    let (blended, cut) = (steepest_column(&in_tiles, &whole), steepest_column(&hard, &whole));
    assert!(blended < cut, "the steps at blended seams, {blended}, are smaller than at hard ones, {cut}");
}

/// Largest mean step from one column to the next in what tiling changed.
fn steepest_column(picture: &RgbImage, whole: &RgbImage) -> f64 {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let change = |x: usize, y: usize, c: usize| {
        let i = (y * width + x) * 3 + c;
        f64::from(picture.data()[i]) - f64::from(whole.data()[i])
    };
    let step = |x: usize| {
        let pixels = (0..height).flat_map(|y| (0..3).map(move |c| (y, c)));
        pixels.map(|(y, c)| (change(x + 1, y, c) - change(x, y, c)).abs()).sum::<f64>()
    };
    (0..width - 1).map(step).fold(0.0, f64::max) / (3 * height) as f64
}
