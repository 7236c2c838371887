//! A LoRA file.

use kiln_bundle::stable_diffusion::{TEXT_ENCODER_2, UNET};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_bundle::{ComponentName, Contents, Role, TensorFile};
use serde_json::Value;

use crate::LoraError;
use crate::keys::{Key, Naming, Spelling, Unknown, shown};
use crate::module::{Draft, LoraModule};
use crate::settings::{self, Settings};
use crate::words::{BundledWords, LearnedWord};

/// A file of LoRAs or of other changes of weights, its header checked; the matrices are read when they are needed.
#[derive(Debug)]
pub struct LoraFile {
    tensors: TensorFile,
    digest: String,
    modules: Vec<LoraModule>,
    words: BundledWords,
    /// Modules of networks that Stable Diffusion does not have.
    foreign: BTreeSet<String>,
}

type Drafts = BTreeMap<(ComponentName, Spelling), Draft>;

impl LoraFile {
    /// Opens a safetensors file in the naming of kohya, lycoris, peft or diffusers, or peft's folder of one, and checks
    /// that its tensors are changes of weights.
    pub fn open(path: impl AsRef<Path>) -> Result<LoraFile, LoraError> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(LoraError::absent(path));
        }
        let file = if path.is_dir() { settings::file_in(path)? } else { path.to_path_buf() };
        if file.extension().is_some_and(|ending| ["pt", "bin", "ckpt", "pth"].iter().any(|e| ending == *e)) {
            return Err(LoraError::new(
                &file,
                "pickled weights can run code when they are read, and kiln refuses them; convert the file to \
                 safetensors",
            ));
        }
        let tensors = TensorFile::open(&file)?;
        let beside = if is_pefts(&tensors) { Settings::beside(&file)? } else { None };
        let (settings, text) = match beside {
            Some((settings, text)) => (settings, Some(text)),
            None => (Settings::in_header(&tensors)?, None),
        };
        let opened = LoraFile::of(tensors, &settings)?;
        // After the checks: a file that is refused is not read.
        let digest = kiln_bundle::fs::digest(&file).map_err(|e| LoraError::new(&file, e))?;
        let digest = match text {
            Some(text) => kiln_bundle::fs::digest_of(&[digest.as_bytes(), &text].concat()),
            None => digest,
        };
        Ok(LoraFile { digest, ..opened })
    }

    /// The same of a file's bytes, which errors call by `name`.
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: impl Into<Arc<[u8]>>) -> Result<LoraFile, LoraError> {
        let bytes = bytes.into();
        let digest = kiln_bundle::fs::digest_of(&bytes);
        let tensors = TensorFile::from_bytes(name, bytes)?;
        let settings = Settings::in_header(&tensors)?;
        Ok(LoraFile { digest, ..LoraFile::of(tensors, &settings)? })
    }

    fn of(tensors: TensorFile, settings: &Settings) -> Result<LoraFile, LoraError> {
        let path = tensors.path().to_path_buf();
        let refuse = |reason: String| LoraError::new(&path, reason);
        let words = BundledWords::of(&tensors).map_err(refuse)?;
        let foreign_file = |reason: String| match other_contents(&tensors) {
            Some((reason, hint)) => refuse(reason).with_hint(hint),
            None => refuse(reason),
        };
        let (drafts, foreign) = drafts(&tensors, settings.encoder(&path)).map_err(foreign_file)?;
        if drafts.is_empty() {
            return Err(foreign_file(foreign.into_values().next().unwrap_or_else(|| "holds no LoRA".into())));
        }
        let modules = drafts.into_iter().map(|((role, spelling), draft)| {
            draft.modules(&tensors, settings, role, spelling).map_err(foreign_file)
        });
        let modules: Vec<LoraModule> = modules.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        check_layout(&modules).map_err(refuse)?;
        let foreign = foreign.into_keys().collect();
        Ok(LoraFile { tensors, digest: String::new(), modules, words, foreign })
    }

    /// Whether a file looks like a LoRA of any kind, supported or not.
    pub fn is_lora(path: &Path) -> bool {
        const MARKS: [&str; 12] = [
            "lora_",
            ".lora.",
            "_lora.",
            ".hada_",
            ".lokr_",
            ".oft_",
            ".boft_",
            "lycoris_",
            "base_model.model.",
            ".ia3_l",
            ".hra_u",
            ".vera_lambda_",
        ];
        let Ok(path) = (if path.is_dir() { settings::file_in(path) } else { Ok(path.into()) }) else {
            return false;
        };
        let Ok(file) = TensorFile::open(&path) else { return false };
        file.tensors().keys().any(|name| MARKS.iter().any(|mark| name.contains(mark)))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.tensors.path()
    }

    /// BLAKE3 digest of the file, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The changes, by component and name.
    pub fn modules(&self) -> &[LoraModule] {
        &self.modules
    }

    /// The stored types of its tensors.
    pub fn dtypes(&self) -> BTreeSet<String> {
        let tensors = self.tensors.tensors().iter().filter(|(_, info)| !info.shape.is_empty());
        tensors.map(|(_, info)| format!("{:?}", info.dtype).to_lowercase()).collect()
    }

    /// The words that it bundles with their embeddings, read.
    pub fn words(&self) -> Result<Vec<LearnedWord>, LoraError> {
        self.words.read(&self.tensors)
    }

    /// The words that it bundles.
    pub fn word_names(&self) -> impl Iterator<Item = &str> {
        self.words.names()
    }

    /// Modules of networks that Stable Diffusion does not have.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &str> {
        self.foreign.iter().map(String::as_str)
    }

    /// What a user should know of how the file is read, if anything.
    pub(crate) fn notice(&self) -> Option<String> {
        let arguments = self.tensors.metadata().get("ss_network_args")?;
        let arguments: Value = serde_json::from_str(arguments).ok()?;
        let is_dylora = arguments.get("algo")?.as_str()? == "dylora";
        is_dylora.then(|| {
            let path = self.path().display();
            format!(
                "{path}: is a DyLoRA, scaled by alpha over rank; its trainer divides by the number of blocks"
            )
        })
    }

    pub(crate) fn tensors(&self) -> &TensorFile {
        &self.tensors
    }

    /// Whose names the modules have.
    pub fn namings(&self) -> BTreeSet<Naming> {
        self.modules.iter().map(LoraModule::naming).collect()
    }

    /// The generation of Stable Diffusion that it was trained for, as far as its shapes tell: by the width of what the
    /// UNet attends to, or by a second text encoder.
    pub fn family(&self) -> Option<&'static str> {
        let attends = |module: &&LoraModule| module.attends_to_text();
        let width = self.modules.iter().find(attends).and_then(|module| module.shape().get(1).copied());
        match width {
            Some(768) => Some("Stable Diffusion 1.x"),
            Some(1024) => Some("Stable Diffusion 2.x"),
            Some(2048) => Some("Stable Diffusion XL"),
            Some(1280) => Some("Stable Diffusion XL's refiner"),
            _ if self.modules.iter().any(|module| module.role() == TEXT_ENCODER_2) => {
                Some("Stable Diffusion XL")
            }
            _ => None,
        }
    }
}

