use serde_json::Value;

use super::depths::Depths;
use crate::config::ConfigReader;
use crate::layers::{Norm, Result, each};

/// `unet/config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct UNet2DConditionConfig {
    pub(super) down: DownPathConfig,
    pub(super) out_channels: u64,
    pub(super) center_input_sample: bool,
    pub(super) conv_out_kernel: u64,
    sample_size: Option<[u64; 2]>,
    has_old_sample_size: bool,
    /// Depths of the transformers of each level, from the last on; none where it has no transformers.
    up_transformers: Vec<Vec<usize>>,
}

/// `config.json` of a ControlNet.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlNetConfig {
    pub(super) down: DownPathConfig,
    pub(super) conditioning_channels: u64,
    pub(super) conditioning_embedding: Vec<u64>,
    pub(super) reads_bgr: bool,
}

/// What a UNet and a ControlNet have in common: embeddings, the way down, the middle.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DownPathConfig {
    pub(super) in_channels: u64,
    pub(super) conv_in_kernel: u64,
    pub(super) block_out_channels: Vec<u64>,
    pub(super) embedding: EmbeddingConfig,
    pub(super) cross_attention_dim: u64,
    pub(super) has_mid_block: bool,
    /// Depths of the transformers in the middle and of each level; none where there are none.
    mid_transformers: Vec<usize>,
    down_transformers: Vec<Vec<usize>>,
    norm_num_groups: u64,
    norm_eps: f32,
    layers: Vec<usize>,
    heads: Vec<u64>,
    linear_projection: bool,
    upcast_attention: bool,
}

/// How timesteps and other numbers become the embedding that every residual block reads.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct EmbeddingConfig {
    pub(super) cosine_first: bool,
    pub(super) freq_shift: f64,
    /// Width of the sinusoids of the timestep.
    pub(super) time_proj_dim: u64,
    pub(super) time_embed_dim: u64,
    /// Width of the guidance scale's embedding (LCM).
    pub(super) time_cond_proj_dim: Option<u64>,
    /// `addition_embed_type` "text_time" (SDXL).
    pub(super) addition: Option<AdditionConfig>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct AdditionConfig {
    /// Width of the sinusoids of each time id.
    pub(super) time_embed_dim: u64,
    /// Width of pooled text and all sinusoids together.
    pub(super) input_dim: u64,
}

/// Blocks in the middle, and whether they attend; the first unless one is named.
const MID_BLOCKS: [(&str, bool); 2] = [("UNetMidBlock2DCrossAttn", true), ("UNetMidBlock2D", false)];

impl AdditionConfig {
    pub(super) fn n_time_ids(self, pooled: u64) -> Option<u64> {
        let sinusoids = self.input_dim.checked_sub(pooled)?;
        (sinusoids > 0 && sinusoids.is_multiple_of(self.time_embed_dim))
            .then_some(sinusoids / self.time_embed_dim)
    }
}

/// What one level is built from.
pub(super) struct BlockConfig {
    /// Channels that enter, leave, and, going up, come with the last skip connection.
    pub(super) inputs: u64,
    pub(super) outputs: u64,
    pub(super) skip: u64,
    pub(super) layers: usize,
    /// One per layer, or none at all.
    pub(super) transformers: Vec<TransformerConfig>,
    pub(super) resamples: bool,
    pub(super) temb: u64,
    pub(super) norm: Norm,
}

#[derive(Clone, Copy)]
pub(super) struct TransformerConfig {
    pub(super) channels: u64,
    pub(super) heads: u64,
    pub(super) layers: usize,
    pub(super) cross_attention_dim: u64,
    pub(super) groups: u64,
    pub(super) linear_projection: bool,
    pub(super) upcast: bool,
}

