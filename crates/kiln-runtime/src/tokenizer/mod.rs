//! Tokenizers: texts to token ids.

mod clip;
mod files;

use std::path::PathBuf;

pub use clip::{ClipTokenizer, Encoding};

/// Why a tokenizer could not be loaded or used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}", path = path.display())]
pub struct TokenizerError {
    path: PathBuf,
    reason: String,
}
