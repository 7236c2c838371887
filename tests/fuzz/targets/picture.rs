//! Pictures of every format.
#![no_main]

use kiln_runtime::Size;
use kiln_runtime::image::RgbImage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(picture) = RgbImage::from_bytes(bytes) else { return };
    assert_eq!(picture.data().len() as u64, 3 * u64::from(picture.width()) * u64::from(picture.height()));
    let small = picture.resized(Size::square(8));
    assert_eq!(small.to_planes().dim(), (3, 8, 8));
});
