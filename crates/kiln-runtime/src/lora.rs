//! LoRAs at run time: which weights of a bundle they change, and the changed weights.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use half::{bf16, f16};
use kiln_bundle::{Bundle, Component, Role};
use kiln_engine::{Elements, WeightOverride, WeightOverrides};
use kiln_lora::{Lora, LoraError, ModelWeights, TensorFile, WeightChanges};
use safetensors::Dtype;

use crate::Error;

/// The weights of a bundle that LoRAs can change.
pub(crate) fn targets(bundle: &Bundle, loras: &[Lora]) -> Result<ModelWeights, Error> {
    let mut model = ModelWeights::new();
    if loras.is_empty() {
        return Ok(model);
    }
    for role in [Role::Unet, Role::TextEncoder, Role::TextEncoder2] {
        let Some(component) = bundle.manifest().components.get(&role) else { continue };
        let file = TensorFile::open(&bundle.path(&component.weights))?;
        let weights = file.tensors().iter().map(|(name, info)| (name.clone(), info.shape.clone()));
        model.insert(role, weights, component.unread_weights.iter().cloned());
    }
    Ok(model)
}

/// The changed weights of a component, computed from those that the bundle holds.
pub(crate) fn overrides(
    bundle: &Bundle,
    component: &Component,
    changes: &WeightChanges,
) -> Result<Arc<WeightOverrides>, Error> {
    let file = TensorFile::open(&bundle.path(&component.weights))?;
    let names: Vec<&str> = changes.names().collect();
    let next = AtomicUsize::new(0);
    let done: Mutex<Result<BTreeMap<String, WeightOverride>, Error>> = Mutex::new(Ok(BTreeMap::new()));
    let work = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let changed = changed(&file, name, changes);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            match (changed, done.as_mut()) {
                (Ok(weight), Ok(weights)) => drop(weights.insert((*name).to_owned(), weight)),
                (Err(e), Ok(_)) => *done = Err(e),
                (_, Err(_)) => break,
            }
        }
    };
    let n_threads = thread::available_parallelism().map_or(1, usize::from).min(names.len());
    thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(work);
        }
        work();
    });
    let weights = done.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    Ok(Arc::new(WeightOverrides { file: component.weights.clone(), weights }))
}

/// A weight with its changes, in the type that the bundle stores it in.
fn changed(file: &TensorFile, name: &str, changes: &WeightChanges) -> Result<WeightOverride, Error> {
    let mut values = file.read_f32(name)?;
    changes.apply(name, &mut values)?;
    let info = &file.tensors()[name];
    let elements = match info.dtype {
        Dtype::F16 => Elements::F16(rounded(file, name, &values)?),
        Dtype::BF16 => Elements::BF16(values.into_iter().map(bf16::from_f32).collect()),
        _ => Elements::F32(values),
    };
    Ok(WeightOverride { offset: info.offset, shape: info.shape.clone(), elements })
}

fn rounded(file: &TensorFile, name: &str, values: &[f32]) -> Result<Vec<f16>, LoraError> {
    let halves = values.iter().map(|&value| match f16::from_f32(value) {
        half if half.is_finite() => Ok(half),
        _ => Err(LoraError::new(file.path(), format!("LoRAs make '{name}' {value}, which overflows f16"))),
    });
    halves.collect()
}