/// Why a file is no LoRA, where it seems to be something else.
fn other_contents(tensors: &TensorFile) -> Option<(String, Option<&'static str>)> {
    let is_lora = Contents::of(tensors.tensors())?.role == Some(Role::Lora);
    if is_lora { None } else { Contents::instead_of("a LoRA", tensors.tensors()) }
}

/// Whether peft itself wrote the file, and its configuration beside it.
fn is_pefts(tensors: &TensorFile) -> bool {
    let is_named = tensors.path().file_name().is_some_and(|name| name == "adapter_model.safetensors");
    is_named || tensors.tensors().keys().any(|key| key.starts_with("base_model.model."))
}

/// The tensors by module, and why some are for no network of Stable Diffusion.
fn drafts(tensors: &TensorFile, encoder: ComponentName) -> Result<(Drafts, BTreeMap<String, String>), String> {
    let (mut drafts, mut foreign) = (Drafts::new(), BTreeMap::new());
    for name in tensors.tensors().keys().filter(|name| !BundledWords::has(name)) {
        let key = match Key::parse(name, encoder) {
            Ok(key) => key,
            Err(Unknown::Part(reason)) => return Err(reason),
            Err(Unknown::Component(reason)) => {
                foreign.insert(shown(name), reason);
                continue;
            }
        };
        let draft = drafts.entry((key.role, key.spelling)).or_insert_with(|| Draft {
            name: key.module.clone(),
            naming: None,
            keys: BTreeMap::new(),
        });
        let is_first = draft.keys.insert(key.part, name.clone()).is_none();
        if !is_first || draft.name != key.module {
            return Err(format!("'{}' is given twice, under different names", shown(name)));
        }
        draft.naming = draft.naming.or(key.naming);
    }
    Ok((drafts, foreign))
}

/// Refuses names of the original code beside diffusers'.
fn check_layout(modules: &[LoraModule]) -> Result<(), String> {
    let named = |original: bool| {
        let is_original = |module: &LoraModule| module.naming() == Naming::KohyaOriginal;
        modules.iter().find(|module| module.role() == UNET && is_original(module) == original)
    };
    let (Some(a), Some(b)) = (named(true), named(false)) else { return Ok(()) };
    let (a, b) = (a.name(), b.name());
    Err(format!("mixes the names of the original layout ('{a}') with diffusers' ('{b}')"))
}
