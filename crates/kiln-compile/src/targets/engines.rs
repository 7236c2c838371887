//! Engines of TensorRT-RTX, built without the device that they are for, and of TensorRT, built on it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_bundle::{
    AttentionFacts, AxisSize, Bundle, Component, ComponentName, PortInfo, Segment, Stage, Target,
};
use kiln_trt::{Builder, BuilderFlag, HostMemory, Library, ProfilingVerbosity, TrtError, TrtErrorKind};
use serde::{Deserialize, Serialize};

use super::{TargetRow, ports};
use crate::cache::{Built, Recipe};
use crate::trace::Traced;
use crate::{CompileError, Progress};

/// How TensorRT-RTX or TensorRT builds.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Which of the two.
    pub target: Target,
    /// `libtensorrt_rtx` or `libnvinfer`, with its ONNX parser beside it.
    pub library: PathBuf,
    /// Product and version of the library.
    pub release: String,
    /// The devices that engines are for, as `[8, 9]`; none for what the release takes by default.
    pub compute_capabilities: Vec<[u32; 2]>,
    /// Sizes that engines run at.
    pub profiles: Vec<Profile>,
    /// Most bytes of device memory that a layer may take while it runs.
    pub workspace: Option<u64>,
    /// How long tactics are searched for, from 0 to 5.
    pub optimization_level: Option<u8>,
    /// Whether products of 32-bit floats may have 10 bits of mantissa.
    pub tf32: bool,
    /// Whether an attention may become several kernels.
    pub allow_slow_attention: bool,
    /// Who runs the builder.
    pub builder: Arc<dyn EngineBuilder>,
}

/// Sizes that an engine runs at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Profile {
    /// Number of pictures.
    pub batch: Range,
    /// Height of the latents.
    pub height: Range,
    /// Width of the latents.
    pub width: Range,
    /// Text positions that the UNet attends to.
    pub tokens: Range,
}

/// Least, best and most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Range {
    /// Least.
    pub min: u64,
    /// What the engine is tuned for.
    pub opt: u64,
    /// Most.
    pub max: u64,
}

impl Range {
    /// One size alone.
    pub fn fixed(size: u64) -> Range {
        Range { min: size, opt: size, max: size }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.opt),
            false => write!(f, "{}:{}:{}", self.min, self.opt, self.max),
        }
    }
}

impl Profile {
    /// Sizes around those that a model was trained at, in latents, for up to four pictures and four blocks of text.
    pub fn around(height: u64, width: u64, positions: u64) -> Profile {
        let around = |side: u64| Range { min: side.div_ceil(2), opt: side, max: side + side.div_ceil(2) };
        Profile {
            batch: Range { min: 1, opt: 1, max: 4 },
            height: around(height),
            width: around(width),
            tokens: Range { min: positions, opt: positions, max: 4 * positions },
        }
    }
}

impl Profile {
    /// Sizes around the default ones of a bundle.
    ///
    /// # Errors
    ///
    /// Where the bundle is not one of a pipeline with a text encoder.
    pub fn of_bundle(bundle: &Bundle) -> Result<Profile, CompileError> {
        let info = bundle.pipeline()?;
        let Some(encoder) = info.text_encoders.first() else {
            return Err(CompileError::checkpoint(bundle.root(), "has no text encoder"));
        };
        let side = |pixels: u32| u64::from(pixels / info.latents.scale_factor);
        Ok(Profile::around(side(info.size.height), side(info.size.width), encoder.positions.into()))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Profile { batch, height, width, tokens } = self;
        write!(f, "batch {batch}, latents {height} x {width}, tokens {tokens}")
    }
}

/// One engine to build; it can be told to another process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineJob {
    /// TensorRT's library.
    pub library: PathBuf,
    /// The ONNX model.
    pub model: PathBuf,
    /// The file to write.
    pub engine: PathBuf,
    /// Least, best and most sizes of each input whose sizes are open, per profile.
    pub profiles: Vec<BTreeMap<String, [Vec<i64>; 3]>>,
    /// The devices that the engine is for.
    pub compute_capabilities: Vec<[u32; 2]>,
    /// Most bytes of device memory that a layer may take while it runs.
    pub workspace: Option<u64>,
    /// How long tactics are searched for.
    pub optimization_level: Option<u8>,
    /// Whether products of 32-bit floats may have 10 bits of mantissa.
    pub tf32: bool,
    /// Whether its attentions may become several kernels.
    pub attention: AttentionRule,
    /// Whether its weights can stay in the host's memory and stream to the device.
    pub streams_weights: bool,
}

