//! LoRAs against diffusers, fused and swapped, from files that are drawn anew (`references/make_lora.py`).

mod adapters;
mod command;
mod refusals;
mod swap;

use kiln_bundle::stable_diffusion::UNET_CONTROLLED;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_bundle::TensorFile;
use kiln_compile::TraceOptions;
use kiln_graph::{Cuts, EmitPolicy};
use kiln_lora::{Lora, LoraFile};
use kiln_nets::Sizes;
use kiln_runtime::{Bundle, ComponentName, Request, Size};
use ndarray::ArrayD;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;

use crate::families::{Family, draw};
use crate::fixtures::{backends, bundle, pipeline, scratch, sd15};
use crate::support::{References, assert_close, references};

const LATENTS: f32 = 1e-3;
const WEIGHTS: f32 = 1e-6;
const PROBES: usize = 8;

/// A case of the references: checkpoint and LoRA files.
pub(crate) struct Case {
    name: String,
    description: Value,
    pub(crate) checkpoint: PathBuf,
    pub(crate) loras: Vec<Lora>,
    _folders: Vec<TempDir>,
}

impl Case {
    pub(crate) fn new(name: &str) -> Case {
        let text = fs::read_to_string(references().join("lora.json")).expect("a description");
        let description: Value = serde_json::from_str::<Value>(&text).expect("JSON")[name].take();
        let folder = scratch();
        let files = description["files"].as_array().expect("files").iter().enumerate();
        let weights = description["weights"].as_array().expect("weights");
        let loras = files
            .map(|(i, file)| {
                let path = folder.path().join(format!("{name}-{i}.safetensors"));
                write_lora(&path, &format!("{name}.{i}"), file);
                let weight = weights[i].as_f64().expect("a weight") as f32;
                Lora { file: Arc::new(LoraFile::open(&path).expect("a LoRA")), weight }
            })
            .collect();
        let (checkpoint, folders) = match description["model"].as_str() {
            Some("sdxl") => {
                let family = Family::new("sdxl");
                (family.folder.path().into(), vec![folder, family.folder])
            }
            _ => (sd15(), vec![folder]),
        };
        Case { name: name.into(), description, checkpoint, loras, _folders: folders }
    }

    pub(crate) fn path(&self) -> &Path {
        self.loras[0].file.path()
    }

    fn options(&self, loras: &[Lora]) -> TraceOptions {
        let options = TraceOptions::for_bundle(EmitPolicy::default(), Sizes::Dynamic);
        TraceOptions { loras: loras.to_vec(), ..options }
    }

    pub(crate) fn base(&self) -> Bundle {
        bundle(&self.checkpoint, &self.options(&[]))
    }

    /// Like the base, in segments of a few weights.
    pub(crate) fn segmented(&self) -> Bundle {
        let policy = EmitPolicy { cuts: Cuts::Every(64 << 10), ..EmitPolicy::default() };
        bundle(&self.checkpoint, &TraceOptions { policy, ..self.options(&[]) })
    }

    fn fused(&self) -> Bundle {
        bundle(&self.checkpoint, &self.options(&self.loras))
    }

    pub(crate) fn pairs(&self) -> Vec<(Arc<LoraFile>, f32)> {
        self.loras.iter().map(|lora| (lora.file.clone(), lora.weight)).collect()
    }

    pub(crate) fn request(&self) -> Request {
        Request::new("a red circle")
            .negative_prompt(String::new())
            .seeds(vec![3])
            .steps(4)
            .guidance_scale(5.0)
            .size(Size::new(32, 32))
    }

    fn changed(&self, role: ComponentName) -> BTreeSet<String> {
        let names = self.description["changed"][role.to_string()].as_array().into_iter().flatten();
        names.map(|name| name.as_str().expect("a name").to_owned()).collect()
    }

