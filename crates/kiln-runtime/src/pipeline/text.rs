//! Prompts to what the UNet attends to.

use kiln_bundle::TextEncoderInfo;
use kiln_bundle::stable_diffusion::TEXT_ENCODER;
use kiln_engine::{Tensor, TensorView};
use ndarray::{Array2, Array3, ArrayD, ArrayView2, ArrayViewD, Axis, Slice, concatenate};

use super::{Event, Pipeline, Run};
use crate::prompt::Blocks;
use crate::{Error, Request};

/// What the prompts of a request become: the unconditional rows first where guidance is on.
pub(super) struct Conditioning {
    /// Hidden states `[B or 2B, tokens, width]`.
    pub(super) states: ArrayD<f32>,
    /// Pooled text `[B or 2B, width]` (SDXL).
    pub(super) pooled: Option<ArrayD<f32>>,
}

impl Pipeline {
    /// Encodes the prompts, behind the negative ones where guidance is on.
    pub(super) fn encode_prompts(
        &mut self,
        request: &Request,
        guided: bool,
        run: &mut Run<'_, '_>,
    ) -> Result<Conditioning, Error> {
        let n = request.prompts.len();
        let negative = (0..n).filter(|_| guided).map(|i| request.negative_prompt(i));
        let texts: Vec<&str> = negative.chain(request.prompts.iter().map(String::as_str)).collect();
        let n_negative = texts.len() - n;

        let encoders = self.bundle.pipeline()?.text_encoders.clone();
        let mut states = Vec::new();
        let mut pooled = None;
        for (i, encoder) in encoders.iter().enumerate() {
            let blocks = self.blocks(i, &texts, request)?;
            self.check_blocks(blocks.first().map_or(1, |blocks| blocks.ids.len()))?;
            let n_truncated = blocks.iter().map(|blocks| blocks.n_truncated).max().unwrap_or(0);
            if i == 0 && n_truncated > 0 {
                run.tell(Event::Truncated(n_truncated))?;
            }
            let encoded = self.encode(encoder, &blocks, run)?;
            states.push(encoded.states(encoder, &blocks, n_negative, request.clip_skip)?.into_dyn());
            pooled = encoded.pooled(encoder, blocks.first().map_or(1, |b| b.ids.len())).or(pooled);
        }
        let views: Vec<ArrayViewD<'_, f32>> = states.iter().map(|array| array.view()).collect();
        let mut states = concatenate(Axis(2), &views)
            .map_err(|e| Error::Component { component: TEXT_ENCODER, reason: e.to_string() })?;
        if self.settings.force_zeros_for_empty_prompt && request.negative_prompts.is_empty() {
            states.slice_axis_mut(Axis(0), Slice::from(..n_negative)).fill(0.0);
            if let Some(pooled) = &mut pooled {
                pooled.slice_axis_mut(Axis(0), Slice::from(..n_negative)).fill(0.0);
            }
        }
        Ok(Conditioning { states, pooled })
    }

    /// Blocks of tokens that the longest text of a request takes.
    pub(super) fn n_blocks(&self, request: &Request) -> Result<u64, Error> {
        let texts: Vec<&str> =
            request.prompts.iter().chain(&request.negative_prompts).map(String::as_str).collect();
        let blocks = self.blocks(0, &texts, request)?;
        Ok(blocks.first().map_or(1, |blocks| blocks.ids.len() as u64).max(1))
    }

    /// The texts as blocks of tokens, as many for each.
    fn blocks(&self, encoder: usize, texts: &[&str], request: &Request) -> Result<Vec<Blocks>, Error> {
        let tokenizer = &self.tokenizers[encoder];
        let mut blocks: Vec<Blocks> = texts
            .iter()
            .map(|text| Blocks::new(tokenizer, text, request.prompt_syntax))
            .collect::<Result<_, _>>()?;
        let longest = blocks.iter().map(|blocks| blocks.ids.len()).max().unwrap_or(1);
        blocks.iter_mut().for_each(|blocks| blocks.extend_to(longest, tokenizer));
        Ok(blocks)
    }

