//! A running server: the runtime, the worker, the store and the listener.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, Uri};
use kiln_runtime::bundle::Bundle;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::ModelConfig;
use crate::http::{self, App, Hosts, Keys, Listening};
use crate::keeper::Keeper;
use crate::keeper::local::LocalKeeper;
use crate::models::Runtime;
use crate::renewal::Renewer;
use crate::store::{Retention, Store, StoreError};
use crate::{Service, Worker, WorkerOptions};

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("{address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Other machines could reach it without a key.
    #[error("{0} can be reached from other machines, and no key guards it")]
    Unguarded(SocketAddr),
    /// Keys appear or are gone while it runs.
    #[error("whether keys are needed is decided at the start")]
    Keys,
    /// A certificate or its key.
    #[error("{path}: {reason}", path = path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A model cannot be served.
    #[error("model {name}: {source}")]
    Model {
        /// Its name.
        name: String,
        /// What is wrong.
        source: Box<kiln_runtime::Error>,
    },
    /// The jobs on disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Those who draw cannot be reached, or their queue cannot be used.
    #[error("{0}")]
    Elsewhere(Box<dyn std::error::Error + Send + Sync>),
    /// The system gives no threads.
    #[error("cannot start: {0}")]
    System(io::Error),
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whether other machines may come in without a key.
    pub allows_strangers: bool,
    /// Who may come in.
    pub keys: Keys,
    /// Certificate chain and private key, as PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Origins whose pages may call.
    pub origins: Vec<HeaderValue>,
    /// Names by which the server may be called where no key guards it, besides addresses, `localhost` and the hosts of
    /// `origins`.
    pub hosts: Vec<String>,
    /// Folder for jobs and their pictures.
    pub state: PathBuf,
    /// What is kept of jobs that have ended.
    pub retention: Retention,
    /// Most jobs that wait, and most of one client.
    pub queue: usize,
    /// Most jobs of one client that wait.
    pub share: usize,
    /// Largest body of a request, in bytes.
    pub max_body: usize,
    /// How the worker works.
    pub worker: WorkerOptions,
}

/// How long the evaluation may take that runs when all jobs are told to stop.
const LAST_STEP: Duration = Duration::from_secs(5);

/// How often it is looked whether the worker gets on.
const LOOK: Duration = Duration::from_secs(1);

/// A running server.
pub struct Server {
    tokio: tokio::runtime::Runtime,
    service: Service,
    /// None where jobs are drawn elsewhere.
    worker: Option<Worker>,
    listening: Listening,
    keeper: Arc<dyn Keeper>,
    renewer: Renewer,
}

impl Server {
    /// Starts to serve models, and draws.
    pub fn start(
        options: ServerOptions,
        runtime: Runtime,
        models: Vec<(ModelConfig, Bundle)>,
    ) -> Result<Server, ServerError> {
        let (state, retention, worker) = (options.state.clone(), options.retention, options.worker);
        let pool = runtime.pool.clone();
        let keep = async move |service: Service| {
            let keeper = LocalKeeper::new(service.clone(), Arc::new(Store::open(&state)?), retention);
            keeper.reopen()?;
            keeper.prune_now_and_then();
            keeper.probe_now_and_then();
            tokio::spawn(tell_when_stuck(service));
            Ok(Arc::new(keeper) as Arc<dyn Keeper>)
        };
        let mut server = Server::start_over(options, runtime, models, keep)?;
        server.worker = Some(Worker::start(&server.service, pool, worker));
        Ok(server)
    }

