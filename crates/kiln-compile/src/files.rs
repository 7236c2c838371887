//! Which files hold a component's weights: one, or the shards of an index.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::CompileError;
use crate::json::read_json;

/// Whose names a file's weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Clip,
    Vae,
    /// Networks whose weights have never been renamed: UNet and ControlNet.
    Plain,
}

impl Network {
    fn basename(self) -> &'static str {
        match self {
            Network::Clip => "model",
            Network::Plain | Network::Vae => "diffusion_pytorch_model",
        }
    }

    /// Today's name of a weight; `None` for buffers that are not weights.
    pub(crate) fn canonical(self, name: &str) -> Option<String> {
        match self {
            Network::Plain => Some(name.to_owned()),
            Network::Clip => {
                let name = name.strip_prefix("text_model.").unwrap_or(name);
                (name != "embeddings.position_ids").then(|| name.to_owned())
            }
            Network::Vae => {
                let mut name = name.to_owned();
                if name.contains(".attentions.") {
                    for (old, new) in [
                        (".query.", ".to_q."),
                        (".key.", ".to_k."),
                        (".value.", ".to_v."),
                        (".proj_attn.", ".to_out.0."),
                    ] {
                        name = name.replace(old, new);
                    }
                }
                Some(name)
            }
        }
    }
}

/// Files that were found.
pub(crate) struct Found {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) is_variant: bool,
    /// What lies beside them and is not read.
    pub(crate) remark: Option<String>,
}

/// The safetensors files of a component in its folder, of the variant if it has that.
pub(crate) fn find(folder: &Path, network: Network, variant: Option<&str>) -> Result<Found, CompileError> {
    let base = network.basename();
    if let Some(variant) = variant {
        let single = format!("{base}.{variant}.safetensors");
        let today = format!("{base}.safetensors.index.{variant}.json");
        // What diffusers wrote before 0.31, and still reads.
        let before = format!("{base}.safetensors.{variant}.index.json");
        let indices = match network {
            Network::Clip => vec![today],
            Network::Plain | Network::Vae => vec![today, before],
        };
        if let Some((files, remark)) = single_or_shards(folder, network, &single, &indices)? {
            return Ok(Found { files, is_variant: true, remark });
        }
    }
    let (single, index) = (format!("{base}.safetensors"), format!("{base}.safetensors.index.json"));
    match single_or_shards(folder, network, &single, &[index])? {
        Some((files, remark)) => Ok(Found { files, is_variant: false, remark }),
        None => Err(missing(folder, base)),
    }
}

/// Files, and what is to be told of those that were not chosen.
type Chosen = (Vec<PathBuf>, Option<String>);

/// The file, or the shards of the first of some indices.
///
/// Where both lie there, an earlier save has left one of them. diffusers reads the index (`models/modeling_utils.py`),
/// transformers the whole file (`modeling_utils.py`).
fn single_or_shards(
    folder: &Path,
    network: Network,
    single: &str,
    indices: &[String],
) -> Result<Option<Chosen>, CompileError> {
    let is_there = |name: &str| folder.join(name).exists();
    let index = indices.iter().find(|name| is_there(name));
    let remark = |read: &str, other: &str| Some(format!("{}: {read} is read, not {other}", folder.display()));
    Ok(match (is_there(single), index) {
        (false, None) => None,
        (true, None) => Some((vec![folder.join(single)], None)),
        (true, Some(index)) if network == Network::Clip => {
            Some((vec![folder.join(single)], remark(single, index)))
        }
        (false, Some(index)) => Some((shards(folder, index)?, None)),
        (true, Some(index)) => Some((shards(folder, index)?, remark(index, single))),
    })
}

fn shards(folder: &Path, index: &str) -> Result<Vec<PathBuf>, CompileError> {
    let path = folder.join(index);
    let json = read_json(&path)?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let Some(map) = map.filter(|map| !map.is_empty()) else {
        return Err(CompileError::checkpoint(&path, "has no weight_map"));
    };
    let mut shards = BTreeSet::new();
    for (weight, shard) in map {
        match shard.as_str() {
            Some(name) if Path::new(name).file_name().is_some_and(|file| file == name) => shards.insert(name),
            _ => {
                let reason = format!("weight '{weight}': {shard} is not a file beside the index");
                return Err(CompileError::checkpoint(&path, reason));
            }
        };
    }
    Ok(shards.into_iter().map(|name| folder.join(name)).collect())
}

fn missing(folder: &Path, base: &str) -> CompileError {
    let file = format!("{base}.safetensors");
    if folder.join(&file).is_symlink() {
        let reason = "is a link to nothing";
        return CompileError::checkpoint(&folder.join(file), reason)
            .with_hint("the download may not be finished; fetch the model again");
    }
    let error = CompileError::checkpoint(folder, format!("has no {file}"));
    for name in [format!("{base}.bin"), "pytorch_model.bin".into(), format!("{base}.bin.index.json")] {
        if folder.join(&name).exists() {
            let reason = "pickled weights can run code when they are read, and kiln refuses them";
            return CompileError::checkpoint(&folder.join(name), reason).with_hint(
                "convert the checkpoint to safetensors (save_pretrained with safe_serialization=True)",
            );
        }
    }
    match variants(folder, base).as_slice() {
        [] => match other_format(folder) {
            Some((name, what)) => {
                error.with_hint(format!("{name} there is {what}, and kiln reads safetensors"))
            }
            None => error,
        },
        [variant] => error.with_hint(format!("the folder has a variant: --variant {variant}")),
        several => error.with_hint(format!("the folder has variants for --variant: {}", several.join(", "))),
    }
}

/// A file of a folder that holds weights in a format that is not read, and what it is.
fn other_format(folder: &Path) -> Option<(String, &'static str)> {
    const FORMATS: [(&str, &str); 8] = [
        (".msgpack", "of Flax"),
        (".onnx", "an ONNX export"),
        ("openvino_model.xml", "an OpenVINO export"),
        (".h5", "of TensorFlow"),
        (".gguf", "a GGUF file"),
        (".mlmodelc", "a Core ML export"),
        (".mlpackage", "a Core ML export"),
        (".pth", "pickled"),
    ];
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let names: BTreeSet<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let found = |name: String| {
        let (_, what) = FORMATS.iter().find(|(end, _)| name.ends_with(end))?;
        Some((name, *what))
    };
    names.into_iter().find_map(found)
}

/// The variants that a folder has weights of.
fn variants(folder: &Path, base: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let variant = |name: String| {
        let rest = name.strip_prefix(base)?.strip_prefix('.')?;
        let single = rest.strip_suffix(".safetensors");
        let today = || rest.strip_prefix("safetensors.index.")?.strip_suffix(".json");
        let before = || rest.strip_prefix("safetensors.")?.strip_suffix(".index.json");
        let variant = single.or_else(today).or_else(before)?;
        (!variant.contains('.')).then(|| variant.to_owned())
    };
    names.filter_map(variant).collect::<BTreeSet<_>>().into_iter().collect()
}
