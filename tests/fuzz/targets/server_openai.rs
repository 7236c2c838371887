//! Bodies of OpenAI's images API as JSON, behind a line that names the path.
#![no_main]

use kiln_fuzz::server::post_to;
use kiln_fuzz::within_a_second;
use libfuzzer_sys::fuzz_target;

const PATHS: [&str; 3] = ["/v1/images/generations", "/v1/images/edits", "/v1/images/variations"];

fuzz_target!(|input: &[u8]| within_a_second(|| post_to(&PATHS, &[("host", "m")], input)));