    /// Starts to serve models that are drawn with elsewhere: `keep` makes what takes the jobs.
    pub fn start_over(
        options: ServerOptions,
        runtime: Runtime,
        models: Vec<(ModelConfig, Bundle)>,
        keep: impl AsyncFnOnce(Service) -> Result<Arc<dyn Keeper>, ServerError>,
    ) -> Result<Server, ServerError> {
        if options.keys.is_empty() && !options.listen.ip().is_loopback() && !options.allows_strangers {
            return Err(ServerError::Unguarded(options.listen));
        }
        let refuse = |source| ServerError::Listen { address: options.listen, source };
        let (tls, latest_tls) = watch::channel(acceptor(options.tls.as_ref())?);
        let service = Service::new(options.queue, options.share);
        service.serve(&models, &runtime)?;
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let tokio = tokio.map_err(ServerError::System)?;
        // Before jobs are begun again: a start that fails here is none of their attempts.
        let listener = tokio.block_on(async { http::bind(options.listen) }).map_err(refuse)?;
        let keeper = tokio.block_on(keep(service.clone()))?;
        let app = App::new(http::Shared {
            service: service.clone(),
            keeper: keeper.clone(),
            hosts: hosts(&options),
            keys: RwLock::new(Arc::new(options.keys)),
            files: http::Files::default(),
            scheme: if options.tls.is_some() { "https" } else { "http" },
            rates: http::Rates::default(),
            pool: runtime.pool.clone(),
            max_body: options.max_body,
            room: http::room(options.max_body),
            origins: options.origins,
        });
        let listening =
            tokio.block_on(http::listen(listener, latest_tls, http::router(app.clone()))).map_err(refuse)?;
        let renewer = Renewer { service: service.clone(), runtime, app, tls };
        Ok(Server { tokio, service, worker: None, listening, keeper, renewer })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// Whether the worker and the listener are at work, and the worker gets on.
    pub fn is_alive(&self) -> bool {
        let draws = self.worker.as_ref().is_none_or(Worker::is_alive);
        draws && self.listening.is_alive() && self.service.is_well()
    }

    /// Jobs, for programs that serve and draw.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// What exchanges models, keys and certificate while it runs, from any thread.
    pub fn renewer(&self) -> Renewer {
        self.renewer.clone()
    }

    /// Takes no more jobs, waits for those that have begun, or that somebody waits for where they are drawn elsewhere, for at
    /// most so long, and ends. Jobs of the native API that wait are drawn after the next start, or elsewhere.
    ///
    /// Whether the worker has ended. Where a long evaluation keeps it, its jobs are drawn after the next start too, and the
    /// process should end without waiting for it.
    pub fn stop(self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        self.service.close();
        let works = || match &self.worker {
            Some(_) => self.service.depth().1 > 0,
            None => self.service.n_awaited() > 0,
        };
        while works() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let has_ended = self.worker.is_none_or(|worker| {
            self.service.interrupt();
            worker.join(&self.service, LAST_STEP)
        });
        self.service.let_go();
        self.tokio.block_on(async {
            self.keeper.settle().await;
            self.listening.stop().await;
        });
        self.tokio.shutdown_timeout(Duration::from_secs(5));
        has_ended
    }
}

/// Writes a line when the worker is stuck, and when it gets on again.
async fn tell_when_stuck(service: Service) {
    let mut stuck = None;
    loop {
        tokio::time::sleep(LOOK).await;
        match (service.stuck(), &stuck) {
            (Some(now), None) => {
                let seconds = now.time.as_secs();
                tracing::error!(model = now.model, "the engine is stuck: nothing has happened for {seconds} s");
                stuck = Some(now.model);
            }
            (None, Some(model)) => {
                tracing::info!(model, "the engine gets on again");
                stuck = None;
            }
            _ => {}
        }
    }
}

/// The names by which the server may be called.
fn hosts(options: &ServerOptions) -> Hosts {
    if !options.keys.is_empty() {
        return Hosts::all();
    }
    let origins = options.origins.iter().filter_map(|origin| Uri::try_from(origin.as_bytes()).ok());
    let of_origins: Vec<String> = origins.filter_map(|origin| origin.host().map(str::to_owned)).collect();
    Hosts::named(options.hosts.iter().chain(&of_origins).map(String::as_str))
}

/// What encrypts connections, if anything.
pub(crate) fn acceptor(files: Option<&(PathBuf, PathBuf)>) -> Result<Option<TlsAcceptor>, ServerError> {
    let Some((chain, key)) = files else { return Ok(None) };
    let refuse = |path: &Path, reason: String| ServerError::Certificate { path: path.into(), reason };
    let read = |path: &Path| fs::read(path).map_err(|e| refuse(path, e.to_string()));
    let certificates = CertificateDer::pem_slice_iter(&read(chain)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| refuse(chain, e.to_string()))?;
    if certificates.is_empty() {
        return Err(refuse(chain, "holds no certificate".into()));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| refuse(key, e.to_string()))?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, private);
    let mut config = config.map_err(|e| refuse(key, e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
