//! Prompts to blocks of weighted token ids.

mod attention;
mod learned;
mod tags;

use crate::Error;
use crate::PromptSyntax;
use crate::error::refuse;
use crate::tokenizer::{ClipTokenizer, TokenizerError};
use attention::{Piece, parse};
pub(crate) use learned::LearnedWords;
pub(crate) use tags::unread;

/// Most blocks of a prompt.
const MAX_BLOCKS: usize = 100;

/// Largest factor of a word, whose state it multiplies.
const MAX_WEIGHT: f32 = 1000.0;

/// A prompt as blocks of as many token ids as the text encoder has positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Blocks {
    pub(crate) ids: Vec<Vec<i64>>,
    /// One weight per id; empty where all are 1.
    pub(crate) weights: Vec<Vec<f32>>,
    /// How many ids did not fit.
    pub(crate) n_truncated: usize,
}

impl Blocks {
    pub(crate) fn new(tokenizer: &ClipTokenizer, prompt: &str, syntax: PromptSyntax) -> Result<Blocks, Error> {
        match syntax {
            PromptSyntax::Plain => {
                let encoding = tokenizer.encode(prompt)?;
                Ok(Blocks { ids: vec![encoding.ids], weights: Vec::new(), n_truncated: encoding.n_truncated })
            }
            PromptSyntax::Weighted => {
                let pieces = parse(prompt).or_else(|reason| refuse("prompt", reason))?;
                check_weights(&pieces)?;
                let blocks = weighted(tokenizer, pieces)?;
                match blocks.ids.len() {
                    0..=MAX_BLOCKS => Ok(blocks),
                    n => refuse("prompt", format!("comes to {n} blocks of tokens, more than {MAX_BLOCKS}")),
                }
            }
        }
    }

    /// As many blocks as the longest of several prompts has; the others are filled up with empty ones.
    pub(crate) fn extend_to(&mut self, n: usize, tokenizer: &ClipTokenizer) {
        while self.ids.len() < n {
            self.ids.push(tokenizer.frame(&[]));
            if !self.weights.is_empty() {
                self.weights.push(vec![1.0; tokenizer.max_length()]);
            }
        }
    }
}

fn check_weights(pieces: &[Piece]) -> Result<(), Error> {
    let too_large = pieces.iter().find_map(|piece| match piece {
        Piece::Text(text, weight) if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(weight) => Some((text, weight)),
        _ => None,
    });
    match too_large {
        Some((text, weight)) => {
            let words: String = text.chars().take(40).collect();
            refuse("prompt", format!("'{words}' has the weight {weight}, beyond {MAX_WEIGHT}"))
        }
        None => Ok(()),
    }
}

fn weighted(tokenizer: &ClipTokenizer, pieces: Vec<Piece>) -> Result<Blocks, TokenizerError> {
    let room = tokenizer.max_length() - 2;
    let mut blocks: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default()];
    for piece in pieces {
        match piece {
            Piece::Break => blocks.push(Default::default()),
            Piece::Text(text, weight) => {
                for id in tokenizer.tokens(&text)? {
                    if blocks.last().is_none_or(|(ids, _)| ids.len() == room) {
                        blocks.push(Default::default());
                    }
                    if let Some((ids, weights)) = blocks.last_mut() {
                        ids.push(id);
                        weights.push(weight);
                    }
                }
            }
        }
    }
    let is_weighted = blocks.iter().flat_map(|(_, weights)| weights).any(|&weight| weight != 1.0);
    let framed = |weights: &Vec<f32>| {
        let mut framed = vec![1.0; tokenizer.max_length()];
        framed[1..=weights.len()].copy_from_slice(weights);
        framed
    };
    Ok(Blocks {
        ids: blocks.iter().map(|(ids, _)| tokenizer.frame(ids)).collect(),
        weights: if is_weighted {
            blocks.iter().map(|(_, weights)| framed(weights)).collect()
        } else {
            Vec::new()
        },
        n_truncated: 0,
    })
}
