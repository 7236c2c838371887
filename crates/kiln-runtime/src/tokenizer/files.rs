//! CLIP's tokenizer files, as transformers 5 reads them (`tokenization_utils_base.py`, `models/clip/tokenization_clip.py`).
//!
//! They give vocabulary, merges and added tokens; the rules are CLIP's own, whatever a `tokenizer.json` says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kiln_bundle::read;
use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, Tokenizer};

use super::TokenizerError;

/// Largest tokenizer file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Most ids of a vocabulary: CLIP's has 49408.
const MAX_IDS: u64 = 1 << 20;

/// Most ids among them that no token has.
const MAX_GAPS: u64 = 1 << 16;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Special tokens in the order in which transformers adds them, with what they are by default.
const SPECIAL: [(&str, Option<&str>); 7] = [
    ("bos_token", Some(START)),
    ("eos_token", Some(END)),
    ("unk_token", Some(END)),
    ("sep_token", None),
    ("pad_token", Some(END)),
    ("cls_token", None),
    ("mask_token", None),
];

/// What is read of a folder.
pub(super) struct Files {
    /// The file that holds the vocabulary.
    pub(super) path: PathBuf,
    pub(super) tokenizer: Tokenizer,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) pad: u32,
}

impl Files {
    pub(super) fn read(folder: &Path) -> Result<Files, TokenizerError> {
        let fast = folder.join("tokenizer.json");
        let (path, model, listed) = match fast.exists() {
            true => from_tokenizer_json(&fast)?,
            false => from_vocabulary(folder)?,
        };
        let refuse = |reason: String| TokenizerError { path: path.clone(), reason };
        let tokens = AddedTokens::read(folder, listed)?;
        let vocabulary = without_gaps(model.vocabulary).map_err(refuse)?;
        let listed: BTreeSet<&str> = tokens.by_id.values().map(|token| token.content.as_str()).collect();
        for (key, token) in &tokens.special {
            let is_needed = !matches!(key.as_str(), "sep_token" | "cls_token" | "mask_token");
            if is_needed && !listed.contains(token.content.as_str()) && !vocabulary.contains_key(&token.content)
            {
                return Err(refuse(format!("has no token '{}', the {key}", token.content)));
            }
        }
        let json = tokenizer_json(&vocabulary, &model.merges, &tokens.content("unk_token"));
        let mut tokenizer = Tokenizer::from_bytes(json.to_string()).map_err(|e| refuse(e.to_string()))?;
        let special = ["bos_token", "eos_token", "pad_token"].map(|key| tokens.content(key));
        tokenizer.add_tokens(tokens.in_order()).map_err(|e| refuse(e.to_string()))?;
        let id =
            |token: &str| tokenizer.token_to_id(token).ok_or_else(|| refuse(format!("has no token '{token}'")));
        let [start, end, pad] = special.map(|token| id(&token));
        let (start, end, pad) = (start?, end?, pad?);
        Ok(Files { path, tokenizer, start, end, pad })
    }
}

/// Vocabulary and merges of a byte-pair model.
struct Model {
    vocabulary: Map<String, Value>,
    merges: Vec<Value>,
}

type Found = (PathBuf, Model, Vec<Value>);

fn from_tokenizer_json(path: &Path) -> Result<Found, TokenizerError> {
    let refuse = |reason: &str| TokenizerError { path: path.into(), reason: reason.into() };
    let mut json = read_json(path)?;
    let listed = match json.get_mut("added_tokens").map(Value::take) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(tokens)) => tokens,
        Some(_) => return Err(refuse("added_tokens: is not a list")),
    };
    let model = json.get_mut("model").ok_or_else(|| refuse("has no model"))?;
    let vocabulary = match model.get_mut("vocab").map(Value::take) {
        Some(Value::Object(vocabulary)) => vocabulary,
        _ => return Err(refuse("model: vocab: is not a mapping of tokens to ids")),
    };
    let merges = match model.get_mut("merges").map(Value::take) {
        Some(Value::Array(merges)) => merges,
        _ => return Err(refuse("model: merges: is not a list")),
    };
    Ok((path.into(), Model { vocabulary, merges }, listed))
}

