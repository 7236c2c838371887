//! Textual inversion: words whose embeddings are learned (Gal et al. 2022, diffusers `loaders/textual_inversion.py`).

use std::path::Path;

use kiln_bundle::stable_diffusion::{TEXT_ENCODER, TEXT_ENCODER_2};
use kiln_bundle::{Contents, Role, TensorFile, TextEncoderInfo, read};
use kiln_lora::LearnedWord;
use ndarray::{Array2, Array3, ArrayView2};

use crate::tokenizer::{ClipTokenizer, TokenizerError};
use crate::{ComponentName, Error};

/// Largest embedding file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// The learned words of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct LearnedWords {
    words: Vec<Word>,
}

#[derive(Debug)]
struct Word {
    token: String,
    /// Vectors `[n, width]` and the first of their ids, per text encoder that knows the word.
    vectors: Vec<(ComponentName, i64, Array2<f32>)>,
}

impl LearnedWords {
    /// Reads an embedding file and teaches the tokenizers its word, `token` or else the file's own name for it.
    pub(crate) fn learn(
        &mut self,
        path: &Path,
        token: Option<&str>,
        encoders: &[TextEncoderInfo],
        tokenizers: &mut [&mut ClipTokenizer],
    ) -> Result<String, Error> {
        let file = EmbeddingFile::read(path)?;
        let token = token.map_or_else(|| file.token(path), str::to_owned);
        self.add(path, &token, file.tables, encoders, tokenizers)?;
        Ok(token)
    }

    /// Teaches the tokenizers a word that a file bundles, unless they know it with the same vectors.
    pub(crate) fn learn_word(
        &mut self,
        path: &Path,
        word: &LearnedWord,
        encoders: &[TextEncoderInfo],
        tokenizers: &mut [&mut ClipTokenizer],
    ) -> Result<bool, Error> {
        let tables = word.tables.iter().map(|table| {
            let array = Array2::from_shape_vec(table.shape, table.values.clone());
            Ok((table.name.clone(), array.map_err(|e| Error::embedding(path, e.to_string()))?))
        });
        let tables = tables.collect::<Result<Vec<_>, Error>>()?;
        let has = |known: &Word| {
            let vectors = || known.vectors.iter().map(|(_, _, table)| table);
            known.token == word.word && tables.iter().all(|(_, table)| vectors().any(|known| known == table))
        };
        if self.words.iter().any(has) {
            return Ok(false);
        }
        self.add(path, &word.word, tables, encoders, tokenizers)?;
        Ok(true)
    }

    fn add(
        &mut self,
        path: &Path,
        token: &str,
        tables: Vec<(String, Array2<f32>)>,
        encoders: &[TextEncoderInfo],
        tokenizers: &mut [&mut ClipTokenizer],
    ) -> Result<(), Error> {
        let refuse = |reason: String| Error::embedding(path, reason);
        if token.trim().is_empty() || token.chars().any(char::is_whitespace) {
            return Err(refuse(format!("'{token}' is not a word")));
        }
        if self.words.iter().any(|word| word.token == token) {
            return Err(refuse(format!("'{token}' is the word of another embedding")));
        }
        let mut vectors = Vec::new();
        for (name, table) in tables {
            let encoder = encoder_of(&name, encoders);
            let Some(i) = encoder.filter(|&i| encoders[i].width as usize == table.ncols()) else {
                let widths: Vec<String> = encoders.iter().map(|e| e.width.to_string()).collect();
                return Err(refuse(format!(
                    "'{name}' holds vectors of {}; this model's text encoders have {}",
                    table.ncols(),
                    widths.join(" and ")
                )));
            };
            vectors.push((i, table));
        }
        if vectors.iter().any(|(i, _)| tokenizers[*i].knows(token)) {
            return Err(refuse(format!("the tokenizer has a token '{token}' already; name another one")));
        }
        let mut word = Word { token: token.to_owned(), vectors: Vec::new() };
        for (i, table) in vectors {
            let encoder = &encoders[i];
            let first = tokenizers[i].learn(token, table.nrows(), i64::from(encoder.vocabulary))?;
            word.vectors.push((encoder.component, first, table));
        }
        self.words.push(word);
        Ok(())
    }

    /// Learned words of a text that some encoders know and others read as letters.
    pub(crate) fn half_known(&self, text: &str, encoders: &[&TextEncoderInfo]) -> Vec<String> {
        let words = self.words.iter().filter(|word| text.contains(&word.token));
        let unlearned = words.filter_map(|word| {
            let knows =
                |encoder: &&&TextEncoderInfo| word.vectors.iter().any(|(name, ..)| *name == encoder.component);
            let other = encoders.iter().find(|encoder| !knows(encoder))?;
            Some(format!(
                "'{}' is not learned for {}, which reads it as ordinary text",
                word.token, other.component
            ))
        });
        unlearned.collect()
    }

