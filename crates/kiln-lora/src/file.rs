//! A LoRA file.

use kiln_bundle::stable_diffusion::{TEXT_ENCODER_2, UNET};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_bundle::{ComponentName, TensorFile};
use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::LoraError;
use crate::keys::{Key, Naming, Part, Spelling};

/// Where diffusers keeps peft's configuration in a file's header (`LORA_ADAPTER_METADATA_KEY`).
const ADAPTER_METADATA: &str = "lora_adapter_metadata";

/// A LoRA file, its header checked; the matrices are read when they are needed.
#[derive(Debug)]
pub struct LoraFile {
    tensors: TensorFile,
    digest: String,
    modules: Vec<LoraModule>,
}

/// The change of one weight: `scale * up @ down`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    role: ComponentName,
    name: String,
    pub(crate) spelling: Spelling,
    naming: Naming,
    down: String,
    up: String,
    outputs: usize,
    /// All axes of the changed weight but the first.
    inputs: Vec<usize>,
    rank: usize,
    scale: f64,
}

#[derive(Default)]
struct Draft {
    down: Option<(String, Naming)>,
    up: Option<(String, Naming)>,
    alpha: Option<String>,
}

impl LoraFile {
    /// Opens a safetensors file in the naming of kohya, peft or diffusers and checks that its tensors are LoRAs.
    pub fn open(path: impl AsRef<Path>) -> Result<LoraFile, LoraError> {
        let path = path.as_ref();
        let refuse = |reason: String| LoraError::new(path, reason);
        if path.extension().is_some_and(|ending| ["pt", "bin", "ckpt", "pth"].iter().any(|e| ending == *e)) {
            return Err(refuse(
                "pickled weights can run code when they are read, and kiln refuses them; convert the file to safetensors"
                    .into(),
            ));
        }
        let tensors = TensorFile::open(path)?;
        let digest = kiln_bundle::fs::digest(path).map_err(|e| LoraError::new(path, e))?;
        LoraFile::of(tensors, digest)
    }

