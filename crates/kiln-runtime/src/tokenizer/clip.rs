//! CLIP's tokenizer.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::{AddedToken, Tokenizer};

/// Largest tokenizer file that is read.
const MAX_BYTES: u64 = 64 << 20;

/// Most positions that a prompt may have.
const MAX_LENGTH: usize = 1 << 16;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Why a tokenizer could not be loaded or used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}", path = path.display())]
pub struct TokenizerError {
    path: PathBuf,
    reason: String,
}

/// CLIP's byte-pair tokenizer (transformers `models/clip/tokenization_clip.py`).
#[derive(Debug)]
pub struct ClipTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer,
    max_length: usize,
    start: u32,
    end: u32,
    pad: u32,
    /// Words of several learned vectors, and what they stand for in prompts.
    expansions: Vec<(String, String)>,
    /// Number of tokens before any was learned, and the first id of those that are.
    learned: Option<(u32, i64)>,
}

/// A prompt as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Exactly `max_length` ids: start, prompt, end, padding.
    pub ids: Vec<i64>,
    /// How many ids of the prompt did not fit.
    pub n_truncated: usize,
}

impl ClipTokenizer {
    /// Loads `tokenizer.json`, or `vocab.json` and `merges.txt`; `max_length` counts the start and end tokens.
    ///
    /// Special tokens are those of `tokenizer_config.json` and `special_tokens_map.json`, of which the latter has the last
    /// word unless the former lists its tokens by id, as in transformers. SD 2.x pads with "!": each "!" of a prompt then
    /// is that token too.
    pub fn from_dir(folder: &Path, max_length: usize) -> Result<ClipTokenizer, TokenizerError> {
        let fast = folder.join("tokenizer.json");
        let (path, json) = match fast.is_file() {
            true => (fast.clone(), read(&fast)?),
            false => (folder.join("vocab.json"), from_vocabulary(folder)?),
        };
        let refuse = |reason: String| TokenizerError { path: path.clone(), reason };
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| refuse(e.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| refuse(e.to_string()))?;
        if !(2..=MAX_LENGTH).contains(&max_length) {
            return Err(refuse(format!("{max_length} positions is not a number from 2 to {MAX_LENGTH}")));
        }
        let id =
            |token: &str| tokenizer.token_to_id(token).ok_or_else(|| refuse(format!("has no token '{token}'")));
        let (start, end) = (id(START)?, id(END)?);
        let special = special_tokens(folder)?;
        for token in &special.tokens {
            id(&token.content)?;
        }
        let pad = id(&special.pad)?;
        tokenizer.add_special_tokens(special.tokens).map_err(|e| refuse(e.to_string()))?;
        Ok(ClipTokenizer {
            tokenizer,
            max_length,
            start,
            end,
            pad,
            path,
            expansions: Vec::new(),
            learned: None,
        })
    }

    /// Ids of a prompt, cut and padded as diffusers does.
    pub fn encode(&self, prompt: &str) -> Result<Encoding, TokenizerError> {
        let tokens = self.tokens(prompt)?;
        let kept = tokens.len().min(self.max_length - 2);
        Ok(Encoding { ids: self.frame(&tokens[..kept]), n_truncated: tokens.len() - kept })
    }

