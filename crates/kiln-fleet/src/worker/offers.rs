//! What a worker draws with.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use kiln_bundle::{Bundle, FileStamp, fs};
use kiln_server::Service;
use kiln_server::config::ModelConfig;

use crate::names::Lane;

/// A lane whose jobs a worker can draw.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Offer {
    pub(crate) lane: Lane,
    /// What this process calls the model.
    pub(crate) model: String,
    /// Bytes of the bundle, about as many as its weights take.
    pub(crate) bytes: u64,
}

/// The lane of a model's jobs.
pub(crate) fn lane(model: &str, bundle: &Bundle) -> Lane {
    Lane { class: bundle.manifest().target.to_string(), model: model.into(), bundle: bundle.digest() }
}

/// What a worker draws with. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Offers(Arc<RwLock<Vec<Offer>>>);

impl Offers {
    /// Takes up the models that a service has.
    pub(crate) fn of(models: &[(ModelConfig, Bundle)]) -> Offers {
        let offers = Offers::default();
        models.iter().for_each(|(config, bundle)| offers.add(&config.name, &config.name, bundle));
        offers
    }

    /// Takes up a model that others call `public` and this process `model`.
    pub(crate) fn add(&self, public: &str, model: &str, bundle: &Bundle) {
        let bytes = bundle.manifest().files.values().map(|file| file.size).sum();
        let offer = Offer { lane: lane(public, bundle), model: model.into(), bytes };
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|other| other.lane != offer.lane);
        known.push(offer);
    }

    pub(crate) fn all(&self) -> Vec<Offer> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The offer of a lane, whose digest may be cut short.
    pub(crate) fn find(&self, lane: &Lane) -> Option<Offer> {
        let name = lane.to_string();
        self.all().into_iter().find(|offer| offer.lane.to_string() == name)
    }
}

/// Digests of the files of LoRAs, each read once for as long as it is the same file.
#[derive(Clone, Default)]
pub(crate) struct LoraDigests(Arc<Mutex<HashMap<PathBuf, (FileStamp, String)>>>);

impl LoraDigests {
    /// The digest of a model's LoRA, if it can be read.
    pub(crate) fn of(&self, service: &Service, model: &str, lora: &str) -> Option<String> {
        self.of_file(&service.models().lora(model, lora)?)
    }

    fn of_file(&self, path: &Path) -> Option<String> {
        let stamp = FileStamp::of(path).ok()?;
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, digest)) = known().get(path).filter(|(of, _)| *of == stamp) {
            return Some(digest.clone());
        }
        let digest = fs::digest(path).ok()?;
        known().insert(path.into(), (stamp, digest.clone()));
        Some(digest)
    }
}
