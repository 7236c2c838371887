//! Checkpoint to ONNX.

use std::fs;
use std::path::Path;

use kiln_bundle::{Role, fs::create_folder};
use kiln_graph::{EmitPolicy, EmittedModel, StoredWeight, emit};
use kiln_nets::{AutoencoderKl, ClipTextModel, Sizes, UNet2DConditionModel};

use crate::checkpoint::Checkpoint;
use crate::error::CompileError;
use crate::weights::WeightFiles;

/// How a checkpoint is traced.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TraceOptions {
    /// How the networks become operators.
    pub policy: EmitPolicy,
    /// Which sizes are fixed; the batch counts pictures.
    pub sizes: Sizes,
}

impl Default for TraceOptions {
    fn default() -> TraceOptions {
        TraceOptions { policy: EmitPolicy::default(), sizes: Sizes::Dynamic }
    }
}

/// What the compile stage is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Tracing a component.
    Tracing(Role),
    /// Writing weights.
    Writing {
        /// The component.
        role: Role,
        /// Bytes written of all components.
        done: u64,
        /// Bytes to write.
        total: u64,
    },
    /// Taking digests of what was written.
    Sealing,
}

/// One emitted component, before it is written.
pub(crate) struct Traced<'a> {
    pub(crate) role: Role,
    pub(crate) models: Vec<EmittedModel>,
    source: &'a WeightFiles,
}

/// One written ONNX model.
#[derive(Clone, Debug)]
pub struct TracedModel {
    /// The component.
    pub role: Role,
    /// File in the folder that was asked for.
    pub file: String,
    /// The file of its weights.
    pub weights: String,
    /// Number of operators.
    pub n_nodes: usize,
    /// Bytes of the weights it reads.
    pub weight_bytes: u64,
    pub(crate) model: EmittedModel,
}

/// Traces all components and writes an ONNX model and a weight file for each into `folder`.
pub fn trace(
    checkpoint: &Checkpoint,
    options: &TraceOptions,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TracedModel>, CompileError> {
    let traced = trace_all(checkpoint, options, progress)?;
    create_folder(folder)?;
    write_all(&traced, folder, progress)
}

pub(crate) fn trace_all<'a>(
    checkpoint: &'a Checkpoint,
    options: &TraceOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Traced<'a>>, CompileError> {
    let TraceOptions { policy, sizes } = options;
    let (pictures, guided) = match *sizes {
        Sizes::Dynamic => (None, Sizes::Dynamic),
        Sizes::Static { batch, height, width } => {
            (Some(batch), Sizes::Static { batch: 2 * batch, height, width })
        }
    };
    let mut traced = Vec::new();
    let mut known_cuts = Vec::new();
    let mut add = |role, graph: kiln_graph::Graph, source| -> Result<(), CompileError> {
        progress(Progress::Tracing(role));
        let mut own_cuts = graph.cut_points();
        let cuts = policy.cuts.iter().filter(|cut| own_cuts.contains(cut)).cloned().collect();
        known_cuts.append(&mut own_cuts);
        let models = emit(&graph, &EmitPolicy { cuts, ..policy.clone() })?;
        traced.push(Traced { role, models, source });
        Ok(())
    };

    let catalog = checkpoint.text_encoder.catalog();
    let text = ClipTextModel::new(catalog.root(), &checkpoint.text_config)?;
    catalog.refuse_unused("CLIPTextModel")?;
    add(Role::TextEncoder, text.trace(pictures.map(|n| 2 * n)), &checkpoint.text_encoder)?;

    let catalog = checkpoint.unet.catalog();
    let unet = UNet2DConditionModel::new(catalog.root(), &checkpoint.unet_config)?;
    catalog.refuse_unused("UNet2DConditionModel")?;
    let positions = checkpoint.text_config.max_positions();
    add(Role::Unet, unet.trace(guided, positions), &checkpoint.unet)?;

    let catalog = checkpoint.vae.catalog();
    let vae = AutoencoderKl::new(catalog.root(), &checkpoint.vae_config)?;
    catalog.refuse_unused("AutoencoderKL")?;
    add(Role::VaeEncoder, vae.trace_encoder(*sizes), &checkpoint.vae)?;
    add(Role::VaeDecoder, vae.trace_decoder(*sizes), &checkpoint.vae)?;

    if let Some(cut) = policy.cuts.iter().find(|cut| !known_cuts.contains(cut)) {
        return Err(CompileError::checkpoint(checkpoint.root(), format!("has no cut point '{cut}'"))
            .with_hint(format!("cut points are {}", known_cuts.join(", "))));
    }
    Ok(traced)
}

pub(crate) fn write_all(
    traced: &[Traced<'_>],
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TracedModel>, CompileError> {
    let total = traced.iter().flat_map(Traced::weights).map(n_bytes).sum();
    let mut done = 0;
    let mut written = Vec::new();
    for component in traced {
        let role = component.role;
        let weights = format!("{role}.data");
        let stored: Vec<&StoredWeight> = component.weights().collect();
        let layout = component.source.write(&folder.join(&weights), &stored, &mut |bytes| {
            done += bytes;
            progress(Progress::Writing { role, done, total });
        })?;
        for model in &component.models {
            let file = format!("{}.onnx", model.name);
            let path = folder.join(&file);
            fs::write(&path, model.to_onnx(&layout)?).map_err(|e| CompileError::io(&path, &e))?;
            written.push(TracedModel {
                role,
                file,
                weights: weights.clone(),
                n_nodes: model.n_nodes,
                weight_bytes: model.weights.iter().map(n_bytes).sum(),
                model: model.clone(),
            });
        }
    }
    Ok(written)
}

impl Traced<'_> {
    /// The weights of all segments, each once.
    fn weights(&self) -> impl Iterator<Item = &StoredWeight> {
        let mut seen = std::collections::HashSet::new();
        self.models.iter().flat_map(|model| &model.weights).filter(move |weight| seen.insert(&weight.name))
    }
}

fn n_bytes(weight: &StoredWeight) -> u64 {
    weight.dims.iter().product::<u64>() * weight.dtype.size()
}