    /// Ids of a text without start, end and padding.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut text = std::borrow::Cow::from(text);
        for (word, expansion) in
            self.expansions.iter().filter(|(word, _)| text.contains(word)).collect::<Vec<_>>()
        {
            text = text.replace(word, expansion).into();
        }
        let encoding = self
            .tokenizer
            .encode_fast(&*text, false)
            .map_err(|e| TokenizerError { path: self.path.clone(), reason: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Start, the given ids, end and padding: `max_length` ids of up to two less.
    pub(crate) fn frame(&self, tokens: &[u32]) -> Vec<i64> {
        let learned = |id: u32| match self.learned {
            Some((known, first)) if id >= known => first + i64::from(id - known),
            _ => i64::from(id),
        };
        let mut ids = vec![i64::from(self.start)];
        ids.extend(tokens.iter().map(|&id| learned(id)));
        ids.push(i64::from(self.end));
        ids.resize(self.max_length, i64::from(self.pad));
        ids
    }

    /// Whether a word is a token of its own.
    pub(crate) fn knows(&self, word: &str) -> bool {
        self.tokenizer.token_to_id(word).is_some()
    }

    /// The largest id that a prompt can lead to.
    pub fn max_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// Refuses a tokenizer with ids that a text encoder of `vocabulary` tokens does not know.
    pub(crate) fn check_vocabulary(&self, vocabulary: u64) -> Result<(), TokenizerError> {
        match u64::from(self.max_id()) {
            id if id < vocabulary => Ok(()),
            id => {
                let reason = format!("has ids up to {id}, and the text encoder's vocab_size is {vocabulary}");
                Err(TokenizerError { path: self.path.clone(), reason })
            }
        }
    }

    /// Adds words with ids in a row, and gives the first of these; the first word stands in prompts for all of them.
    ///
    /// The ids start at `vocabulary`, behind those of words that were added before.
    pub(crate) fn add_words(&mut self, words: Vec<String>, vocabulary: i64) -> Result<i64, TokenizerError> {
        let refuse = |reason: String| TokenizerError { path: self.path.clone(), reason };
        if let Some(word) = words.iter().find(|word| self.knows(word)) {
            return Err(refuse(format!("has a token '{word}' already")));
        }
        let size = self.tokenizer.get_vocab_size(true) as u32;
        let (known, first) = *self.learned.get_or_insert((size, vocabulary));
        if words.len() > 1 {
            self.expansions.push((words[0].clone(), words.join(" ")));
        }
        self.tokenizer
            .add_tokens(words.into_iter().map(|word| AddedToken::from(word, false)))
            .map_err(|e| TokenizerError { path: self.path.clone(), reason: e.to_string() })?;
        Ok(first + i64::from(size - known))
    }

    /// Number of ids that a text encoder reads at once.
    pub fn max_length(&self) -> usize {
        self.max_length
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let refuse = |reason: String| TokenizerError { path: path.into(), reason };
    let size = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(refuse(format!("has {size} bytes, more than any tokenizer")));
    }
    std::fs::read(path).map_err(|e| refuse(e.to_string()))
}

fn read_json(path: &Path) -> Result<Value, TokenizerError> {
    serde_json::from_slice(&read(path)?)
        .map_err(|e| TokenizerError { path: path.into(), reason: e.to_string() })
}

struct SpecialTokens {
    tokens: Vec<AddedToken>,
    pad: String,
}

fn special_tokens(folder: &Path) -> Result<SpecialTokens, TokenizerError> {
    let (config_path, map_path) =
        (folder.join("tokenizer_config.json"), folder.join("special_tokens_map.json"));
    let optional = |path: &Path| if path.is_file() { read_json(path) } else { Ok(Value::Null) };
    let config = optional(&config_path)?;
    let by_id = config.get("added_tokens_decoder").and_then(Value::as_object);
    let map = if by_id.is_some() { Value::Null } else { optional(&map_path)? };

    let default = Value::from(END);
    let mut special = SpecialTokens { tokens: Vec::new(), pad: END.into() };
    for (key, default) in [
        ("bos_token", &Value::from(START)),
        ("eos_token", &default),
        ("unk_token", &default),
        ("pad_token", &default),
    ] {
        let found = |source: &'_ Value| source.get(key).filter(|token| !token.is_null()).cloned();
        let (path, value) = match (found(&map), found(&config)) {
            (Some(value), _) => (&map_path, value),
            (None, value) => (&config_path, value.unwrap_or(default.clone())),
        };
        let refuse = || TokenizerError { path: path.clone(), reason: format!("{key}: {value} is not a token") };
        let content = value.get("content").unwrap_or(&value).as_str().filter(|content| !content.is_empty());
        let content = content.ok_or_else(refuse)?;
        let listed = by_id.and_then(|tokens| tokens.values().find(|token| token["content"] == content));
        let options = listed.unwrap_or(&value);
        let is = |option: &str| options.get(option).and_then(Value::as_bool).unwrap_or(false);
        let token = AddedToken::from(content, true)
            .normalized(is("normalized"))
            .lstrip(is("lstrip"))
            .rstrip(is("rstrip"))
            .single_word(is("single_word"));
        special.tokens.retain(|other| other.content != token.content);
        special.tokens.push(token);
        special.pad = content.into();
    }
    Ok(special)
}

/// What transformers makes of `vocab.json` and `merges.txt`, in the form of a `tokenizer.json`.
fn from_vocabulary(folder: &Path) -> Result<Vec<u8>, TokenizerError> {
    let (vocab_path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
    let vocab = read_json(&vocab_path)?;
    let refuse = |path: &PathBuf, reason: String| TokenizerError { path: path.clone(), reason };
    let text = String::from_utf8(read(&merges_path)?).map_err(|e| refuse(&merges_path, e.to_string()))?;
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
    for token in [START, END] {
        if vocab.get(token).is_none_or(|id| !id.is_u64()) {
            return Err(refuse(&vocab_path, format!("has no token '{token}'")));
        }
    }
    let words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let tokenizer = json!({
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
            "type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    });
    Ok(tokenizer.to_string().into_bytes())
}
