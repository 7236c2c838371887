//! Checkpoint to ONNX.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use kiln_bundle::stable_diffusion::{CONTROLNET, UNET, UNET_CONTROLLED, VAE_DECODER, VAE_ENCODER};
use kiln_bundle::{ComponentName, Stage, fs::create_folder};
use kiln_graph::{
    Cuts, EmitPolicy, EmittedModel, Graph, ModelPort, PrecisionPolicy, StoredWeight, WeightLayout, emit,
    is_inside,
};
use kiln_lora::{Lora, LoraPlan, WeightChanges};
use kiln_nets::{
    Autoencoder, ClipTextModel, ControlNetModel, Sizes, TextPorts, UNet2DConditionModel, UnetPorts,
};

use crate::checkpoint::{Checkpoint, ControlNetCheckpoint};
use crate::error::CompileError;
use crate::weights::WeightFiles;

/// How a checkpoint is traced.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TraceOptions {
    /// How the networks become operators.
    pub policy: EmitPolicy,
    /// Types of components that differ from the policy's.
    pub precisions: BTreeMap<ComponentName, PrecisionPolicy>,
    /// Which sizes are fixed; the batch counts pictures, which the autoencoder's encoder reads one at a time.
    pub sizes: Sizes,
    /// Whether there is also a UNet that adds the residuals of ControlNets.
    pub controlled: bool,
    /// Whether networks read what kiln's pipelines give them: text encoders the rows of tokens beyond their vocabulary (textual
    /// inversion), denoisers a timestep per row.
    pub runtime_ports: bool,
    /// LoRAs that are added to the weights.
    pub loras: Vec<Lora>,
}

impl Default for TraceOptions {
    fn default() -> TraceOptions {
        TraceOptions {
            policy: EmitPolicy::default(),
            precisions: BTreeMap::new(),
            sizes: Sizes::Dynamic,
            controlled: false,
            runtime_ports: false,
            loras: Vec::new(),
        }
    }
}

/// Most bytes of weights in a segment of an engine for the CPU, if its blocks allow; see [`AUTOENCODER_SEGMENTS`].
pub const SEGMENT_BYTES: u64 = 16 << 20;

/// How many times larger the segments of an autoencoder are: beside its activations its weights are small, and what
/// passes from segment to segment lives longer than what stays inside.
pub const AUTOENCODER_SEGMENTS: u64 = 4;

/// What denoisers read of prompts.
pub(crate) const PROMPTS: [&str; 3] = ["encoder_hidden_states", "text_embeds", "time_ids"];

impl TraceOptions {
    /// What a bundle needs to do all that the runtime offers.
    pub fn for_bundle(policy: EmitPolicy, sizes: Sizes) -> TraceOptions {
        TraceOptions { policy, sizes, controlled: true, runtime_ports: true, ..TraceOptions::default() }
    }

    /// Sizes of what runs under guidance: two samples per picture.
    fn guided(&self) -> Sizes {
        self.with_batch(|n| 2 * n)
    }

    fn with_batch(&self, change: impl FnOnce(u64) -> u64) -> Sizes {
        match self.sizes {
            Sizes::Dynamic => Sizes::Dynamic,
            Sizes::Static { batch, height, width } => Sizes::Static { batch: change(batch), height, width },
        }
    }
}

/// What the compile stage is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Tracing a component.
    Tracing(ComponentName),
    /// Writing weights.
    Writing {
        /// The component.
        component: ComponentName,
        /// Bytes written of all components.
        done: u64,
        /// Bytes to write.
        total: u64,
    },
    /// An engine is being built from what was written.
    Building(ComponentName),
    /// The builder has no fused kernel for attentions of an engine that was built: they are several kernels.
    DecomposedAttention {
        /// The component.
        component: ComponentName,
        /// How many.
        n: u64,
    },
    /// A LoRA is not used as a whole, and why: one line.
    LeftOut(String),
    /// Taking digests of what was written.
    Sealing,
}

/// One emitted component, before it is written.
pub(crate) struct Traced<'a> {
    pub(crate) name: ComponentName,
    pub(crate) stage: Stage,
    /// The component whose weights it reads.
    pub(crate) owner: ComponentName,
    /// Its segments, in the order in which they run.
    pub(crate) models: Vec<EmittedModel>,
    pub(crate) inputs: Vec<ModelPort>,
    pub(crate) outputs: Vec<ModelPort>,
    pub(crate) source: &'a WeightFiles,
    pub(crate) changes: Option<Arc<WeightChanges>>,
    /// Type that it computes in.
    pub(crate) precision: &'static str,
    /// The file of its weights, which components may share.
    data: String,
}

