use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_bundle::stable_diffusion::UNET;
use kiln_bundle::{ComponentName, TensorFile};

use crate::change::{Change, Parts, of_bias, of_optional_bias, of_weight};
use crate::keys::{Naming, Spelling, shown};
use crate::names::Target;
use crate::settings::Settings;

/// The change of one weight.
#[derive(Clone, Debug)]
pub struct LoraModule {
    role: ComponentName,
    name: String,
    pub(crate) spelling: Spelling,
    naming: Naming,
    pub(crate) target: Target,
    /// Whether the model need not have the weight.
    pub(crate) is_optional: bool,
    pub(crate) change: Arc<dyn Change>,
}

/// The tensors of a module before they are known to be an adapter.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) naming: Option<Naming>,
    pub(crate) keys: BTreeMap<&'static str, String>,
}

impl Draft {
    /// The changes that the tensors make: of the module's weight, of its bias or of both.
    pub(crate) fn modules(
        self,
        tensors: &TensorFile,
        settings: &Settings,
        role: ComponentName,
        spelling: Spelling,
    ) -> Result<Vec<LoraModule>, String> {
        let name = shown(&self.name);
        let mut parts = Parts::new(tensors, &name, self.keys, settings.of(role, &self.name));
        let weight = of_weight(&mut parts)?;
        let scale = weight.as_ref().map_or(1.0, |change| change.scale());
        let bias = of_bias(&mut parts, scale)?;
        let optional = of_optional_bias(&mut parts)?;
        if let Some(key) = parts.left() {
            return Err(format!("'{}' is not part of a LoRA", shown(&key)));
        }
        let naming = self.naming.unwrap_or(Naming::Peft);
        let module = |target, is_optional, change: Option<Arc<dyn Change>>| {
            let (name, spelling) = (name.clone(), spelling.clone());
            Some(LoraModule { role, name, spelling, naming, target, is_optional, change: change? })
        };
        let found: Vec<LoraModule> = [
            module(Target::Weight, false, weight),
            module(Target::Bias, false, bias),
            module(Target::Bias, true, optional),
        ]
        .into_iter()
        .flatten()
        .collect();
        match found.is_empty() {
            true => Err(format!("module '{name}' has an alpha, and nothing that it scales")),
            false => Ok(found),
        }
    }
}

impl LoraModule {
    /// The component that it changes.
    pub fn role(&self) -> ComponentName {
        self.role
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose name that is.
    pub fn naming(&self) -> Naming {
        self.naming
    }

    /// How it changes the weight: `LoRA`, `LoHa`, `difference` and others.
    pub fn kind(&self) -> &'static str {
        self.change.kind()
    }

    /// Whether it changes the bias and not the weight.
    pub fn is_bias(&self) -> bool {
        self.target == Target::Bias
    }

    /// Whether it is one of the UNet's projections of what it attends to.
    pub(crate) fn attends_to_text(&self) -> bool {
        let name = self.name.replace('.', "_");
        let is_weight = self.role == UNET && self.target == Target::Weight;
        is_weight && name.contains("attn2") && ["to_k", "to_v"].iter().any(|end| name.ends_with(end))
    }

    /// Rank of its factors; `None` where it has none.
    pub fn rank(&self) -> Option<usize> {
        self.change.rank()
    }

    /// Factor of the change by itself: the module's own alpha over its rank, what a configuration of peft's says, or 1.
    ///
    /// diffusers 0.42 reads the same from files with one alpha; where alphas differ, it takes the commonest for
    /// attention and text encoders, and for modules without one.
    pub fn scale(&self) -> f64 {
        self.change.scale()
    }

    /// Shape of the change, as far as the file tells: outputs, then inputs and, for a convolution, the kernel's height
    /// and width; kinds that flatten kernels join them to the inputs.
    pub fn shape(&self) -> Vec<usize> {
        self.change.shape()
    }
}