fn from_vocabulary(folder: &Path) -> Result<Found, TokenizerError> {
    let (vocab_path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
    let refuse = |path: &PathBuf, reason: String| TokenizerError { path: path.clone(), reason };
    let Value::Object(vocabulary) = read_json(&vocab_path)? else {
        return Err(refuse(&vocab_path, "is not a mapping of tokens to ids".into()));
    };
    let text = read_text(&merges_path)?;
    let mut merges = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with("#version") {
            continue;
        }
        match line.split_once(' ') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => merges.push(json!([a, b])),
            _ => return Err(refuse(&merges_path, format!("line {}: '{line}' is not a pair", i + 1))),
        }
    }
    Ok((vocab_path, Model { vocabulary, merges }, Vec::new()))
}

/// The vocabulary with names for ids that have none, so that tokens that are added get ids of their own.
fn without_gaps(mut vocabulary: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut ids = BTreeSet::new();
    for (token, value) in &vocabulary {
        match value.as_u64().filter(|id| *id < MAX_IDS) {
            Some(id) => ids.insert(id),
            None => return Err(format!("'{token}': {value} is not an id below {MAX_IDS}")),
        };
    }
    let end = ids.last().map_or(0, |last| last + 1);
    let n_gaps = end - ids.len() as u64;
    if n_gaps > MAX_GAPS {
        let last = end - 1;
        return Err(format!("has ids up to {last}, of which {n_gaps} have no token; supported: {MAX_GAPS}"));
    }
    for id in (0..end).filter(|id| !ids.contains(id)) {
        // No text has such a token: zero bytes are written otherwise in vocabularies of bytes.
        vocabulary.insert(format!("\0{id}"), id.into());
    }
    Ok(vocabulary)
}

/// Tokens beside the vocabulary.
#[derive(Default)]
struct AddedTokens {
    /// By the id that they had when they were saved, which gives their order alone.
    by_id: BTreeMap<u64, AddedToken>,
    special: Vec<(String, AddedToken)>,
    extra: Vec<AddedToken>,
}

impl AddedTokens {
    /// Of `tokenizer_config.json`, and unless that lists them by id, of `special_tokens_map.json`, `added_tokens.json` and what
    /// `tokenizer.json` lists.
    fn read(folder: &Path, listed: Vec<Value>) -> Result<AddedTokens, TokenizerError> {
        let optional = |name: &str| match folder.join(name) {
            path if path.exists() => Ok((read_object(&path)?, path)),
            path => Ok((Map::new(), path)),
        };
        let (config, config_path) = optional("tokenizer_config.json")?;
        let refuse = |path: &Path, reason: String| TokenizerError { path: path.into(), reason };
        if config.get("split_special_tokens") == Some(&Value::Bool(true)) {
            return Err(refuse(&config_path, "split_special_tokens: true is not supported".into()));
        }
        let mut tokens = AddedTokens::default();
        if let Some(listed) = config.get("added_tokens_decoder").filter(|listed| !listed.is_null()) {
            let listed = listed.as_object().into_iter().flatten();
            for (id, value) in listed {
                let wrong =
                    || refuse(&config_path, format!("added_tokens_decoder: {id}: {value} is not a token"));
                let token = token(value, None).filter(|_| value.is_object()).ok_or_else(wrong)?;
                tokens.by_id.insert(id.parse().map_err(|_| wrong())?, token);
            }
            tokens.name(&Map::new(), &config_path, &config, &config_path)?;
            return Ok(tokens);
        }
        let (map, map_path) = optional("special_tokens_map.json")?;
        tokens.name(&map, &map_path, &config, &config_path)?;
        let (added, added_path) = optional("added_tokens.json")?;
        let named = tokens.special.iter().map(|(_, token)| token).chain(&tokens.extra);
        let named: BTreeSet<String> = named.map(|token| token.content.clone()).collect();
        for (content, id) in &added {
            let is_special = named.contains(content);
            let wrong = || refuse(&added_path, format!("'{content}': {id} is not an id"));
            tokens.by_id.insert(id.as_u64().ok_or_else(wrong)?, AddedToken::from(content, is_special));
        }
        let path = folder.join("tokenizer.json");
        for value in &listed {
            let wrong = || refuse(&path, format!("added_tokens: {value} is not a token with an id"));
            let id = value.get("id").and_then(Value::as_u64).ok_or_else(wrong)?;
            tokens.by_id.insert(id, token(value, None).ok_or_else(wrong)?);
        }
        Ok(tokens)
    }

