//! How checkpoints store numbers, and as what networks read them.

use std::collections::{BTreeMap, BTreeSet};

use kiln_bundle::{TensorFile, is_float};
use kiln_graph::ElementType;
use safetensors::Dtype;
use serde_json::Value;

use crate::CompileError;

/// A type that a file stores numbers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored(Dtype);

impl Stored {
    /// The type, if weights may have it.
    pub(crate) fn of(dtype: Dtype) -> Option<Stored> {
        (is_float(dtype) || dtype == Dtype::I64).then_some(Stored(dtype))
    }

    /// Bytes per element.
    pub(crate) fn n_bytes(self) -> u64 {
        self.0.bitsize() as u64 / 8
    }

    /// The type as one that networks read, if it is one.
    fn as_is(self) -> Option<ElementType> {
        match self.0 {
            Dtype::F32 => Some(ElementType::F32),
            Dtype::F16 => Some(ElementType::F16),
            Dtype::BF16 => Some(ElementType::Bf16),
            Dtype::I64 => Some(ElementType::I64),
            _ => None,
        }
    }

    /// Whether networks read it without a change as this.
    pub(crate) fn is(self, element: ElementType) -> bool {
        self.as_is() == Some(element)
    }

    fn is_narrow(self) -> bool {
        self.n_bytes() == 1
    }

    /// The smallest type that networks read and that holds its numbers, times a scale where there is one; numbers of 64 bits
    /// are rounded.
    pub(crate) fn element_type(self, scale: Option<f32>) -> ElementType {
        match (self.as_is(), scale) {
            (Some(element), None) => element,
            (None, None) if self.is_narrow() => ElementType::F16,
            _ => ElementType::F32,
        }
    }

    /// Replaces `floats` by the numbers, of a type of floats.
    pub(crate) fn decode(self, bytes: &[u8], scale: Option<f32>, floats: &mut Vec<f32>) {
        kiln_bundle::decode(self.0, bytes, floats);
        if let Some(scale) = scale {
            floats.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

/// Longest description of a weight's format, in bytes.
const MAX_FORMAT: usize = 1 << 12;

/// Factors of 8-bit weights, by the two conventions of single-file checkpoints: `<layer>.weight_scale` with `<layer>.comfy_quant`
/// (ComfyUI), and before that `<layer>.scale_weight`.
#[derive(Debug, Default)]
pub(crate) struct Scales {
    by_weight: BTreeMap<String, f32>,
    keys: BTreeSet<String>,
}

impl Scales {
    pub(crate) fn read(file: &TensorFile) -> Result<Scales, CompileError> {
        let refuse =
            |key: &str, reason: &str| Err(CompileError::checkpoint(file.path(), format!("'{key}' {reason}")));
        let mut scales = Scales::default();
        for (key, info) in file.tensors() {
            let (layer, part) = key.rsplit_once('.').unwrap_or(("", key));
            let weight = format!("{layer}.weight");
            let stored = file.tensors().get(&weight).and_then(|info| Stored::of(info.dtype));
            let is_narrow = stored.is_some_and(Stored::is_narrow);
            match part {
                "weight_scale" | "scale_weight" if is_narrow => {
                    if info.shape.iter().any(|side| *side != 1) {
                        return refuse(key, &format!("has shape {:?}; supported: one number", info.shape));
                    }
                    let scale = file.read_f32(key)?.into_iter().filter(|scale| *scale != 1.0);
                    scales.by_weight.extend(scale.map(|scale| (weight.clone(), scale)));
                }
                "comfy_quant" if info.length > MAX_FORMAT => {
                    let n_bytes = info.length;
                    return refuse(
                        key,
                        &format!("has {n_bytes} bytes, more than the {MAX_FORMAT} of a format"),
                    );
                }
                "comfy_quant" => {
                    let format = file.read_bytes(key)?;
                    let format: Value = serde_json::from_slice(&format).unwrap_or_default();
                    if !is_narrow || !matches!(format["format"].as_str(), Some("float8_e4m3fn" | "float8_e5m2"))
                    {
                        return refuse(
                            key,
                            &format!("asks for the format {}, which is not supported", format["format"]),
                        );
                    }
                }
                // Of what layers read, where products are of 8 bits too.
                "input_scale" | "scale_input" if is_narrow => {}
                "scaled_fp8" => {}
                "weight_scale_2" | "pre_quant_scale" => {
                    return refuse(key, "belongs to a quantisation that is not supported");
                }
                _ => continue,
            }
            scales.keys.insert(key.clone());
        }
        Ok(scales)
    }

    /// The factor of a weight, by its key in the file.
    pub(crate) fn of(&self, key: &str) -> Option<f32> {
        self.by_weight.get(key).copied()
    }

    /// Whether a tensor is one of them, or says what they are.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn eight_bits_fit_into_sixteen_and_scales_multiply() {
        let (mut floats, all) = (Vec::new(), (0..=255).collect::<Vec<u8>>());
        for stored in [Stored(Dtype::F8_E4M3), Stored(Dtype::F8_E5M2)] {
            stored.decode(&all, None, &mut floats);
            assert_eq!(stored.element_type(None), ElementType::F16);
            assert!(floats.iter().all(|value| value.is_nan() || f16::from_f32(*value).to_f32() == *value));
        }
        Stored(Dtype::F8_E5M2).decode(&[0x3c, 0x7b, 0xbc, 0x01], Some(2.0), &mut floats);
        assert_eq!(floats, [2.0, 114_688.0, -2.0, 2f32.powi(-15)]);
        assert_eq!(Stored(Dtype::F8_E5M2).element_type(Some(2.0)), ElementType::F32);
    }
}
