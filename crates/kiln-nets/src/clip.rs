//! CLIP's text encoder (transformers `models/clip/modeling_clip.py`).

use kiln_graph::{Attention, Dim, Graph, Symbol, Tensor, Weights};
use serde_json::Value;

use crate::config::ConfigReader;
use crate::layers::{LayerNorm, Linear, Result, each};

/// `text_encoder/config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipTextConfig {
    vocab_size: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: usize,
    num_attention_heads: u64,
    max_position_embeddings: u64,
    layer_norm_eps: f32,
    hidden_act: Activation,
    projection_dim: u64,
    eos_token_id: i64,
}

/// Which hidden states a pipeline conditions on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextStates {
    /// Those of the last layer, normalised: Stable Diffusion 1.x and 2.x.
    Last,
    /// Those that enter the last layer, as they are: Stable Diffusion XL.
    Penultimate,
}

/// What a traced text encoder reads and makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TextPorts {
    /// Prompts per call; open unless it is given.
    pub batch: Option<u64>,
    /// The hidden states that it makes.
    pub states: TextStates,
    /// Whether it reads `learned_embeddings`, the rows of ids beyond its vocabulary.
    pub learned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activation {
    QuickGelu,
    Gelu,
}

impl ClipTextConfig {
    /// Reads and checks a parsed `config.json`; `origin` names the file in errors.
    pub fn from_json(origin: &str, value: &Value) -> Result<ClipTextConfig> {
        let mut r = ConfigReader::new(origin, value, "CLIPTextModel")?;
        r.only("model_type", "clip_text_model")?;
        let config = ClipTextConfig {
            vocab_size: r.size("vocab_size", Some(49408))?,
            hidden_size: r.size("hidden_size", Some(512))?,
            intermediate_size: r.size("intermediate_size", Some(2048))?,
            num_hidden_layers: r.size("num_hidden_layers", Some(12))?.min(u64::from(u16::MAX)) as usize,
            num_attention_heads: r.size("num_attention_heads", Some(8))?,
            max_position_embeddings: r.size("max_position_embeddings", Some(77))?,
            layer_norm_eps: r.number("layer_norm_eps", 1e-5)? as f32,
            hidden_act: r.choice(
                "hidden_act",
                "quick_gelu",
                &[("quick_gelu", Activation::QuickGelu), ("gelu", Activation::Gelu)],
            )?,
            projection_dim: r.size("projection_dim", Some(512))?,
            eos_token_id: r.number("eos_token_id", 49407.0)? as i64,
        };
        r.ignore(&[
            "architectures",
            "attention_dropout",
            "bos_token_id",
            "dropout",
            "dtype",
            "initializer_factor",
            "initializer_range",
            "pad_token_id",
            "torch_dtype",
            "transformers_version",
            "use_cache",
        ]);
        if config.num_hidden_layers > 256 {
            return Err(r.error("num_hidden_layers", format!("{} is over 256", config.num_hidden_layers)));
        }
        if config.max_position_embeddings > 4096 {
            let reason = format!("{} is over 4096", config.max_position_embeddings);
            return Err(r.error("max_position_embeddings", reason));
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let reason =
                format!("{} does not divide hidden_size {}", config.num_attention_heads, config.hidden_size);
            return Err(r.error("num_attention_heads", reason));
        }
        r.finish()?;
        Ok(config)
    }

    /// Number of token positions.
    pub fn max_positions(&self) -> u64 {
        self.max_position_embeddings
    }

    /// Width of the hidden states.
    pub fn hidden_size(&self) -> u64 {
        self.hidden_size
    }

    /// Width of `text_embeds`.
    pub fn projection_dim(&self) -> u64 {
        self.projection_dim
    }

    /// Number of tokens that it knows.
    pub fn vocab_size(&self) -> u64 {
        self.vocab_size
    }

    /// Whether it is one of OpenCLIP's encoders, which have the exact GELU where OpenAI's approximate it.
    pub fn is_open_clip(&self) -> bool {
        self.hidden_act == Activation::Gelu
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.num_hidden_layers
    }

    /// The token whose position gives the pooled state; old configurations say 2 and mean the largest id.
    fn pooled_at(&self) -> Option<i64> {
        (self.eos_token_id != 2).then_some(self.eos_token_id)
    }
}

/// `CLIPTextModel`, or `CLIPTextModelWithProjection`.
pub struct ClipTextModel {
    config: ClipTextConfig,
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
}

