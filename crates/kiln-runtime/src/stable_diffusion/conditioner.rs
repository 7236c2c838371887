use std::collections::BTreeSet;
use std::path::Path;

use kiln_bundle::{Bundle, TextEncoderInfo};
use kiln_engine::TensorView;
use kiln_lora::LearnedWord;
use ndarray::{Array2, Array3, ArrayD, ArrayView2, ArrayViewD, ArrayViewMut2, Axis, Slice, concatenate};

use crate::Error;
use crate::architecture::{Conditioner, Conditioning, Engines, Outputs, Texts};
use crate::companions::tokenizer_of;
use crate::prompt::{Blocks, LearnedWords, unread};
use crate::tokenizer::ClipTokenizer;

/// The UNet's input for hidden states `[rows, tokens, width]`.
pub(super) const STATES: &str = "encoder_hidden_states";

/// SDXL's input for pooled text `[rows, width]`.
pub(super) const POOLED: &str = "text_embeds";

/// The text encoders' input for the vectors of learned words.
const LEARNED: &str = "learned_embeddings";

/// CLIP's text encoders, one or two, whose hidden states are joined.
#[derive(Debug)]
pub(super) struct ClipConditioner {
    encoders: Vec<Encoder>,
    learned: LearnedWords,
    /// Whether a missing negative prompt means zeros.
    zeros_for_empty_prompt: bool,
}

#[derive(Debug)]
struct Encoder {
    info: TextEncoderInfo,
    tokenizer: ClipTokenizer,
}

impl ClipConditioner {
    pub(super) fn open(bundle: &Bundle, zeros_for_empty_prompt: bool) -> Result<ClipConditioner, Error> {
        let infos = bundle.pipeline()?.text_encoders.iter();
        let open =
            |info: &TextEncoderInfo| Ok(Encoder { info: info.clone(), tokenizer: tokenizer_of(bundle, info)? });
        let encoders = infos.map(open).collect::<Result<_, Error>>()?;
        Ok(ClipConditioner { encoders, learned: LearnedWords::default(), zeros_for_empty_prompt })
    }

    /// The texts as blocks of tokens, for each encoder and text as many: the states of all encoders are joined, and those of
    /// all texts batched.
    fn blocks(&self, texts: &Texts<'_>) -> Result<Vec<Vec<Blocks>>, Error> {
        let of_encoder = |encoder: &Encoder| {
            let all = texts.all.iter().map(|text| Blocks::new(&encoder.tokenizer, text, texts.syntax));
            all.collect::<Result<Vec<_>, Error>>()
        };
        let mut all = self.encoders.iter().map(of_encoder).collect::<Result<Vec<_>, Error>>()?;
        let longest = all.iter().map(|blocks| n_blocks(blocks)).max().unwrap_or(1);
        for (encoder, blocks) in self.encoders.iter().zip(&mut all) {
            blocks.iter_mut().for_each(|blocks| blocks.extend_to(longest, &encoder.tokenizer));
        }
        Ok(all)
    }

    fn run(&self, encoder: &Encoder, blocks: &[Blocks], engines: &mut dyn Engines) -> Result<Outputs, Error> {
        let info = &encoder.info;
        let ids: Vec<i64> = blocks.iter().flat_map(|blocks| &blocks.ids).flatten().copied().collect();
        let positions = info.positions as usize;
        let ids = ArrayView2::from_shape((ids.len() / positions, positions), &ids)
            .map_err(|e| error(info, e.to_string()))?;
        let learned = self.learned.rows(info, ids);
        let mut inputs = vec![("input_ids", TensorView::I64(ids.into_dyn()))];
        if engines.inputs(info.component)?.iter().any(|port| port.name == LEARNED) {
            inputs.push((LEARNED, TensorView::F32(learned.view().into_dyn())));
        }
        engines.run(info.component, &inputs)
    }
}

impl Conditioner for ClipConditioner {
    fn n_blocks(&self, texts: &Texts<'_>) -> Result<u64, Error> {
        Ok(self.blocks(texts)?.first().map_or(1, |blocks| n_blocks(blocks)) as u64)
    }

    fn check(&self, texts: &Texts<'_>) -> Result<(), Error> {
        self.encoders.iter().try_for_each(|encoder| encoder.skipped(texts).map(drop))
    }

    fn remarks(&self, texts: &Texts<'_>) -> Vec<String> {
        let encoders: Vec<&TextEncoderInfo> = self.encoders.iter().map(|encoder| &encoder.info).collect();
        let of_text = |text: &&str| {
            let mut remarks = unread(text, texts.syntax);
            remarks.extend(self.learned.half_known(text, &encoders));
            remarks
        };
        let distinct: BTreeSet<&str> = texts.all.iter().copied().collect();
        distinct.iter().flat_map(of_text).collect()
    }

