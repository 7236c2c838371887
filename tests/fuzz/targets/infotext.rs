//! How a picture was made: texts of PNG files, and what they say.
#![no_main]

use kiln_fuzz::within_a_second;
use kiln_runtime::image::png_texts;
use kiln_runtime::infotext;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| within_a_second(|| {
    for (_, text) in png_texts(bytes).unwrap_or_default() {
        infotext::parse(&text);
    }
    infotext::parse(&String::from_utf8_lossy(bytes));
}));
