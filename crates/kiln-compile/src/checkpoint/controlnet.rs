//! ControlNets, alone and as part of a pipeline.

use std::path::{Path, PathBuf};

use kiln_nets::ControlNetConfig;
use serde_json::Value;

use super::index::library_class;
use super::layout::{Layout, Part, file_name};
use crate::files::Network;
use crate::json::read_json;
use crate::original::Given;
use crate::{CompileError, Family, Original};

const CLASS: &str = "ControlNetModel";

/// Most ControlNets that one pipeline may bring.
const MAX_CONTROLNETS: usize = 16;

/// A ControlNet's folder, its configuration read and checked.
#[derive(Debug)]
pub struct ControlNetCheckpoint {
    root: PathBuf,
    pub(crate) part: Part<ControlNetConfig>,
}

impl ControlNetCheckpoint {
    /// Opens a ControlNet's folder, in which `variant` prefers files such as
    /// `diffusion_pytorch_model.fp16.safetensors`, or its single file.
    pub fn open(root: &Path, variant: Option<&str>) -> Result<ControlNetCheckpoint, CompileError> {
        let mut original;
        let mut layout = if root.is_file() {
            original = Original::open(root)?;
            Layout::File(&mut original)
        } else if root.join("config.json").is_file() {
            Layout::Folder { root, variant, given: Given::default() }
        } else {
            const HINT: &str = "a ControlNet is a folder with config.json and diffusion_pytorch_model.safetensors, or one file";
            return Err(match root.exists() {
                true => CompileError::checkpoint(root, "has no config.json").with_hint(HINT),
                false => CompileError::absent(root, "folder", HINT),
            });
        };
        let name = match layout {
            Layout::Folder { .. } => "",
            Layout::File(_) => "controlnet",
        };
        let part = layout.part(name, CLASS, Network::Plain, ControlNetConfig::from_json)?;
        Ok(ControlNetCheckpoint { root: root.into(), part: Part { name: file_name(root), ..part } })
    }

    /// Whether `path` is a ControlNet by itself: a folder without `model_index.json` whose `config.json` says so, or a
    /// single file of one.
    pub fn is_one(path: &Path) -> bool {
        if path.is_file() {
            return Original::is_candidate(path)
                && Original::open(path).is_ok_and(|original| original.family() == Family::ControlNet);
        }
        let config = read_json(&path.join("config.json"));
        config.is_ok_and(|config| config["_class_name"] == CLASS) && !path.join("model_index.json").exists()
    }

    /// The folder or file.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What of it is passed over that may be taken for more: a line each, beginning with the path.
    pub fn remarks(&self) -> &[String] {
        &self.part.remarks
    }

    /// The folder's name, or the file's without its ending, as far as it is fit for a file name.
    pub fn name(&self) -> String {
        file_name(&self.root)
    }
}

/// The ControlNets of a pipeline; diffusers numbers the folders of several from the second on.
pub(super) fn controlnets(
    origin: &Path,
    index: &Value,
    layout: &mut Layout<'_>,
) -> Result<Vec<ControlNetCheckpoint>, CompileError> {
    let has = |name: &String| match layout {
        Layout::Folder { root, .. } => root.join(name).is_dir(),
        Layout::File(_) => false,
    };
    let names: Vec<String> = match library_class(index, "controlnet") {
        None => return Ok(Vec::new()),
        Some(CLASS) => vec!["controlnet".into()],
        Some("MultiControlNetModel") => {
            let names = (0..).map(|i| if i == 0 { "controlnet".into() } else { format!("controlnet_{i}") });
            names.take_while(has).take(MAX_CONTROLNETS).collect()
        }
        Some(found) => {
            let reason = format!("controlnet: '{found}' is not supported; supported: ControlNetModel");
            return Err(CompileError::checkpoint(origin, reason));
        }
    };
    let open = |name: String| {
        let part = layout.part(&name, CLASS, Network::Plain, ControlNetConfig::from_json)?;
        Ok(ControlNetCheckpoint { root: part.path.clone(), part })
    };
    names.into_iter().map(open).collect()
}
