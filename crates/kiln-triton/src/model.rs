//! A model of the repository: its bundle, and what its configuration says.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::ptr::{null, null_mut};
use std::str::FromStr;
use std::time::Duration;

use kiln_runtime::bundle::Bundle;

use kiln_runtime::{Backends, Device, Libraries, Library, MemoryOptions, Pool, SealKey};
use kiln_server::config::{Limits, ModelConfig};
use kiln_server::inference::Backend;
use kiln_server::{Runtime, WorkerOptions};
use serde::Deserialize;

use crate::error::{Failure, check, text};
use crate::sys;

/// Most requests that wait for their turn in kiln; the server has a queue of its own before that.
const QUEUE: usize = 256;

/// The part of the model's configuration that is the backend's.
#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    parameters: BTreeMap<String, Parameter>,
}

#[derive(Deserialize)]
struct Parameter {
    string_value: String,
}

/// Opens the bundle of a model's version, and starts the thread that draws with it.
///
/// # Safety
/// The model is one that the server is initializing.
pub(crate) unsafe fn open(model: *mut sys::Model) -> Result<Backend, Failure> {
    // SAFETY: the caller's promise; the places are valid.
    let (name, folder, configuration) = unsafe { (name(model)?, folder(model)?, configuration(model)?) };
    let mut parameters = Parameters(configuration.parameters);
    let threads = parameters.take::<usize>("threads")?;
    let device = parameters.take::<Device>("device")?.unwrap_or_default();
    let budget = parameters.take::<u64>("memory_budget_bytes")?;
    let batch = parameters.take::<usize>("batch")?.unwrap_or(8);
    let mut libraries = Libraries::new().from_environment();
    if let Some(path) = parameters.take::<PathBuf>("onnxruntime")? {
        libraries = libraries.with_path(Library::OnnxRuntimeCpu, path);
    }
    let key = parameters.take::<PathBuf>("seal_key")?.map(|file| SealKey::open(&file));
    let key = key.transpose().map_err(|e| invalid("seal_key", e))?;
    let limits = parameters.take::<String>("limits")?.map(|text| serde_json::from_str::<Limits>(&text));
    let limits = limits.transpose().map_err(|e| invalid("limits", e))?.unwrap_or_default();
    parameters.finish()?;

    let bundle = Bundle::open(&folder).map_err(|e| Failure::new(sys::ERROR_INVALID, e))?;
    let runtime = Runtime {
        backends: Backends::new(libraries).device(device).threads(threads),
        pool: budget.map_or_else(Pool::new, Pool::with_budget),
        memory: MemoryOptions::new(),
        seal_key: key,
        kernels: None,
    };
    let config = ModelConfig { preload: true, keep: true, limits, ..ModelConfig::new(name, folder) };
    let options = WorkerOptions { batch: batch.max(1), idle: Duration::MAX, stuck_after: None };
    Backend::start(config, bundle, &runtime, QUEUE, options).map_err(|e| Failure::new(sys::ERROR_INVALID, e))
}

/// Parameters that nobody has read yet.
struct Parameters(BTreeMap<String, Parameter>);

impl Parameters {
    fn take<T: FromStr<Err: Display>>(&mut self, key: &str) -> Result<Option<T>, Failure> {
        let given = self.0.remove(key).map(|parameter| parameter.string_value.parse());
        given.transpose().map_err(|e| invalid(key, e))
    }

    fn finish(self) -> Result<(), Failure> {
        match self.0.into_keys().next() {
            Some(key) => Err(invalid(&key, "is no parameter of the backend kiln")),
            None => Ok(()),
        }
    }
}

fn invalid(key: &str, reason: impl Display) -> Failure {
    Failure::new(sys::ERROR_INVALID, format!("parameters: {key}: {reason}"))
}

/// # Safety
/// As [`open`].
unsafe fn name(model: *mut sys::Model) -> Result<String, Failure> {
    let mut name = null();
    // SAFETY: the caller's promise; the text lives as long as the model.
    unsafe {
        check(sys::TRITONBACKEND_ModelName(model, &mut name))?;
        Ok(text(name))
    }
}

/// The folder of the model's version, which is a bundle.
///
/// # Safety
/// As [`open`].
unsafe fn folder(model: *mut sys::Model) -> Result<PathBuf, Failure> {
    let (mut kind, mut location, mut version) = (0, null(), 0);
    // SAFETY: the caller's promise; the text lives as long as the model.
    unsafe {
        check(sys::TRITONBACKEND_ModelRepository(model, &mut kind, &mut location))?;
        check(sys::TRITONBACKEND_ModelVersion(model, &mut version))?;
        Ok(PathBuf::from(text(location)).join(version.to_string()))
    }
}

/// # Safety
/// As [`open`].
unsafe fn configuration(model: *mut sys::Model) -> Result<Configuration, Failure> {
    let (mut message, mut base, mut n_bytes) = (null_mut(), null(), 0);
    // SAFETY: the caller's promise; the bytes live as long as the message, which is deleted behind them.
    let read = unsafe {
        check(sys::TRITONBACKEND_ModelConfig(model, 1, &mut message))?;
        check(sys::TRITONSERVER_MessageSerializeToJson(message, &mut base, &mut n_bytes))
            .map(|()| serde_json::from_slice(std::slice::from_raw_parts(base.cast::<u8>(), n_bytes)))
    };
    // SAFETY: it was handed over above, and is not used any more.
    check(unsafe { sys::TRITONSERVER_MessageDelete(message) })?;
    read?.map_err(|e| Failure::new(sys::ERROR_INVALID, format!("config.pbtxt: {e}")))
}
