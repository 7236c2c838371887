//! CLIP's vocabulary, which single files do not hold.
//!
//! `merges.txt.gz` (`gzip -9n`) is OpenAI's list of byte-pair merges by rank (MIT licence); the vocabulary is the 256 byte
//! symbols, the same at the end of a word, one token per merge, and the two special tokens.

use std::io::{self, Read};

use flate2::read::GzDecoder;
use serde_json::{Map, Value, json};

const MERGES: &[u8] = include_bytes!("merges.txt.gz");

/// Which token fills the places behind a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Padding {
    /// The end token: OpenAI's CLIP.
    End,
    /// `!`, whose id is 0: OpenCLIP.
    Zero,
}

/// The files of a tokenizer's folder.
pub(super) fn files(padding: Padding) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    let mut merges = String::new();
    GzDecoder::new(MERGES).read_to_string(&mut merges)?;
    let vocabulary = vocabulary(&merges).to_string();
    let end = "<|endoftext|>";
    let pad = match padding {
        Padding::End => end,
        Padding::Zero => "!",
    };
    let config = json!({
        "add_prefix_space": false,
        "bos_token": special("<|startoftext|>"),
        "do_lower_case": true,
        "eos_token": special(end),
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": special(end),
    });
    let map = json!({
        "bos_token": special("<|startoftext|>"),
        "eos_token": special(end),
        "pad_token": pad,
        "unk_token": special(end),
    });
    Ok(vec![
        ("merges.txt", merges.into_bytes()),
        ("special_tokens_map.json", super::pretty(&map)),
        ("tokenizer_config.json", super::pretty(&config)),
        ("vocab.json", vocabulary.into_bytes()),
    ])
}

fn special(content: &str) -> Value {
    json!({ "content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false })
}

/// `vocab.json`; printable bytes stand for themselves, the others for the characters from 256 on.
fn vocabulary(merges: &str) -> Value {
    let printable = || (33..127).chain(161..173).chain(174..256);
    let n_hidden = 256 - printable().count() as u32;
    let symbols = || printable().chain(256..256 + n_hidden).filter_map(char::from_u32);
    let joined = merges.lines().skip(1).filter_map(|line| line.split_once(' ')).map(|(a, b)| format!("{a}{b}"));
    let tokens = symbols()
        .map(String::from)
        .chain(symbols().map(|symbol| format!("{symbol}</w>")))
        .chain(joined)
        .chain(["<|startoftext|>", "<|endoftext|>"].map(String::from));
    let ids: Map<String, Value> = tokens.zip(0u32..).map(|(token, id)| (token, id.into())).collect();
    Value::Object(ids)
}