    /// The weights of the fused bundle are the checkpoint's but for those that diffusers changes.
    fn check_weights(&self) {
        let (base, fused, references) = (self.base(), self.fused(), References::open("lora.safetensors"));
        assert_ne!(base.root(), fused.root(), "the engine cache knows LoRAs");
        for (role, component) in &base.manifest().components {
            let open = |bundle: &Bundle| {
                let weights = component.weights.as_deref().expect("a weight file");
                TensorFile::open(&bundle.path(weights)).expect("weights")
            };
            let (before, after) = (open(&base), open(&fused));
            let mut expected = self.changed(*role);
            expected.retain(|name| !component.unread_weights.contains(name));
            if *role == UNET_CONTROLLED {
                continue;
            }
            let read = |file: &TensorFile, name: &str| file.read_f32(name).expect("floats");
            let names = before.tensors().keys().filter(|name| read(&before, name) != read(&after, name));
            assert_eq!(names.cloned().collect::<BTreeSet<_>>(), expected, "{} {role}", self.name);
            if expected.is_empty() {
                continue;
            }
            let probes = references.f32(&format!("{}.{role}", self.name));
            for (name, probes) in self.changed(*role).iter().zip(probes.outer_iter()) {
                if !expected.contains(name) {
                    continue;
                }
                let values = read(&after, name);
                let found = (0..PROBES).map(|k| values[k * (values.len() - 1) / (PROBES - 1)]).collect();
                let found = ArrayD::from_shape_vec(vec![PROBES], found).expect("as many as probed");
                assert_close(&format!("{} {name}", self.name), found.view(), probes, WEIGHTS);
            }
        }
        let listed: Vec<(&str, f32)> =
            fused.manifest().provenance.loras.iter().map(|lora| (lora.blake3.as_str(), lora.weight)).collect();
        let given: Vec<(&str, f32)> = self.loras.iter().map(|lora| (lora.file.digest(), lora.weight)).collect();
        assert_eq!(listed, given);
    }

    /// Fused and swapped pipelines make the same bits, which are diffusers' latents.
    fn check_latents(&self) {
        let expected = References::open("lora.safetensors").f32(&format!("{}.latents", self.name));
        for backend in backends() {
            let what = format!("{} on {}", self.name, backend.name());
            let mut fused = pipeline(self.fused(), backend.clone());
            let fused = fused.generate(&self.request()).expect("a picture");
            assert_close(&what, fused.latents.view(), expected.view(), LATENTS);
            let mut swapped = pipeline(self.base(), backend);
            let plain = swapped.generate(&self.request()).expect("a picture");
            swapped.set_loras(&self.pairs()).expect("LoRAs that fit");
            let swapped = swapped.generate(&self.request()).expect("a picture");
            assert_eq!(swapped.latents, fused.latents, "{what}");
            assert_eq!(swapped.images, fused.images, "{what}");
            assert_ne!(swapped.latents, plain.latents, "{what}");
        }
    }
}

/// Draws a file of the description.
fn write_lora(path: &Path, seed: &str, file: &Value) {
    let tensors = file["tensors"].as_object().expect("tensors").iter().map(|(key, shape)| {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).expect("a shape");
        let bytes = draw(&format!("{seed}.{key}"), &shape);
        (key.clone(), (Dtype::F16, shape, bytes))
    });
    let alphas = file["alphas"].as_object().expect("alphas").iter().map(|(key, alpha)| {
        let (dtype, bytes) = match alpha.as_i64() {
            Some(alpha) => (Dtype::I64, alpha.to_le_bytes().to_vec()),
            None => (Dtype::F32, (alpha.as_f64().expect("a number") as f32).to_le_bytes().to_vec()),
        };
        (key.clone(), (dtype, vec![], bytes))
    });
    let metadata: HashMap<String, String> = serde_json::from_value(file["metadata"].clone()).expect("texts");
    write_tensors(path, &tensors.chain(alphas).collect(), Some(metadata));
}

pub(crate) type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub(crate) fn write_tensors(path: &Path, tensors: &Tensors, metadata: Option<HashMap<String, String>>) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as elements"))
    });
    safetensors::serialize_to_file(views, metadata, path).expect("a safetensors file");
}

macro_rules! cases {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                let case = Case::new($name);
                case.check_weights();
                case.check_latents();
            }
        )*
    };
}

cases! {
    kohyas_naming_is_diffusers: "kohya",
    loras_of_convolutions_are_diffusers: "convolutions",
    pefts_naming_is_diffusers: "peft",
    diffusers_naming_is_diffusers: "diffusers",
    the_naming_of_attention_processors_is_diffusers: "processors",
    pefts_configuration_in_the_header_counts: "adapter",
    several_loras_add_up: "several",
    kohyas_naming_over_the_original_layout_is_diffusers: "original",
    the_second_text_encoder_takes_loras: "second_encoder",
}
