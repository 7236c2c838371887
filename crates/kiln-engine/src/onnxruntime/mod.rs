//! ONNX Runtime's CPU and CUDA providers.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod allocator;
#[cfg(feature = "cuda")]
mod cuda;
mod kernels;
mod lanes;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;

use ndarray::{ArrayViewD, IxDyn};
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::ep::CPU;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{DynValue, Outlet, Tensor as OrtTensor, TensorElementType, TensorRef};

use crate::error::EngineErrorKind::{Library, Load, Run};
use crate::host::{HostView, bind_on_host};
use crate::overrides::{Elements, WeightOverride, WeightSource};
use crate::weights::for_each_weight;
use crate::{
    Backend, ElementType, Engine, EngineError, ForeignTensor, LoadOptions, Placement, Port, Tensor, TensorView,
};

#[cfg(feature = "cuda")]
pub use cuda::OnnxRuntimeCuda;
pub use kernels::Kernels;
use kernels::Work;
use lanes::Lanes;

/// Most lanes: each holds the weights once more.
const MAX_LANES: usize = 4;

/// How a process's ONNX Runtime computes on the host.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// Threads of the pool that its sessions share, or one per core.
    pub threads: Option<usize>,
    /// Which of kiln's kernels it computes with.
    pub kernels: Kernels,
    /// A folder in which each session leaves ONNX Runtime's profile of its runs, as it ends.
    pub profiles: Option<PathBuf>,
}

/// ONNX Runtime, opened from a shared library, with its CPU provider.
#[derive(Clone)]
pub struct OnnxRuntime {
    environment: Environment,
    version: String,
    options: HostOptions,
    /// Threads of the pool that its sessions share.
    n_threads: usize,
}

/// What a process opened: one ONNX Runtime, its pool of threads and its allocator, open until the process ends.
struct Opened {
    path: PathBuf,
    runtime: OnnxRuntime,
}

static OPENED: OnceLock<Mutex<Option<Opened>>> = OnceLock::new();

impl OnnxRuntime {
    /// Opens the library.
    ///
    /// A process can only ever open one, with one number of threads and the other options of its first opening.
    pub fn open(library: &Path, options: HostOptions) -> Result<OnnxRuntime, EngineError> {
        let refuse = |reason: String| EngineError::new(Library, library, reason);
        let path = library.canonicalize().map_err(|e| refuse(e.to_string()))?;
        let mut opened = OPENED.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
        if let Some(Opened { path: other, runtime }) = &*opened {
            if *other == path && runtime.options.threads == options.threads {
                return Ok(runtime.clone());
            }
            let threads =
                runtime.options.threads.map_or("one thread per core".into(), |n| format!("{n} threads"));
            return Err(refuse(format!("this process already uses {} with {threads}", other.display())));
        }
        let environment = environment(&path, options.threads).map_err(refuse)?;
        environment.set_log_level(LogLevel::Fatal);
        let suffix = options.kernels.name().map_or_else(String::new, |name| format!("+kiln-{name}"));
        let version = version(&path) + &suffix;
        let n_threads =
            options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        let runtime = OnnxRuntime { environment, version, options, n_threads };
        *opened = Some(Opened { path, runtime: runtime.clone() });
        Ok(runtime)
    }

    /// The one that this process has opened, if any: there is no second.
    pub fn in_use() -> Option<OnnxRuntime> {
        let opened = OPENED.get()?.lock().unwrap_or_else(|e| e.into_inner());
        opened.as_ref().map(|opened| opened.runtime.clone())
    }

    /// A session on the host, of so many threads, with kiln's kernels.
    fn session(
        &self,
        builder: SessionBuilder,
        model: &Path,
        (placement, overrides): (Placement, Option<&dyn WeightSource>),
        threads: usize,
    ) -> Result<Session, String> {
        let builder = self.overriding(builder, overrides)?;
        let mut builder = self.profiled(builder, model).map_err(|e| e.to_string())?;
        let folder = model.parent().unwrap_or(Path::new("."));
        let kernels = self.options.kernels;
        let opened = match kernels::rewritten(model, kernels, placement) {
            Some(bytes) => kernels::open(builder, &bytes, folder, Work::new(kernels, threads)),
            None => builder.commit_from_file(model),
        };
        opened.map_err(|e| e.to_string())
    }

    /// Options of a session that leaves a profile, where there is a folder for it.
    fn profiled(&self, builder: SessionBuilder, model: &Path) -> ort::Result<SessionBuilder> {
        /// ONNX Runtime adds the second, which sessions share.
        static SESSIONS: AtomicUsize = AtomicUsize::new(0);

        let Some(folder) = &self.options.profiles else { return Ok(builder) };
        let name = model.file_stem().unwrap_or_default().to_string_lossy();
        let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        Ok(builder.with_profiling(folder.join(format!("{name}.{session}")))?)
    }

