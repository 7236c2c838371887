//! What a bundle's manifest says of the pipeline.

use kiln_bundle::stable_diffusion::Settings;
use kiln_bundle::{LatentsInfo, PipelineInfo, Size, TextEncoderInfo, TokenizerInfo};
use kiln_nets::Sizes;

use crate::Checkpoint;
use crate::checkpoint::TextEncoder;
use crate::trace::Traced;

pub(super) fn pipeline_info(checkpoint: &Checkpoint, sizes: Sizes, traced: &[Traced<'_>]) -> PipelineInfo {
    let (vae, unet) = (&checkpoint.vae.config, &checkpoint.unet.config);
    let [height, width] = match sizes {
        Sizes::Dynamic => checkpoint.default_size(),
        Sizes::Static { height, width, .. } => [height, width].map(|n| n * vae.scale_factor()),
    };
    let n_time_ids = checkpoint.pooled_width().and_then(|pooled| unet.n_time_ids(pooled));
    PipelineInfo {
        architecture: checkpoint.architecture().into(),
        class: checkpoint.class().into(),
        size: Size::new(width as u32, height as u32),
        latents: LatentsInfo {
            channels: vae.latent_channels() as u32,
            scale_factor: vae.scale_factor() as u32,
            scaling: vae.scaling_factor(),
            shift: 0.0,
        },
        text_encoders: checkpoint
            .text_encoders
            .iter()
            .map(|encoder| text_encoder_info(encoder, traced))
            .collect(),
        scheduler: "scheduler_config.json".into(),
        scheduler_class: checkpoint.scheduler_class().map(Into::into),
        controlnets: checkpoint.controlnets.iter().map(|net| net.part.name.clone()).collect(),
        settings: Settings {
            inpainting: unet.in_channels() != vae.latent_channels(),
            time_ids: n_time_ids.map(|n| n as u32),
            force_zeros_for_empty_prompt: checkpoint.force_zeros_for_empty_prompt,
            guidance_embedding: unet.guidance_embedding_dim().map(|n| n as u32),
        }
        .to_map(),
    }
}

fn text_encoder_info(encoder: &TextEncoder, traced: &[Traced<'_>]) -> TextEncoderInfo {
    let config = &encoder.part.config;
    let models = traced.iter().filter(|component| component.name == encoder.component);
    let outputs = models.flat_map(|component| &component.outputs);
    let (pooled, states): (Vec<String>, Vec<String>) =
        outputs.map(|port| port.name.clone()).partition(|name| name == "text_embeds");
    TextEncoderInfo {
        component: encoder.component,
        tokenizer: TokenizerInfo { kind: "clip".into(), folder: Some(encoder.tokenizer.into()) },
        positions: config.max_positions() as u32,
        width: config.hidden_size() as u32,
        vocabulary: config.vocab_size() as u32,
        states,
        pooled: pooled.into_iter().next(),
    }
}
