//! Embeddings that every residual block reads (diffusers `models/embeddings.py`).

use kiln_graph::{Tensor, Weights};

use super::config::EmbeddingConfig;
use crate::layers::{Linear, Result};

/// `TimestepEmbedding` of the timestep, of LCM's guidance scale and of SDXL's pooled text and time ids.
pub(super) struct Embedding {
    config: EmbeddingConfig,
    time: [Linear; 2],
    cond_proj: Option<Linear>,
    addition: Option<[Linear; 2]>,
}

/// The inputs of an [`Embedding`].
pub(super) struct Conditions {
    /// `[1]` or `[B]`.
    pub(super) timestep: Tensor,
    /// LCM's `[B, time_cond_proj_dim]`.
    pub(super) timestep_cond: Option<Tensor>,
    /// SDXL's `text_embeds` `[B, pooled]` and `time_ids` `[B, n]`.
    pub(super) addition: Option<[Tensor; 2]>,
}

impl Embedding {
    pub(super) fn new(w: Weights<'_>, config: &EmbeddingConfig) -> Result<Embedding> {
        let inner = config.time_embed_dim;
        let two = |w: Weights<'_>, inputs| -> Result<[Linear; 2]> {
            Ok([
                Linear::new(w.child("linear_1"), [inputs, inner])?,
                Linear::new(w.child("linear_2"), [inner, inner])?,
            ])
        };
        let time = w.child("time_embedding");
        let cond_proj = |n| Linear::without_bias(time.child("cond_proj"), [n, config.time_proj_dim]);
        Ok(Embedding {
            cond_proj: config.time_cond_proj_dim.map(cond_proj).transpose()?,
            addition: config.addition.map(|a| two(w.child("add_embedding"), a.input_dim)).transpose()?,
            time: two(time.clone(), config.time_proj_dim)?,
            config: config.clone(),
        })
    }

    /// `[B or 1, time_embed_dim]`.
    pub(super) fn forward(&self, conditions: &Conditions) -> Tensor {
        let [n] = conditions.timestep.dims();
        let timestep = conditions.timestep.reshape(vec![n, 1.into()]);
        let mut time = self.sinusoid(&timestep, self.config.time_proj_dim);
        if let (Some(proj), Some(cond)) = (&self.cond_proj, &conditions.timestep_cond) {
            time = time.add(&proj.forward(cond));
        }
        let embedding = two_layers(&self.time, &time);
        let (Some(layers), Some([text_embeds, time_ids]), Some(addition)) =
            (&self.addition, &conditions.addition, self.config.addition)
        else {
            return embedding;
        };
        let [b, n] = time_ids.dims();
        let width = addition.time_embed_dim;
        let sinusoids = self.sinusoid(&time_ids.reshape(vec![b.times(&n), 1.into()]), width);
        let sinusoids = sinusoids.reshape(vec![b, n.times(&width.into())]);
        embedding.add(&two_layers(layers, &Tensor::concat(&[text_embeds.clone(), sinusoids], 1)))
    }

    /// `get_timestep_embedding` of `[N, 1]` numbers: `[N, width]`.
    fn sinusoid(&self, numbers: &Tensor, width: u64) -> Tensor {
        let half = width / 2;
        let span = half as f32 - self.config.freq_shift as f32;
        let frequencies = (0..half).map(|i| ((-(10000f64.ln()) as f32 * i as f32) / span).exp()).collect();
        let sinusoid = numbers.sinusoid(frequencies, self.config.cosine_first);
        match width.is_multiple_of(2) {
            true => sinusoid,
            false => sinusoid.pad_end(1, 1),
        }
    }
}

fn two_layers([first, second]: &[Linear; 2], x: &Tensor) -> Tensor {
    second.forward(&first.forward(x).silu())
}
