//! Which engines are loaded.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_bundle::{Bundle, Role};
use kiln_engine::{Backend, Engine, LoadOptions};
use kiln_lora::LoraPlan;

use crate::Error;
use crate::lora::ChangedWeights;

/// The engines of a bundle, each loaded when it is first needed and kept.
pub(crate) struct Residency {
    backend: Arc<dyn Backend>,
    options: LoadOptions,
    loaded: BTreeMap<Role, Box<dyn Engine>>,
    loras: LoraPlan,
}

impl Residency {
    pub(crate) fn new(backend: Arc<dyn Backend>, options: LoadOptions) -> Residency {
        Residency { backend, options, loaded: BTreeMap::new(), loras: LoraPlan::default() }
    }

    /// An empty one with the same backend and options.
    pub(crate) fn sibling(&self) -> Residency {
        Residency::new(self.backend.clone(), self.options.clone())
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(crate) fn is_loaded(&self, role: Role) -> bool {
        self.loaded.contains_key(&role)
    }

    /// Drops the engines whose weights other LoRAs change from now on.
    pub(crate) fn set_loras(&mut self, loras: LoraPlan) {
        let before = std::mem::replace(&mut self.loras, loras);
        self.loaded.retain(|role, _| before.changes(owner(*role)) == self.loras.changes(owner(*role)));
    }

    pub(crate) fn engine(&mut self, bundle: &Bundle, role: Role) -> Result<&mut dyn Engine, Error> {
        if !self.is_loaded(role) {
            for twin in twins(role) {
                self.loaded.remove(twin);
            }
            let component = bundle.component(role)?;
            let options = match self.loras.changes(owner(role)) {
                None => self.options.clone(),
                Some(changes) => {
                    let weights = ChangedWeights::new(bundle, component, changes)?;
                    LoadOptions { overrides: Some(Arc::new(weights)), ..self.options.clone() }
                }
            };
            self.loaded.insert(role, self.backend.load(&bundle.path(&component.engine), &options)?);
        }
        match self.loaded.get_mut(&role) {
            Some(engine) => Ok(engine.as_mut()),
            None => Err(Error::Component { component: role, reason: "is not loaded".into() }),
        }
    }
}

/// The component by whose name LoRAs call a role's weights.
fn owner(role: Role) -> Role {
    match role {
        Role::UnetControlled => Role::Unet,
        role => role,
    }
}

/// Engines over the same weights, of which one at a time is enough.
fn twins(role: Role) -> &'static [Role] {
    match role {
        Role::Unet => &[Role::UnetControlled],
        Role::UnetControlled => &[Role::Unet],
        _ => &[],
    }
}
