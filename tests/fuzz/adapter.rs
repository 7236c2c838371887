//! A small model, and adapters that change it.

use std::sync::{Arc, LazyLock};

use kiln_bundle::ComponentName;
use kiln_bundle::stable_diffusion::{TEXT_ENCODER, UNET};
use kiln_lora::{Lora, LoraFile, LoraPlan, ModelWeights};

const WEIGHTS: [(ComponentName, &str, &[usize]); 11] = [
    (UNET, "conv_in.weight", &[16, 8, 3, 3]),
    (UNET, "conv_in.bias", &[16]),
    (UNET, "conv_norm_out.weight", &[16]),
    (UNET, "conv_norm_out.bias", &[16]),
    (UNET, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", &[16, 6]),
    (UNET, "mid_block.attentions.0.proj_in.weight", &[16, 16]),
    (UNET, "time_embedding.linear_1.weight", &[16, 12]),
    (UNET, "time_embedding.linear_1.bias", &[16]),
    (UNET, "time_embedding.linear_2.weight", &[16, 16]),
    (TEXT_ENCODER, "encoder.layers.0.self_attn.q_proj.weight", &[6, 6]),
    (TEXT_ENCODER, "encoder.layers.0.self_attn.q_proj.bias", &[6]),
];

static MODEL: LazyLock<ModelWeights> = LazyLock::new(|| {
    let mut model = ModelWeights::new();
    for role in [UNET, TEXT_ENCODER] {
        let own = WEIGHTS.iter().filter(|(of, ..)| *of == role);
        model.insert(role, own.map(|(_, name, shape)| ((*name).into(), shape.to_vec())), []);
    }
    model
});

/// Reads an adapter, and changes the model's weights by it.
pub fn read(bytes: &[u8]) {
    let Ok(file) = LoraFile::from_bytes("adapter", bytes) else { return };
    let _ = (file.words(), file.family(), file.dtypes(), file.namings());
    for module in file.modules() {
        let _ = (module.shape(), module.rank(), module.scale(), module.kind());
    }
    let Ok(plan) = LoraPlan::new(&[Lora { file: Arc::new(file), weight: 0.5 }], &MODEL) else { return };
    for (role, name, shape) in WEIGHTS {
        let mut weight = vec![0.5; shape.iter().product()];
        let _ = plan.changes(role).map(|changes| changes.apply(name, &mut weight));
    }
}
