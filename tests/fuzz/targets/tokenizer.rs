//! A tokenizer's files.
#![no_main]

use std::fs;

use kiln_fuzz::within_a_second;
use kiln_runtime::open_tokenizer;
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 6] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

fuzz_target!(|text: &str| within_a_second(|| {
    let folder = kiln_fuzz::folder().join("tokenizer");
    let _ = fs::remove_dir_all(&folder);
    for (name, content) in kiln_fuzz::files(text, &FILES) {
        kiln_fuzz::file(&format!("tokenizer/{name}"), content.as_bytes());
    }
    let Ok(tokenizer) = open_tokenizer(&folder, 16, 1 << 20) else { return };
    for text in ["a red circle", "<toy> is! <|endoftext|>", text] {
        let _ = tokenizer.encode(text).map(|encoding| assert_eq!(encoding.ids.len(), 16));
    }
}));
