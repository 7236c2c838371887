//! Forms, whose boundary is the input's first line.
#![no_main]

use kiln_fuzz::server::{first_line, post};
use kiln_fuzz::within_a_second;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| within_a_second(|| {
    let (boundary, body) = first_line(input);
    let kind = format!("multipart/form-data; boundary={boundary}");
    for path in ["/v1/images/edits", "/hf"] {
        post(path, &[("host", "m"), ("content-type", &kind)], body);
    }
}));
