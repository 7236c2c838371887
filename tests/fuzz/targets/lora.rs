//! Adapter files by their bytes.
#![no_main]

use kiln_fuzz::{adapter, within_a_second};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| within_a_second(|| adapter::read(bytes)));
