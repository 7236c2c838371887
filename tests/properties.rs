//! Anything may come in: it is understood or refused by name, without a panic.

use std::fs;

use kiln_compile::{Checkpoint, inspect_onnx};
use kiln_graph::{ElementType, EmitPolicy, EmittedModel, TraceError, WeightCatalog, emit};
use kiln_nets::{
    Autoencoder, AutoencoderConfig, ClipTextConfig, ClipTextModel, ControlNetConfig, ControlNetModel, Sizes,
    TextPorts, TextStates, UNet2DConditionConfig, UNet2DConditionModel, UnetPorts,
};
use kiln_runtime::Bundle;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixtures::{scratch, tiny};

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

fn arbitrary_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..100).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 16, 4, |inner| proptest::collection::vec(inner, 0..4).prop_map(Value::from))
}

/// A valid configuration with a few values replaced by anything.
fn spoilt(config: &'static str) -> impl Strategy<Value = Value> {
    let config: Value = serde_json::from_str(config).expect("JSON");
    let keys: Vec<String> = config.as_object().expect("a map").keys().cloned().collect();
    proptest::collection::vec((proptest::sample::select(keys), arbitrary_json()), 1..4).prop_map(move |edits| {
        let mut config = config.clone();
        for (key, value) in edits {
            config[key] = value;
        }
        config
    })
}

macro_rules! tiny_config {
    ($name:literal) => {
        include_str!(concat!("../crates/kiln-compile/src/synth/tiny/", $name, ".json"))
    };
}

/// SDXL's kind of UNet; every key that its configuration may have and the tiny one's does not.
const XL_UNET: &str = r#"{
    "_class_name": "UNet2DConditionModel", "block_out_channels": [32, 64], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "attention_head_dim": [2, 4],
    "transformer_layers_per_block": [1, 2], "cross_attention_dim": 32, "use_linear_projection": true,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 72,
    "time_cond_proj_dim": 16, "only_cross_attention": [false, false], "in_channels": 9, "time_embedding_dim": 64
}"#;

const CONTROLNET: &str = r#"{
    "_class_name": "ControlNetModel", "block_out_channels": [32, 64], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "cross_attention_dim": 32, "in_channels": 4,
    "conditioning_embedding_out_channels": [8, 12], "controlnet_conditioning_channel_order": "bgr",
    "global_pool_conditions": false, "conditioning_channels": 3, "class_embed_type": null
}"#;

const TINY_VAE: &str = r#"{
    "_class_name": "AutoencoderTiny", "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [12, 12],
    "num_encoder_blocks": [1, 2], "num_decoder_blocks": [2, 0], "act_fn": "relu", "latent_channels": 4,
    "scaling_factor": 1.0, "upsampling_scaling_factor": 2, "upsample_fn": "nearest"
}"#;

fn ports(sizes: Sizes, pooled: Option<u64>, controlled: bool) -> UnetPorts {
    UnetPorts {
        sizes,
        tokens: (sizes != Sizes::Dynamic).then_some(77),
        pooled,
        controlled,
        timestep_rows: false,
    }
}

/// Constructs the network over a catalog that has every weight, traces it and emits it.
fn emit_unet(config: &Value, ports: &UnetPorts) -> Result<Vec<EmittedModel>, TraceError> {
    let config = UNet2DConditionConfig::from_json("c.json", config)?;
    let catalog = WeightCatalog::inventing(ElementType::F32);
    let unet = UNet2DConditionModel::new(catalog.root(), &config)?;
    emit(&unet.trace(ports), &EmitPolicy::default())
}

fn emit_controlnet(config: &Value, ports: &UnetPorts) -> Result<Vec<EmittedModel>, TraceError> {
    let config = ControlNetConfig::from_json("c.json", config)?;
    let catalog = WeightCatalog::inventing(ElementType::F32);
    let network = ControlNetModel::new(catalog.root(), &config)?;
    emit(&network.trace(ports), &EmitPolicy::default())
}

fn emit_vae(config: &Value, sizes: Sizes) -> Result<Vec<EmittedModel>, TraceError> {
    let config = AutoencoderConfig::from_json("c.json", config)?;
    let catalog = WeightCatalog::inventing(ElementType::F32);
    let vae = Autoencoder::new(catalog.root(), &config)?;
    let mut models = emit(&vae.trace_encoder(sizes), &EmitPolicy::default())?;
    models.append(&mut emit(&vae.trace_decoder(sizes), &EmitPolicy::default())?);
    Ok(models)
}

