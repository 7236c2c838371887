//! Which keys the classes of configurations know, as of diffusers 0.42.1 and transformers 5.24.

/// Keys that change how any model is loaded.
const ANY: &str = "quantization_config";

/// `models/unets/unet_2d_condition.py`
const UNET: &str = "sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift down_block_types \
     mid_block_type up_block_types only_cross_attention block_out_channels layers_per_block downsample_padding \
     mid_block_scale_factor dropout act_fn norm_num_groups norm_eps cross_attention_dim \
     transformer_layers_per_block reverse_transformer_layers_per_block encoder_hid_dim encoder_hid_dim_type \
     attention_head_dim num_attention_heads dual_cross_attention use_linear_projection class_embed_type \
     addition_embed_type addition_time_embed_dim num_class_embeds upcast_attention resnet_time_scale_shift \
     resnet_skip_time_act resnet_out_scale_factor time_embedding_type time_embedding_dim time_embedding_act_fn \
     timestep_post_act time_cond_proj_dim conv_in_kernel conv_out_kernel projection_class_embeddings_input_dim \
     attention_type class_embeddings_concat mid_block_only_cross_attention cross_attention_norm \
     addition_embed_type_num_heads";

/// `models/controlnets/controlnet.py`
const CONTROLNET: &str = "in_channels conditioning_channels flip_sin_to_cos freq_shift down_block_types mid_block_type \
     only_cross_attention block_out_channels layers_per_block downsample_padding mid_block_scale_factor act_fn \
     norm_num_groups norm_eps cross_attention_dim transformer_layers_per_block encoder_hid_dim \
     encoder_hid_dim_type attention_head_dim num_attention_heads use_linear_projection class_embed_type \
     addition_embed_type addition_time_embed_dim num_class_embeds upcast_attention resnet_time_scale_shift \
     projection_class_embeddings_input_dim controlnet_conditioning_channel_order \
     conditioning_embedding_out_channels global_pool_conditions addition_embed_type_num_heads";

/// `models/autoencoders/autoencoder_kl.py`
const KL: &str = "in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block act_fn \
     latent_channels norm_num_groups sample_size scaling_factor shift_factor latents_mean latents_std \
     force_upcast use_quant_conv use_post_quant_conv mid_block_add_attention";

/// `models/autoencoders/autoencoder_tiny.py`
const TINY: &str = "in_channels out_channels encoder_block_out_channels decoder_block_out_channels act_fn upsample_fn \
     latent_channels upsampling_scaling_factor num_encoder_blocks num_decoder_blocks latent_magnitude \
     latent_shift force_upcast scaling_factor shift_factor";

/// transformers `models/clip/configuration_clip.py`
const CLIP: &str = "vocab_size hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads \
     max_position_embeddings hidden_act layer_norm_eps attention_dropout initializer_range initializer_factor \
     pad_token_id bos_token_id eos_token_id";

/// Whether a class takes a key; it passes over others.
pub(crate) fn takes(class: &str, key: &str) -> bool {
    let keys = match class {
        "UNet2DConditionModel" => UNET,
        "ControlNetModel" => CONTROLNET,
        "AutoencoderKL" => KL,
        "AutoencoderTiny" => TINY,
        _ => CLIP,
    };
    keys.split_whitespace().chain([ANY]).any(|known| known == key)
}