/// Whether attentions may become several kernels with the matrix of all scores between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionRule {
    /// None: a build fails rather than that.
    Fused,
    /// Where the builder has no fused kernel for one of them.
    FusedIfPossible,
}

/// What building an engine showed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuiltEngine {
    /// Number of layers before the builder fuses them.
    pub n_layers: u64,
    /// How its attentions run.
    pub attention: AttentionFacts,
    /// Most bytes that building held in memory, where it was measured.
    pub peak_bytes: Option<u64>,
}

/// Why an engine was not built; it can be told to another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobFailure {
    /// What the builder says, in one line.
    Builder(String),
    /// The same, where it has no fused kernel for an attention that must not become several.
    NoFusedKernel(String),
    /// The engine cannot be written: the operating system's error number.
    Writing(i32),
}

/// Runs jobs: in this process or in another.
pub trait EngineBuilder: fmt::Debug + Send + Sync {
    /// Builds an engine.
    fn build(&self, job: &EngineJob) -> Result<BuiltEngine, JobFailure>;
}

/// Builds in this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl EngineBuilder for InProcess {
    fn build(&self, job: &EngineJob) -> Result<BuiltEngine, JobFailure> {
        job.run()
    }
}

impl EngineJob {
    /// Builds the engine and writes it.
    pub fn run(&self) -> Result<BuiltEngine, JobFailure> {
        let built = match (self.build(false), self.attention) {
            (Err(e), AttentionRule::FusedIfPossible) if lacks_fused_kernel(&e) => self.build(true),
            (result, _) => result,
        };
        let (engine, built) = built.map_err(|e| match lacks_fused_kernel(&e) {
            true => JobFailure::NoFusedKernel(e.to_string()),
            false => JobFailure::Builder(e.to_string()),
        })?;
        let written = std::fs::write(&self.engine, engine.as_bytes());
        written.map(|()| built).map_err(|e| JobFailure::Writing(e.raw_os_error().unwrap_or_default()))
    }

    fn build(&self, decomposable: bool) -> Result<(HostMemory, BuiltEngine), TrtError> {
        let library = Library::open(&self.library)?;
        let builder = Builder::new(&library)?;
        let network = builder.parse(&self.model)?;
        let mut config = builder.config()?;
        config.set_flag(BuilderFlag::Tf32, self.tf32)?;
        if self.streams_weights {
            config.set_flag(BuilderFlag::WeightStreaming, true)?;
        }
        config.set_profiling_verbosity(ProfilingVerbosity::Detailed)?;
        if !self.compute_capabilities.is_empty() {
            config.set_compute_capabilities(&self.compute_capabilities)?;
        }
        if let Some(bytes) = self.workspace {
            config.set_workspace(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        }
        if let Some(level) = self.optimization_level {
            config.set_optimization_level(level)?;
        }
        for sizes in self.profiles.iter().filter(|sizes| !sizes.is_empty()) {
            let mut profile = builder.profile()?;
            for (input, [min, opt, max]) in sizes {
                profile.set(input, min, opt, max)?;
            }
            config.add_profile(&profile)?;
        }
        let mut attention = AttentionFacts::default();
        for mut layer in network.attentions()? {
            layer.set_decomposable(decomposable)?;
            match decomposable {
                false => attention.fused += 1,
                true => attention.decomposed += 1,
            }
        }
        let engine = builder.build(&network, &config)?;
        Ok((engine, BuiltEngine { n_layers: network.n_layers()? as u64, attention, peak_bytes: None }))
    }
}

/// What TensorRT says of an attention that it would have to take apart.
const NO_KERNEL: &str = "not supported by a dedicated kernel";

/// Whether a build failed because an attention that must not become several kernels has no fused one.
fn lacks_fused_kernel(error: &TrtError) -> bool {
    error.kind() == TrtErrorKind::Build && error.to_string().contains(NO_KERNEL)
}

impl EngineOptions {
    /// What can change an engine, besides its graph, weights and sizes, by name.
    fn choices(&self) -> BTreeMap<String, String> {
        let mut capabilities = self.compute_capabilities.clone();
        capabilities.sort_unstable();
        capabilities.dedup();
        let capabilities: Vec<String> =
            capabilities.iter().map(|[major, minor]| format!("{major}.{minor}")).collect();
        let or_default = |value: Option<String>| value.unwrap_or_else(|| "default".into());
        BTreeMap::from([
            ("compute capabilities".into(), capabilities.join(", ")),
            ("workspace".into(), or_default(self.workspace.map(|bytes| bytes.to_string()))),
            ("optimization level".into(), or_default(self.optimization_level.map(|level| level.to_string()))),
            ("tf32".into(), self.tf32.to_string()),
            ("slow attention".into(), self.allow_slow_attention.to_string()),
        ])
    }

