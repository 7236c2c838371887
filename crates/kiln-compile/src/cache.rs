//! The engine cache: bundles by what they were made from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_bundle::fs::{Lock, create_folder, digest, write_atomic};
use kiln_bundle::{
    Bundle, Component, ElementType, FileEntry, MANIFEST, Manifest, PipelineInfo, PortInfo, Provenance, Size,
    Staging, Target,
};
use kiln_graph::{DType, Dim, ModelPort, WeightLayout};
use kiln_nets::Sizes;

use crate::checkpoint::Source;
use crate::digests::Digests;
use crate::trace::{Traced, trace_all, write_all};
use crate::{Checkpoint, CompileError, Progress, TraceOptions, TracedModel};

/// A folder of bundles.
#[derive(Clone, Debug)]
pub struct EngineCache {
    root: PathBuf,
}

/// What [`EngineCache::compile`] did.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The bundle.
    pub bundle: Bundle,
    /// Whether it was there before.
    pub was_cached: bool,
}

impl EngineCache {
    /// The cache in a folder, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> EngineCache {
        EngineCache { root: root.into() }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The checkpoint's bundle for the CPU, from the cache or made now.
    ///
    /// The key covers the emitted graphs, every file that the checkpoint contributes, the options and the version of
    /// kiln. Processes that ask for the same bundle at once make it once.
    pub fn compile(
        &self,
        checkpoint: &Checkpoint,
        options: &TraceOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Compiled, CompileError> {
        if !options.policy.cuts.is_empty() {
            return Err(CompileError::checkpoint(checkpoint.root(), "bundles can not hold segments yet")
                .with_hint("kiln trace writes segments"));
        }
        let mut digests = Digests::load(self.root.join("digests.json"));
        let traced = trace_all(checkpoint, options, progress)?;
        let provenance = provenance(checkpoint, options, &traced, &mut digests)?;
        let name = format!("{}-{}-{}", checkpoint.name(), Target::Cpu, &provenance.key[..16]);
        let target = self.root.join(&name);
        if let Some(bundle) = cached(&target, &provenance.key) {
            digests.save();
            return Ok(Compiled { bundle, was_cached: true });
        }
        create_folder(&self.root)?;
        let _lock = Lock::acquire(&self.root.join(format!(".{name}.lock")))?;
        if let Some(bundle) = cached(&target, &provenance.key) {
            return Ok(Compiled { bundle, was_cached: true });
        }
        let staging = Staging::new(&target)?;
        build(checkpoint, options.sizes, &traced, provenance, staging.path(), progress)?;
        let bundle = Bundle::open(&staging.publish()?)?;
        digests.save();
        Ok(Compiled { bundle, was_cached: false })
    }
}

/// A damaged bundle counts as absent: it is made anew.
fn cached(target: &Path, key: &str) -> Option<Bundle> {
    Bundle::open(target).ok().filter(|bundle| bundle.manifest().provenance.key == key)
}

fn provenance(
    checkpoint: &Checkpoint,
    options: &TraceOptions,
    traced: &[Traced<'_>],
    digests: &mut Digests,
) -> Result<Provenance, CompileError> {
    let mut files = BTreeMap::new();
    for (name, source) in checkpoint.sources()? {
        let digest = match source {
            Source::File(path) => digests.of(&path)?,
            Source::Made(bytes) => blake3::hash(&bytes).to_hex().to_string(),
        };
        files.insert(name, digest);
    }
    let mut provenance = Provenance {
        kiln: env!("CARGO_PKG_VERSION").into(),
        key: String::new(),
        options: named_options(options),
        checkpoint: files,
    };
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    part(&provenance.kiln);
    part(&format!("{:?}", pipeline_info(checkpoint, options.sizes)));
    for (name, value) in provenance.options.iter().chain(&provenance.checkpoint) {
        part(name);
        part(value);
    }
    for model in traced.iter().flat_map(|component| &component.models) {
        let graph = model.to_onnx(&WeightLayout::anywhere(model))?;
        part(blake3::hash(&graph).to_hex().as_str());
    }
    provenance.key = hasher.finalize().to_hex().to_string();
    Ok(provenance)
}

fn named_options(options: &TraceOptions) -> BTreeMap<String, String> {
    let TraceOptions { policy, sizes } = options;
    let sizes = match sizes {
        Sizes::Dynamic => "dynamic".into(),
        Sizes::Static { batch, height, width } => format!("batch {batch}, latents {height}x{width}"),
    };
    let precision = &policy.precision;
    BTreeMap::from([
        ("attention".into(), format!("{:?}", policy.attention).to_lowercase()),
        ("flavor".into(), format!("{:?}", policy.flavor).to_lowercase()),
        ("compute".into(), precision.compute.to_string()),
        ("storage".into(), precision.storage.map_or("as computed".into(), |dtype| dtype.to_string())),
        ("norms".into(), precision.norms.to_string()),
        ("softmax".into(), precision.softmax.to_string()),
        ("scopes".into(), format!("{:?}", precision.scopes)),
        ("sizes".into(), sizes),
    ])
}

fn pipeline_info(checkpoint: &Checkpoint, sizes: Sizes) -> PipelineInfo {
    let vae = &checkpoint.vae_config;
    let [height, width] = match sizes {
        Sizes::Dynamic => checkpoint.default_size(),
        Sizes::Static { height, width, .. } => [height, width].map(|n| n * vae.scale_factor()),
    };
    PipelineInfo {
        class: checkpoint.class().into(),
        height: height as u32,
        width: width as u32,
        vae_scale_factor: vae.scale_factor() as u32,
        latent_channels: vae.latent_channels() as u32,
        scaling_factor: vae.scaling_factor(),
        text_positions: checkpoint.text_config.max_positions() as u32,
        tokenizer: "tokenizer".into(),
        scheduler: "scheduler_config.json".into(),
    }
}

fn build(
    checkpoint: &Checkpoint,
    sizes: Sizes,
    traced: &[Traced<'_>],
    provenance: Provenance,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), CompileError> {
    let precision = provenance.options.get("compute").cloned().unwrap_or_default();
    let mut manifest =
        Manifest::new(checkpoint.name(), Target::Cpu, pipeline_info(checkpoint, sizes), provenance);
    let mut files = Vec::new();
    for model in write_all(traced, folder, progress)? {
        files.extend([model.file.clone(), model.weights.clone()]);
        manifest.components.insert(model.role, component(&model, &precision));
    }
    create_folder(&folder.join("tokenizer"))?;
    for (name, source) in checkpoint.companions()? {
        let bytes = match source {
            Source::File(source) => fs::read(&source).map_err(|e| CompileError::io(&source, &e))?,
            Source::Made(bytes) => bytes,
        };
        let path = folder.join(&name);
        fs::write(&path, bytes).map_err(|e| CompileError::io(&path, &e))?;
        files.push(name);
    }
    progress(Progress::Sealing);
    for name in files {
        let path = folder.join(&name);
        let size = fs::metadata(&path).map_err(|e| CompileError::io(&path, &e))?.len();
        manifest.files.insert(name, FileEntry { size, blake3: digest(&path)? });
    }
    Ok(write_atomic(&folder.join(MANIFEST), manifest.to_yaml().as_bytes())?)
}

fn component(model: &TracedModel, precision: &str) -> Component {
    let ports = |ports: &[ModelPort]| ports.iter().map(port).collect();
    Component {
        engine: model.file.clone(),
        weights: model.weights.clone(),
        weight_bytes: model.weight_bytes,
        operators: model.n_nodes as u64,
        precision: precision.into(),
        inputs: ports(&model.model.inputs),
        outputs: ports(&model.model.outputs),
    }
}

fn port(port: &ModelPort) -> PortInfo {
    let size = |dim: &Dim| dim.fixed().map_or_else(|| Size::Dynamic(dim.to_string()), Size::Fixed);
    PortInfo {
        name: port.name.clone(),
        dtype: match port.dtype {
            DType::F32 => ElementType::F32,
            DType::F16 => ElementType::F16,
            DType::BF16 => ElementType::Bf16,
            DType::I64 => ElementType::I64,
        },
        shape: port.shape.iter().map(size).collect(),
    }
}
