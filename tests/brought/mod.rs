//! Checkpoints, prompts and caches as people really have them: the right picture or a reason.

mod cache;
mod configs;
mod files;
mod finite;
mod messages;
mod prompts;
mod refusals;
mod stored;
mod words;

use std::fs;
use std::path::Path;

use kiln_compile::TraceOptions;
use kiln_runtime::Request;
use safetensors::tensor::TensorView;
use safetensors::{SafeTensors, serialize_to_file};

use crate::fixtures::{bundle, copy_folder, onnxruntime, pipeline, scratch, sd15};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// A copy of the small Stable Diffusion, to change.
fn model() -> tempfile::TempDir {
    let folder = scratch();
    copy_folder(&sd15(), folder.path());
    folder
}

/// The picture that a folder draws.
#[track_caller]
fn draw(model: &Path) -> Vec<u8> {
    draw_prompt(model, "a red circle")
}

#[track_caller]
fn draw_prompt(model: &Path, prompt: &str) -> Vec<u8> {
    let mut pipeline = pipeline(bundle(model, &TraceOptions::default()), onnxruntime());
    let request = Request::new(prompt).steps(2).seeds(vec![7]).width(Some(64)).height(Some(64));
    pipeline.generate(&request).expect("a picture").images[0].data().to_vec()
}

/// Writes the tensors of a file elsewhere, those that `keep` gives a name, with what `change` makes of their bytes.
fn rewrite(from: &Path, to: &Path, keep: impl Fn(&str) -> Option<String>, change: impl Fn(&[u8]) -> Vec<u8>) {
    let bytes = fs::read(from).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors").tensors();
    let kept: Vec<(String, Vec<u8>, &TensorView<'_>)> = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((keep(name)?, change(tensor.data()), tensor)))
        .collect();
    let views = kept.iter().map(|(name, data, tensor)| {
        let view = TensorView::new(tensor.dtype(), tensor.shape().to_vec(), data).expect("a tensor");
        (name.as_str(), view)
    });
    serialize_to_file(views, None, to).expect("weights");
}

/// Half of each number of 16 bits, in which the small Stable Diffusion is stored.
fn halved(bytes: &[u8]) -> Vec<u8> {
    let numbers =
        bytes.as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b) / half::f16::from_f32(2.0));
    numbers.flat_map(half::f16::to_le_bytes).collect()
}