impl UNet2DConditionConfig {
    /// Reads and checks a parsed `config.json`; `origin` names the file in errors.
    ///
    /// `attention_head_dim` is the *number* of heads per level, as diffusers reads it; `num_attention_heads` is refused
    /// as diffusers refuses it.
    pub fn from_json(origin: &str, value: &Value) -> Result<UNet2DConditionConfig> {
        let mut r = ConfigReader::new(origin, value, "UNet2DConditionModel")?;
        let mut down = DownPathConfig::read(&mut r)?;
        down.conv_in_kernel = odd_kernel(&mut r, "conv_in_kernel")?;
        if let Some(width) = r.optional_size("time_embedding_dim")? {
            down.embedding.time_embed_dim = width;
        }
        down.embedding.time_cond_proj_dim = r.optional_size("time_cond_proj_dim")?;
        let up_attention = block_types(&mut r, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D")?;
        check_levels(&r, "up_block_types", down.n_levels(), up_attention.len())?;
        let config = UNet2DConditionConfig {
            out_channels: r.size("out_channels", Some(4))?,
            center_input_sample: r.bool("center_input_sample", false)?,
            conv_out_kernel: odd_kernel(&mut r, "conv_out_kernel")?,
            sample_size: r.optional_pair("sample_size")?,
            has_old_sample_size: has_old_sample_size(value),
            up_transformers: down.up_transformers(&mut r, &up_attention)?,
            down,
        };
        r.only("attention_type", "default")?;
        r.only("resnet_out_scale_factor", 1)?;
        r.only("time_embedding_type", "positional")?;
        r.ignore(&["dropout"]);
        r.finish()?;
        Ok(config)
    }

    /// Default height and width in latents.
    pub fn sample_size(&self) -> Option<[u64; 2]> {
        self.sample_size
    }

    /// Whether it is one number below 64 that diffusers wrote before 0.9.0, which was meant for 64.
    pub fn has_old_sample_size(&self) -> bool {
        self.has_old_sample_size
    }

    /// Channels that it reads: those of the latents, and for inpainting those of the mask and of the masked picture.
    pub fn in_channels(&self) -> u64 {
        self.down.in_channels
    }

    /// Channels of its prediction.
    pub fn out_channels(&self) -> u64 {
        self.out_channels
    }

    /// Width of the text states that it attends to.
    pub fn cross_attention_dim(&self) -> u64 {
        self.down.cross_attention_dim
    }

    /// Width of the embedding of the guidance scale that it reads (LCM).
    pub fn guidance_embedding_dim(&self) -> Option<u64> {
        self.down.embedding.time_cond_proj_dim
    }

    /// Whether it reads pooled text and time ids (SDXL).
    pub fn reads_time_ids(&self) -> bool {
        self.down.embedding.addition.is_some()
    }

    /// Number of time ids beside pooled text of the given width; none where that does not work out.
    pub fn n_time_ids(&self, pooled: u64) -> Option<u64> {
        self.down.embedding.addition?.n_time_ids(pooled)
    }

    pub(super) fn up_block(&self, i: usize) -> BlockConfig {
        let down = &self.down;
        let level = down.n_levels() - 1 - i;
        let previous = (level + 1).min(down.n_levels() - 1);
        BlockConfig {
            inputs: down.block_out_channels[previous],
            outputs: down.block_out_channels[level],
            skip: down.block_out_channels[level.saturating_sub(1)],
            layers: down.layers[level] + 1,
            transformers: down.transformers(level, &self.up_transformers[i]),
            resamples: level > 0,
            temb: down.embedding.time_embed_dim,
            norm: down.norm(),
        }
    }
}

fn has_old_sample_size(config: &Value) -> bool {
    let version = config.get("_diffusers_version").and_then(Value::as_str).unwrap_or_default();
    let mut numbers = version.split('.').map(str::parse::<u64>);
    let is_old = matches!((numbers.next(), numbers.next()), (Some(Ok(0)), Some(Ok(minor))) if minor < 9);
    is_old && config.get("sample_size").and_then(Value::as_u64).is_some_and(|n| n < 64)
}

impl ControlNetConfig {
    /// Reads and checks a parsed `config.json`; `origin` names the file in errors.
    pub fn from_json(origin: &str, value: &Value) -> Result<ControlNetConfig> {
        let mut r = ConfigReader::new(origin, value, "ControlNetModel")?;
        let config = ControlNetConfig {
            down: DownPathConfig::read(&mut r)?,
            conditioning_channels: r.size("conditioning_channels", Some(3))?,
            conditioning_embedding: match r.has("conditioning_embedding_out_channels") {
                true => r.sizes("conditioning_embedding_out_channels")?,
                false => vec![16, 32, 96, 256],
            },
            reads_bgr: r.choice(
                "controlnet_conditioning_channel_order",
                "rgb",
                &[("rgb", false), ("bgr", true)],
            )?,
        };
        if !config.down.has_mid_block {
            let names = MID_BLOCKS.map(|(name, _)| name).join(", ");
            return Err(r.error("mid_block_type", format!("null is not supported; supported: {names}")));
        }
        r.only("conditioning_channels", 3)?;
        r.only("global_pool_conditions", false)?;
        r.finish()?;
        Ok(config)
    }

