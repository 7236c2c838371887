//! The built-in backend: rten, an ONNX runtime in Rust.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{ArrayD, ArrayViewD};
use rten::{DataType, Dimension, Model, ModelOptions, NodeId, RunOptions, ThreadPool, ValueOrView, ValueType};
use rten_tensor::prelude::*;
use rten_tensor::{Tensor as RtenTensor, TensorView as RtenView};

use crate::error::EngineErrorKind::{Load, Run};
use crate::host::{HostView, bind_on_host};
use crate::overrides::{Elements, WeightSource};
use crate::weights::for_each_weight;
use crate::{Backend, ElementType, Engine, EngineError, LoadOptions, Port, Tensor, TensorView};

/// rten; needs no native library.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rten {
    threads: Option<usize>,
}

impl Rten {
    /// Spreads operators over so many threads, or over one per core.
    pub fn new(threads: Option<usize>) -> Rten {
        Rten { threads }
    }
}

impl Backend for Rten {
    fn name(&self) -> &'static str {
        "rten"
    }

    fn version(&self) -> &str {
        env!("KILN_RTEN_RELEASE")
    }

    fn family(&self) -> Option<String> {
        Some(format!("{} {:?}", self.name(), self.threads))
    }

    fn reads_bf16(&self) -> bool {
        false
    }

    fn holds_scores(&self) -> bool {
        true
    }

    fn load(&self, model: &Path, options: &LoadOptions) -> Result<Box<dyn Engine>, EngineError> {
        let refuse = |reason: String| EngineError::new(Load, model, reason);
        let loaded = match &options.overrides {
            None => ModelOptions::with_all_ops().load_file(model).map_err(|e| refuse(e.to_string()))?,
            Some(source) => load_with(model, &**source, self.threads).map_err(refuse)?,
        };
        let ports = |ids: &[NodeId]| ids.iter().map(|&id| port(&loaded, id)).collect::<Result<Vec<_>, _>>();
        let inputs = ports(loaded.input_ids()).map_err(refuse)?;
        let outputs = ports(loaded.output_ids()).map_err(refuse)?;
        let threads = self.threads.map(|n| Arc::new(ThreadPool::with_num_threads(n)));
        let run = RunOptions::default().with_thread_pool(threads);
        Ok(Box::new(RtenEngine { path: model.into(), model: loaded, run, inputs, outputs }))
    }
}

/// Loads a model whose weight file is changed in memory; rten takes external data as whole files only.
fn load_with(model: &Path, source: &dyn WeightSource, threads: Option<usize>) -> Result<Model, String> {
    let path = model.with_file_name(source.file());
    let mut data = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    for_each_weight(source, threads, |name, weight| {
        let bytes = le_bytes(&weight.elements);
        let start = usize::try_from(weight.offset).unwrap_or(usize::MAX);
        let place = start.checked_add(bytes.len()).and_then(|end| data.get_mut(start..end));
        let place = place.ok_or_else(|| format!("weight '{name}' lies outside {}", path.display()))?;
        place.copy_from_slice(&bytes);
        Ok(())
    })?;
    let graph = std::fs::read(model).map_err(|e| e.to_string())?;
    let mut options = ModelOptions::with_all_ops();
    options.external_data(source.file(), data);
    options.load(graph).map_err(|e| e.to_string())
}

/// The elements as they lie in a file, with the least significant byte first.
fn le_bytes(elements: &Elements) -> Vec<u8> {
    match elements {
        Elements::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Elements::F16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Elements::BF16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

struct RtenEngine {
    path: PathBuf,
    model: Model,
    run: RunOptions,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Engine for RtenEngine {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let bound = bind_on_host(&self.path, &self.inputs, inputs)?;
        let refuse = |e: String| EngineError::new(Run, &self.path, e);
        let ids = self.model.input_ids().iter().copied();
        let values: Vec<(NodeId, ValueOrView<'_>)> = ids.zip(bound.iter().map(value)).collect();
        let results = self
            .model
            .run(values, self.model.output_ids(), Some(self.run.clone()))
            .map_err(|e| refuse(e.to_string()))?;
        let ports = self.outputs.iter().zip(results);
        ports
            .map(|(port, value)| match port.element_type {
                ElementType::F32 => value.into_tensor::<f32>().map(|t| Tensor::F32(to_array(t))),
                ElementType::I64 => {
                    value.into_tensor::<i32>().map(|t| Tensor::I64(to_array(t).mapv(i64::from)))
                }
                ElementType::F16 | ElementType::Bf16 => None,
            })
            .map(|value| value.ok_or_else(|| refuse("an output has another type than declared".into())))
            .collect()
    }
}

/// rten computes with 32-bit integers; token ids fit.
fn value<'a>(view: &'a HostView<'_>) -> ValueOrView<'a> {
    match view {
        HostView::F32(array) => match array.as_slice() {
            Some(data) => RtenView::from_data(array.shape(), data).into(),
            None => from_array(array.view()).into(),
        },
        HostView::I64(array) => from_array(array.mapv(saturate).view()).into(),
    }
}

fn saturate(n: i64) -> i32 {
    n.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

fn from_array<T: Clone>(array: ArrayViewD<'_, T>) -> RtenTensor<T> {
    RtenTensor::from_data(array.shape(), array.iter().cloned().collect::<Vec<T>>())
}

fn to_array<T: Clone>(tensor: RtenTensor<T>) -> ArrayD<T> {
    let shape = tensor.shape().to_vec();
    ArrayD::from_shape_vec(shape, tensor.into_data()).expect("as many elements as the shape says")
}

fn port(model: &Model, id: NodeId) -> Result<Port, String> {
    let info = model.node_info(id);
    let name = info.as_ref().and_then(|info| info.name()).unwrap_or_default().to_owned();
    let element_type = match info.as_ref().and_then(|info| info.dtype()) {
        Some(ValueType::Tensor(DataType::Float)) => ElementType::F32,
        Some(ValueType::Tensor(DataType::Int32)) => ElementType::I64,
        other => return Err(format!("port '{name}' has type {other:?}; supported: f32, i64")),
    };
    let shape = info.and_then(|info| info.shape()).unwrap_or_default();
    let shape = shape
        .into_iter()
        .map(|dim| match dim {
            Dimension::Fixed(n) => Some(n),
            Dimension::Symbolic(_) => None,
        })
        .collect();
    Ok(Port { name, element_type, shape })
}
