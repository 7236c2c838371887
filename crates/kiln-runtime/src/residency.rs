//! Which engines are loaded.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_bundle::{Bundle, Role};
use kiln_engine::{Backend, Engine, LoadOptions};

use crate::Error;

/// The engines of a bundle, each loaded when it is first needed and kept.
pub(crate) struct Residency {
    backend: Arc<dyn Backend>,
    options: LoadOptions,
    loaded: BTreeMap<Role, Box<dyn Engine>>,
}

impl Residency {
    pub(crate) fn new(backend: Arc<dyn Backend>, options: LoadOptions) -> Residency {
        Residency { backend, options, loaded: BTreeMap::new() }
    }

    /// An empty one with the same backend and options.
    pub(crate) fn sibling(&self) -> Residency {
        Residency::new(self.backend.clone(), self.options)
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub(crate) fn is_loaded(&self, role: Role) -> bool {
        self.loaded.contains_key(&role)
    }

    pub(crate) fn engine(&mut self, bundle: &Bundle, role: Role) -> Result<&mut dyn Engine, Error> {
        if !self.is_loaded(role) {
            for twin in twins(role) {
                self.loaded.remove(twin);
            }
            let path = bundle.path(&bundle.component(role)?.engine);
            self.loaded.insert(role, self.backend.load(&path, &self.options)?);
        }
        match self.loaded.get_mut(&role) {
            Some(engine) => Ok(engine.as_mut()),
            None => Err(Error::Component { component: role, reason: "is not loaded".into() }),
        }
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