    /// Pixels of the control picture per latent along each axis.
    pub fn scale_factor(&self) -> u64 {
        1 << (self.conditioning_embedding.len() - 1)
    }

    /// Width of the text states that it attends to.
    pub fn cross_attention_dim(&self) -> u64 {
        self.down.cross_attention_dim
    }

    /// Channels of the latents that it reads.
    pub fn in_channels(&self) -> u64 {
        self.down.in_channels
    }

    /// Width of the pooled text that it reads beside six time ids (SDXL).
    pub fn pooled_width(&self) -> Option<u64> {
        let addition = self.down.embedding.addition?;
        addition.input_dim.checked_sub(6 * addition.time_embed_dim).filter(|width| *width > 0)
    }
}

impl DownPathConfig {
    fn read(r: &mut ConfigReader<'_>) -> Result<DownPathConfig> {
        let block_out_channels = r.sizes("block_out_channels")?;
        let n_levels = block_out_channels.len();
        let layers = r.size_per_level("layers_per_block", 2, n_levels)?;
        if let Some(n) = layers.iter().find(|n| **n > 64) {
            return Err(r.error("layers_per_block", format!("{n} is over 64")));
        }
        let layers: Vec<usize> = layers.into_iter().map(|n| n as usize).collect();
        let depths = Depths::down(r, n_levels)?;
        let down_attention = block_types(r, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D")?;
        check_levels(r, "down_block_types", n_levels, down_attention.len())?;
        let has_mid_block = !r.is_null("mid_block_type");
        let mid_attends = has_mid_block && r.choice("mid_block_type", MID_BLOCKS[0].0, &MID_BLOCKS)?;
        let config = DownPathConfig {
            in_channels: r.size("in_channels", Some(4))?,
            conv_in_kernel: 3,
            embedding: EmbeddingConfig::read(r, block_out_channels[0])?,
            cross_attention_dim: one_for_all(r, "cross_attention_dim", 1280, n_levels)?,
            has_mid_block,
            mid_transformers: if mid_attends { depths.mid(r)? } else { Vec::new() },
            down_transformers: each(n_levels, |i| match down_attention[i] {
                true => depths.of(r, i, layers[i]),
                false => Ok(Vec::new()),
            })?,
            norm_num_groups: r.size("norm_num_groups", Some(32))?,
            norm_eps: r.positive("norm_eps", 1e-5)? as f32,
            layers,
            heads: r.size_per_level("attention_head_dim", 8, n_levels)?,
            linear_projection: r.bool("use_linear_projection", false)?,
            upcast_attention: r.bool("upcast_attention", false)?,
            block_out_channels,
        };
        r.choice("act_fn", "silu", &[("silu", ()), ("swish", ())])?;
        r.only("downsample_padding", 1)?;
        r.only("mid_block_scale_factor", 1)?;
        r.only("resnet_time_scale_shift", "default")?;
        r.only_all("only_cross_attention", false)?;
        config.check(r)?;
        Ok(config)
    }

    fn check(&self, r: &ConfigReader<'_>) -> Result<()> {
        for (level, channels) in self.block_out_channels.iter().enumerate() {
            if !channels.is_multiple_of(self.norm_num_groups) {
                let reason =
                    format!("{channels} is not a multiple of norm_num_groups {}", self.norm_num_groups);
                return Err(r.error("block_out_channels", reason));
            }
            let in_the_middle = !self.mid_transformers.is_empty() && level + 1 == self.n_levels();
            self.check_heads(r, level, !self.down_transformers[level].is_empty() || in_the_middle)?;
        }
        Ok(())
    }

    /// Depths of the transformers on the way up, `attends` saying which levels have some.
    fn up_transformers(&self, r: &mut ConfigReader<'_>, attends: &[bool]) -> Result<Vec<Vec<usize>>> {
        let depths = Depths::down(r, self.n_levels())?.up(r, self.n_levels())?;
        each(self.n_levels(), |i| {
            let level = self.n_levels() - 1 - i;
            self.check_heads(r, level, attends[i])?;
            match attends[i] {
                true => depths.of(r, i, self.layers[level] + 1),
                false => Ok(Vec::new()),
            }
        })
    }

    fn check_heads(&self, r: &ConfigReader<'_>, level: usize, attends: bool) -> Result<()> {
        let (channels, heads) = (self.block_out_channels[level], self.heads[level]);
        match !attends || channels.is_multiple_of(heads) {
            true => Ok(()),
            false => {
                Err(r.error("attention_head_dim", format!("{heads} heads do not divide {channels} channels")))
            }
        }
    }

    pub(super) fn n_levels(&self) -> usize {
        self.block_out_channels.len()
    }

    pub(super) fn norm(&self) -> Norm {
        Norm { groups: self.norm_num_groups, epsilon: self.norm_eps }
    }

    /// The transformers of a level, which are so deep.
    fn transformers(&self, level: usize, depths: &[usize]) -> Vec<TransformerConfig> {
        let config = |&layers| TransformerConfig {
            channels: self.block_out_channels[level],
            heads: self.heads[level],
            layers,
            cross_attention_dim: self.cross_attention_dim,
            groups: self.norm_num_groups,
            linear_projection: self.linear_projection,
            upcast: self.upcast_attention,
        };
        depths.iter().map(config).collect()
    }

    pub(super) fn block(&self, i: usize) -> BlockConfig {
        BlockConfig {
            inputs: self.block_out_channels[i.saturating_sub(1)],
            outputs: self.block_out_channels[i],
            skip: 0,
            layers: self.layers[i],
            transformers: self.transformers(i, &self.down_transformers[i]),
            resamples: i + 1 < self.n_levels(),
            temb: self.embedding.time_embed_dim,
            norm: self.norm(),
        }
    }

    pub(super) fn mid_block(&self) -> BlockConfig {
        let last = self.n_levels() - 1;
        let channels = self.block_out_channels[last];
        BlockConfig {
            inputs: channels,
            outputs: channels,
            skip: 0,
            layers: 1,
            transformers: self.transformers(last, &self.mid_transformers),
            resamples: false,
            temb: self.embedding.time_embed_dim,
            norm: self.norm(),
        }
    }
}

impl EmbeddingConfig {
    fn read(r: &mut ConfigReader<'_>, first: u64) -> Result<EmbeddingConfig> {
        let addition = match r.choice("addition_embed_type", "", &[("", false), ("text_time", true)])? {
            false => None,
            true => Some(AdditionConfig {
                time_embed_dim: r.size("addition_time_embed_dim", None)?,
                input_dim: r.size("projection_class_embeddings_input_dim", None)?,
            }),
        };
        r.ignore(&["addition_embed_type_num_heads"]);
        let config = EmbeddingConfig {
            cosine_first: r.bool("flip_sin_to_cos", true)?,
            freq_shift: r.number("freq_shift", 0.0)?,
            time_proj_dim: first,
            time_embed_dim: first * 4,
            time_cond_proj_dim: None,
            addition,
        };
        for width in [Some(first), addition.map(|a| a.time_embed_dim)].into_iter().flatten() {
            if width < 2 || config.freq_shift == (width / 2) as f64 {
                return Err(r.error("freq_shift", format!("{} leaves no frequencies", config.freq_shift)));
            }
        }
        Ok(config)
    }
}

fn check_levels(r: &ConfigReader<'_>, key: &'static str, n_levels: usize, found: usize) -> Result<()> {
    match n_levels == found {
        true => Ok(()),
        false => Err(r.error(key, format!("has {found} entries for {n_levels} block_out_channels"))),
    }
}

/// A size that may also be a list of one and the same per level.
fn one_for_all(r: &mut ConfigReader<'_>, key: &'static str, default: u64, n_levels: usize) -> Result<u64> {
    let sizes = r.size_per_level(key, default, n_levels)?;
    match sizes.iter().find(|size| **size != sizes[0]) {
        None => Ok(sizes[0]),
        Some(size) => {
            Err(r.error(key, format!("{} and {size}: levels of different widths are not supported", sizes[0])))
        }
    }
}

fn odd_kernel(r: &mut ConfigReader<'_>, key: &'static str) -> Result<u64> {
    match r.size(key, Some(3))? {
        kernel if kernel.is_multiple_of(2) || kernel > 15 => {
            Err(r.error(key, format!("{kernel} is not an odd number up to 15")))
        }
        kernel => Ok(kernel),
    }
}

/// Whether each level has attention.
fn block_types(r: &mut ConfigReader<'_>, key: &'static str, plain: &str, attention: &str) -> Result<Vec<bool>> {
    let types = r.names(key)?;
    types
        .iter()
        .map(|name| match *name {
            name if name == plain => Ok(false),
            name if name == attention => Ok(true),
            name => Err(r.error(key, format!("'{name}' is not supported; supported: {plain}, {attention}"))),
        })
        .collect()
}
