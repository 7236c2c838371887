//! What is served: the models file.
//!
//! ```yaml
//! models:
//!   - name: shapes                   # what clients ask for
//!     bundle: shapes-bundle          # a bundle, or whatever the program makes bundles from; relative to the file
//!     title: Small shapes            # what people see
//!     loras: {ink: loras/ink.safetensors}
//!     scheduler: dpm++2m:karras      # unless a request names one
//!     steps: 20
//!     limits: {side: 1024, pixels: 1048576, steps: 150, pictures: 8}
//!     preload: true                  # load it at the start
//!     keep: true                     # never unload it for being idle
//! queue: 32                          # what else the program lets the file say
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kiln_bundle::read;
use kiln_runtime::Size;
use kiln_runtime::scheduler::SchedulerClass;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Largest models file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Why a models file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}", path = path.display())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// The models that are served.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ModelsFile {
    /// The models; the first one is drawn with where a request names none.
    pub models: Vec<ModelConfig>,
    /// What else it says, which is for the program that serves to take or to refuse: `kiln serve` takes its flags.
    #[serde(flatten)]
    pub settings: BTreeMap<String, Value>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// What clients call it: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Where its bundle comes from.
    #[serde(alias = "checkpoint")]
    pub bundle: PathBuf,
    /// What people see; the name by default.
    #[serde(default)]
    pub title: Option<String>,
    /// LoRAs that requests may use, by name.
    #[serde(default)]
    pub loras: BTreeMap<String, PathBuf>,
    /// Scheduler where a request names none.
    #[serde(default)]
    pub scheduler: Option<String>,
    /// Steps where a request says none.
    #[serde(default)]
    pub steps: Option<usize>,
    /// What a request may take.
    #[serde(default)]
    pub limits: Limits,
    /// Whether it is loaded at the start.
    #[serde(default)]
    pub preload: bool,
    /// Whether it stays loaded however long nobody asks for it.
    #[serde(default)]
    pub keep: bool,
}

/// What a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest side of a picture, in pixels.
    pub side: u32,
    /// Pixels of a picture.
    pub pixels: u64,
    /// Pixels of all pictures of a request.
    pub pixels_together: u64,
    /// Denoising steps.
    pub steps: usize,
    /// Pictures of a request.
    pub pictures: usize,
    /// Bytes of a prompt.
    pub prompt_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            side: 2048,
            pixels: 2048 * 2048,
            pixels_together: 2048 * 2048,
            steps: 150,
            pictures: 10,
            prompt_bytes: 16 << 10,
        }
    }
}

impl Limits {
    /// Whether a picture may be so large, and why not.
    pub(crate) fn check(&self, size: Size) -> Result<(), String> {
        match size.longest() <= self.side && size.area() <= self.pixels {
            true => Ok(()),
            false => Err(format!("size: {size}, the limit is {} pixels, a side of {}", self.pixels, self.side)),
        }
    }
}

impl ModelConfig {
    /// A model with nothing but a name and a bundle.
    pub fn new(name: impl Into<String>, bundle: impl Into<PathBuf>) -> ModelConfig {
        ModelConfig {
            name: name.into(),
            bundle: bundle.into(),
            title: None,
            loras: BTreeMap::new(),
            scheduler: None,
            steps: None,
            limits: Limits::default(),
            preload: false,
            keep: false,
        }
    }
}

impl ModelsFile {
    /// Reads and checks a models file; its paths are relative to its folder.
    pub fn read(path: &Path) -> Result<ModelsFile, ConfigError> {
        let refuse = |reason: String| ConfigError { path: path.into(), reason };
        let text = read::text(path, MAX_BYTES, "models file");
        let text = text.map_err(|e| e.map(|e| refuse(e.to_string()), refuse))?;
        let mut file: ModelsFile = read::yaml(&text).map_err(refuse)?;
        file.check().map_err(refuse)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for model in &mut file.models {
            model.bundle = folder.join(&model.bundle);
            model.loras.values_mut().for_each(|lora| *lora = folder.join(&*lora));
        }
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        if self.models.is_empty() {
            return Err("models: there are none".into());
        }
        let mut names = BTreeSet::new();
        for model in &self.models {
            check_name("name", &model.name)?;
            if !names.insert(&model.name) {
                return Err(format!("name: '{}' stands twice", model.name));
            }
            model.loras.keys().try_for_each(|lora| check_name("loras", lora))?;
            let in_model = |e: String| format!("{}: {e}", model.name);
            if let Some(scheduler) = &model.scheduler {
                SchedulerClass::named(scheduler).map_err(|e| in_model(e.to_string()))?;
            }
            let Limits { side, pixels, pixels_together, steps, pictures, prompt_bytes } = model.limits;
            if side == 0
                || pixels == 0
                || pixels_together == 0
                || steps == 0
                || pictures == 0
                || prompt_bytes == 0
            {
                return Err(in_model("limits: 0 allows nothing".into()));
            }
            if model.steps.is_some_and(|asked| asked == 0 || asked > steps) {
                return Err(in_model(format!(
                    "steps: {} is not from 1 to the limit, {steps}",
                    model.steps.unwrap_or(0)
                )));
            }
        }
        Ok(())
    }
}

/// Refuses what is no name of a model or LoRA: names stand in URLs and in file names. `key` is what the message calls it.
pub fn check_name(key: &str, name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.chars().all(is_plain) {
        true => Ok(()),
        false => {
            Err(format!("{key}: '{}' is not up to 64 letters, digits, '-', '_' and '.'", name.escape_debug()))
        }
    }
}
