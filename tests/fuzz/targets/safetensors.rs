#![no_main]

use kiln_bundle::TensorFile;
use kiln_fuzz::within_a_second;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| within_a_second(|| {
    let Ok(file) = TensorFile::from_bytes("file", bytes) else { return };
    for name in file.tensors().keys() {
        let _ = (file.read_f32(name), file.read_number(name), file.read_bytes(name));
    }
    file.prefetch(file.tensors().keys().map(String::as_str));
}));
