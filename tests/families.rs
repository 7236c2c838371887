//! Every family and task against diffusers, from checkpoints whose weights are drawn anew (`references/make_families.py`).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use kiln_compile::TraceOptions;
use kiln_graph::EmitPolicy;
use kiln_nets::Sizes;
use kiln_runtime::generator::TorchCpuGenerator;
use kiln_runtime::{
    Bundle, Control, Hires, Init, MaskFill, MicroConditioning, Picture, Request, Size, Upscaler, Variation,
};
use ndarray::{ArrayD, Axis};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures::{backends, bundle, copy_folder, pipeline, scratch};
use crate::support::{References, assert_close, references};

const LATENTS: f32 = 1e-3;

/// What a call says of what lies under the mask.
fn fill(text: &Value) -> MaskFill {
    match text.as_str() {
        Some("noise") => MaskFill::Noise,
        Some("zeros") => MaskFill::Zeros,
        _ => MaskFill::Picture,
    }
}

/// A case: its description, the checkpoint made from it, and the references.
pub(crate) struct Family {
    pub(crate) description: Value,
    pub(crate) folder: TempDir,
    pub(crate) references: References,
}

impl Family {
    pub(crate) fn new(name: &str) -> Family {
        let text =
            fs::read_to_string(references().join(format!("families/{name}.json"))).expect("a description");
        let description: Value = serde_json::from_str(&text).expect("JSON");
        let folder = scratch();
        write_json(&folder.path().join("model_index.json"), &description["index"]);
        write_json(&folder.path().join("scheduler/scheduler_config.json"), &description["scheduler"]);
        for tokenizer in ["tokenizer", "tokenizer_2"] {
            let source = references().join("../../models/shapes/tokenizer");
            copy_folder(&source, &folder.path().join(tokenizer));
        }
        for (component, part) in description["components"].as_object().expect("components") {
            let root = folder.path().join(component);
            write_json(&root.join("config.json"), &part["config"]);
            let base = if component.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
            write_weights(&root.join(format!("{base}.safetensors")), component, &part["weights"]);
        }
        Family { description, folder, references: References::open(&format!("families/{name}.safetensors")) }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        bundle(self.folder.path(), &TraceOptions::for_bundle(EmitPolicy::default(), Sizes::Dynamic))
    }

    /// The request of a call; what the description leaves out is what the maker's `make` sets.
    pub(crate) fn request(&self, name: &str) -> Request {
        let call = &self.description["calls"][name];
        let task = call["task"].as_str().unwrap_or("");
        let number = |key: &str| call[key].as_f64();
        let n = call["batch"].as_u64().unwrap_or(1) as usize;
        let side = |key: &str| call[key].as_u64().unwrap_or(32) as u32;
        let size = format!("{}x{}", side("height"), side("width"));
        let image = self.references.f32(&format!("image.{size}"));
        let pair =
            |key: &str| call[key].as_array().map(|p| [0, 1].map(|i| p[i].as_u64().expect("a size") as u32));
        let text = |key: &str| self.description[key].as_str().expect("a prompt").to_owned();
        let is_null = call.get("negative").is_some_and(Value::is_null);
        let mut micro = MicroConditioning::default();
        let as_size = |[height, width]: [u32; 2]| Size::new(width, height);
        micro.original_size = pair("original_size").map(as_size);
        micro.target_size = pair("target_size").map(as_size);
        [micro.crop_top, micro.crop_left] = pair("crops_coords_top_left").unwrap_or([0, 0]);
        micro.aesthetic_score = number("aesthetic_score").map_or(micro.aesthetic_score, |x| x as f32);
        micro.negative_aesthetic_score =
            number("negative_aesthetic_score").map_or(micro.negative_aesthetic_score, |x| x as f32);
        let mut request = Request::new("")
            .negative_prompts(if is_null { Vec::new() } else { vec![text("negative"); n] })
            .prompts(vec![call["prompt"].as_str().map_or_else(|| text("prompt"), str::to_owned); n])
            .variation(number("variation_strength").map(|strength| Variation {
                seeds: vec![call["variation_seed"].as_u64().expect("a seed")],
                strength: strength as f32,
            }))
            .hires(call["hires"].as_str().map(|upscaler| {
                Hires::new(number("hires_scale").expect("a scale") as f32)
                    .strength(number("hires_strength").expect("a strength"))
                    .upscaler(if upscaler == "pixels" { Upscaler::Pixels } else { Upscaler::Latents })
            }))
            .clip_skip(number("clip_skip").unwrap_or(0.0) as usize)
            .seeds(match &call["seed"] {
                Value::Array(seeds) => seeds.iter().filter_map(Value::as_u64).collect(),
                _ => vec![7],
            })
            .steps(number("num_inference_steps").unwrap_or(5.0) as usize)
            .guidance_scale(match call.get("guidance_scale") {
                Some(Value::Null) => None,
                scale => Some(scale.and_then(Value::as_f64).unwrap_or(7.5) as f32),
            })
            .guidance_rescale(number("guidance_rescale").unwrap_or(0.0) as f32)
            .eta(number("eta").unwrap_or(0.0) as f32)
            .init((task.contains("Img2Img") || task.contains("Inpaint")).then(|| {
                let init = Init::new(planar(image.clone())).strength(number("strength"));
                match task.contains("Inpaint") {
                    true => init
                        .mask(planar(self.references.f32(&format!("mask.{size}"))))
                        .fill(fill(&call["fill"])),
                    false => init,
                }
            }))
            .controls(self.controls(call, &image))
            .micro_conditioning(micro)
            .height((call["open_size"] != json!(true)).then(|| side("height")))
            .width((call["open_size"] != json!(true)).then(|| side("width")));
        request.scheduler = call["scheduler"].as_str().map(str::to_owned);
        request
    }

