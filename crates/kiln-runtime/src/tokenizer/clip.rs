//! CLIP's tokenizer.

use std::path::{Path, PathBuf};

use tokenizers::{AddedToken, Tokenizer};

use super::TokenizerError;
use super::files::Files;

/// Most positions that a prompt may have.
const MAX_LENGTH: usize = 1 << 16;

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
    /// Special tokens and words that were learned are those of `tokenizer_config.json`, and unless that lists its tokens by id,
    /// of `special_tokens_map.json`, `added_tokens.json` and `tokenizer.json`, as in transformers. SD 2.x pads with "!": each
    /// "!" of a prompt then is that token too.
    pub fn from_dir(folder: &Path, max_length: usize) -> Result<ClipTokenizer, TokenizerError> {
        let Files { path, mut tokenizer, start, end, pad } = Files::read(folder)?;
        tokenizer.with_padding(None);
        let refuse = |reason: String| TokenizerError { path: path.clone(), reason };
        tokenizer.with_truncation(None).map_err(|e| refuse(e.to_string()))?;
        if !(2..=MAX_LENGTH).contains(&max_length) {
            return Err(refuse(format!("{max_length} positions is not a number from 2 to {MAX_LENGTH}")));
        }
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
