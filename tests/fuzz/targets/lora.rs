//! Adapter files by their bytes.
#![no_main]

use kiln_fuzz::adapter;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| adapter::read(bytes));
