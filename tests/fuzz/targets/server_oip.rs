//! Requests of the Open Inference Protocol: the first line is the number of bytes that are JSON, if it is not empty.
#![no_main]

use kiln_fuzz::server::{first_line, post};
use kiln_fuzz::within_a_second;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| within_a_second(|| {
    let (length, body) = first_line(input);
    let header = [("inference-header-content-length", length)];
    post("/v2/models/m/infer", if length.is_empty() { &[] } else { &header }, body);
}));
