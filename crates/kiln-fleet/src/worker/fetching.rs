//! Fetches bundles that jobs wait for and this worker does not have.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_runtime::Target;
use kiln_runtime::bundle::Bundle;
use kiln_server::Runtime;
use kiln_server::config::ModelConfig;

use super::station::Station;
use crate::FleetError;
use crate::bundles::Bundles;
use crate::names::Lane;

/// How often it looks whether there is something to fetch.
const LOOK: Duration = Duration::from_secs(2);

/// How long a lane is left alone whose bundle could not be had.
const REST: Duration = Duration::from_secs(30);

/// Fetches bundles, for as long as the process lives.
pub(super) struct Fetching {
    station: Arc<Station>,
    runtime: Runtime,
    models: Vec<(ModelConfig, Bundle)>,
    folder: PathBuf,
    failed: HashMap<String, Instant>,
    /// What this machine runs.
    classes: Vec<String>,
}

impl Fetching {
    pub(super) fn new(
        station: Arc<Station>,
        runtime: Runtime,
        models: Vec<(ModelConfig, Bundle)>,
        folder: PathBuf,
    ) -> Fetching {
        let runs = |target: &Target| runtime.backends.place(*target).is_ok();
        let classes = Target::ALL.into_iter().filter(runs).map(|target| target.to_string()).collect();
        Fetching { station, runtime, models, folder, failed: HashMap::new(), classes }
    }

    pub(super) async fn run(mut self) {
        loop {
            for lane in self.missing().await.unwrap_or_default() {
                if self.station.is_draining() {
                    return;
                }
                if let Err(error) = self.fetch(&lane).await {
                    tracing::warn!(
                        model = lane.model,
                        bundle = lane.bundle,
                        "cannot be drawn with here: {error}"
                    );
                    self.failed.insert(lane.to_string(), Instant::now());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lanes with jobs, of this machine's kind of device, whose bundle is not here.
    async fn missing(&mut self) -> Result<Vec<Lane>, FleetError> {
        self.failed.retain(|_, since| since.elapsed() < REST);
        let is_missing = |lane: &Lane| {
            self.classes.contains(&lane.class)
                && self.station.offers.find(lane).is_none()
                && !self.failed.contains_key(&lane.to_string())
        };
        let queues = self.station.broker.queues().await?;
        let mut lanes: Vec<Lane> = queues.into_iter().map(|queue| queue.lane).filter(is_missing).collect();
        lanes.sort();
        lanes.dedup();
        Ok(lanes)
    }

    async fn fetch(&mut self, lane: &Lane) -> Result<(), FleetError> {
        let bundles = Bundles::of(&self.station.broker).await?;
        let packed = bundles.find(&lane.bundle).await?;
        let packed = packed.ok_or_else(|| FleetError::Unknown("the fleet does not have the bundle".into()))?;
        let key = self.runtime.seal_key.as_ref();
        let key = key.ok_or_else(|| FleetError::Refused("there is no key to seal bundles with".into()))?;
        tracing::info!(model = lane.model, bundle = lane.bundle, "fetching {} bytes", packed.size);
        let folder = self.folder.join(&packed.bundle);
        let bundle = bundles.fetch(&packed, &folder, key, |_, _| {}).await?;
        self.serve(&lane.model, bundle).await
    }

    /// Takes up a model; under another name where one is here that is called the same.
    async fn serve(&mut self, public: &str, bundle: Bundle) -> Result<(), FleetError> {
        let own = self.models.iter().find(|(config, _)| config.name == public).map(|(config, _)| config);
        let config = match own {
            Some(own) => {
                let name = format!("{public}@{}", &bundle.digest()[..8]);
                ModelConfig { name, bundle: bundle.root().into(), ..own.clone() }
            }
            None => ModelConfig::new(public, bundle.root()),
        };
        let name = config.name.clone();
        let mut models = self.models.clone();
        models.push((config, bundle.clone()));
        let (service, runtime) = (self.station.service.clone(), self.runtime.clone());
        let (served, models) = tokio::task::spawn_blocking(move || (service.serve(&models, &runtime), models))
            .await
            .map_err(|e| FleetError::Refused(e.to_string()))?;
        served.map_err(|e| FleetError::Refused(e.to_string()))?;
        self.models = models;
        self.station.offers.add(public, &name, &bundle);
        self.station.changed.notify_waiters();
        tracing::info!(model = name, "can be drawn with");
        Ok(())
    }
}
