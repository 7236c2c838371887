//! Which weights several LoRAs change, and the arithmetic.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use kiln_bundle::ComponentName;
use ndarray::{ArrayView2, Axis, Slice};

use crate::{LoraError, LoraFile, LoraModule, ModelWeights};

/// Elements of a change that are computed at a time.
const CHUNK: usize = 1 << 20;

/// A LoRA and its weight.
#[derive(Clone, Debug)]
pub struct Lora {
    /// The file.
    pub file: Arc<LoraFile>,
    /// Factor of its changes; 0 changes nothing.
    pub weight: f32,
}

impl PartialEq for Lora {
    fn eq(&self, other: &Lora) -> bool {
        self.file.digest() == other.file.digest() && self.weight.to_bits() == other.weight.to_bits()
    }
}

impl Eq for Lora {}

impl Hash for Lora {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.file.digest(), self.weight.to_bits()).hash(state);
    }
}

/// What LoRAs change in a model, by component.
#[derive(Clone, Debug, Default)]
pub struct LoraPlan {
    components: BTreeMap<ComponentName, Arc<WeightChanges>>,
}

/// What LoRAs change in one component.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightChanges {
    weights: BTreeMap<String, Vec<Change>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Change {
    lora: Lora,
    module: LoraModule,
}

impl LoraPlan {
    /// Finds the weights of a model that the LoRAs change.
    ///
    /// A module that matches no weight, or one of another shape, is an error whatever the LoRA's weight.
    pub fn new(loras: &[Lora], model: &ModelWeights) -> Result<LoraPlan, LoraError> {
        let mut components: BTreeMap<ComponentName, WeightChanges> = BTreeMap::new();
        for lora in loras {
            let refuse = |reason: String| LoraError::new(lora.file.path(), reason);
            if !lora.weight.is_finite() {
                return Err(refuse(format!("weight {} is not a finite number", lora.weight)));
            }
            if let Some(module) = lora.file.modules().iter().find(|module| !model.has(module.role())) {
                let (name, role) = (module.name(), module.role());
                return Err(misfit(
                    &lora.file,
                    format!("module '{name}' is for {role}, which this model does not have"),
                ));
            }
            let mut named: BTreeMap<(ComponentName, &str), &str> = BTreeMap::new();
            for module in lora.file.modules() {
                let found = find(&lora.file, module, model)?;
                let twin = named.insert((module.role(), found.0), module.name());
                if let Some(twin) = twin {
                    let (name, weight) = (module.name(), found.0);
                    return Err(refuse(format!("modules '{twin}' and '{name}' both change '{weight}'")));
                }
                if lora.weight == 0.0 || !found.1 {
                    continue;
                }
                let changes = components.entry(module.role()).or_default();
                let change = Change { lora: lora.clone(), module: module.clone() };
                changes.weights.entry(found.0.to_owned()).or_default().push(change);
            }
        }
        let components = components.into_iter().map(|(role, changes)| (role, Arc::new(changes)));
        Ok(LoraPlan { components: components.collect() })
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.components.is_empty()
    }

    /// The changes of a component, if it has any.
    pub fn changes(&self, role: ComponentName) -> Option<&Arc<WeightChanges>> {
        self.components.get(&role)
    }
}

/// The weight that a module changes, and whether anything depends on it.
fn find<'m>(
    file: &LoraFile,
    module: &LoraModule,
    model: &'m ModelWeights,
) -> Result<(&'m str, bool), LoraError> {
    let (role, name) = (module.role(), module.name());
    let Some(found) = model.find(role, &module.spelling) else {
        return Err(misfit(file, format!("module '{name}' matches no weight of this model's {role}")));
    };
    match found.shape {
        Some(shape) if !module.fits(shape) => {
            let (own, weight) = (module.shape(), found.weight);
            Err(misfit(
                file,
                format!("module '{name}' has shape {own:?}, and this model's '{weight}' {shape:?}"),
            ))
        }
        shape => Ok((found.weight, shape.is_some())),
    }
}

fn misfit(file: &LoraFile, reason: String) -> LoraError {
    let guess = file.family().map(|family| format!("; its shapes are those of a LoRA for {family}"));
    LoraError::new(file.path(), format!("{reason}{}", guess.unwrap_or_default()))
}

impl WeightChanges {
    /// Whether a LoRA is among those that make them.
    pub fn are_by(&self, lora: &Lora) -> bool {
        self.weights.values().flatten().any(|change| change.lora == *lora)
    }

    /// Names of the weights that change.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// Whether a weight changes.
    pub fn contains(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    /// Adds the changes to a weight in row-major order: `weight + sum(weight_i * scale_i * up_i @ down_i)`.
    ///
    /// The same numbers always give the same bits; a sum that is not finite is an error.
    pub fn apply(&self, name: &str, weight: &mut [f32]) -> Result<(), LoraError> {
        for change in self.weights.get(name).into_iter().flatten() {
            change.add_to(name, weight)?;
        }
        Ok(())
    }
}

impl Change {
    fn add_to(&self, name: &str, weight: &mut [f32]) -> Result<(), LoraError> {
        let (file, module) = (&self.lora.file, &self.module);
        let refuse = |reason: String| LoraError::new(file.path(), reason);
        let [up, down] = file.matrices(module)?;
        let (rows, rank) = (module.outputs(), module.rank());
        let columns = down.len() / rank;
        if weight.len() != rows * columns {
            let found = weight.len();
            return Err(refuse(format!("'{name}' has {found} elements, and its change {}", rows * columns)));
        }
        let misshapen = |e: ndarray::ShapeError| refuse(format!("'{}': {e}", module.name()));
        let up = ArrayView2::from_shape((rows, rank), &up).map_err(misshapen)?;
        let down = ArrayView2::from_shape((rank, columns), &down).map_err(misshapen)?;
        let scale = (f64::from(self.lora.weight) * module.scale()) as f32;
        let at_once = (CHUNK / columns).max(1);
        for (i, part) in weight.chunks_mut(at_once * columns).enumerate() {
            let from = i * at_once;
            let to = (from + at_once).min(rows);
            let product = up.slice_axis(Axis(0), Slice::from(from..to)).dot(&down);
            for (value, change) in part.iter_mut().zip(&product) {
                *value += scale * change;
            }
        }
        match weight.iter().find(|value| !value.is_finite()) {
            None => Ok(()),
            Some(value) => Err(refuse(format!("module '{}' makes '{name}' {value}", module.name()))),
        }
    }
}