    /// Options of a session with weights in place of the model's, where there are some.
    fn overriding(
        &self,
        mut builder: SessionBuilder,
        overrides: Option<&dyn WeightSource>,
    ) -> Result<SessionBuilder, String> {
        if let Some(source) = overrides {
            let mut values = Vec::new();
            for_each_weight(source, self.options.threads, |name, weight| {
                let value = initializer(weight).map_err(|e| format!("weight '{name}': {e}"))?;
                values.push((name.to_owned(), value));
                Ok(())
            })?;
            for (name, value) in values {
                builder = builder
                    .with_external_initializer(&name, value)
                    .map_err(|e| format!("weight '{name}': {e}"))?;
            }
        }
        Ok(builder)
    }
}

/// Opens the library; before that nothing of it can be used, not even its errors.
fn environment(library: &Path, threads: Option<usize>) -> Result<Environment, String> {
    let builder = ort::init_from(library).map_err(|e| e.to_string())?;
    // Operators run one after the other. Threads between them would have nothing to do, and spin on cores that load models.
    let pool = GlobalThreadPoolOptions::default().with_inter_threads(1);
    let pool =
        pool.and_then(|pool| pool.with_intra_threads(threads.unwrap_or(0))).map_err(|e| e.to_string())?;
    let builder = builder.with_name("kiln").with_telemetry(false).with_global_thread_pool(pool);
    let environment = builder.build().map_err(|e| e.to_string())?;
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    allocator::register(&environment).map_err(|e| e.to_string())?;
    Ok(environment)
}

/// Mapped weights stay as they lie in their file only if nothing is folded into them or packed beside them.
fn builder(environment: &Environment, placement: Placement) -> ort::Result<SessionBuilder> {
    let without_arena = CPU::default().with_arena_allocator(false).build();
    let builder = Session::builder(environment)?
        .with_log_level(LogLevel::Fatal)?
        .with_execution_providers([without_arena])?
        .with_memory_pattern(false)?
        .with_env_allocators()?;
    Ok(match placement {
        Placement::Packed => builder.with_optimization_level(GraphOptimizationLevel::All)?,
        Placement::Mapped => builder
            .with_optimization_level(GraphOptimizationLevel::Disable)?
            .with_config_entry("session.disable_prepacking", "1")?,
    })
}

/// The version in the library's file name, as in `libonnxruntime.so.1.32.0`; without one, the commit it was built from.
fn version(library: &Path) -> String {
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    let digits = name.find(|c: char| c.is_ascii_digit()).map_or("", |start| &name[start..]);
    let number = digits.trim_end_matches(".dylib").trim_end_matches(".dll");
    match number {
        "" => ort::info()
            .split(", ")
            .find_map(|part| part.strip_prefix("git-commit-id="))
            .map_or_else(String::new, |commit| format!("commit {commit}")),
        number => number.to_owned(),
    }
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        "onnxruntime"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn family(&self) -> Option<String> {
        // A process has one, whose pool of threads was made when it was opened.
        Some(self.name().into())
    }

    fn lanes(&self) -> usize {
        Some(self.n_threads).filter(|&threads| threads <= MAX_LANES).unwrap_or(1)
    }

    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Engine>, EngineError> {
        let refuse = |reason: String| EngineError::new(Load, model, reason);
        let builder = builder(&self.environment, options.placement).map_err(|e| refuse(e.to_string()))?;
        let session = self
            .session(builder, model, (options.placement, options.overrides.as_deref()), self.n_threads)
            .map_err(refuse)?;
        let [inputs, outputs] = [session.inputs(), session.outputs()]
            .map(|outlets| outlets.iter().map(port).collect::<Result<Vec<Port>, _>>().map_err(refuse));
        let (model, ports) = (model.to_owned(), Ports { inputs: inputs?, outputs: outputs? });
        let lanes = Lanes::new(self.clone(), options);
        Ok(Box::new(OrtEngine { model, session, ports, lanes }))
    }
}

struct OrtEngine {
    model: PathBuf,
    session: Session,
    ports: Ports,
    lanes: Lanes,
}

struct Ports {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Engine for OrtEngine {
    fn inputs(&self) -> &[Port] {
        &self.ports.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.ports.outputs
    }

    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        self.ports.run(&self.model, &mut self.session, inputs)
    }