    /// What a bundle says of how its engines were built.
    pub(crate) fn named(&self) -> BTreeMap<String, String> {
        let profiles = self.profiles.iter().enumerate();
        let profiles = profiles.map(|(i, profile)| (format!("profile {i}"), profile.to_string()));
        self.choices().into_iter().chain(profiles).collect()
    }

    /// Adds what can change an engine, besides its graph, weights and sizes.
    pub(crate) fn add_to(&self, recipe: &mut Recipe) {
        recipe.add("toolkit", &self.release);
        self.choices().into_iter().for_each(|(name, value)| recipe.add(name, value));
    }

    /// Adds the sizes at which a component's inputs arrive.
    pub(crate) fn add_sizes_to(
        &self,
        recipe: &mut Recipe,
        name: ComponentName,
        stage: Stage,
        inputs: &[PortInfo],
    ) {
        let join = |sizes: &Vec<i64>| sizes.iter().map(i64::to_string).collect::<Vec<_>>().join("x");
        for (i, profile) in self.profiles.iter().enumerate() {
            for (input, picks) in sizes(inputs, stage, profile) {
                let text = picks.each_ref().map(join).join(" ");
                recipe.add(format!("profile {i} of {name} {input}"), text);
            }
        }
    }
}

/// What builds engines.
#[derive(Clone, Debug)]
pub struct Toolkit {
    /// `libtensorrt_rtx` or `libnvinfer`, with its ONNX parser beside it.
    pub library: PathBuf,
    /// Product and version of the library.
    pub release: String,
    /// Who runs the builder.
    pub builder: Arc<dyn EngineBuilder>,
}

impl Toolkit {
    /// Loads a library to ask it for its release.
    ///
    /// # Errors
    ///
    /// [`CompileError::Toolkit`], where it is not a library of TensorRT or TensorRT-RTX, or of a release that is not known.
    pub fn open(library: PathBuf, builder: Arc<dyn EngineBuilder>) -> Result<Toolkit, CompileError> {
        let opened = Library::open(&library).map_err(|e| CompileError::Toolkit(e.to_string()))?;
        Ok(Toolkit { release: opened.release().to_owned(), library, builder })
    }
}

/// A component's ONNX models with their weights beside them, to build engines from.
pub(crate) struct OnnxModel {
    pub(crate) name: ComponentName,
    folder: PathBuf,
    /// What the models say of themselves.
    pub(crate) component: Component,
    /// What each segment reads.
    inputs: Vec<Vec<PortInfo>>,
}

impl OnnxModel {
    /// The only model of a component whose files lie in `folder`.
    pub(crate) fn new(
        name: ComponentName,
        folder: &Path,
        component: Component,
    ) -> Result<OnnxModel, CompileError> {
        match component.segments.as_slice() {
            [_] => {
                Ok(OnnxModel { name, folder: folder.into(), inputs: vec![component.inputs.clone()], component })
            }
            _ => Err(CompileError::checkpoint(
                folder,
                format!("{name} is in segments, whose sizes are not known"),
            )),
        }
    }
}

/// Builds one engine per segment; models and weights lie beside them while the builder reads them.
pub(crate) fn build(
    traced: &[Traced<'_>],
    options: &EngineOptions,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Built, CompileError> {
    let work = tempfile::Builder::new()
        .prefix(".onnx-")
        .tempdir_in(folder)
        .map_err(|e| CompileError::io(folder, &e))?;
    let components = super::onnx::build(traced, work.path(), progress)?.components.into_iter();
    let models = components.map(|(name, component)| {
        let of_component = traced.iter().filter(|traced| traced.name == name).flat_map(|traced| &traced.models);
        let inputs = of_component.map(|model| ports(&model.inputs)).collect();
        OnnxModel { name, folder: work.path().into(), component, inputs }
    });
    build_from_onnx(&models.collect::<Vec<_>>(), options, folder, progress)
}

/// Builds one engine per segment of each model.
pub(crate) fn build_from_onnx(
    models: &[OnnxModel],
    options: &EngineOptions,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Built, CompileError> {
    let mut built = Built { components: BTreeMap::new(), files: Vec::new(), peak_bytes: None };
    for model in models {
        let mut segments = Vec::new();
        for i in 0..model.component.segments.len() {
            progress(Progress::Building(model.name));
            let (segment, peak_bytes) = build_segment(model, i, options, folder)?;
            let n = segment.attention.decomposed;
            if n > 0 {
                progress(Progress::DecomposedAttention { component: model.name, n });
            }
            built.files.push(segment.engine.clone());
            built.peak_bytes = built.peak_bytes.max(peak_bytes);
            segments.push(segment);
        }
        let component = Component { segments, weights: None, ..model.component.clone() };
        built.components.insert(model.name, component);
    }
    Ok(built)
}

/// What helps where an attention has no fused kernel.
const ALLOW_SLOW_ATTENTION: &str =
    "TensorRT has no fused kernel for an attention of this size and type; --allow-slow-attention does without";

/// Builds one engine; what the manifest says of it, and most bytes that building it held.
fn build_segment(
    OnnxModel { name, folder: source, component, inputs }: &OnnxModel,
    i: usize,
    options: &EngineOptions,
    folder: &Path,
) -> Result<(Segment, Option<u64>), CompileError> {
    let segment = &component.segments[i];
    let attention = rule(component.stage, options);
    let slow = segment.attention.decomposed;
    let refuse = |n| Err(CompileError::SlowAttention { model: segment.engine.clone(), n });
    if slow > 0 && attention == AttentionRule::Fused {
        return refuse(slow);
    }
    let file = format!("{}.engine", segment.engine.trim_end_matches(".onnx"));
    let job = EngineJob {
        library: options.library.clone(),
        model: source.join(&segment.engine),
        engine: folder.join(&file),
        profiles: options.profiles.iter().map(|profile| sizes(&inputs[i], component.stage, profile)).collect(),
        compute_capabilities: options.compute_capabilities.clone(),
        workspace: options.workspace,
        optimization_level: options.optimization_level,
        tf32: options.tf32,
        attention,
        streams_weights: TargetRow::of(options.target).streams_weights,
    };
    let engine = options.builder.build(&job).map_err(|failure| match failure {
        JobFailure::Builder(reason) => CompileError::Build { component: *name, reason, hint: None },
        JobFailure::NoFusedKernel(reason) => {
            CompileError::Build { component: *name, reason, hint: Some(ALLOW_SLOW_ATTENTION) }
        }
        JobFailure::Writing(error) => CompileError::io(&job.engine, &std::io::Error::from_raw_os_error(error)),
    })?;
    let known = engine.attention.fused + engine.attention.decomposed;
    let lost = segment.attention.fused.saturating_sub(known);
    if lost > 0 && attention == AttentionRule::Fused {
        return refuse(lost);
    }
    let attention =
        AttentionFacts { fused: engine.attention.fused, decomposed: slow + lost + engine.attention.decomposed };
    let segment =
        Segment { engine: file, weights: Vec::new(), operators: engine.n_layers, attention, ..segment.clone() };
    Ok((segment, engine.peak_bytes))
}

/// An autoencoder has one attention, with one head as wide as its channels, for which there often is no fused kernel.
fn rule(stage: Stage, options: &EngineOptions) -> AttentionRule {
    match options.allow_slow_attention || stage.is_autoencoder() {
        true => AttentionRule::FusedIfPossible,
        false => AttentionRule::Fused,
    }
}

/// Sizes of the inputs that have open ones.
fn sizes(inputs: &[PortInfo], stage: Stage, profile: &Profile) -> BTreeMap<String, [Vec<i64>; 3]> {
    let batch = match stage {
        Stage::ImageEncoder => Range::fixed(1),
        Stage::ImageDecoder => profile.batch,
        // Without guidance one sample per picture, with it two; prompts likewise.
        _ => Range { opt: 2 * profile.batch.opt, max: 2 * profile.batch.max, ..profile.batch },
    };
    let range = |symbol: &str| match symbol {
        "batch" => Some(batch),
        "height" => Some(profile.height),
        "width" => Some(profile.width),
        "tokens" => Some(profile.tokens),
        _ => None,
    };
    let picks: [fn(Range) -> u64; 3] = [|r| r.min, |r| r.opt, |r| r.max];
    let open =
        inputs.iter().filter(|input| input.shape.iter().any(|size| matches!(size, AxisSize::Dynamic(_))));
    open.map(|input| {
        let at = |pick: fn(Range) -> u64| {
            let size = |size: &AxisSize| size.at(|symbol| range(symbol).map(pick)).map_or(-1, |n| n as i64);
            input.shape.iter().map(size).collect()
        };
        (input.name.clone(), picks.map(at))
    })
    .collect()
}