    /// Takes the special tokens, of which `map` has the last word.
    fn name(
        &mut self,
        map: &Map<String, Value>,
        map_path: &Path,
        config: &Map<String, Value>,
        config_path: &Path,
    ) -> Result<(), TokenizerError> {
        let refuse = |path: &Path, key: &str, value: &Value| TokenizerError {
            path: path.into(),
            reason: format!("{key}: {value} is not a token"),
        };
        let is_named = |(key, value): &(&String, &Value)| {
            key.ends_with("_token") && value.is_string() && SPECIAL.iter().all(|(special, _)| special != key)
        };
        let others = config.iter().filter(is_named).map(|(key, _)| (key.as_str(), None));
        for (key, default) in SPECIAL.into_iter().chain(others) {
            let found = |source: &Map<String, Value>| source.get(key).filter(|value| !value.is_null()).cloned();
            let (path, value) = match (found(map), found(config)) {
                (Some(value), _) => (map_path, value),
                (None, Some(value)) => (config_path, value),
                (None, None) => match default {
                    Some(default) => (config_path, default.into()),
                    None => continue,
                },
            };
            let token = token(&value, Some(true)).ok_or_else(|| refuse(path, key, &value))?;
            self.special.push((key.into(), token));
        }
        for (path, source) in [(config_path, config), (map_path, map)] {
            for key in ["extra_special_tokens", "additional_special_tokens"] {
                for value in source.get(key).and_then(Value::as_array).into_iter().flatten() {
                    self.extra.push(token(value, Some(true)).ok_or_else(|| refuse(path, key, value))?);
                }
            }
        }
        Ok(())
    }

    fn content(&self, key: &str) -> String {
        let found = self.special.iter().find(|(name, _)| name == key);
        found.map(|(_, token)| token.content.clone()).unwrap_or_default()
    }

    /// Those with ids, and special ones that are not among them.
    fn in_order(self) -> Vec<AddedToken> {
        let named: BTreeSet<String> = self.special.iter().map(|(_, token)| token.content.clone()).collect();
        let mut tokens: Vec<AddedToken> = self.by_id.into_values().collect();
        let mut known: BTreeSet<String> = tokens.iter().map(|token| token.content.clone()).collect();
        let unnumbered = self.special.into_iter().map(|(_, token)| token).chain(self.extra);
        tokens.extend(unnumbered.filter(|token| known.insert(token.content.clone())));
        tokens.iter_mut().for_each(|token| token.special |= named.contains(&token.content));
        tokens
    }
}

/// A token that is written as its text or as an object, and is special if that says so or `special` does.
fn token(value: &Value, special: Option<bool>) -> Option<AddedToken> {
    let content = value.get("content").unwrap_or(value).as_str().filter(|content| !content.is_empty())?;
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let is_special = special.or_else(|| flag("special")).unwrap_or(false);
    Some(
        AddedToken::from(content, is_special)
            .normalized(flag("normalized").unwrap_or(!is_special))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .single_word(flag("single_word").unwrap_or(false)),
    )
}

fn read_text(path: &Path) -> Result<String, TokenizerError> {
    let refuse = |reason: String| TokenizerError { path: path.into(), reason };
    read::text(path, MAX_BYTES, "tokenizer").map_err(|e| e.map(|e| refuse(e.to_string()), refuse))
}

fn read_json(path: &Path) -> Result<Value, TokenizerError> {
    serde_json::from_str(&read_text(path)?)
        .map_err(|e| TokenizerError { path: path.into(), reason: e.to_string() })
}

fn read_object(path: &Path) -> Result<Map<String, Value>, TokenizerError> {
    match read_json(path)? {
        Value::Object(map) => Ok(map),
        _ => Err(TokenizerError { path: path.into(), reason: "is not a JSON object".into() }),
    }
}

/// CLIP's rules around a model.
fn tokenizer_json(vocabulary: &Map<String, Value>, merges: &[Value], unknown: &str) -> Value {
    let words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                { "type": "NFC" },
                { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
                { "type": "Lowercase" },
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": words }, "behavior": "Removed", "invert": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            ],
        },
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    })
}
