//! A bundle of a toy architecture: a transformer of two layers over patches and bytes, and a decoder of one convolution.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kiln_bundle::{
    AxisSize, Bundle, Component, ComponentName, Content, FileEntry, LatentsInfo, MANIFEST, Manifest,
    PipelineInfo, PortInfo, Provenance, Segment, Stage, Target, TextEncoderInfo, TokenizerInfo, fs::digest,
};
use kiln_graph::{Attention, Dim, EmitPolicy, Flavor, Graph, ModelPort, Symbol, Tensor, WeightLayout, emit};
use kiln_runtime::Size;
use kiln_runtime::generator::TorchCpuGenerator;

pub(super) const ARCHITECTURE: &str = "toy-flow";
pub(super) const EMBEDDER: ComponentName = ComponentName::literal("byte_embedder");
pub(super) const TRANSFORMER: ComponentName = ComponentName::literal("transformer");
pub(super) const DECODER: ComponentName = ComponentName::literal("decoder");

/// Bytes that a prompt may have.
pub(super) const TOKENS: usize = 8;

/// The token behind the end of a prompt; others are bytes.
pub(super) const PAD: i64 = 256;

/// Channels of the latents, and their side.
pub(super) const CHANNELS: usize = 2;
pub(super) const SIDE: usize = 8;

const PATCHES: u64 = 16;
const FEATURES: u64 = 8;
const WIDTH: u64 = 16;

/// Random numbers for weights, as constants of the graph.
struct Weights(TorchCpuGenerator);

impl Weights {
    fn draw(&mut self, shape: &[u64]) -> Tensor {
        let values = self.0.randn(&shape.iter().map(|&n| n as usize).collect::<Vec<_>>());
        Tensor::constant(values.iter().map(|x| 0.4 * x).collect(), shape)
    }

    fn norm(&mut self, x: &Tensor) -> Tensor {
        let all = |value| Tensor::constant(vec![value; WIDTH as usize], &[WIDTH]);
        x.layer_norm(&all(1.0), &all(0.0), 1e-5)
    }

    fn layer(&mut self, x: &Tensor) -> Tensor {
        let n = self.norm(x);
        let [q, k, v] = [(); 3].map(|()| n.linear(&self.draw(&[WIDTH, WIDTH]), None));
        let options = Attention { heads: 2, scale: 0.35, causal: false, upcast: false };
        let x = x.add(&Tensor::attention(&q, &k, &v, options).linear(&self.draw(&[WIDTH, WIDTH]), None));
        let wide = self.norm(&x).linear(&self.draw(&[2 * WIDTH, WIDTH]), None).gelu();
        x.add(&wide.linear(&self.draw(&[WIDTH, 2 * WIDTH]), None))
    }
}

fn embedder(weights: &mut Weights) -> Graph {
    let ids = Tensor::int_input("ids", [Dim::from(Symbol::BATCH), Dim::from(TOKENS as u64)]);
    let tokens = ids.embedding(&weights.draw(&[PAD as u64 + 1, WIDTH]));
    Graph { name: EMBEDDER.to_string(), inputs: vec![ids], outputs: vec![("tokens".into(), tokens)] }
}

fn transformer(weights: &mut Weights) -> Graph {
    let batch = || Dim::from(Symbol::BATCH);
    let patches = Tensor::input("patches", [batch(), PATCHES.into(), FEATURES.into()]);
    let sigma = Tensor::input("sigma", [1]);
    let tokens = Tensor::input("tokens", [batch(), (TOKENS as u64).into(), WIDTH.into()]);
    let frequencies = (0..WIDTH / 2).map(|i| (i as f32 + 1.0) / 2.0).collect();
    let time = sigma.reshape(vec![1.into(), 1.into()]).sinusoid(frequencies, true).reshape(vec![
        1.into(),
        1.into(),
        WIDTH.into(),
    ]);
    let embedded = patches.linear(&weights.draw(&[WIDTH, FEATURES]), None).add(&time);
    let mut x = Tensor::concat(&[embedded, tokens.clone()], 1);
    for _ in 0..2 {
        x = weights.layer(&x);
    }
    let velocity = x.slice(1, 0, PATCHES).linear(&weights.draw(&[FEATURES, WIDTH]), None);
    let inputs = vec![patches, sigma, tokens];
    Graph { name: TRANSFORMER.to_string(), inputs, outputs: vec![("velocity".into(), velocity)] }
}

