//! Words that a checkpoint's own tokenizer has learned.

use std::fs;
use std::path::Path;

use kiln_runtime::tokenizer::ClipTokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures::{copy_folder, edit_json, scratch};
use crate::support::references;

fn folder() -> TempDir {
    let folder = scratch();
    copy_folder(&references().join("clip-tokenizer"), folder.path());
    folder
}

#[track_caller]
fn tokens(folder: &Path, text: &str) -> Vec<u32> {
    ClipTokenizer::from_dir(folder, 77).and_then(|tokenizer| tokenizer.tokens(text)).expect("tokens")
}

fn write(folder: &Path, file: &str, value: &Value) {
    fs::write(folder.join(file), value.to_string()).expect("a file");
}

#[test]
fn added_tokens_are_words_of_their_own() {
    let before = folder();
    assert!(tokens(before.path(), "<cat-toy>").len() > 1);
    let by_name = folder();
    write(by_name.path(), "added_tokens.json", &json!({ "<cat-toy>": 49408, "<dog>": 49409 }));
    let by_id = folder();
    let token = |content: &str| json!({ "content": content, "special": false, "normalized": true });
    let listed = json!({ "49408": token("<cat-toy>"), "49409": token("<dog>") });
    write(by_id.path(), "tokenizer_config.json", &json!({ "added_tokens_decoder": listed }));
    for folder in [by_name, by_id] {
        assert_eq!(tokens(folder.path(), "a <cat-toy> b"), [320, 49408, 321]);
        assert_eq!(tokens(folder.path(), "<dog>"), [49409]);
        assert_eq!(tokens(folder.path(), "a photo of a cat"), tokens(before.path(), "a photo of a cat"));
    }
}

#[test]
fn a_list_by_id_is_the_only_one_that_counts() {
    let folder = folder();
    write(folder.path(), "tokenizer_config.json", &json!({ "added_tokens_decoder": {} }));
    write(folder.path(), "added_tokens.json", &json!({ "<cat-toy>": 49408 }));
    assert!(tokens(folder.path(), "<cat-toy>").len() > 1);
}

#[test]
fn learned_words_get_ids_of_their_own_where_a_vocabulary_has_gaps() {
    let folder = folder();
    let vocabulary = folder.path().join("vocab.json");
    let last = serde_json::from_slice::<Value>(&fs::read(&vocabulary).expect("JSON")).expect("JSON");
    let (name, id) =
        last.as_object().expect("a mapping").iter().max_by_key(|(_, id)| id.as_u64()).expect("tokens");
    assert_eq!(name, "<|endoftext|>");
    // A gap below the last id: as many entries as ids would be one too few.
    edit_json(&vocabulary, |vocabulary| {
        let words = vocabulary.as_object_mut().expect("a mapping");
        let gap = words.iter().find(|(_, id)| id.as_u64() == Some(30_000)).map(|(name, _)| name.clone());
        words.remove(&gap.expect("a token"));
    });
    fs::write(folder.path().join("merges.txt"), "#version: 0.2\n").expect("merges");
    write(folder.path(), "added_tokens.json", &json!({ "<toy>": 49408 }));
    assert_eq!(tokens(folder.path(), "<toy>"), [id.as_u64().expect("an id") as u32 + 1]);
}

#[test]
fn a_few_tokens_do_not_make_a_million_ids() {
    let folder = scratch();
    write(folder.path(), "vocab.json", &json!({ "<|startoftext|>": 0, "<|endoftext|>": 1, "a": 1_000_000 }));
    fs::write(folder.path().join("merges.txt"), "").expect("merges");
    let error = ClipTokenizer::from_dir(folder.path(), 77).expect_err("refused").to_string();
    assert!(
        error.ends_with("has ids up to 1000000, of which 999998 have no token; supported: 65536"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_file_gives_no_rules() {
    let folder = folder();
    let vocabulary: Value =
        serde_json::from_slice(&fs::read(folder.path().join("vocab.json")).expect("JSON")).expect("JSON");
    let merges = fs::read_to_string(folder.path().join("merges.txt")).expect("merges");
    let merges: Vec<&str> = merges.lines().skip(1).filter(|line| !line.is_empty()).collect();
    let expected = tokens(folder.path(), "A photo, of\ta CAT");
    write(
        folder.path(),
        "tokenizer.json",
        &json!({
            "normalizer": { "type": "Replace", "pattern": { "String": "cat" }, "content": "dog" },
            "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "(a|a)*(a|a)*b" }, "behavior": "Removed", "invert": false },
            "added_tokens": [{ "id": 49408, "content": "<toy>", "special": false, "normalized": true }],
            "model": { "type": "BPE", "vocab": vocabulary, "merges": merges },
        }),
    );
    assert_eq!(tokens(folder.path(), "A photo, of\ta CAT"), expected);
    assert_eq!(tokens(folder.path(), "<toy>"), [49408]);
}