    /// What an encoder reads for ids beyond its vocabulary: `[rows, positions, width]`, zeros elsewhere.
    pub(crate) fn rows(&self, encoder: &TextEncoderInfo, ids: ArrayView2<'_, i64>) -> Array3<f32> {
        let (n, positions) = ids.dim();
        let mut rows = Array3::zeros((n, positions, encoder.width as usize));
        let tables = self
            .words
            .iter()
            .flat_map(|word| &word.vectors)
            .filter(|(component, ..)| *component == encoder.component);
        for (_, first, table) in tables {
            for ((row, position), id) in ids.indexed_iter() {
                let index = usize::try_from(id - first).ok().filter(|&index| index < table.nrows());
                if let Some(index) = index {
                    rows.slice_mut(ndarray::s![row, position, ..]).assign(&table.row(index));
                }
            }
        }
        rows
    }
}

/// `clip_l` and `clip_g` name SDXL's encoders; any other name is the first encoder's.
fn encoder_of(name: &str, encoders: &[TextEncoderInfo]) -> Option<usize> {
    let component = match name {
        "clip_g" => TEXT_ENCODER_2,
        "clip_l" => TEXT_ENCODER,
        _ => encoders.first()?.component,
    };
    encoders.iter().position(|encoder| encoder.component == component)
}

struct EmbeddingFile {
    tables: Vec<(String, Array2<f32>)>,
}

impl EmbeddingFile {
    fn read(path: &Path) -> Result<EmbeddingFile, Error> {
        let refuse = |reason: String| Error::embedding(path, reason);
        if !path.exists() {
            let (reason, hint) = ("no such file".into(), kiln_bundle::absent::hint(path));
            return Err(Error::Embedding { path: path.into(), reason, hint });
        }
        if path.extension().is_some_and(|ending| ending == "pt" || ending == "bin") {
            let reason = "pickled embeddings can run code when they are read, and kiln refuses them; convert the file to \
                          safetensors";
            return Err(refuse(reason.into()));
        }
        let bytes = read::bytes(path, MAX_BYTES, "embedding");
        let bytes = bytes.map_err(|e| e.map(|e| Error::io(path, e), refuse))?;
        let file = TensorFile::from_bytes(path, bytes).map_err(|e| refuse(e.reason()))?;
        EmbeddingFile::of(&file).map_err(|reason| EmbeddingFile::refused(&file, reason))
    }

    /// The refusal of a file, which may be something else.
    fn refused(file: &TensorFile, reason: String) -> Error {
        let is_embedding = Contents::of(file.tensors()).is_some_and(|c| c.role == Some(Role::Embedding));
        let other = Contents::instead_of("an embedding", file.tensors()).filter(|_| !is_embedding);
        let (reason, hint) = other.map_or((reason, None), |(reason, hint)| (reason, hint.map(Into::into)));
        Error::Embedding { path: file.path().into(), reason, hint }
    }

    fn of(file: &TensorFile) -> Result<EmbeddingFile, String> {
        let mut tables = Vec::new();
        for (name, info) in file.tensors() {
            let shape = match *info.shape {
                [width] if width > 0 => [1, width],
                [n, width] if n > 0 && n <= 75 && width > 0 => [n, width],
                ref other => {
                    return Err(format!("'{name}' has shape {other:?}, which is not up to 75 vectors"));
                }
            };
            let values = file.read_f32(name).map_err(|e| e.reason())?;
            let table = Array2::from_shape_vec(shape, values).map_err(|e| e.to_string())?;
            tables.push((name.clone(), table));
        }
        let is_pair = tables.iter().all(|(name, _)| name == "clip_l" || name == "clip_g");
        match tables.len() {
            1 => Ok(EmbeddingFile { tables }),
            2 if is_pair => Ok(EmbeddingFile { tables }),
            n => Err(format!("holds {n} tensors; an embedding is one, or clip_l and clip_g")),
        }
    }

    /// diffusers stores the vectors under the word itself; other tools use a fixed name and mean the file's.
    fn token(&self, path: &Path) -> String {
        const FIXED: [&str; 4] = ["emb_params", "clip_l", "clip_g", "string_to_param"];
        match self.tables.first().map(|(name, _)| name).filter(|name| !FIXED.contains(&name.as_str())) {
            Some(name) => name.clone(),
            None => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }
}

impl ClipTokenizer {
    /// Adds a word of `n` vectors, whose ids start at `vocabulary` or behind the words learned before.
    fn learn(&mut self, token: &str, n: usize, vocabulary: i64) -> Result<i64, TokenizerError> {
        let tokens = (0..n).map(|i| if i == 0 { token.to_owned() } else { format!("{token}_{i}") }).collect();
        self.add_words(tokens, vocabulary)
    }
}
