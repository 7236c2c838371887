//! Bodies of Hugging Face's inference API.
#![no_main]

use kiln_fuzz::server::post;
use kiln_fuzz::within_a_second;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| within_a_second(|| post("/hf/m", &[], body)));