fn emit_clip(config: &Value) -> Result<Vec<EmittedModel>, TraceError> {
    let config = ClipTextConfig::from_json("c.json", config)?;
    let catalog = WeightCatalog::inventing(ElementType::F32);
    let network = ClipTextModel::with_projection(catalog.root(), &config)?;
    let ports = TextPorts { batch: None, states: TextStates::Penultimate, learned: true };
    emit(&network.trace(ports), &EmitPolicy::default())
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let fixed = (1u64..5, 1u64..40, 1u64..40);
    prop_oneof![
        Just(Sizes::Dynamic),
        fixed.prop_map(|(batch, height, width)| Sizes::Static { batch, height, width })
    ]
}

/// Valid UNets of every depth, width and arrangement of attention.
fn valid_unet() -> impl Strategy<Value = Value> {
    let level = (1u64..4, 1u64..3, any::<bool>(), any::<bool>(), 1u64..3);
    (proptest::collection::vec(level, 1..5), any::<bool>(), any::<bool>()).prop_map(|(levels, linear, mid)| {
        let attention = |on: bool, name: &str| if on { format!("CrossAttn{name}") } else { name.to_owned() };
        json!({
            "block_out_channels": levels.iter().map(|l| l.0 * 32).collect::<Vec<_>>(),
            "layers_per_block": levels.iter().map(|l| l.1).collect::<Vec<_>>(),
            "down_block_types": levels.iter().map(|l| attention(l.2, "DownBlock2D")).collect::<Vec<_>>(),
            "up_block_types": levels.iter().map(|l| attention(l.3, "UpBlock2D")).collect::<Vec<_>>(),
            "transformer_layers_per_block": levels.iter().map(|l| l.4).collect::<Vec<_>>(),
            "mid_block_type": mid.then_some("UNetMidBlock2DCrossAttn"),
            "cross_attention_dim": 32,
            "use_linear_projection": linear,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_valid_unet_traces_to_a_prediction_of_the_size_of_its_sample(
        config in valid_unet(),
        sizes in sizes(),
        controlled: bool,
    ) {
        let models = emit_unet(&config, &ports(sizes, None, controlled)).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&models[0].outputs[0].shape, &models[0].inputs[0].shape);
    }

    #[test]
    fn any_configuration_is_traced_or_refused_by_key(
        unet in spoilt(tiny_config!("unet")),
        xl_unet in spoilt(XL_UNET),
        controlnet in spoilt(CONTROLNET),
        vae in spoilt(tiny_config!("vae")),
        tiny_vae in spoilt(TINY_VAE),
        text in spoilt(tiny_config!("text_encoder")),
        sizes in sizes(),
    ) {
        let (plain, pooled) = (ports(sizes, None, true), ports(sizes, Some(24), false));
        let results = [
            emit_unet(&unet, &plain),
            emit_unet(&xl_unet, &pooled),
            emit_controlnet(&controlnet, &plain),
            emit_controlnet(&controlnet, &pooled),
            emit_vae(&vae, sizes),
            emit_vae(&tiny_vae, sizes),
            emit_clip(&text),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            prop_assert!(error.to_string().starts_with("c.json: "), "{}", error);
        }
    }

    #[test]
    fn any_bytes_are_weights_or_refused_by_path(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        length in prop_oneof![any::<u64>(), 0u64..200],
        header in arbitrary_json(),
    ) {
        let json = json!({ "x": header }).to_string().into_bytes();
        let length = if bytes.is_empty() { json.len() as u64 } else { length };
        let file = [&length.to_le_bytes()[..], &json, &bytes].concat();
        let tiny = tiny();
        fs::write(tiny.path().join(VAE), &file).expect("a file");
        let error = Checkpoint::open(tiny.path()).expect_err("refused").to_string();
        prop_assert!(error.contains("diffusion_pytorch_model.safetensors: "), "{}", error);
    }

    #[test]
    fn any_bytes_are_an_onnx_model_or_refused_by_path(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = scratch();
        let path = folder.path().join("m.onnx");
        fs::write(&path, bytes).expect("a file");
        if let Err(error) = inspect_onnx(&path) {
            prop_assert!(error.to_string().contains("m.onnx: is not an ONNX model"), "{}", error);
        }
    }

    #[test]
    fn any_text_is_a_manifest_or_refused_by_path(text in "(format: [0-9]{1,2}\n)?[a-z: \\[\\]{}\n-]{0,80}") {
        let folder = scratch();
        fs::write(folder.path().join("bundle.yaml"), text).expect("a file");
        let error = Bundle::open(folder.path()).expect_err("refused").to_string();
        prop_assert!(error.contains("bundle.yaml: "), "{}", error);
    }
}
