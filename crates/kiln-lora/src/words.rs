//! Words that a file bundles with its changes, with their embeddings (OneTrainer's and the webuis' `bundle_emb`).

use std::collections::BTreeMap;

use kiln_bundle::{TensorFile, is_float, not_floats};

use crate::LoraError;
use crate::keys::shown;

const PREFIX: &str = "bundle_emb.";

/// What the name of an embedding ends in, and whose it is: `clip_l` and `clip_g` are SDXL's text encoders.
const TABLES: [(&str, &str); 4] = [
    (".string_to_param.*", "string_to_param"),
    (".emb_params", "emb_params"),
    (".clip_l", "clip_l"),
    (".clip_g", "clip_g"),
];

/// Most vectors of a word: a prompt has room for 75 tokens.
const MAX_VECTORS: usize = 75;

/// Longest word, in characters.
const MAX_WORD: usize = 100;

/// A word with its learned embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnedWord {
    /// The word as prompts have it.
    pub word: String,
    /// Embeddings by the name of their text encoder, `clip_l` or `clip_g`, or by another for the first one.
    pub tables: Vec<LearnedTable>,
}

/// The vectors that a text encoder reads for a word.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnedTable {
    /// `clip_l`, `clip_g`, or another name for the first text encoder.
    pub name: String,
    /// Number of vectors and their width.
    pub shape: [usize; 2],
    /// The vectors, one after the other.
    pub values: Vec<f32>,
}

/// The words of a file, their embeddings not yet read.
#[derive(Debug, Default)]
pub(crate) struct BundledWords {
    words: BTreeMap<String, Vec<Table>>,
}

#[derive(Debug)]
struct Table {
    name: &'static str,
    key: String,
    shape: [usize; 2],
}

impl BundledWords {
    /// Whether a key belongs to a word.
    pub(crate) fn has(key: &str) -> bool {
        key.starts_with(PREFIX)
    }

    pub(crate) fn of(tensors: &TensorFile) -> Result<BundledWords, String> {
        let mut bundled = BundledWords::default();
        for (key, info) in tensors.tensors() {
            let Some(rest) = key.strip_prefix(PREFIX) else { continue };
            let found = TABLES.iter().find_map(|(end, name)| Some((rest.strip_suffix(end)?, *name)));
            let Some((word, name)) = found.filter(|(word, _)| !word.is_empty()) else {
                return Err(format!("'{}' is a learned word's, for no text encoder of CLIP", shown(key)));
            };
            let shape = match *info.shape.as_slice() {
                [width] if width > 0 => [1, width],
                [n, width] if n > 0 && n <= MAX_VECTORS && width > 0 => [n, width],
                ref other => {
                    let key = shown(key);
                    return Err(format!(
                        "'{key}' has shape {other:?}, which is not up to {MAX_VECTORS} vectors"
                    ));
                }
            };
            if word.chars().any(|c| c.is_control() || c.is_whitespace()) || word.chars().count() > MAX_WORD {
                return Err(format!("'{}' is not a word", shown(key)));
            }
            if !is_float(info.dtype) {
                return Err(format!("'{}' {}", shown(key), not_floats(info.dtype)));
            }
            bundled.words.entry(word.into()).or_default().push(Table { name, key: key.clone(), shape });
        }
        Ok(bundled)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.words.keys().map(String::as_str)
    }

    pub(crate) fn read(&self, tensors: &TensorFile) -> Result<Vec<LearnedWord>, LoraError> {
        let read = |table: &Table| {
            let values = tensors.read_f32(&table.key)?;
            Ok(LearnedTable { name: table.name.into(), shape: table.shape, values })
        };
        let words = self.words.iter().map(|(word, tables)| {
            let tables = tables.iter().map(read).collect::<Result<_, LoraError>>()?;
            Ok(LearnedWord { word: word.clone(), tables })
        });
        words.collect()
    }
}