    /// The embedding file that the references hold the vectors of.
    fn embedding(&self) -> PathBuf {
        let vectors = self.references.f32("learned");
        let bytes: Vec<u8> = vectors.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vectors.shape().to_vec(), &bytes).expect("a tensor");
        let path = self.folder.path().join("toy.safetensors");
        safetensors::serialize_to_file([("<toy>", view)], None, &path).expect("a safetensors file");
        path
    }

    fn controls(&self, call: &Value, image: &ArrayD<f32>) -> Vec<Control> {
        let task = call["task"].as_str().unwrap_or("");
        if !task.starts_with("ControlNet") {
            return Vec::new();
        }
        let inverted = image.mapv(|x| 1.0 - x);
        let images = match task {
            "ControlNet" => [image, &inverted],
            _ => [&inverted, image],
        };
        let n = self.description["components"].as_object().into_iter().flatten();
        let n = n.filter(|(name, _)| name.starts_with("controlnet")).count();
        let number = |key: &str, i: usize| match &call[key] {
            Value::Array(list) => list[i].as_f64(),
            value => value.as_f64(),
        };
        (0..n)
            .map(|i| {
                let scale = number("controlnet_conditioning_scale", i).map(|x| x as f32);
                let start = number("control_guidance_start", i).unwrap_or(0.0);
                let end = number("control_guidance_end", i).unwrap_or(1.0);
                Control::new(planar(images[i].clone())).scale(scale).between(start, end)
            })
            .collect()
    }
}

fn planar(batch: ArrayD<f32>) -> Picture {
    Picture::Planar(batch.index_axis_move(Axis(0), 0).into_dimensionality().expect("three axes"))
}

fn write_json(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, value.to_string()).expect("a file");
}

fn write_weights(path: &Path, component: &str, weights: &Value) {
    let drawn: HashMap<String, (Vec<usize>, Vec<u8>)> = weights
        .as_object()
        .expect("weights")
        .iter()
        .map(|(name, shape)| {
            let shape: Vec<usize> = serde_json::from_value(shape.clone()).expect("a shape");
            let bytes = draw(&format!("{component}.{name}"), &shape);
            (name.clone(), (shape, bytes))
        })
        .collect();
    let views = drawn.iter().map(|(name, (shape, bytes))| {
        (name.as_str(), TensorView::new(Dtype::F16, shape.clone(), bytes).expect("as many bytes as elements"))
    });
    safetensors::serialize_to_file(views, None, path).expect("a safetensors file");
}

