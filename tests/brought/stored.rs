//! Types that weights are stored in.

use std::fs;
use std::path::Path;

use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize_to_file};

use super::{UNET, draw, model};

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// A file's tensors, each as what `make` makes of its numbers.
fn restored(path: &Path, make: impl Fn(&str, &[f32], &[usize]) -> Vec<Tensor>) {
    let bytes = fs::read(path).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors").tensors();
    let made: Vec<Tensor> = tensors
        .iter()
        .flat_map(|(name, tensor)| {
            let halves = tensor.data().as_chunks::<2>().0.iter();
            let floats: Vec<f32> = halves.map(|&b| f16::from_le_bytes(b).to_f32()).collect();
            make(name, &floats, tensor.shape())
        })
        .collect();
    let views = made.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("a tensor"))
    });
    serialize_to_file(views, None, path).expect("weights");
}

fn f32s(name: &str, values: impl Iterator<Item = f32>, shape: &[usize]) -> Tensor {
    (name.into(), Dtype::F32, shape.into(), values.flat_map(f32::to_le_bytes).collect())
}

/// The nearest number below in magnitude that has five bits of exponent and two of fraction.
fn e5m2(value: f32) -> u8 {
    (f16::from_f32(value).to_bits() >> 8) as u8
}

fn from_e5m2(bits: u8) -> f32 {
    f16::from_bits(u16::from(bits) << 8).to_f32()
}

#[test]
fn doubles_are_rounded() {
    let folder = model();
    restored(&folder.path().join(UNET), |name, floats, shape| {
        let bytes = floats.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
        vec![(name.into(), Dtype::F64, shape.into(), bytes)]
    });
    assert_eq!(draw(folder.path()), draw(model().path()));
}

#[test]
fn eight_bits_are_widened_with_their_scale_by_either_convention() {
    let is_scaled = |name: &str, shape: &[usize]| name.ends_with(".weight") && shape.len() > 1;
    let scale = 3.0;
    let expected = model();
    restored(&expected.path().join(UNET), |name, floats, shape| {
        let scale = if is_scaled(name, shape) { scale } else { 1.0 };
        vec![f32s(name, floats.iter().map(|&x| from_e5m2(e5m2(x / scale)) * scale), shape)]
    });
    let expected = draw(expected.path());
    for (key, format) in [("weight_scale", Some(r#"{"format": "float8_e5m2"}"#)), ("scale_weight", None)] {
        let folder = model();
        restored(&folder.path().join(UNET), |name, floats, shape| {
            if !is_scaled(name, shape) {
                return vec![(
                    name.into(),
                    Dtype::F8_E5M2,
                    shape.into(),
                    floats.iter().map(|&x| e5m2(x)).collect(),
                )];
            }
            let layer = name.strip_suffix(".weight").expect("a weight");
            let bytes = floats.iter().map(|&x| e5m2(x / scale)).collect();
            let mut tensors = vec![
                (name.into(), Dtype::F8_E5M2, shape.into(), bytes),
                f32s(&format!("{layer}.{key}"), [scale].into_iter(), &[]),
            ];
            if let Some(format) = format {
                let bytes = format.as_bytes().to_vec();
                tensors.push((format!("{layer}.comfy_quant"), Dtype::U8, vec![bytes.len()], bytes));
            }
            tensors
        });
        assert_eq!(draw(folder.path()), expected, "{key}");
    }
}

/// How a checkpoint is refused whose first convolution, of eight bits, has another tensor beside it.
#[track_caller]
fn refusal(key: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> String {
    let folder = model();
    restored(&folder.path().join(UNET), |name, floats, own_shape| {
        if name != "conv_in.weight" {
            return vec![f32s(name, floats.iter().copied(), own_shape)];
        }
        let weight = floats.iter().map(|&x| e5m2(x)).collect();
        let other = (format!("conv_in.{key}"), dtype, shape.into(), bytes.into());
        vec![(name.into(), Dtype::F8_E5M2, own_shape.into(), weight), other]
    });
    kiln_compile::Checkpoint::open(folder.path()).expect_err("a refusal").to_string()
}

#[test]
fn scales_of_other_quantisations_are_refused() {
    for (error, expected) in [
        (
            refusal("weight_scale_2", Dtype::F32, &[], &[0; 4]),
            "'conv_in.weight_scale_2' belongs to a quantisation that is not supported",
        ),
        (
            refusal("weight_scale", Dtype::F32, &[2, 1], &[0; 8]),
            "'conv_in.weight_scale' has shape [2, 1]; supported: one number",
        ),
        (
            refusal("comfy_quant", Dtype::U8, &[5000], &[b' '; 5000]),
            "'conv_in.comfy_quant' has 5000 bytes, more than the 4096 of a format",
        ),
    ] {
        assert!(error.ends_with(expected), "{error}");
    }
}

#[test]
fn what_is_no_weight_may_have_any_type() {
    let folder = model();
    restored(&folder.path().join("text_encoder/model.safetensors"), |name, floats, shape| {
        let mut tensors = vec![f32s(name, floats.iter().copied(), shape)];
        if name.ends_with("position_embedding.weight") {
            let ids = (0..77i32).flat_map(i32::to_le_bytes).collect();
            let name = name.replace("position_embedding.weight", "position_ids");
            tensors.push((name, Dtype::I32, vec![1, 77], ids));
        }
        tensors
    });
    assert_eq!(draw(folder.path()), draw(model().path()));
}
