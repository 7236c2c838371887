//! Which weights several LoRAs change, and the arithmetic.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use kiln_bundle::ComponentName;
use kiln_bundle::stable_diffusion::TEXT_ENCODER_2;

use crate::change::Weight;
use crate::keys::other_family;
use crate::names::Found;
use crate::{LoraError, LoraFile, LoraModule, ModelWeights};

/// How many modules a notice names.
const N_NAMED: usize = 3;

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
    notices: Vec<String>,
}

/// What LoRAs change in one component.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightChanges {
    weights: BTreeMap<String, Vec<Change>>,
}

#[derive(Clone, Debug)]
struct Change {
    lora: Lora,
    module: LoraModule,
    /// Shape of the weight.
    shape: Vec<usize>,
}

impl PartialEq for Change {
    fn eq(&self, other: &Change) -> bool {
        self.lora == other.lora && self.module.name() == other.module.name() && self.shape == other.shape
    }
}

/// A module and the weight that it changes.
type Fit<'l, 'm> = (&'l LoraModule, Found<'m>);

impl LoraPlan {
    /// Finds the weights of a model that the LoRAs change.
    ///
    /// What a file changes that the model lacks, or has in another shape, is left out with a notice. A file of which
    /// nothing fits, or whose shapes are those of another kind of model, is an error whatever the LoRA's weight.
    pub fn new(loras: &[Lora], model: &ModelWeights) -> Result<LoraPlan, LoraError> {
        let mut components: BTreeMap<ComponentName, WeightChanges> = BTreeMap::new();
        let mut notices = Vec::new();
        for lora in loras {
            let refuse = |reason: String| LoraError::new(lora.file.path(), reason);
            if !lora.weight.is_finite() {
                return Err(refuse(format!("weight {} is not a finite number", lora.weight)));
            }
            let (fits, left_out) = fit(&lora.file, model)?;
            notices.extend(notice(&lora.file, fits.len(), &left_out));
            notices.extend(lora.file.notice());
            let mut named: BTreeMap<(ComponentName, &str), &str> = BTreeMap::new();
            for (module, found) in fits {
                if let Some(twin) = named.insert((module.role(), found.weight), module.name()) {
                    let (name, weight) = (module.name(), found.weight);
                    return Err(refuse(format!("modules '{twin}' and '{name}' both change '{weight}'")));
                }
                let Some(shape) = found.shape.filter(|_| lora.weight != 0.0) else { continue };
                let changes = components.entry(module.role()).or_default();
                let change = Change { lora: lora.clone(), module: module.clone(), shape: shape.to_vec() };
                changes.weights.entry(found.weight.to_owned()).or_default().push(change);
            }
        }
        let components = components.into_iter().map(|(role, changes)| (role, Arc::new(changes)));
        Ok(LoraPlan { components: components.collect(), notices })
    }

    /// What users should know of files that are not used as a whole: a line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
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

/// The modules that fit a model, and the names of the others.
fn fit<'l, 'm>(
    file: &'l LoraFile,
    model: &'m ModelWeights,
) -> Result<(Vec<Fit<'l, 'm>>, Vec<&'l str>), LoraError> {
    let (mut fits, mut left_out, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
    for module in file.modules() {
        match find(module, model) {
            Ok(found) => fits.push((module, found)),
            Err(_) if module.is_optional => {}
            Err(reason) => {
                left_out.push(module.name());
                reasons.push((module, reason));
            }
        }
    }
    let is_of_model = fits.iter().any(|(module, _)| module.attends_to_text());
    let tells_another = |module: &LoraModule| {
        let is_missing = module.role() == TEXT_ENCODER_2 && !model.has(TEXT_ENCODER_2);
        is_missing && !is_of_model
            || model.find(module.role(), &module.spelling, module.target).is_some_and(|found| {
                let width = found.shape.and_then(|shape| shape.get(1));
                module.attends_to_text() && module.shape().get(1).is_some_and(|own| Some(own) != width)
            })
    };
    let telling = reasons.iter().find(|(module, _)| tells_another(module));
    match telling.or(reasons.first().filter(|_| fits.is_empty())) {
        Some((_, reason)) => Err(misfit(file, reason.clone())),
        None => {
            left_out.extend(file.foreign());
            Ok((fits, left_out))
        }
    }
}

/// The weight that a module changes, or why it changes none.
fn find<'m>(module: &LoraModule, model: &'m ModelWeights) -> Result<Found<'m>, String> {
    let (role, name) = (module.role(), module.name());
    if !model.has(role) {
        return Err(format!("module '{name}' is for {role}, which this model does not have"));
    }
    let Some(found) = model.find(role, &module.spelling, module.target) else {
        let what = if module.is_bias() { "bias" } else { "weight" };
        return Err(format!("module '{name}' matches no {what} of this model's {role}"));
    };
    match found.shape {
        Some(shape) if !module.change.fits(shape) => {
            let (own, weight) = (module.shape(), found.weight);
            Err(format!("module '{name}' has shape {own:?}, and this model's '{weight}' {shape:?}"))
        }
        _ => Ok(found),
    }
}

/// A line on modules that are left out.
fn notice(file: &LoraFile, n_fits: usize, left_out: &[&str]) -> Option<String> {
    let (n, all) = (left_out.len(), n_fits + left_out.len());
    let names = left_out.iter().take(N_NAMED).copied().collect::<Vec<_>>().join(", ");
    let more = match n.saturating_sub(N_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let path = file.path().display();
    (n > 0).then(|| {
        format!("{path}: {n} of its {all} modules do not fit this model and are left out: {names}{more}")
    })
}

fn misfit(file: &LoraFile, reason: String) -> LoraError {
    let shapes = file.family().map(|family| format!("; its shapes are those of a LoRA for {family}"));
    let names = || Some(format!("; the file is a LoRA for {}", file.modules().iter().find_map(named_family)?));
    let guess = shapes.or_else(names);
    LoraError::new(file.path(), format!("{reason}{}", guess.unwrap_or_default()))
}

/// The family that a module's name in kohya's manner is of.
fn named_family(module: &LoraModule) -> Option<&'static str> {
    let name = module.name().strip_prefix("lora_unet_")?;
    other_family(name)
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

    /// Changes a weight in row-major order, by one LoRA after the other in the order in which they were given.
    ///
    /// The same numbers always give the same bits; a result that is not finite is an error.
    pub fn apply(&self, name: &str, weight: &mut [f32]) -> Result<(), LoraError> {
        for change in self.weights.get(name).into_iter().flatten() {
            change.apply(name, weight)?;
        }
        Ok(())
    }
}

impl Change {
    fn apply(&self, name: &str, weight: &mut [f32]) -> Result<(), LoraError> {
        let (file, module, shape) = (&self.lora.file, &self.module, &self.shape);
        let refuse = |reason: String| LoraError::new(file.path(), reason);
        let n: usize = shape.iter().product();
        if weight.len() != n {
            return Err(refuse(format!("'{name}' has {} elements, and its change {n}", weight.len())));
        }
        let mut changed = Weight { shape, values: weight };
        module.change.apply(file.tensors(), f64::from(self.lora.weight), &mut changed)?;
        match weight.iter().find(|value| !value.is_finite()) {
            None => Ok(()),
            Some(value) => Err(refuse(format!("module '{}' makes '{name}' {value}", module.name()))),
        }
    }
}