/// `draw` of the maker.
pub(crate) fn draw(name: &str, shape: &[usize]) -> Vec<u8> {
    let values = TorchCpuGenerator::new(crc32fast::hash(name.as_bytes()).into()).randn(shape);
    let shift = if name.ends_with("weight") { 1.0 } else { 0.0 };
    let fan_in: usize = shape.iter().skip(1).product();
    let scale = ((1.0 / fan_in as f64) as f32).sqrt();
    let value = |x: f32| match shape.len() {
        0 | 1 => x * 0.1 + shift,
        _ if name.contains("embedding") => x * 0.5,
        _ => x * scale,
    };
    values.iter().flat_map(|&x| f16::from_f32(value(x)).to_le_bytes()).collect()
}

#[track_caller]
fn check(name: &str) {
    let family = Family::new(name);
    let bundle = family.bundle();
    for backend in backends() {
        let mut pipeline = pipeline(bundle.clone(), backend);
        for call in family.description["calls"].as_object().expect("calls").keys() {
            let what = format!("{name} {call} on {}", pipeline.backend().name());
            if family.description["calls"][call]["learned"] == json!(true) {
                let word = pipeline.add_embedding(family.embedding(), None).expect("an embedding");
                assert_eq!(word, "<toy>");
            }
            let output = pipeline.generate(&family.request(call));
            let output = output.unwrap_or_else(|e| panic!("{what}: {e}"));
            let expected = family.references.f32(&format!("{call}.latents"));
            if family.description["calls"][call]["decoded"] == json!(true) {
                let found = output.images[0].to_planes().insert_axis(Axis(0)).into_dyn();
                assert_close(&what, found.view(), expected.view(), 2.0 / 255.0);
            } else {
                let tolerance = family.description["calls"][call]["tolerance"].as_f64();
                let tolerance = tolerance.map_or(LATENTS, |tolerance| tolerance as f32);
                assert_close(&what, output.latents.view(), expected.view(), tolerance);
            }
        }
    }
}

macro_rules! families {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                check($name);
            }
        )*
    };
}

families! {
    stable_diffusion_1_is_diffusers: "sd1",
    stable_diffusion_2_is_diffusers: "sd2",
    stable_diffusion_xl_is_diffusers: "sdxl",
    the_refiner_is_diffusers: "refiner",
    an_inpainting_unet_of_sdxl_is_diffusers: "sdxl-inpaint",
    variants_of_configurations_are_diffusers: "variants",
    an_inpainting_unet_is_diffusers: "inpaint",
    latent_consistency_is_diffusers: "lcm",
    latent_consistency_pipelines_are_diffusers: "lcm-pipeline",
    samplers_are_diffusers_in_every_task: "samplers",
    the_tiny_autoencoder_is_diffusers: "taesd",
    a_controlnet_is_diffusers: "controlnet",
    two_controlnets_are_diffusers: "controlnets",
    a_controlnet_of_sdxl_is_diffusers: "sdxl-controlnet",
    transformers_of_different_depths_are_diffusers: "depths",
    a_controlnet_of_different_depths_beside_a_unet_without_middle_is_diffusers: "depths-controlnet",
}

/// What a tokenizer pads with is a token wherever it stands, as "!" is in SDXL's second one, so that the two need different
/// numbers of blocks.
#[test]
fn both_text_encoders_get_as_many_blocks() {
    use kiln_runtime::Request;
    use kiln_runtime::tokenizer::ClipTokenizer;
    let family = Family::new("sdxl");
    write_json(
        &family.folder.path().join("tokenizer_2/tokenizer_config.json"),
        &serde_json::json!({ "pad_token": "r" }),
    );
    fs::remove_file(family.folder.path().join("tokenizer_2/special_tokens_map.json"))
        .expect("a map that says otherwise");
    let bundle = family.bundle();
    let prompt = "red ".repeat(60);
    let n_tokens = |folder: &str| {
        let tokenizer = ClipTokenizer::from_dir(&bundle.path(folder), 77).expect("a tokenizer");
        tokenizer.tokens(&prompt).expect("tokens").len()
    };
    assert!(n_tokens("tokenizer") <= 75 && n_tokens("tokenizer_2") > 75, "{} tokens", n_tokens("tokenizer"));
    let mut pipeline = pipeline(bundle.clone(), backends()[0].clone());
    for (prompt, negative) in [(prompt.as_str(), "blue"), ("blue", prompt.as_str())] {
        let request = Request::new(prompt).negative_prompts(vec![negative]).steps(1).seeds(vec![1]);
        pipeline.generate(&request).expect("a picture");
    }
}
