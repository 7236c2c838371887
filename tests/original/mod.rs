//! Single-file checkpoints against what diffusers makes of the same keys (`references/make_original.py`).

mod command;
mod configs;
mod parts;
mod refusals;
pub(crate) mod weights;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use kiln_compile::Original;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::fixtures::scratch;
use crate::support::references;

/// The models of `original.json.gz`.
pub(crate) fn reference() -> &'static Value {
    static REFERENCE: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| {
        let packed = fs::read(references().join("original.json.gz")).expect("original.json.gz");
        let mut text = String::new();
        GzDecoder::new(packed.as_slice()).read_to_string(&mut text).expect("gzip");
        serde_json::from_str(&text).expect("JSON")
    });
    &REFERENCE
}

pub(crate) fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("a map")
}

pub(crate) fn shape(value: &Value) -> Vec<u64> {
    value.as_array().expect("a shape").iter().map(|n| n.as_u64().expect("a size")).collect()
}

/// A single file to be: tensors by key, and metadata.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) tensors: BTreeMap<String, (&'static str, Vec<u64>)>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Draft {
    /// The tensors of a reference model, in half precision.
    pub(crate) fn of(model: &str) -> Draft {
        let keys = object(&reference()["models"][model]["keys"]);
        let tensors = keys.iter().map(|(key, dims)| (key.clone(), ("F16", shape(dims)))).collect();
        Draft { tensors, metadata: BTreeMap::new() }
    }

    pub(crate) fn with(mut self, key: &str, dtype: &'static str, dims: &[u64]) -> Draft {
        self.tensors.insert(key.into(), (dtype, dims.to_vec()));
        self
    }

    pub(crate) fn without(mut self, prefix: &str) -> Draft {
        let before = self.tensors.len();
        self.tensors.retain(|key, _| !key.starts_with(prefix));
        assert!(self.tensors.len() < before, "{prefix}");
        self
    }

    pub(crate) fn saying(mut self, key: &str, value: &str) -> Draft {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The file's header, and first byte in the file and size of each tensor.
    pub(crate) fn header(&self) -> (Vec<u8>, BTreeMap<&str, (u64, u64)>) {
        let mut entries = Map::new();
        if !self.metadata.is_empty() {
            entries.insert("__metadata__".into(), json!(self.metadata));
        }
        let mut end = 0u64;
        let mut places = BTreeMap::new();
        for (key, (dtype, dims)) in &self.tensors {
            let size = match *dtype {
                "I64" | "F64" => 8,
                "F32" => 4,
                "F16" | "BF16" => 2,
                _ => 1,
            };
            let (start, length) = (end, dims.iter().product::<u64>() * size);
            end += length;
            places.insert(key.as_str(), (start, length));
            let entry = json!({ "dtype": dtype, "shape": dims, "data_offsets": [start, end] });
            entries.insert(key.clone(), entry);
        }
        let json = Value::Object(entries).to_string().into_bytes();
        let header = [&(json.len() as u64).to_le_bytes()[..], &json].concat();
        let base = header.len() as u64;
        (header, places.into_iter().map(|(key, (start, length))| (key, (base + start, length))).collect())
    }

    /// Writes the file as a header and nothing but a hole behind it.
    pub(crate) fn write_hollow(&self, path: &Path) {
        let (header, places) = self.header();
        let end = places.values().map(|(start, length)| start + length).max().unwrap_or(header.len() as u64);
        let mut file = File::create(path).expect("a file");
        file.write_all(&header).expect("a header");
        file.set_len(end).expect("a hole");
    }

    /// Writes the file, `fill` making each tensor's bytes from its key and their number.
    pub(crate) fn write(&self, path: &Path, fill: impl Fn(&str, u64) -> Vec<u8>) {
        let (mut bytes, places) = self.header();
        for (key, (start, length)) in places {
            assert_eq!(bytes.len() as u64, start);
            let tensor = fill(key, length);
            assert_eq!(tensor.len() as u64, length, "{key}");
            bytes.extend(tensor);
        }
        fs::write(path, bytes).expect("a file");
    }
}

pub(crate) fn hollow(draft: &Draft) -> (TempDir, PathBuf) {
    let folder = scratch();
    let path = folder.path().join("model.safetensors");
    draft.write_hollow(&path);
    (folder, path)
}

#[track_caller]
pub(crate) fn open(draft: &Draft) -> Original {
    let (_folder, path) = hollow(draft);
    Original::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
pub(crate) fn check_refused(draft: &Draft, message: &str) {
    let (_folder, path) = hollow(draft);
    let error = Original::open(&path).expect_err("refused").to_string();
    assert!(error.contains(message), "{error}");
    assert!(error.starts_with(&path.display().to_string()), "no path in: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}
