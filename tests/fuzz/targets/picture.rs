//! Pictures of every format.
#![no_main]

use kiln_fuzz::within_a_second;
use kiln_runtime::Size;
use kiln_runtime::image::RgbImage;
use libfuzzer_sys::fuzz_target;

/// Most pixels of a picture that is resized: a few bytes may stand for millions, whose sum takes its time.
const MAX_RESIZED: u64 = 1 << 16;

fuzz_target!(|bytes: &[u8]| within_a_second(|| {
    let Ok(picture) = RgbImage::from_bytes(bytes) else { return };
    let n_pixels = u64::from(picture.width()) * u64::from(picture.height());
    assert_eq!(picture.data().len() as u64, 3 * n_pixels);
    if n_pixels < MAX_RESIZED {
        assert_eq!(picture.resized(Size::square(8)).to_planes().dim(), (3, 8, 8));
    }
}));
