//! Bodies of the web UIs' API, behind a line that names the path. Those that resize are not asked: a few bytes may want
//! millions of pixels.
#![no_main]

use kiln_fuzz::server::post_to;
use kiln_fuzz::within_a_second;
use libfuzzer_sys::fuzz_target;

const PATHS: [&str; 4] = ["/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/options", "/sdapi/v1/png-info"];

fuzz_target!(|input: &[u8]| within_a_second(|| post_to(&PATHS, &[], input)));
