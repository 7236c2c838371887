//! CLIP's tokenizer against transformers'.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use kiln_runtime::tokenizer::ClipTokenizer;
use proptest::prelude::*;
use serde_json::Value;

use crate::support::references;

const VOCABULARY: i64 = 49408;

fn vocabulary() -> PathBuf {
    references().join("clip-tokenizer")
}

static TOKENIZER: LazyLock<ClipTokenizer> =
    LazyLock::new(|| ClipTokenizer::from_dir(&vocabulary(), 77).expect("CLIP's vocabulary"));

/// A folder with CLIP's vocabulary and `files` beside it.
fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["vocab.json", "merges.txt"] {
        fs::copy(vocabulary().join(name), folder.path().join(name)).expect(name);
    }
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect(name);
    }
    folder
}

#[track_caller]
fn check_all(tokenizer: &ClipTokenizer, file: &str) {
    let text = fs::read_to_string(references().join(file)).expect(file);
    let cases: Vec<Value> = serde_json::from_str(&text).expect(file);
    assert!(!cases.is_empty());
    for case in cases {
        let prompt = case["text"].as_str().expect("text");
        let expected: Vec<i64> = serde_json::from_value(case["ids"].clone()).expect("ids");
        assert_eq!(tokenizer.encode(prompt).expect(prompt).ids, expected, "{prompt:?}");
    }
}

#[test]
fn ids_from_vocabulary_and_merges_are_transformers() {
    check_all(&TOKENIZER, "clip_tokens.json");
}

/// What transformers writes as `tokenizer.json`, with the truncation and padding it leaves there.
fn tokenizer_json() -> String {
    let vocabulary_file = fs::read(vocabulary().join("vocab.json")).expect("vocab.json");
    let vocab: Value = serde_json::from_slice(&vocabulary_file).expect("JSON");
    let merges = fs::read_to_string(vocabulary().join("merges.txt")).expect("merges.txt");
    let merges: Vec<Vec<&str>> = merges.lines().skip(1).map(|line| line.split(' ').collect()).collect();
    let special = |id: u32, token: &str| {
        serde_json::json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    serde_json::json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0 },
        "padding": {
            "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 49407,
            "pad_type_id": 0, "pad_token": "<|endoftext|>",
        },
        "added_tokens": [special(49406, "<|startoftext|>"), special(49407, "<|endoftext|>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": words }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "post_processor": {
            "type": "RobertaProcessing", "sep": ["<|endoftext|>", 49407], "cls": ["<|startoftext|>", 49406],
            "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
    .to_string()
}

#[test]
fn ids_from_tokenizer_json_are_transformers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("tokenizer.json"), tokenizer_json()).expect("tokenizer.json");
    check_all(&ClipTokenizer::from_dir(folder.path(), 77).expect("a tokenizer"), "clip_tokens.json");
}

#[test]
fn padding_is_what_the_configuration_says() {
    let folder = folder_with(&[("tokenizer_config.json", r#"{ "pad_token": "!" }"#)]);
    let ids = ClipTokenizer::from_dir(folder.path(), 6).and_then(|t| t.encode("a cat")).expect("ids").ids;
    assert_eq!(ids, [49406, 320, 2368, 49407, 0, 0]);
}

/// The files of Stable Diffusion 2.x, where `special_tokens_map.json` has the last word.
#[test]
fn special_tokens_map_says_what_to_pad_with() {
    let token = r#"{ "content": "<|endoftext|>", "lstrip": false, "normalized": true, "rstrip": false, "single_word": false }"#;
    let start = token.replace("end", "start");
    let map =
        format!(r#"{{ "bos_token": {start}, "eos_token": {token}, "unk_token": {token}, "pad_token": "!" }}"#);
    let config = r#"{ "pad_token": "<|endoftext|>" }"#;
    let folder = folder_with(&[("special_tokens_map.json", &map), ("tokenizer_config.json", config)]);
    check_all(&ClipTokenizer::from_dir(folder.path(), 77).expect("a tokenizer"), "clip_tokens_sd2.json");
}

#[test]
fn special_tokens_listed_by_id_leave_the_map_unread() {
    let config =
        r#"{ "added_tokens_decoder": { "0": { "content": "!", "special": true } }, "pad_token": "!" }"#;
    let map = r#"{ "pad_token": "<|endoftext|>" }"#;
    let folder = folder_with(&[("special_tokens_map.json", map), ("tokenizer_config.json", config)]);
    let ids = ClipTokenizer::from_dir(folder.path(), 6).and_then(|t| t.encode("a cat!")).expect("ids").ids;
    assert_eq!(ids, [49406, 320, 2368, 0, 49407, 0]);
}

#[test]
fn a_long_prompt_is_cut_before_the_end_token() {
    let tokenizer = ClipTokenizer::from_dir(&vocabulary(), 4).expect("a tokenizer");
    let encoding = tokenizer.encode("a photo of a cat").expect("ids");
    assert_eq!(encoding.ids, [49406, 320, 1125, 49407]);
    assert_eq!(encoding.n_truncated, 3);
}

#[track_caller]
fn check_refused(folder: &Path, parts: &[&str]) {
    let error = ClipTokenizer::from_dir(folder, 77).expect_err("a refusal").to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn refusals_name_the_file() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    check_refused(empty.path(), &["vocab.json"]);
    check_refused(folder_with(&[("vocab.json", "[1")]).path(), &["vocab.json"]);
    check_refused(folder_with(&[("vocab.json", r#"{ "a": 0 }"#)]).path(), &["vocab.json", "<|startoftext|>"]);
    check_refused(folder_with(&[("vocab.json", r#"{ "<|startoftext|>": -1 }"#)]).path(), &["vocab.json"]);
    check_refused(folder_with(&[("merges.txt", "#version: 0.2\na b c\n")]).path(), &["merges.txt", "a b c"]);
    let map = r#"{ "pad_token": "unheard-of" }"#;
    check_refused(folder_with(&[("special_tokens_map.json", map)]).path(), &["unheard-of"]);
    check_refused(folder_with(&[("tokenizer.json", "{}")]).path(), &["tokenizer.json"]);
    check_refused(
        folder_with(&[("tokenizer_config.json", r#"{ "pad_token": 7 }"#)]).path(),
        &["tokenizer_config.json"],
    );
}

#[test]
fn a_number_of_positions_out_of_range_is_refused() {
    for max_length in [0, 1, 1 << 20] {
        let error = ClipTokenizer::from_dir(&vocabulary(), max_length).expect_err("a refusal").to_string();
        assert!(error.contains(&max_length.to_string()), "{error}");
    }
}

proptest! {
    #[test]
    fn any_prompt_gives_exactly_max_length_ids_of_the_vocabulary(prompt in any::<String>()) {
        let ids = TOKENIZER.encode(&prompt).expect("ids").ids;
        prop_assert_eq!(ids.len(), 77);
        prop_assert_eq!(ids[0], VOCABULARY - 2);
        prop_assert!(ids.contains(&(VOCABULARY - 1)));
        prop_assert!(ids.iter().all(|id| (0..VOCABULARY).contains(id)));
    }
}
