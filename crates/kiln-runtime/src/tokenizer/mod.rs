//! Tokenizers: texts to token ids.

mod clip;

pub use clip::{ClipTokenizer, Encoding, TokenizerError};
