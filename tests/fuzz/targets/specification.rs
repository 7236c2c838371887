//! Specifications of what is built.
#![no_main]

use std::sync::LazyLock;

use kiln_compile::{Checkpoint, Specification};
use kiln_fuzz::within_a_second;
use libfuzzer_sys::fuzz_target;

static CHECKPOINT: LazyLock<Checkpoint> =
    LazyLock::new(|| Checkpoint::open(&kiln_fuzz::checkpoint()).expect("a checkpoint"));

fuzz_target!(|bytes: &[u8]| within_a_second(|| {
    let path = kiln_fuzz::file("specification.yaml", bytes);
    let Ok(specification) = Specification::read(&path) else { return };
    let _ = specification.open_loras();
    for target in specification.targets.values() {
        let _ = target.trace_options(&CHECKPOINT, Vec::new());
    }
}));
