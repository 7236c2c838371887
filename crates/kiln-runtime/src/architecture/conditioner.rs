use std::fmt;
use std::path::Path;

use kiln_bundle::{ComponentName, PortInfo};
use kiln_engine::{Tensor, TensorView};
use kiln_lora::LearnedWord;
use ndarray::{ArrayD, ArrayViewD};

use crate::error::refuse;
use crate::{Error, PromptSyntax, Request};

/// Turns prompts into what a denoiser attends to.
pub trait Conditioner: fmt::Debug + Send {
    /// Blocks of tokens that the longest of the texts takes: the rows of a text encoder's batch for each text.
    fn n_blocks(&self, texts: &Texts<'_>) -> Result<u64, Error>;

    /// Refuses what [`Conditioner::encode`] would refuse of how the texts are read.
    ///
    /// # Errors
    ///
    /// Where more layers are skipped than there are.
    fn check(&self, _texts: &Texts<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Encodes the texts.
    fn encode(&self, texts: &Texts<'_>, engines: &mut dyn Engines) -> Result<Conditioning, Error>;

    /// What is read of the texts in another way than their author may think: a line each.
    fn remarks(&self, _texts: &Texts<'_>) -> Vec<String> {
        Vec::new()
    }

    /// Learns a word from an embedding file (textual inversion), `token` or the one that the file names; gives the word.
    ///
    /// # Errors
    ///
    /// Where the file cannot be used, or where the architecture has no learned words.
    fn learn(&mut self, _path: &Path, _token: Option<&str>) -> Result<String, Error> {
        refuse("embedding", "this architecture has no learned words".into())
    }

    /// Learns a word that a file bundles with its changes of weights; gives whether it was not known before.
    ///
    /// # Errors
    ///
    /// Where the vectors are not for the text encoders, another file has the word, or the architecture has none.
    fn learn_word(&mut self, _path: &Path, _word: &LearnedWord) -> Result<bool, Error> {
        refuse("lora", "this architecture has no learned words".into())
    }
}

/// The texts of a request, in the order of the rows that are made of them: where guidance needs them, one text per picture
/// to steer away from, then one prompt per picture.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Texts<'a> {
    /// All texts.
    pub all: Vec<&'a str>,
    /// How many of them are steered away from.
    pub n_negative: usize,
    /// Whether the request says what to steer away from, or leaves that open.
    pub has_negative: bool,
    /// How they are read.
    pub syntax: PromptSyntax,
    /// Layers of the text encoder to skip.
    pub clip_skip: usize,
}

impl<'a> Texts<'a> {
    pub(crate) fn of(request: &'a Request, is_guided: bool) -> Texts<'a> {
        let n = request.prompts.len();
        let negative = |i: usize| {
            let index = if request.negative_prompts.len() == 1 { 0 } else { i };
            request.negative_prompts.get(index).map_or("", String::as_str)
        };
        let negatives = (0..n).filter(|_| is_guided).map(negative);
        let all: Vec<&str> = negatives.chain(request.prompts.iter().map(String::as_str)).collect();
        Texts {
            n_negative: all.len() - n,
            all,
            has_negative: !request.negative_prompts.is_empty(),
            syntax: request.prompt_syntax,
            clip_skip: request.clip_skip,
        }
    }
}

/// What prompts became: tensors whose first axis has a row per text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conditioning {
    /// The tensors, by the names that the denoiser has for them.
    pub tensors: Vec<(String, ArrayD<f32>)>,
    /// How many tokens of the longest text were cut off.
    pub n_truncated: usize,
}

impl Conditioning {
    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&ArrayD<f32>> {
        self.tensors.iter().find(|(found, _)| found == name).map(|(_, tensor)| tensor)
    }

    /// Bytes of its tensors.
    pub(crate) fn n_bytes(&self) -> usize {
        self.tensors.iter().map(|(_, tensor)| size_of::<f32>() * tensor.len()).sum()
    }
}

/// Runs a bundle's components; they are loaded when they are needed.
pub trait Engines {
    /// What a component reads.
    fn inputs(&self, component: ComponentName) -> Result<&[PortInfo], Error>;

    /// Runs a component once, with inputs in any order.
    fn run(&mut self, component: ComponentName, inputs: &[(&str, TensorView<'_>)]) -> Result<Outputs, Error>;
}

/// What a component made.
#[derive(Debug)]
pub struct Outputs {
    component: ComponentName,
    tensors: Vec<(String, Tensor)>,
}

impl Outputs {
    pub(crate) fn new(component: ComponentName, tensors: Vec<(String, Tensor)>) -> Outputs {
        Outputs { component, tensors }
    }

    /// The output of that name; an error where there is none, or none of floats.
    pub fn get(&self, name: &str) -> Result<ArrayViewD<'_, f32>, Error> {
        let found = self.tensors.iter().find(|(found, _)| found == name);
        let reason = || format!("has no output '{name}' of floats");
        let view = found.and_then(|(_, tensor)| tensor.f32());
        view.ok_or_else(|| Error::Component { component: self.component, reason: reason() })
    }
}