    fn run_each(&mut self, parts: &[Vec<(&str, TensorView<'_>)>]) -> Result<Vec<Vec<Tensor>>, EngineError> {
        match parts {
            [inputs] => Ok(vec![self.run(inputs)?]),
            parts => self.lanes.run(&self.model, &self.ports, parts),
        }
    }
}

impl Ports {
    fn run(
        &self,
        model: &Path,
        session: &mut Session,
        inputs: &[(&str, TensorView<'_>)],
    ) -> Result<Vec<Tensor>, EngineError> {
        let bound = bind_on_host(model, &self.inputs, inputs)?;
        let refuse = |e: ort::Error| EngineError::new(Run, model, e.to_string());
        let contiguous: Vec<Contiguous<'_>> = bound.iter().map(Contiguous::new).collect();
        let values = contiguous.iter().map(Contiguous::value).collect::<Result<Vec<_>, _>>().map_err(refuse)?;
        let named: Vec<_> = self.inputs.iter().map(|port| port.name.clone()).zip(values).collect();
        let mut results = session.run(named).map_err(refuse)?;
        self.outputs
            .iter()
            .map(|port| match results.remove(&port.name) {
                Some(value) => Held::new(value, port.element_type).map(|held| Tensor::Foreign(Box::new(held))),
                None => Err(ort::Error::new(format!("has no output '{}'", port.name))),
            })
            .collect::<Result<_, _>>()
            .map_err(refuse)
    }
}

/// The session keeps the value as long as it lives.
fn initializer(weight: WeightOverride) -> ort::Result<DynValue> {
    let shape = weight.shape;
    Ok(match weight.elements {
        Elements::F32(values) => OrtTensor::from_array((shape, values))?.into_dyn(),
        Elements::F16(values) => OrtTensor::from_array((shape, values))?.into_dyn(),
        Elements::BF16(values) => OrtTensor::from_array((shape, values))?.into_dyn(),
    })
}

/// A view in standard layout, copied only if it has another.
enum Contiguous<'a> {
    F32(ndarray::CowArray<'a, f32, IxDyn>),
    I64(ndarray::CowArray<'a, i64, IxDyn>),
}

impl<'a> Contiguous<'a> {
    fn new(view: &'a HostView<'_>) -> Contiguous<'a> {
        match view {
            HostView::F32(array) => Contiguous::F32(array.as_standard_layout()),
            HostView::I64(array) => Contiguous::I64(array.as_standard_layout()),
        }
    }

    fn value(&self) -> ort::Result<ort::session::SessionInputValue<'_>> {
        Ok(match self {
            Contiguous::F32(array) => {
                TensorRef::from_array_view((array.shape(), array.as_slice().unwrap_or_default()))?.into()
            }
            Contiguous::I64(array) => {
                TensorRef::from_array_view((array.shape(), array.as_slice().unwrap_or_default()))?.into()
            }
        })
    }
}

/// An output where ONNX Runtime made it.
struct Held {
    value: DynValue,
    element_type: ElementType,
}

impl Held {
    fn new(value: DynValue, element_type: ElementType) -> ort::Result<Held> {
        let held = Held { value, element_type };
        held.try_view().map(drop)?;
        Ok(held)
    }

    fn try_view(&self) -> ort::Result<TensorView<'_>> {
        Ok(match self.element_type {
            ElementType::F32 => TensorView::F32(view(&self.value)?),
            ElementType::I64 => TensorView::I64(view(&self.value)?),
            ElementType::F16 | ElementType::Bf16 => {
                return Err(ort::Error::new("an output has another type than declared"));
            }
        })
    }
}

impl ForeignTensor for Held {
    fn view(&self) -> TensorView<'_> {
        self.try_view().expect("a view that could be taken when the tensor was made")
    }
}

fn view<T: ort::value::PrimitiveTensorElementType>(value: &DynValue) -> ort::Result<ArrayViewD<'_, T>> {
    let (shape, data) = value.try_extract_tensor::<T>()?;
    let shape: Vec<usize> = shape.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
    ArrayViewD::from_shape(shape, data).map_err(|e| ort::Error::new(e.to_string()))
}

fn port(outlet: &Outlet) -> Result<Port, String> {
    let element_type = match outlet.dtype().tensor_type() {
        Some(TensorElementType::Float32) => ElementType::F32,
        Some(TensorElementType::Float16) => ElementType::F16,
        Some(TensorElementType::Int64) => ElementType::I64,
        other => return Err(format!("port '{}' has type {other:?}; supported: f32, f16, i64", outlet.name())),
    };
    let shape = outlet.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
    let shape = shape.into_iter().map(|n| usize::try_from(n).ok()).collect();
    Ok(Port { name: outlet.name().into(), element_type, shape })
}