/// One written ONNX model.
#[derive(Clone, Debug)]
pub struct TracedModel {
    /// The component.
    pub name: ComponentName,
    /// File in the folder that was asked for.
    pub file: String,
    /// The file of its weights, which may be the same one.
    pub weights: String,
    /// Number of operators.
    pub n_nodes: usize,
    /// Bytes of the weights it reads.
    pub weight_bytes: u64,
    pub(crate) model: EmittedModel,
}

impl TracedModel {
    fn new(name: ComponentName, file: String, weights: String, model: &EmittedModel) -> TracedModel {
        let weight_bytes = model.weights.iter().map(StoredWeight::n_bytes).sum();
        TracedModel { name, file, weights, n_nodes: model.n_nodes, weight_bytes, model: model.clone() }
    }
}

/// Traces all components and writes an ONNX model and a weight file for each into `folder`.
pub fn trace(
    checkpoint: &Checkpoint,
    options: &TraceOptions,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TracedModel>, CompileError> {
    let traced = trace_pipeline(checkpoint, options, progress)?;
    create_folder(folder)?;
    write_all(&traced, folder, progress)
}

/// Traces all components and writes each as ONNX models that hold their weights into `folder`.
///
/// # Errors
///
/// Also where a model would be larger than a protobuf message may be, before anything is written.
pub fn trace_inside(
    checkpoint: &Checkpoint,
    options: &TraceOptions,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TracedModel>, CompileError> {
    let traced = trace_pipeline(checkpoint, options, progress)?;
    check_messages(checkpoint, &traced)?;
    create_folder(folder)?;
    write_inside(&traced, folder, progress)
}

/// Largest protobuf message: lengths are signed numbers of 32 bits.
const MAX_MESSAGE: u64 = i32::MAX as u64;

fn check_messages(checkpoint: &Checkpoint, traced: &[Traced<'_>]) -> Result<(), CompileError> {
    for model in traced.iter().flat_map(|component| &component.models) {
        let n_bytes = model.to_onnx_around_weights().n_bytes;
        if n_bytes > MAX_MESSAGE {
            let reason = format!(
                "{}.onnx would have {n_bytes} bytes with its weights inside, and ONNX files have at most {MAX_MESSAGE}",
                model.name
            );
            let hint =
                "weights beside the file, those stored as f16 and models that are cut are smaller".into();
            return Err(CompileError::Option { path: checkpoint.root().into(), reason, hint });
        }
    }
    Ok(())
}

fn write_inside(
    traced: &[Traced<'_>],
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TracedModel>, CompileError> {
    let models =
        || traced.iter().flat_map(|component| component.models.iter().map(move |model| (component, model)));
    let total = models().flat_map(|(_, model)| &model.weights).map(StoredWeight::n_bytes).sum();
    let (mut done, mut written) = (0, Vec::new());
    for (component, model) in models() {
        let file = format!("{}.onnx", model.name);
        let changes = component.changes.as_deref();
        component.source.write_inside(&folder.join(&file), model, changes, &mut |bytes| {
            done += bytes;
            progress(Progress::Writing { component: component.name, done, total });
        })?;
        written.push(TracedModel::new(component.name, file.clone(), file, model));
    }
    Ok(written)
}

/// Traces a ControlNet and writes it into `folder`.
pub fn trace_controlnet(
    checkpoint: &ControlNetCheckpoint,
    options: &TraceOptions,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TracedModel>, CompileError> {
    let traced = trace_steering(checkpoint, options, progress)?;
    create_folder(folder)?;
    write_all(&traced, folder, progress)
}

pub(crate) fn trace_pipeline<'a>(
    checkpoint: &'a Checkpoint,
    options: &TraceOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Traced<'a>>, CompileError> {
    let plan = LoraPlan::new(&options.loras, &checkpoint.lora_targets())?;
    let words = options.loras.iter().filter_map(unfused_words);
    let notices = plan.notices().iter().cloned().chain(words);
    notices.for_each(|notice| progress(Progress::LeftOut(notice)));
    let mut tracer = Tracer::new(options, plan, progress);
    let sizes = match checkpoint.unet.config.guidance_embedding_dim() {
        Some(_) => options.sizes,
        None => options.guided(),
    };
    let batch = match sizes {
        Sizes::Dynamic => None,
        Sizes::Static { batch, .. } => Some(batch),
    };
    for encoder in &checkpoint.text_encoders {
        let catalog = encoder.part.weights.catalog();
        let make = match encoder.has_projection {
            true => ClipTextModel::with_projection,
            false => ClipTextModel::new,
        };
        let network = make(catalog.root(), &encoder.part.config)?;
        catalog.refuse_unused(if encoder.has_projection {
            "CLIPTextModelWithProjection"
        } else {
            "CLIPTextModel"
        })?;
        let ports = TextPorts { batch, states: encoder.states, learned: options.runtime_ports };
        tracer.add(encoder.component, Stage::TextEncoder, network.trace(ports), &encoder.part.weights)?;
    }

    let catalog = checkpoint.unet.weights.catalog();
    let unet = UNet2DConditionModel::new(catalog.root(), &checkpoint.unet.config)?;
    catalog.refuse_unused("UNet2DConditionModel")?;
    let mut ports = UnetPorts {
        sizes,
        tokens: batch.map(|_| checkpoint.text_encoders[0].part.config.max_positions()),
        pooled: checkpoint.pooled_width(),
        controlled: false,
        timestep_rows: options.runtime_ports,
    };
    tracer.add(UNET, Stage::Denoiser, unet.trace(&ports), &checkpoint.unet.weights)?;
    if options.controlled {
        ports.controlled = true;
        tracer.add(UNET_CONTROLLED, Stage::Denoiser, unet.trace(&ports), &checkpoint.unet.weights)?;
    }

    let catalog = checkpoint.vae.weights.catalog();
    let vae = Autoencoder::new(catalog.root(), &checkpoint.vae.config)?;
    catalog.refuse_unused(checkpoint.vae.config.class())?;
    tracer.add(
        VAE_ENCODER,
        Stage::ImageEncoder,
        vae.trace_encoder(options.with_batch(|_| 1)),
        &checkpoint.vae.weights,
    )?;
    tracer.add(VAE_DECODER, Stage::ImageDecoder, vae.trace_decoder(options.sizes), &checkpoint.vae.weights)?;
    tracer.finish(checkpoint.root())
}

/// A line on the words that a file bundles, which are the prompt's and no weight's.
fn unfused_words(lora: &Lora) -> Option<String> {
    let words: Vec<&str> = lora.file.word_names().take(3).collect();
    let (path, words) = (lora.file.path().display(), words.join(", "));
    (!words.is_empty())
        .then(|| format!("{path}: its words ({words}) are not fused; kiln generate --lora learns them"))
}

pub(crate) fn trace_steering<'a>(
    checkpoint: &'a ControlNetCheckpoint,
    options: &TraceOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Traced<'a>>, CompileError> {
    if let Some(lora) = options.loras.first() {
        let reason =
            format!("is a ControlNet, which LoRAs such as {} do not change", lora.file.path().display());
        return Err(CompileError::checkpoint(checkpoint.root(), reason));
    }
    let mut tracer = Tracer::new(options, LoraPlan::default(), progress);
    let part = &checkpoint.part;
    let catalog = part.weights.catalog();
    let network = ControlNetModel::new(catalog.root(), &part.config)?;
    catalog.refuse_unused("ControlNetModel")?;
    let ports = UnetPorts {
        sizes: options.guided(),
        tokens: match options.sizes {
            Sizes::Dynamic => None,
            Sizes::Static { .. } => Some(CLIP_POSITIONS),
        },
        pooled: part.config.pooled_width(),
        controlled: false,
        timestep_rows: options.runtime_ports,
    };
    tracer.add(CONTROLNET, Stage::Control, network.trace(&ports), &part.weights)?;
    tracer.finish(checkpoint.root())
}

/// Text positions that a ControlNet attends to: its configuration does not say it, and every text encoder that ControlNets
/// of Stable Diffusion are trained with, OpenAI's CLIP and OpenCLIP, has a context of 77 tokens (Radford et al. 2021).
const CLIP_POSITIONS: u64 = 77;

struct Tracer<'a, 'o> {
    policy: &'o EmitPolicy,
    precisions: &'o BTreeMap<ComponentName, PrecisionPolicy>,
    progress: &'o mut dyn FnMut(Progress),
    traced: Vec<Traced<'a>>,
    known_cuts: Vec<String>,
    known_scopes: BTreeSet<String>,
    plan: LoraPlan,
}

impl<'a, 'o> Tracer<'a, 'o> {
    fn new(options: &'o TraceOptions, plan: LoraPlan, progress: &'o mut dyn FnMut(Progress)) -> Tracer<'a, 'o> {
        Tracer {
            policy: &options.policy,
            precisions: &options.precisions,
            progress,
            traced: Vec::new(),
            known_cuts: Vec::new(),
            known_scopes: BTreeSet::new(),
            plan,
        }
    }

    fn add(
        &mut self,
        name: ComponentName,
        stage: Stage,
        graph: Graph,
        source: &'a WeightFiles,
    ) -> Result<(), CompileError> {
        (self.progress)(Progress::Tracing(name));
        let graph = Graph { name: name.to_string(), ..graph };
        let mut own_cuts = graph.cut_points();
        let cuts = match &self.policy.cuts {
            Cuts::At(names) => Cuts::At(names.iter().filter(|cut| own_cuts.contains(cut)).cloned().collect()),
            Cuts::Every(bytes) if stage.is_autoencoder() => {
                Cuts::Every(bytes.saturating_mul(AUTOENCODER_SEGMENTS))
            }
            cuts => cuts.clone(),
        };
        self.known_cuts.append(&mut own_cuts);
        if !self.policy.precision.scopes.is_empty() {
            self.known_scopes.extend(graph.scopes());
        }
        let owner = if name == UNET_CONTROLLED { UNET } else { name };
        let changes = self.plan.changes(owner).cloned();
        let policy = self.policy.precision.clone();
        let precision = self.precisions.get(&owner).cloned().unwrap_or(policy);
        let computed_in = precision.name();
        let models = emit(&graph, &EmitPolicy { cuts, precision, ..self.policy.clone() })?;
        self.traced.push(Traced {
            name,
            stage,
            owner,
            models,
            inputs: graph.input_ports(),
            outputs: graph.output_ports(),
            source,
            changes,
            precision: computed_in,
            data: format!("{owner}.data"),
        });
        Ok(())
    }

    fn finish(self, root: &Path) -> Result<Vec<Traced<'a>>, CompileError> {
        let refuse = |reason: String, hint: String| CompileError::Option { path: root.into(), reason, hint };
        if let Cuts::At(names) = &self.policy.cuts
            && let Some(cut) = names.iter().find(|cut| !self.known_cuts.contains(cut))
        {
            let inner =
                |cut: &&String| self.known_cuts.iter().any(|outer| *cut != outer && is_inside(cut, outer));
            let (inner, outer): (Vec<&String>, Vec<&String>) = self.known_cuts.iter().partition(inner);
            let outer = outer.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let hint = format!("cut points are {outer}, and {} inside of them", inner.len());
            return Err(refuse(format!("has no cut point '{cut}'"), hint));
        }
        let mut wanted = self.policy.precision.scopes.iter().map(|(scope, _)| scope);
        match wanted.find(|wanted| !self.known_scopes.iter().any(|scope| is_inside(scope, wanted))) {
            None => Ok(self.traced),
            Some(scope) => {
                let beginnings: BTreeSet<String> = self.known_scopes.iter().map(|s| beginning(s)).collect();
                let beginnings = beginnings.into_iter().collect::<Vec<_>>().join(", ");
                Err(refuse(format!("has no scope '{scope}'"), format!("scopes begin with {beginnings}")))
            }
        }
    }
}

/// The first name of a scope, with its number in a list: `down_blocks.1` of `down_blocks.1.resnets.0`.
fn beginning(scope: &str) -> String {
    let mut names = scope.split('.');
    let first = names.next().unwrap_or_default();
    match names.next().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        Some(number) => format!("{first}.{number}"),
        None => first.into(),
    }
}

pub(crate) fn write_all(
    traced: &[Traced<'_>],
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TracedModel>, CompileError> {
    let mut weights: BTreeMap<&str, Vec<&StoredWeight>> = BTreeMap::new();
    for component in traced {
        let stored = weights.entry(&component.data).or_default();
        let known: HashSet<&str> = stored.iter().map(|weight| weight.name.as_str()).collect();
        stored.extend(component.weights().filter(|weight| !known.contains(weight.name.as_str())));
    }
    let total = weights.values().flatten().map(|weight| weight.n_bytes()).sum();
    let mut done = 0;
    let mut layouts: BTreeMap<&str, WeightLayout> = BTreeMap::new();
    let mut written = Vec::new();
    for component in traced {
        let (name, data) = (component.name, component.data.as_str());
        if !layouts.contains_key(data) {
            let changes = component.changes.as_deref();
            let layout = component.source.write(&folder.join(data), &weights[data], changes, &mut |bytes| {
                done += bytes;
                progress(Progress::Writing { component: name, done, total });
            })?;
            layouts.insert(data, layout);
        }
        for model in &component.models {
            let file = format!("{}.onnx", model.name);
            let path = folder.join(&file);
            fs::write(&path, model.to_onnx(&layouts[data])?).map_err(|e| CompileError::io(&path, &e))?;
            written.push(TracedModel::new(name, file, data.into(), model));
        }
    }
    Ok(written)
}

impl Traced<'_> {
    /// Name of the components over the same weights.
    pub(crate) fn part(&self) -> &str {
        self.data.trim_end_matches(".data")
    }

    /// Names of the component's weights that no model reads.
    pub(crate) fn unread(&self) -> Vec<String> {
        let read: HashSet<&str> = self.weights().map(|weight| weight.name.as_str()).collect();
        self.source.catalog().into_entries().into_keys().filter(|name| !read.contains(name.as_str())).collect()
    }

    /// The weights of all segments, each once.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &StoredWeight> {
        let mut seen = HashSet::new();
        self.models.iter().flat_map(|model| &model.weights).filter(move |weight| seen.insert(&weight.name))
    }
}
