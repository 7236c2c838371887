//! The engine cache: bundles by what they were made from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use kiln_bundle::fs::{Lock, create_folder, digest, write_atomic};
use kiln_bundle::{
    Bundle, Component, Content, ControlNetInfo, ElementType, FileEntry, FusedLora, MANIFEST, Manifest,
    PipelineInfo, PortInfo, Provenance, Role, Size, Staging, Target, TextEncoderInfo,
};
use kiln_graph::{DType, Dim, ModelPort, WeightLayout};
use kiln_lora::Lora;
use kiln_nets::Sizes;

use crate::checkpoint::{ControlNetCheckpoint, Source, TextEncoder};
use crate::digests::Digests;
use crate::trace::{Traced, trace_pipeline, trace_steering, write_all};
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
    /// The key covers the emitted graphs, every file that the checkpoint contributes, LoRAs, the options and the version of
    /// kiln. Processes that ask for the same bundle at once make it once.
    pub fn compile(
        &self,
        checkpoint: &Checkpoint,
        options: &TraceOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Compiled, CompileError> {
        self.make(&Subject::Pipeline(checkpoint), options, progress)
    }

    /// A ControlNet's bundle for the CPU, like [`EngineCache::compile`].
    pub fn compile_controlnet(
        &self,
        checkpoint: &ControlNetCheckpoint,
        options: &TraceOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Compiled, CompileError> {
        self.make(&Subject::ControlNet(checkpoint), options, progress)
    }

    fn make(
        &self,
        subject: &Subject<'_>,
        options: &TraceOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Compiled, CompileError> {
        if !options.policy.cuts.is_empty() {
            return Err(CompileError::checkpoint(subject.root(), "bundles can not hold segments yet")
                .with_hint("kiln trace writes segments"));
        }
        let mut digests = Digests::load(self.root.join("digests.json"));
        let plan = Plan::new(subject, options, &mut digests, progress)?;
        let key = &plan.provenance.key;
        let name = format!("{}-{}-{}", subject.name(), Target::Cpu, &key[..16]);
        let target = self.root.join(&name);
        if let Some(bundle) = cached(&target, key) {
            digests.save();
            return Ok(Compiled { bundle, was_cached: true });
        }
        create_folder(&self.root)?;
        let _lock = Lock::acquire(&self.root.join(format!(".{name}.lock")))?;
        if let Some(bundle) = cached(&target, key) {
            return Ok(Compiled { bundle, was_cached: true });
        }
        let staging = Staging::new(&target)?;
        plan.build(staging.path(), progress)?;
        let bundle = Bundle::open(&staging.publish()?)?;
        digests.save();
        Ok(Compiled { bundle, was_cached: false })
    }
}

/// A damaged bundle counts as absent: it is made anew.
fn cached(target: &Path, key: &str) -> Option<Bundle> {
    Bundle::open(target).ok().filter(|bundle| bundle.manifest().provenance.key == key)
}

/// What a bundle is made from.
enum Subject<'a> {
    Pipeline(&'a Checkpoint),
    ControlNet(&'a ControlNetCheckpoint),
}

impl<'a> Subject<'a> {
    fn root(&self) -> &'a Path {
        match self {
            Subject::Pipeline(checkpoint) => checkpoint.root(),
            Subject::ControlNet(checkpoint) => checkpoint.root(),
        }
    }

    fn name(&self) -> String {
        match self {
            Subject::Pipeline(checkpoint) => checkpoint.name(),
            Subject::ControlNet(checkpoint) => checkpoint.name(),
        }
    }

    fn trace(
        &self,
        options: &TraceOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Traced<'a>>, CompileError> {
        match self {
            Subject::Pipeline(checkpoint) => trace_pipeline(checkpoint, options, progress),
            Subject::ControlNet(checkpoint) => trace_steering(checkpoint, options, progress),
        }
    }

    fn content(&self, sizes: Sizes, traced: &[Traced<'_>]) -> Content {
        match self {
            Subject::Pipeline(checkpoint) => Content::Pipeline(pipeline_info(checkpoint, sizes, traced)),
            Subject::ControlNet(checkpoint) => Content::Controlnet(ControlNetInfo {
                scale_factor: checkpoint.part.config.scale_factor() as u32,
                latent_channels: checkpoint.part.config.in_channels() as u32,
                cross_attention_dim: checkpoint.part.config.cross_attention_dim() as u32,
            }),
        }
    }

    /// Small files that the bundle takes over.
    fn companions(&self) -> Result<Vec<(String, Source)>, CompileError> {
        match self {
            Subject::Pipeline(checkpoint) => checkpoint.companions(),
            Subject::ControlNet(_) => Ok(Vec::new()),
        }
    }

    fn sources(&self) -> Result<Vec<(String, Source)>, CompileError> {
        match self {
            Subject::Pipeline(checkpoint) => checkpoint.sources(),
            Subject::ControlNet(checkpoint) => {
                let files = checkpoint.part.weights.named_files(&checkpoint.part.name);
                Ok(files.map(|(name, path)| (name, Source::File(path))).collect())
            }
        }
    }

    /// Bundles inside the bundle, by folder.
    fn nested(&self) -> Vec<(String, Subject<'a>)> {
        match self {
            Subject::Pipeline(checkpoint) => {
                let nets = checkpoint.controlnets.iter();
                nets.map(|net| (net.part.name.clone(), Subject::ControlNet(net))).collect()
            }
            Subject::ControlNet(_) => Vec::new(),
        }
    }
}

/// All that is known of a bundle before it is written.
struct Plan<'a> {
    name: String,
    traced: Vec<Traced<'a>>,
    content: Content,
    companions: Vec<(String, Source)>,
    provenance: Provenance,
    nested: Vec<(String, Plan<'a>)>,
}

impl<'a> Plan<'a> {
    fn new(
        subject: &Subject<'a>,
        options: &TraceOptions,
        digests: &mut Digests,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Plan<'a>, CompileError> {
        let traced = subject.trace(options, progress)?;
        let mut nested = Vec::new();
        let without_loras = TraceOptions { loras: Vec::new(), ..options.clone() };
        for (folder, subject) in subject.nested() {
            nested.push((folder, Plan::new(&subject, &without_loras, digests, progress)?));
        }
        let mut files = BTreeMap::new();
        for (name, source) in subject.sources()? {
            let digest = match source {
                Source::File(path) => digests.of(&path)?,
                Source::Made(bytes) => blake3::hash(&bytes).to_hex().to_string(),
            };
            files.insert(name, digest);
        }
        let mut plan = Plan {
            name: subject.name(),
            content: subject.content(options.sizes, &traced),
            companions: subject.companions()?,
            provenance: Provenance {
                kiln: env!("CARGO_PKG_VERSION").into(),
                key: String::new(),
                options: named_options(options),
                checkpoint: files,
                loras: fused_loras(&options.loras),
            },
            traced,
            nested,
        };
        plan.provenance.key = plan.key()?;
        Ok(plan)
    }

    fn key(&self) -> Result<String, CompileError> {
        let mut hasher = blake3::Hasher::new();
        let mut part = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        part(&self.provenance.kiln);
        part(&format!("{:?}", self.content));
        for (name, value) in self.provenance.options.iter().chain(&self.provenance.checkpoint) {
            part(name);
            part(value);
        }
        for lora in &self.provenance.loras {
            part(&lora.blake3);
            part(&lora.weight.to_bits().to_string());
        }
        for model in self.traced.iter().flat_map(|component| &component.models) {
            let graph = model.to_onnx(&WeightLayout::anywhere(model))?;
            part(blake3::hash(&graph).to_hex().as_str());
        }
        for (_, plan) in &self.nested {
            part(&plan.provenance.key);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    fn build(self, folder: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), CompileError> {
        let precision = self.provenance.options.get("compute").cloned().unwrap_or_default();
        let mut manifest = Manifest::new(self.name, Target::Cpu, self.content, self.provenance);
        let mut files = BTreeSet::new();
        let unread: BTreeMap<Role, Vec<String>> = self
            .traced
            .iter()
            .filter(|component| matches!(component.role, Role::TextEncoder | Role::TextEncoder2))
            .map(|component| (component.role, component.unread()))
            .collect();
        for model in write_all(&self.traced, folder, progress)? {
            files.extend([model.file.clone(), model.weights.clone()]);
            let unread_weights = unread.get(&model.role).cloned().unwrap_or_default();
            let component = Component { unread_weights, ..component(&model, &precision) };
            manifest.components.insert(model.role, component);
        }
        for (name, source) in self.companions {
            let bytes = match source {
                Source::File(source) => fs::read(&source).map_err(|e| CompileError::io(&source, &e))?,
                Source::Made(bytes) => bytes,
            };
            let path = folder.join(&name);
            create_folder(path.parent().unwrap_or(folder))?;
            fs::write(&path, bytes).map_err(|e| CompileError::io(&path, &e))?;
            files.insert(name);
        }
        for (name, plan) in self.nested {
            create_folder(&folder.join(&name))?;
            plan.build(&folder.join(&name), progress)?;
            files.insert(format!("{name}/{MANIFEST}"));
        }
        progress(Progress::Sealing);
        for name in files {
            let path = folder.join(&name);
            let size = fs::metadata(&path).map_err(|e| CompileError::io(&path, &e))?.len();
            manifest.files.insert(name, FileEntry { size, blake3: digest(&path)? });
        }
        Ok(write_atomic(&folder.join(MANIFEST), manifest.to_yaml().as_bytes())?)
    }
}

fn named_options(options: &TraceOptions) -> BTreeMap<String, String> {
    let TraceOptions { policy, sizes, controlled, learned_tokens, loras: _ } = options;
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
        ("controlled".into(), controlled.to_string()),
        ("learned tokens".into(), learned_tokens.to_string()),
    ])
}

/// The LoRAs that change something.
fn fused_loras(loras: &[Lora]) -> Vec<FusedLora> {
    let named = |lora: &Lora| FusedLora {
        name: lora.file.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        blake3: lora.file.digest().into(),
        weight: lora.weight,
    };
    loras.iter().filter(|lora| lora.weight != 0.0).map(named).collect()
}

fn pipeline_info(checkpoint: &Checkpoint, sizes: Sizes, traced: &[Traced<'_>]) -> PipelineInfo {
    let (vae, unet) = (&checkpoint.vae.config, &checkpoint.unet.config);
    let [height, width] = match sizes {
        Sizes::Dynamic => checkpoint.default_size(),
        Sizes::Static { height, width, .. } => [height, width].map(|n| n * vae.scale_factor()),
    };
    let n_time_ids = checkpoint.pooled_width().and_then(|pooled| unet.n_time_ids(pooled));
    PipelineInfo {
        class: checkpoint.class().into(),
        height: height as u32,
        width: width as u32,
        vae_scale_factor: vae.scale_factor() as u32,
        latent_channels: vae.latent_channels() as u32,
        scaling_factor: vae.scaling_factor(),
        unet_channels: unet.in_channels() as u32,
        text_encoders: checkpoint
            .text_encoders
            .iter()
            .map(|encoder| text_encoder_info(encoder, traced))
            .collect(),
        time_ids: n_time_ids.map(|n| n as u32),
        force_zeros_for_empty_prompt: checkpoint.force_zeros_for_empty_prompt,
        guidance_embedding: unet.guidance_embedding_dim().map(|n| n as u32),
        scheduler: "scheduler_config.json".into(),
        controlnets: checkpoint.controlnets.iter().map(|net| net.part.name.clone()).collect(),
    }
}

fn text_encoder_info(encoder: &TextEncoder, traced: &[Traced<'_>]) -> TextEncoderInfo {
    let config = &encoder.part.config;
    let models = traced.iter().filter(|component| component.role == encoder.role());
    let outputs = models.flat_map(|component| &component.models).flat_map(|model| &model.outputs);
    let (pooled, states): (Vec<String>, Vec<String>) =
        outputs.map(|port| port.name.clone()).partition(|name| name == "text_embeds");
    TextEncoderInfo {
        role: encoder.role(),
        tokenizer: encoder.tokenizer.into(),
        positions: config.max_positions() as u32,
        width: config.hidden_size() as u32,
        vocabulary: config.vocab_size() as u32,
        states,
        pooled: pooled.into_iter().next(),
    }
}

fn component(model: &TracedModel, precision: &str) -> Component {
    let ports = |ports: &[ModelPort]| ports.iter().map(port).collect();
    Component {
        engine: model.file.clone(),
        weights: model.weights.clone(),
        weight_bytes: model.weight_bytes,
        unread_weights: Vec::new(),
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