    fn encode(&self, texts: &Texts<'_>, engines: &mut dyn Engines) -> Result<Conditioning, Error> {
        let (mut states, mut pooled) = (Vec::new(), None);
        let all = self.blocks(texts)?;
        let n_truncated = all.iter().flatten().map(|blocks| blocks.n_truncated).max().unwrap_or(0);
        for (encoder, blocks) in self.encoders.iter().zip(all) {
            let outputs = self.run(encoder, &blocks, engines)?;
            states.push(encoder.states(&outputs, &blocks, texts)?.into_dyn());
            if let Some(name) = &encoder.info.pooled {
                // Of each text's first block.
                let first = Slice::new(0, None, n_blocks(&blocks) as isize);
                pooled = Some(outputs.get(name)?.slice_axis(Axis(0), first).to_owned());
            }
        }
        let views: Vec<ArrayViewD<'_, f32>> = states.iter().map(|array| array.view()).collect();
        let refuse = |reason: String| match self.encoders.first() {
            Some(encoder) => error(&encoder.info, reason),
            None => Error::Request { key: "prompt", reason: "this model has no text encoder".into() },
        };
        let states = concatenate(Axis(2), &views).map_err(|e| refuse(e.to_string()))?;
        let mut tensors: Vec<(String, ArrayD<f32>)> = vec![(STATES.into(), states)];
        tensors.extend(pooled.map(|pooled| (POOLED.into(), pooled)));
        if self.zeros_for_empty_prompt && !texts.has_negative {
            for (_, tensor) in &mut tensors {
                tensor.slice_axis_mut(Axis(0), Slice::from(..texts.n_negative)).fill(0.0);
            }
        }
        Ok(Conditioning { tensors, n_truncated })
    }

    fn learn(&mut self, path: &Path, token: Option<&str>) -> Result<String, Error> {
        let infos: Vec<TextEncoderInfo> = self.encoders.iter().map(|encoder| encoder.info.clone()).collect();
        let mut tokenizers: Vec<&mut ClipTokenizer> =
            self.encoders.iter_mut().map(|encoder| &mut encoder.tokenizer).collect();
        self.learned.learn(path, token, &infos, &mut tokenizers)
    }

    fn learn_word(&mut self, path: &Path, word: &LearnedWord) -> Result<bool, Error> {
        let infos: Vec<TextEncoderInfo> = self.encoders.iter().map(|encoder| encoder.info.clone()).collect();
        let mut tokenizers: Vec<&mut ClipTokenizer> =
            self.encoders.iter_mut().map(|encoder| &mut encoder.tokenizer).collect();
        self.learned.learn_word(path, word, &infos, &mut tokenizers)
    }
}

impl Encoder {
    /// The output with the hidden states of the layer that prompts are read from.
    fn skipped(&self, texts: &Texts<'_>) -> Result<&String, Error> {
        let states = &self.info.states;
        states.get(texts.clip_skip).ok_or_else(|| {
            let reason =
                format!("{} is more than {}, the most of this model", texts.clip_skip, states.len() - 1);
            Error::Request { key: "clip skip", reason }
        })
    }

    /// Hidden states `[texts, tokens, width]`, of which `clip_skip` is for prompts alone.
    fn states(&self, outputs: &Outputs, blocks: &[Blocks], texts: &Texts<'_>) -> Result<Array3<f32>, Error> {
        let info = &self.info;
        let skipped = self.skipped(texts)?;
        let n_blocks = n_blocks(blocks);
        let (width, positions) = (info.width as usize, info.positions as usize);
        let mut states = Array3::zeros((blocks.len(), n_blocks * positions, width));
        for (i, mut row) in states.axis_iter_mut(Axis(0)).enumerate() {
            let name = if i < texts.n_negative { &info.states[0] } else { skipped };
            let output = outputs.get(name)?;
            let own = output.slice_axis(Axis(0), Slice::from(i * n_blocks..(i + 1) * n_blocks));
            let own = own.to_shape((n_blocks * positions, width)).map_err(|e| error(info, e.to_string()))?;
            row.assign(&own);
        }
        for (mut row, blocks) in states.axis_iter_mut(Axis(0)).zip(blocks) {
            if !blocks.weights.is_empty() {
                weigh(&mut row, blocks.weights.iter().flatten().copied().collect());
            }
        }
        Ok(states)
    }
}

fn error(info: &TextEncoderInfo, reason: String) -> Error {
    Error::Component { component: info.component, reason }
}

fn n_blocks(blocks: &[Blocks]) -> usize {
    blocks.iter().map(|blocks| blocks.ids.len()).max().unwrap_or(1)
}

/// Multiplies each token's state by its weight and restores the mean (diffusers' `lpw_stable_diffusion.py`).
fn weigh(states: &mut ArrayViewMut2<'_, f32>, weights: Vec<f32>) {
    let before = states.mean().unwrap_or(0.0);
    let weights = Array2::from_shape_vec((weights.len(), 1), weights).unwrap_or_default();
    *states *= &weights;
    let after = states.mean().unwrap_or(0.0);
    if after != 0.0 {
        *states *= before / after;
    }
}
