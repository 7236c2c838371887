//! Configurations of networks, traced and emitted over weights that are all there.
#![no_main]

use kiln_fuzz::within_a_second;
use kiln_graph::{ElementType, EmitPolicy, Graph, TraceError, WeightCatalog, emit};
use kiln_nets::{
    Autoencoder, AutoencoderConfig, ClipTextConfig, ClipTextModel, ControlNetConfig, ControlNetModel, Sizes,
    TextPorts, TextStates, UNet2DConditionConfig, UNet2DConditionModel, UnetPorts, unknown_keys,
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fn graphs(class: &str, json: &Value) -> Result<Vec<Graph>, TraceError> {
    let catalog = WeightCatalog::inventing(ElementType::F16);
    let (w, sizes) = (catalog.root(), Sizes::Dynamic);
    let ports = UnetPorts {
        sizes,
        tokens: None,
        pooled: Some(24),
        controlled: class == "UNet2DConditionModel",
        timestep_rows: true,
    };
    Ok(match class {
        "UNet2DConditionModel" => {
            let config = UNet2DConditionConfig::from_json("c.json", json)?;
            vec![UNet2DConditionModel::new(w, &config)?.trace(&ports)]
        }
        "ControlNetModel" => {
            let config = ControlNetConfig::from_json("c.json", json)?;
            vec![ControlNetModel::new(w, &config)?.trace(&ports)]
        }
        "CLIPTextModel" => {
            let config = ClipTextConfig::from_json("c.json", json)?;
            let ports = TextPorts { batch: None, states: TextStates::Penultimate, learned: true };
            vec![ClipTextModel::with_projection(w, &config)?.trace(ports)]
        }
        _ => {
            let autoencoder = Autoencoder::new(w, &AutoencoderConfig::from_json("c.json", json)?)?;
            vec![autoencoder.trace_encoder(sizes), autoencoder.trace_decoder(sizes)]
        }
    })
}

fuzz_target!(|bytes: &[u8]| within_a_second(|| {
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else { return };
    let class = json["_class_name"].as_str().unwrap_or("CLIPTextModel");
    unknown_keys(class, &json);
    for graph in graphs(class, &json).unwrap_or_default() {
        let _ = emit(&graph, &EmitPolicy::default());
    }
}));
