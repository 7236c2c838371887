use serde_json::Value;

use crate::config::ConfigReader;
use crate::layers::{Norm, Result};

/// `unet/config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct UNet2DConditionConfig {
    pub(super) in_channels: u64,
    pub(super) out_channels: u64,
    pub(super) center_input_sample: bool,
    pub(super) flip_sin_to_cos: bool,
    pub(super) freq_shift: f64,
    pub(super) conv_in_kernel: u64,
    pub(super) conv_out_kernel: u64,
    pub(super) block_out_channels: Vec<u64>,
    pub(super) time_embed_dim: u64,
    pub(super) cross_attention_dim: u64,
    pub(super) has_mid_block: bool,
    sample_size: Option<[u64; 2]>,
    norm_num_groups: u64,
    norm_eps: f32,
    layers: Vec<usize>,
    heads: Vec<u64>,
    transformer_layers: Vec<usize>,
    down_attention: Vec<bool>,
    up_attention: Vec<bool>,
    linear_projection: bool,
    upcast_attention: bool,
}

/// What one level of the UNet is built from.
pub(super) struct BlockConfig {
    /// Channels that enter, leave, and, going up, come with the last skip connection.
    pub(super) inputs: u64,
    pub(super) outputs: u64,
    pub(super) skip: u64,
    pub(super) layers: usize,
    pub(super) attention: Option<TransformerConfig>,
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
        let block_out_channels = r.sizes("block_out_channels")?;
        let n_levels = block_out_channels.len();
        let levels = |r: &mut ConfigReader<'_>, key, default| -> Result<Vec<usize>> {
            let sizes = r.size_per_level(key, default, n_levels)?;
            match sizes.iter().find(|n| **n > 64) {
                Some(n) => Err(r.error(key, format!("{n} is over 64"))),
                None => Ok(sizes.into_iter().map(|n| n as usize).collect()),
            }
        };
        let config = UNet2DConditionConfig {
            in_channels: r.size("in_channels", Some(4))?,
            out_channels: r.size("out_channels", Some(4))?,
            center_input_sample: r.bool("center_input_sample", false)?,
            flip_sin_to_cos: r.bool("flip_sin_to_cos", true)?,
            freq_shift: r.number("freq_shift", 0.0)?,
            conv_in_kernel: r.size("conv_in_kernel", Some(3))?,
            conv_out_kernel: r.size("conv_out_kernel", Some(3))?,
            time_embed_dim: r.optional_size("time_embedding_dim")?.unwrap_or(block_out_channels[0] * 4),
            cross_attention_dim: r.size("cross_attention_dim", Some(1280))?,
            has_mid_block: match r.is_null("mid_block_type") {
                true => false,
                false => {
                    r.choice("mid_block_type", "UNetMidBlock2DCrossAttn", &[("UNetMidBlock2DCrossAttn", true)])?
                }
            },
            sample_size: r.optional_pair("sample_size")?,
            norm_num_groups: r.size("norm_num_groups", Some(32))?,
            norm_eps: r.number("norm_eps", 1e-5)? as f32,
            layers: levels(&mut r, "layers_per_block", 2)?,
            heads: r.size_per_level("attention_head_dim", 8, n_levels)?,
            transformer_layers: levels(&mut r, "transformer_layers_per_block", 1)?,
            down_attention: block_types(&mut r, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D")?,
            up_attention: block_types(&mut r, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D")?,
            linear_projection: r.bool("use_linear_projection", false)?,
            upcast_attention: r.bool("upcast_attention", false)?,
            block_out_channels,
        };
        r.only("act_fn", "silu")?;
        r.only("attention_type", "default")?;
        r.only("downsample_padding", 1)?;
        r.only("mid_block_scale_factor", 1)?;
        r.only("resnet_out_scale_factor", 1)?;
        r.only("resnet_time_scale_shift", "default")?;
        r.only("time_embedding_type", "positional")?;
        r.ignore(&["dropout", "addition_embed_type_num_heads"]);
        config.check(&r)?;
        r.finish()?;
        Ok(config)
    }

    fn check(&self, r: &ConfigReader<'_>) -> Result<()> {
        let n_levels = self.n_levels();
        for (key, found) in [("down_block_types", &self.down_attention), ("up_block_types", &self.up_attention)]
        {
            if found.len() != n_levels {
                let reason = format!("has {} entries for {n_levels} block_out_channels", found.len());
                return Err(r.error(key, reason));
            }
        }
        for (level, (channels, heads)) in self.block_out_channels.iter().zip(&self.heads).enumerate() {
            let attends = self.down_attention[level]
                || self.up_attention[n_levels - 1 - level]
                || (self.has_mid_block && level + 1 == n_levels);
            if !channels.is_multiple_of(self.norm_num_groups) {
                let reason =
                    format!("{channels} is not a multiple of norm_num_groups {}", self.norm_num_groups);
                return Err(r.error("block_out_channels", reason));
            }
            if attends && !channels.is_multiple_of(*heads) {
                let reason = format!("{heads} heads do not divide {channels} channels");
                return Err(r.error("attention_head_dim", reason));
            }
        }
        for (key, kernel) in
            [("conv_in_kernel", self.conv_in_kernel), ("conv_out_kernel", self.conv_out_kernel)]
        {
            if kernel.is_multiple_of(2) || kernel > 15 {
                return Err(r.error(key, format!("{kernel} is not an odd number up to 15")));
            }
        }
        let half = self.block_out_channels[0] / 2;
        if half == 0 || self.freq_shift == half as f64 {
            return Err(r.error("freq_shift", format!("{} leaves no frequencies", self.freq_shift)));
        }
        Ok(())
    }

    /// Default height and width in latents.
    pub fn sample_size(&self) -> Option<[u64; 2]> {
        self.sample_size
    }

    /// Channels of the latents that it reads.
    pub fn in_channels(&self) -> u64 {
        self.in_channels
    }

    /// Channels of its prediction.
    pub fn out_channels(&self) -> u64 {
        self.out_channels
    }

    /// Width of the text states that it attends to.
    pub fn cross_attention_dim(&self) -> u64 {
        self.cross_attention_dim
    }

    pub(super) fn n_levels(&self) -> usize {
        self.block_out_channels.len()
    }

    pub(super) fn norm(&self) -> Norm {
        Norm { groups: self.norm_num_groups, epsilon: self.norm_eps }
    }

    fn transformer(&self, level: usize) -> TransformerConfig {
        TransformerConfig {
            channels: self.block_out_channels[level],
            heads: self.heads[level],
            layers: self.transformer_layers[level],
            cross_attention_dim: self.cross_attention_dim,
            groups: self.norm_num_groups,
            linear_projection: self.linear_projection,
            upcast: self.upcast_attention,
        }
    }

    pub(super) fn down_block(&self, i: usize) -> BlockConfig {
        BlockConfig {
            inputs: self.block_out_channels[i.saturating_sub(1)],
            outputs: self.block_out_channels[i],
            skip: 0,
            layers: self.layers[i],
            attention: self.down_attention[i].then(|| self.transformer(i)),
            resamples: i + 1 < self.n_levels(),
            temb: self.time_embed_dim,
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
            attention: Some(self.transformer(last)),
            resamples: false,
            temb: self.time_embed_dim,
            norm: self.norm(),
        }
    }

    pub(super) fn up_block(&self, i: usize) -> BlockConfig {
        let level = self.n_levels() - 1 - i;
        let previous = (level + 1).min(self.n_levels() - 1);
        BlockConfig {
            inputs: self.block_out_channels[previous],
            outputs: self.block_out_channels[level],
            skip: self.block_out_channels[level.saturating_sub(1)],
            layers: self.layers[level] + 1,
            attention: self.up_attention[i].then(|| self.transformer(level)),
            resamples: level > 0,
            temb: self.time_embed_dim,
            norm: self.norm(),
        }
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
