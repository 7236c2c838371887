//! What a server takes anew while it runs.

use std::path::PathBuf;

use kiln_runtime::bundle::Bundle;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::Service;
use crate::config::ModelConfig;
use crate::http::{App, Keys};
use crate::models::Runtime;
use crate::server::{ServerError, acceptor};

/// Exchanges a server's models, keys and certificate. Cheap to clone.
#[derive(Clone)]
pub struct Renewer {
    pub(crate) service: Service,
    pub(crate) runtime: Runtime,
    pub(crate) app: App,
    pub(crate) tls: watch::Sender<Option<TlsAcceptor>>,
}

impl Renewer {
    /// Asks for these keys, and shows this certificate with its private key, to whoever comes from now on. A fault changes
    /// nothing. A server that asks for keys never ceases to, and none begins to.
    pub fn access(&self, keys: Keys, tls: Option<&(PathBuf, PathBuf)>) -> Result<(), ServerError> {
        if keys.is_empty() != self.app.keys().is_empty() {
            return Err(ServerError::Keys);
        }
        let tls = acceptor(tls)?;
        self.app.exchange_keys(keys);
        self.tls.send_replace(tls);
        Ok(())
    }

    /// Serves these models from now on; jobs that have begun end with the model that they began with. A fault changes nothing.
    pub fn models(&self, models: &[(ModelConfig, Bundle)]) -> Result<(), ServerError> {
        self.service.serve(models, &self.runtime)
    }
}
