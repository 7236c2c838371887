//! Single files in the layout of the models' own training code: keys and shapes; the weights are a hole in the file.
#![no_main]

use kiln_compile::{Checkpoint, ControlNetCheckpoint, Original, inspect_checkpoint, inspect_original};
use kiln_fuzz::within_a_second;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| within_a_second(|| {
    let Some((header, n_bytes)) = kiln_fuzz::safetensors(text) else { return };
    let path = kiln_fuzz::file("model.safetensors", &header);
    let file = std::fs::File::options().write(true).open(&path).expect("a file");
    if file.set_len(header.len() as u64 + n_bytes).is_err() {
        return;
    }
    if let Ok(original) = Original::open(&path) {
        let views: usize = original.configs().keys().map(|name| original.weights(name).count()).sum();
        assert!(views > 0 && !inspect_original(&original).is_empty());
    }
    if let Ok(checkpoint) = Checkpoint::open(&path) {
        let _ = (checkpoint.remarks(), checkpoint.default_size(), inspect_checkpoint(&checkpoint));
    }
    let _ = ControlNetCheckpoint::open(&path, None).map(|network| network.name());
}));
