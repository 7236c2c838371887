//! Reference files and the comparison of numbers.

pub(crate) mod fixtures;

use std::path::{Path, PathBuf};

use ndarray::{ArrayD, ArrayViewD};
use safetensors::SafeTensors;

/// `tests/references`, wherever in the workspace the test binary's package lies.
pub(crate) fn references() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = package.ancestors().map(|folder| folder.join("tests/references")).find(|path| path.is_dir());
    found.expect("tests/references above the package")
}

/// A safetensors file of `tests/references`.
pub(crate) struct References {
    name: String,
    bytes: Vec<u8>,
}

impl References {
    #[track_caller]
    pub(crate) fn open(name: &str) -> References {
        let bytes = std::fs::read(references().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        References { name: name.into(), bytes }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors().names().into_iter().map(Into::into).collect()
    }

    /// A value of the file's metadata, which is JSON for every case.
    #[track_caller]
    pub(crate) fn metadata(&self, key: &str) -> serde_json::Value {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).expect("a safetensors header");
        let text = header.metadata().as_ref().and_then(|map| map.get(key)).unwrap_or_else(|| panic!("{key}"));
        serde_json::from_str(text).expect("JSON")
    }

    #[track_caller]
    pub(crate) fn f32(&self, key: &str) -> ArrayD<f32> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(key).unwrap_or_else(|e| panic!("{}: {key}: {e}", self.name));
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{key}");
        let (numbers, _) = tensor.data().as_chunks();
        let values = numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        ArrayD::from_shape_vec(tensor.shape(), values).expect("as many numbers as the shape says")
    }

    /// Bytes and shape.
    #[track_caller]
    pub(crate) fn u8(&self, key: &str) -> (Vec<u8>, Vec<usize>) {
        let tensors = self.tensors();
        let tensor = tensors.tensor(key).unwrap_or_else(|e| panic!("{}: {key}: {e}", self.name));
        assert_eq!(tensor.dtype(), safetensors::Dtype::U8, "{key}");
        (tensor.data().to_vec(), tensor.shape().to_vec())
    }

    #[track_caller]
    pub(crate) fn i64(&self, key: &str) -> Vec<i64> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(key).unwrap_or_else(|e| panic!("{}: {key}: {e}", self.name));
        assert_eq!(tensor.dtype(), safetensors::Dtype::I64, "{key}");
        tensor.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
    }
}

/// Fails unless shapes are equal and all numbers within `tolerance`; NaN is never close.
#[track_caller]
pub(crate) fn assert_close(
    what: &str,
    found: ArrayViewD<'_, f32>,
    expected: ArrayViewD<'_, f32>,
    tolerance: f32,
) {
    assert_within(what, found, expected, |_| tolerance);
}

/// Like [`assert_close`], but relative above 1.
#[track_caller]
pub(crate) fn assert_relatively_close(
    what: &str,
    found: ArrayViewD<'_, f32>,
    expected: ArrayViewD<'_, f32>,
    tolerance: f32,
) {
    assert_within(what, found, expected, |x| tolerance * x.abs().max(1.0));
}

#[track_caller]
fn assert_within(
    what: &str,
    found: ArrayViewD<'_, f32>,
    expected: ArrayViewD<'_, f32>,
    tolerance: impl Fn(f32) -> f32,
) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected.iter()).enumerate() {
        let error = (found - expected).abs();
        assert!(error <= tolerance(*expected), "{what}: element {i} is {found}, not {expected}: {error:e} off");
    }
}