impl ClipTextModel {
    /// Looks up the weights of a `CLIPTextModel`, whose names carry no `text_model.` prefix.
    pub fn new(w: Weights<'_>, config: &ClipTextConfig) -> Result<ClipTextModel> {
        let embeddings = w.child("embeddings");
        let width = config.hidden_size;
        Ok(ClipTextModel {
            token_embedding: embeddings.weight("token_embedding.weight", &[config.vocab_size, width])?,
            position_embedding: embeddings
                .weight("position_embedding.weight", &[config.max_position_embeddings, width])?,
            layers: each(config.num_hidden_layers, |i| {
                Layer::new(w.child("encoder").child("layers").child(i), config)
            })?,
            final_layer_norm: LayerNorm::new(w.child("final_layer_norm"), width, config.layer_norm_eps)?,
            text_projection: None,
            config: config.clone(),
        })
    }

    /// Looks up the weights of a `CLIPTextModelWithProjection`.
    pub fn with_projection(w: Weights<'_>, config: &ClipTextConfig) -> Result<ClipTextModel> {
        let widths = [config.hidden_size, config.projection_dim];
        let text_projection = Some(Linear::without_bias(w.child("text_projection"), widths)?);
        Ok(ClipTextModel { text_projection, ..ClipTextModel::new(w, config)? })
    }

    /// `input_ids` `[B, 77]` to hidden states `[B, 77, hidden]` and, with a projection, `text_embeds` `[B, projection]`.
    ///
    /// The outputs with hidden states come first, one per number of layers to skip: 0 as [`TextStates`] says, then the
    /// layers before (diffusers' `clip_skip`).
    pub fn trace(&self, ports: TextPorts) -> Graph {
        let batch = ports.batch.map_or(Dim::from(Symbol::BATCH), Dim::from);
        let (positions, width) = (self.config.max_position_embeddings, self.config.hidden_size);
        let ids = Tensor::int_input("input_ids", [batch.clone(), positions.into()]);
        let mut inputs = vec![ids.clone()];
        let mut x = match ports.learned {
            true => {
                let learned = Tensor::input("learned_embeddings", [batch, positions.into(), width.into()]);
                inputs.push(learned.clone());
                ids.embedding_or(&self.token_embedding, &learned)
            }
            false => ids.embedding(&self.token_embedding),
        };
        x = x.add(&self.position_embedding);
        let mut entering = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            entering.push(x.clone());
            x = layer.forward(&x).cut(&format!("encoder.layers.{i}"));
        }
        let last = self.final_layer_norm.forward(&x);
        let earlier = entering.iter().rev().enumerate();
        let mut outputs: Vec<(String, Tensor)> = match ports.states {
            TextStates::Last => [("last_hidden_state".to_owned(), last.clone())]
                .into_iter()
                .chain(earlier.map(|(i, x)| (format!("clip_skip.{}", i + 1), self.final_layer_norm.forward(x))))
                .collect(),
            TextStates::Penultimate => {
                earlier.map(|(i, x)| (format!("hidden_states.-{}", i + 2), x.clone())).collect()
            }
        };
        if let Some(projection) = &self.text_projection {
            let pooled = last.pick_end(&ids, self.config.pooled_at());
            outputs.push(("text_embeds".into(), projection.forward(&pooled)));
        }
        Graph { name: "text_encoder".into(), inputs, outputs }
    }
}

struct Layer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Layer {
    fn new(w: Weights<'_>, config: &ClipTextConfig) -> Result<Layer> {
        let (width, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        Ok(Layer {
            layer_norm1: LayerNorm::new(w.child("layer_norm1"), width, epsilon)?,
            self_attn: SelfAttention::new(w.child("self_attn"), config)?,
            layer_norm2: LayerNorm::new(w.child("layer_norm2"), width, epsilon)?,
            fc1: Linear::new(w.child("mlp.fc1"), [width, inner])?,
            fc2: Linear::new(w.child("mlp.fc2"), [inner, width])?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x.add(&self.self_attn.forward(&self.layer_norm1.forward(x)));
        let h = self.fc1.forward(&self.layer_norm2.forward(&x));
        let h = match self.activation {
            Activation::QuickGelu => h.quick_gelu(),
            Activation::Gelu => h.gelu(),
        };
        x.add(&self.fc2.forward(&h))
    }
}

struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    options: Attention,
}

impl SelfAttention {
    fn new(w: Weights<'_>, config: &ClipTextConfig) -> Result<SelfAttention> {
        let square = [config.hidden_size; 2];
        let heads = config.num_attention_heads;
        let scale = ((config.hidden_size / heads) as f32).powf(-0.5);
        Ok(SelfAttention {
            q_proj: Linear::new(w.child("q_proj"), square)?,
            k_proj: Linear::new(w.child("k_proj"), square)?,
            v_proj: Linear::new(w.child("v_proj"), square)?,
            out_proj: Linear::new(w.child("out_proj"), square)?,
            options: Attention { heads, scale, causal: true, upcast: false },
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let [q, k, v] = [&self.q_proj, &self.k_proj, &self.v_proj].map(|proj| proj.forward(x));
        self.out_proj.forward(&Tensor::attention(&q, &k, &v, self.options))
    }
}
