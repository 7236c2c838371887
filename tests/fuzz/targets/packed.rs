//! Packed bundles: any bytes, and any bytes as the archive inside.
#![no_main]

use std::fs;
use std::path::Path;

use kiln_bundle::unpack;
use kiln_fuzz::within_a_second;
use libfuzzer_sys::fuzz_target;

fn unpacked(bytes: &[u8], folder: &Path) {
    let _ = unpack(&kiln_fuzz::file("packed.kiln", bytes), folder).map(|bundle| bundle.verify());
    let _ = fs::remove_dir_all(folder);
}

fuzz_target!(|bytes: &[u8]| within_a_second(|| {
    let folder = kiln_fuzz::folder().join("unpacked");
    unpacked(bytes, &folder);
    unpacked(&zstd::encode_all(bytes, 1).expect("an archive"), &folder);
}));