fn decoder(weights: &mut Weights) -> Graph {
    let shape = [1, CHANNELS as u64, SIDE as u64, SIDE as u64];
    let latents = Tensor::input("latents", shape);
    let colors = latents.conv2d(&weights.draw(&[3, CHANNELS as u64, 1, 1]), None, 1, [0; 4]).tanh();
    let side = Dim::from(2 * SIDE as u64);
    let picture = colors.resize_nearest(&side, &side);
    Graph { name: DECODER.to_string(), inputs: vec![latents], outputs: vec![("sample".into(), picture)] }
}

/// Writes the bundle into an empty folder.
pub(super) fn write(folder: &Path) -> Bundle {
    write_with(folder, BTreeMap::new())
}

/// Writes the bundle with settings of its architecture into an empty folder.
pub(super) fn write_with(folder: &Path, settings: BTreeMap<String, serde_json::Value>) -> Bundle {
    let mut weights = Weights(TorchCpuGenerator::new(3));
    let mut manifest = Manifest::new("toy".into(), Target::Cpu, content(settings), provenance());
    let mut files = vec!["schedule.json".to_owned()];
    fs::write(folder.join("schedule.json"), r#"{ "steps": 6 }"#).expect("a file");
    for (name, stage, graph) in [
        (EMBEDDER, Stage::TextEncoder, embedder(&mut weights)),
        (TRANSFORMER, Stage::Denoiser, transformer(&mut weights)),
        (DECODER, Stage::ImageDecoder, decoder(&mut weights)),
    ] {
        let file = format!("{name}.onnx");
        manifest.components.insert(name, component(&graph, stage, &folder.join(&file)));
        files.push(file);
    }
    for name in files {
        let path = folder.join(&name);
        let size = fs::metadata(&path).expect("a file").len();
        manifest.files.insert(name, FileEntry { size, blake3: digest(&path).expect("a digest") });
    }
    fs::write(folder.join(MANIFEST), manifest.to_yaml()).expect("a file");
    Bundle::open(folder).expect("a bundle")
}

fn component(graph: &Graph, stage: Stage, path: &Path) -> Component {
    let policy = EmitPolicy { flavor: Flavor::OnnxRuntime, ..EmitPolicy::default() };
    let model = emit(graph, &policy).expect("a model").swap_remove(0);
    fs::write(path, model.to_onnx(&WeightLayout::default()).expect("ONNX")).expect("a file");
    let size = |dim: &Dim| dim.fixed().map_or_else(|| AxisSize::Dynamic(dim.to_string()), AxisSize::Fixed);
    let port = |port: &ModelPort| PortInfo {
        name: port.name.clone(),
        dtype: port.dtype,
        shape: port.shape.iter().map(size).collect(),
    };
    let names = |ports: &[ModelPort]| ports.iter().map(|port| port.name.clone()).collect();
    Component {
        stage,
        shares_weights_with: None,
        segments: vec![Segment {
            engine: path.file_name().expect("a name").to_string_lossy().into_owned(),
            reads: names(&model.inputs),
            makes: names(&model.outputs),
            ..Segment::default()
        }],
        weights: None,
        weight_bytes: 0,
        unread_weights: Vec::new(),
        precision: "f32".into(),
        inputs: graph.input_ports().iter().map(port).collect(),
        outputs: graph.output_ports().iter().map(port).collect(),
    }
}

fn content(settings: BTreeMap<String, serde_json::Value>) -> Content {
    Content::Pipeline(PipelineInfo {
        architecture: ARCHITECTURE.into(),
        class: "ToyFlowPipeline".into(),
        size: Size::square(2 * SIDE as u32),
        latents: LatentsInfo { channels: CHANNELS as u32, scale_factor: 2, scaling: 0.5, shift: 0.25 },
        text_encoders: vec![TextEncoderInfo {
            component: EMBEDDER,
            tokenizer: TokenizerInfo { kind: "bytes".into(), folder: None },
            positions: TOKENS as u32,
            width: WIDTH as u32,
            vocabulary: PAD as u32 + 1,
            states: vec!["tokens".into()],
            pooled: None,
        }],
        scheduler: "schedule.json".into(),
        scheduler_class: None,
        controlnets: Vec::new(),
        settings,
    })
}

fn provenance() -> Provenance {
    Provenance {
        kiln: env!("CARGO_PKG_VERSION").into(),
        key: "toy".into(),
        toolkit: None,
        options: Default::default(),
        checkpoint: Default::default(),
        loras: Vec::new(),
    }
}