    fn encode(
        &mut self,
        encoder: &TextEncoderInfo,
        blocks: &[Blocks],
        run: &mut Run<'_, '_>,
    ) -> Result<Encoded, Error> {
        let refuse = |reason: String| Error::Component { component: encoder.component, reason };
        let ids: Vec<i64> = blocks.iter().flat_map(|blocks| &blocks.ids).flatten().copied().collect();
        let positions = encoder.positions as usize;
        let rows = ids.len() / positions;
        let ids = ArrayView2::from_shape((rows, positions), &ids).map_err(|e| refuse(e.to_string()))?;
        let learned = self.learned.rows(encoder, ids);
        let role = self.load(encoder.component, run)?;
        let mut network = self.engines.network(&self.bundle, role)?;
        let mut inputs = vec![("input_ids", TensorView::I64(ids.into_dyn()))];
        if network.inputs().iter().any(|port| port.name == LEARNED) {
            inputs.push((LEARNED, TensorView::F32(learned.view().into_dyn())));
        }
        let names = network.outputs().iter().map(|port| port.name.clone()).collect();
        let outputs = network.run(&inputs)?;
        Ok(Encoded { names, outputs })
    }
}

const LEARNED: &str = "learned_embeddings";

/// The outputs of a text encoder, one row per block.
struct Encoded {
    names: Vec<String>,
    outputs: Vec<Tensor>,
}

impl Encoded {
    fn output(&self, name: &str) -> Option<ArrayViewD<'_, f32>> {
        let index = self.names.iter().position(|found| found == name)?;
        self.outputs[index].f32()
    }

    /// Weighted hidden states `[texts, tokens, width]`; negative prompts skip no layers, as in diffusers.
    fn states(
        &self,
        encoder: &TextEncoderInfo,
        blocks: &[Blocks],
        n_negative: usize,
        clip_skip: usize,
    ) -> Result<Array3<f32>, Error> {
        let refuse = |reason: String| Error::Component { component: encoder.component, reason };
        let Some(skipped) = encoder.states.get(clip_skip) else {
            let reason = format!("{clip_skip} is more than {}, the most of this model", encoder.states.len() - 1);
            return Err(Error::Request { key: "clip skip", reason });
        };
        let n_blocks = blocks.first().map_or(1, |blocks| blocks.ids.len());
        let (width, positions) = (encoder.width as usize, encoder.positions as usize);
        let mut states = Array3::zeros((blocks.len(), n_blocks * positions, width));
        for (i, mut row) in states.axis_iter_mut(Axis(0)).enumerate() {
            let name = if i < n_negative { &encoder.states[0] } else { skipped };
            let output = self.output(name).ok_or_else(|| refuse(format!("has no output '{name}'")))?;
            let own = output.slice_axis(Axis(0), Slice::from(i * n_blocks..(i + 1) * n_blocks));
            let own = own.to_shape((n_blocks * positions, width)).map_err(|e| refuse(e.to_string()))?;
            row.assign(&own);
        }
        for (mut row, blocks) in states.axis_iter_mut(Axis(0)).zip(blocks) {
            if !blocks.weights.is_empty() {
                let weights = blocks.weights.iter().flatten().copied().collect();
                weigh(&mut row, weights);
            }
        }
        Ok(states)
    }

    /// Pooled text of each text's first block, `[texts, width]`.
    fn pooled(&self, encoder: &TextEncoderInfo, n_blocks: usize) -> Option<ArrayD<f32>> {
        let pooled = self.output(encoder.pooled.as_ref()?)?;
        Some(pooled.slice_axis(Axis(0), Slice::new(0, None, n_blocks as isize)).to_owned())
    }
}

/// Multiplies each token's state by its weight and restores the mean (diffusers' `lpw_stable_diffusion.py`).
fn weigh(states: &mut ndarray::ArrayViewMut2<'_, f32>, weights: Vec<f32>) {
    let before = states.mean().unwrap_or(0.0);
    let weights = Array2::from_shape_vec((weights.len(), 1), weights).unwrap_or_default();
    *states *= &weights;
    let after = states.mean().unwrap_or(0.0);
    if after != 0.0 {
        *states *= before / after;
    }
}
