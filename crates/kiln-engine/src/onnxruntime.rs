//! ONNX Runtime's CPU provider.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use ndarray::{ArrayD, IxDyn};
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{DynValue, Outlet, Tensor, TensorElementType, TensorRef};

use crate::error::EngineErrorKind::{Library, Load, Run};
use crate::overrides::{Elements, WeightOverride, for_each_weight};
use crate::{Backend, ElementType, Engine, EngineError, HostTensor, LoadOptions, Port, TensorView, bind};

/// ONNX Runtime, opened from a shared library.
pub struct OnnxRuntime {
    environment: Environment,
    version: String,
}

/// A process can open one ONNX Runtime; `ort` keeps it open until the process ends.
static OPENED: OnceLock<Mutex<Option<PathBuf>>> = OnceLock::new();

impl OnnxRuntime {
    /// Opens the library; a process can only ever open one.
    pub fn open(library: &Path) -> Result<OnnxRuntime, EngineError> {
        let refuse = |reason: String| EngineError::new(Library, library, reason);
        let path = library.canonicalize().map_err(|e| refuse(e.to_string()))?;
        let mut opened = OPENED.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
        if let Some(other) = opened.as_ref().filter(|other| **other != path) {
            return Err(refuse(format!("this process already uses {}", other.display())));
        }
        let environment = ort::init_from(&path)
            .map_err(|e| refuse(e.to_string()))?
            .with_name("kiln")
            .with_telemetry(false)
            .build()
            .map_err(|e| refuse(e.to_string()))?;
        let version = version(&path);
        environment.set_log_level(LogLevel::Fatal);
        *opened = Some(path);
        Ok(OnnxRuntime { environment, version })
    }

    fn session(&self, model: &Path, options: &LoadOptions) -> Result<Session, String> {
        let mut builder = Session::builder(&self.environment)
            .map_err(|e| e.to_string())?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(|e| e.to_string())?
            .with_log_level(LogLevel::Fatal)
            .map_err(|e| e.to_string())?;
        if let Some(threads) = options.threads {
            builder = builder.with_intra_threads(threads).map_err(|e| e.to_string())?;
        }
        if let Some(source) = &options.overrides {
            let mut values = Vec::new();
            for_each_weight(&**source, options.threads, |name, weight| {
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
        builder.commit_from_file(model).map_err(|e| e.to_string())
    }
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

    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Engine>, EngineError> {
        let refuse = |reason: String| EngineError::new(Load, model, reason);
        let session = self.session(model, options).map_err(refuse)?;
        let inputs = session.inputs().iter().map(port).collect::<Result<Vec<_>, _>>().map_err(refuse)?;
        let outputs = session.outputs().iter().map(port).collect::<Result<Vec<_>, _>>().map_err(refuse)?;
        Ok(Box::new(OrtEngine { model: model.into(), session, inputs, outputs }))
    }
}

struct OrtEngine {
    model: PathBuf,
    session: Session,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Engine for OrtEngine {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<HostTensor>, EngineError> {
        let bound = bind(&self.model, &self.inputs, inputs)?;
        let refuse = |e: ort::Error| EngineError::new(Run, &self.model, e.to_string());
        let contiguous: Vec<Contiguous<'_>> = bound.into_iter().map(Contiguous::new).collect();
        let values = contiguous.iter().map(Contiguous::value).collect::<Result<Vec<_>, _>>().map_err(refuse)?;
        let named: Vec<_> = self.inputs.iter().map(|port| port.name.clone()).zip(values).collect();
        let results = self.session.run(named).map_err(refuse)?;
        self.outputs
            .iter()
            .map(|port| match port.element_type {
                ElementType::F32 => extract::<f32>(&results[port.name.as_str()]).map(HostTensor::F32),
                ElementType::I64 => extract::<i64>(&results[port.name.as_str()]).map(HostTensor::I64),
            })
            .collect::<Result<_, _>>()
            .map_err(refuse)
    }
}

/// The session keeps the value as long as it lives.
fn initializer(weight: WeightOverride) -> ort::Result<DynValue> {
    let shape = weight.shape;
    Ok(match weight.elements {
        Elements::F32(values) => Tensor::from_array((shape, values))?.into_dyn(),
        Elements::F16(values) => Tensor::from_array((shape, values))?.into_dyn(),
        Elements::BF16(values) => Tensor::from_array((shape, values))?.into_dyn(),
    })
}

/// A view in standard layout, copied only if it has another.
enum Contiguous<'a> {
    F32(ndarray::CowArray<'a, f32, IxDyn>),
    I64(ndarray::CowArray<'a, i64, IxDyn>),
}

impl<'a> Contiguous<'a> {
    fn new(view: &'a TensorView<'_>) -> Contiguous<'a> {
        match view {
            TensorView::F32(array) => Contiguous::F32(array.as_standard_layout()),
            TensorView::I64(array) => Contiguous::I64(array.as_standard_layout()),
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

fn extract<T>(value: &DynValue) -> ort::Result<ArrayD<T>>
where
    T: ort::value::PrimitiveTensorElementType + Clone,
{
    let (shape, data) = value.try_extract_tensor::<T>()?;
    let shape: Vec<usize> = shape.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
    ArrayD::from_shape_vec(shape, data.to_vec()).map_err(|e| ort::Error::new(e.to_string()))
}

fn port(outlet: &Outlet) -> Result<Port, String> {
    let element_type = match outlet.dtype().tensor_type() {
        Some(TensorElementType::Float32) => ElementType::F32,
        Some(TensorElementType::Int64) => ElementType::I64,
        other => return Err(format!("port '{}' has type {other:?}; supported: f32, i64", outlet.name())),
    };
    let shape = outlet.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
    let shape = shape.into_iter().map(|n| usize::try_from(n).ok()).collect();
    Ok(Port { name: outlet.name().into(), element_type, shape })
}
