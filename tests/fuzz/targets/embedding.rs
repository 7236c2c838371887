//! Embeddings of learned words.
#![no_main]

use std::cell::RefCell;

use kiln_fuzz::{small_pipeline, within_a_second};
use kiln_runtime::{Pipeline, Request};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static PIPELINE: RefCell<Pipeline> = small_pipeline().into();
}

fuzz_target!(|bytes: &[u8]| within_a_second(|| PIPELINE.with_borrow_mut(|known| {
    let path = kiln_fuzz::file("word.safetensors", bytes);
    let Ok(word) = known.add_embedding(path, None) else { return };
    let request = Request::new(format!("a {word} in {word}_1")).steps(1);
    assert!(known.generate(&request).is_err());
    *known = small_pipeline();
})));