    /// The same of a file's bytes, which errors call by `name`.
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: impl Into<Arc<[u8]>>) -> Result<LoraFile, LoraError> {
        let bytes = bytes.into();
        let digest = kiln_bundle::fs::digest_of(&bytes);
        LoraFile::of(TensorFile::from_bytes(name, bytes)?, digest)
    }

    fn of(tensors: TensorFile, digest: String) -> Result<LoraFile, LoraError> {
        let path = tensors.path().to_path_buf();
        let refuse = |reason: String| LoraError::new(&path, reason);
        let mut drafts: BTreeMap<(ComponentName, Spelling), (String, Draft)> = BTreeMap::new();
        for name in tensors.tensors().keys() {
            let key = Key::parse(name).map_err(refuse)?;
            let (module, draft) = drafts
                .entry((key.role, key.spelling))
                .or_insert_with(|| (key.module.clone(), Draft::default()));
            let is_first = match (key.part, key.naming) {
                (Part::Down, Some(naming)) => draft.down.replace((name.clone(), naming)).is_none(),
                (Part::Up, Some(naming)) => draft.up.replace((name.clone(), naming)).is_none(),
                _ => draft.alpha.replace(name.clone()).is_none(),
            };
            if !is_first || *module != key.module {
                return Err(refuse(format!("'{name}' is given twice, under different names")));
            }
        }
        if drafts.is_empty() {
            return Err(refuse("holds no LoRA".into()));
        }
        let adapter = Adapter::of(&tensors)?;
        let modules = drafts
            .into_iter()
            .map(|((role, spelling), (name, draft))| {
                LoraModule::new(&tensors, &adapter, role, name, spelling, draft).map_err(refuse)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let named = |original: bool| {
            modules.iter().find(|m| m.role == UNET && (m.naming == Naming::KohyaOriginal) == original)
        };
        if let (Some(a), Some(b)) = (named(true), named(false)) {
            let (a, b) = (&a.name, &b.name);
            return Err(refuse(format!(
                "mixes the names of the original layout ('{a}') with diffusers' ('{b}')"
            )));
        }
        Ok(LoraFile { tensors, digest, modules })
    }

    /// Whether a file looks like a LoRA of any kind, supported or not.
    pub fn is_lora(path: &Path) -> bool {
        const MARKS: [&str; 6] = ["lora_", ".lora.", "_lora.", ".hada_", ".lokr_", ".oft_"];
        let Ok(file) = TensorFile::open(path) else { return false };
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

    /// The stored types of its matrices.
    pub fn dtypes(&self) -> BTreeSet<String> {
        self.modules
            .iter()
            .map(|m| format!("{:?}", self.tensors.tensors()[&m.up].dtype).to_lowercase())
            .collect()
    }

    /// Whose names the modules have.
    pub fn namings(&self) -> BTreeSet<Naming> {
        self.modules.iter().map(|module| module.naming).collect()
    }

    /// The generation of Stable Diffusion that it was trained for, as far as its shapes tell: by the width of what the
    /// UNet attends to, or by a second text encoder.
    pub fn family(&self) -> Option<&'static str> {
        let attends = |module: &&LoraModule| {
            let name = module.name.replace('.', "_");
            module.role == UNET
                && name.contains("attn2")
                && ["to_k", "to_v"].iter().any(|end| name.ends_with(end))
        };
        let width = self.modules.iter().find(attends).and_then(|module| module.inputs.first());
        match width {
            Some(768) => Some("Stable Diffusion 1.x"),
            Some(1024) => Some("Stable Diffusion 2.x"),
            Some(2048) => Some("Stable Diffusion XL"),
            Some(1280) => Some("Stable Diffusion XL's refiner"),
            _ if self.modules.iter().any(|module| module.role == TEXT_ENCODER_2) => Some("Stable Diffusion XL"),
            _ => None,
        }
    }

    /// `up [outputs, rank]` and `down [rank, inputs]` of a module, in row-major order.
    pub(crate) fn matrices(&self, module: &LoraModule) -> Result<[Vec<f32>; 2], LoraError> {
        Ok([self.tensors.read_f32(&module.up)?, self.tensors.read_f32(&module.down)?])
    }
}

impl LoraModule {
    fn new(
        tensors: &TensorFile,
        adapter: &Adapter,
        role: ComponentName,
        name: String,
        spelling: Spelling,
        draft: Draft,
    ) -> Result<LoraModule, String> {
        let (Some((down, naming)), Some((up, _))) = (draft.down, draft.up) else {
            return Err(format!("module '{name}' lacks one of its two matrices"));
        };
        let shape = |key: &str| -> Result<&[usize], String> {
            let info = &tensors.tensors()[key];
            match info.dtype {
                Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(&info.shape),
                other => Err(format!("'{key}' is stored as {other:?}; supported: F32, F16, BF16")),
            }
        };
        let (down_shape, up_shape) = (shape(&down)?, shape(&up)?);
        let misshapen = || format!("module '{name}' multiplies {up_shape:?} by {down_shape:?}");
        let (&[outputs, rank, ref kernel @ ..], &[down_rank, ref inputs @ ..]) = (up_shape, down_shape) else {
            return Err(misshapen());
        };
        let is_empty = up_shape.contains(&0) || down_shape.contains(&0);
        let is_known = matches!(inputs.len(), 1 | 3) && matches!(kernel.len(), 0 | 2);
        if rank != down_rank || kernel.iter().any(|n| *n != 1) || is_empty || !is_known {
            return Err(misshapen());
        }
        let scale = match &draft.alpha {
            Some(key) => alpha(tensors, key)? / rank as f64,
            None => adapter.scale(role, &name, rank)?,
        };
        Ok(LoraModule { role, spelling, naming, down, up, outputs, inputs: inputs.into(), rank, scale, name })
    }

    /// The component that it changes.
    pub fn role(&self) -> ComponentName {
        self.role
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose name that is.
    pub fn naming(&self) -> Naming {
        self.naming
    }

    /// Columns of `up` and rows of `down`.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Factor of the product: the module's own alpha over its rank, or 1 without an alpha.
    ///
    /// diffusers 0.42 reads the same from files with one alpha; where alphas differ, it takes the commonest for attention
    /// and text encoders, and for modules without one.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Shape of the change: outputs, then inputs and, for a convolution, the kernel's height and width.
    pub fn shape(&self) -> Vec<usize> {
        [&[self.outputs], self.inputs.as_slice()].concat()
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Whether it changes a weight of the given shape; the axes of a 1x1 kernel need not be there.
    pub(crate) fn fits(&self, weight: &[usize]) -> bool {
        let squeezed = |shape: &[usize]| match shape {
            [rows, columns, 1, 1] => vec![*rows, *columns],
            shape => shape.to_vec(),
        };
        squeezed(&self.shape()) == squeezed(weight)
    }
}

fn alpha(tensors: &TensorFile, key: &str) -> Result<f64, String> {
    let info = &tensors.tensors()[key];
    if info.shape.iter().any(|n| *n != 1) {
        return Err(format!("'{key}' has shape {:?}, not one number", info.shape));
    }
    if info.dtype == Dtype::I64 {
        return tensors.read_i64(key).map(|alpha| alpha as f64).map_err(|e| e.to_string());
    }
    let values = tensors.read_f32(key).map_err(|e| e.to_string())?;
    Ok(f64::from(values[0]))
}

/// What diffusers' header says of peft's configuration, by `component.setting`.
#[derive(Default)]
struct Adapter {
    settings: Map<String, Value>,
}

impl Adapter {
    fn of(tensors: &TensorFile) -> Result<Adapter, LoraError> {
        let Some(text) = tensors.metadata().get(ADAPTER_METADATA) else { return Ok(Adapter::default()) };
        let settings = serde_json::from_str(text)
            .map_err(|e| LoraError::new(tensors.path(), format!("{ADAPTER_METADATA}: {e}")))?;
        Ok(Adapter { settings })
    }

    fn setting(&self, role: ComponentName, key: &str) -> Option<&Value> {
        self.settings.get(&format!("{role}.{key}")).filter(|value| !value.is_null())
    }

    /// peft's `lora_alpha / r`, with its patterns; 1 where the header says nothing.
    fn scale(&self, role: ComponentName, module: &str, rank: usize) -> Result<f64, String> {
        let refuse =
            |key: &str, value: &Value| format!("{ADAPTER_METADATA}: {role}.{key}: {value} is not supported");
        for key in ["use_dora", "fan_in_fan_out", "lora_bias", "use_bdlora", "use_qalora"] {
            if let Some(value) = self.setting(role, key).filter(|value| **value != Value::Bool(false)) {
                return Err(refuse(key, value));
            }
        }
        let Some(alpha) = self.setting(role, "lora_alpha") else { return Ok(1.0) };
        let mut number = alpha.as_f64().ok_or_else(|| refuse("lora_alpha", alpha))?;
        let path = module.strip_prefix(&format!("{role}.")).unwrap_or(module);
        let patterns = self.setting(role, "alpha_pattern").and_then(Value::as_object);
        for (pattern, value) in patterns.into_iter().flatten() {
            let plain = pattern.strip_prefix('^').unwrap_or(pattern);
            if !plain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') {
                return Err(refuse("alpha_pattern", &Value::String(pattern.clone())));
            }
            let rest = path.strip_suffix(plain);
            let anchored = pattern.starts_with('^');
            if rest.is_some_and(|rest| rest.is_empty() || !anchored && rest.ends_with('.')) {
                number = value.as_f64().ok_or_else(|| refuse("alpha_pattern", value))?;
                break;
            }
        }
        let rank = rank as f64;
        match self.setting(role, "use_rslora") {
            Some(Value::Bool(true)) => Ok(number / rank.sqrt()),
            _ => Ok(number / rank),
        }
    }
}
