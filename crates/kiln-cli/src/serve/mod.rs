//! `kiln serve`: flags, models and signals; the rest is kiln-server's.

mod config;
pub(crate) mod hosts;
pub(crate) mod log;
mod reload;
pub(crate) mod supervisor;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kiln_bundle::Bundle;
use kiln_bundle::fs::abandon;
use kiln_compile::file_name;
use kiln_fleet::Front;
use kiln_runtime::{MemoryOptions, Pool};
use kiln_server::config::ModelConfig;
use kiln_server::http::Keys;
use kiln_server::keeper::Keeper;
use kiln_server::store::Retention;
use kiln_server::{Runtime, Server, ServerError, ServerOptions, WorkerOptions};

use crate::args::{DrawingArgs, SERVE, ServeArgs};
use crate::failure::Failure;
use crate::interrupt::{self, Request};
use crate::model::Model;
use crate::{args, backends, models, output, paths};
use reload::Reloads;

/// Most jobs that wait on one box.
const QUEUE: usize = 64;

pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    if let Some(name) = &args.new_key {
        new_key(name);
        return Ok(());
    }
    name_unknown_variables(SERVE);
    let configs = configs(args)?;
    let options = options(args)?;
    if args.print_config {
        return config::print(&options, &configs);
    }
    let spans = log::start(args.drawing.log_format)?;
    raise_file_limit();
    let starting = supervisor::Starting::begin();
    let models = bundles(&args.drawing, configs)?;
    // Until here a signal ends the process at once.
    let (sender, requests) = mpsc::channel();
    interrupt::serve(sender);
    let runtime = runtime(&args.drawing)?;
    let server = match args.nats.address() {
        None => Server::start(options, runtime, models)?,
        Some(address) => Server::start_over(options, runtime, models, async move |service| {
            let front = Front::join(&address, service).await;
            Ok(Arc::new(front.map_err(|e| ServerError::Elsewhere(Box::new(e)))?) as Arc<dyn Keeper>)
        })?,
    };
    let reloads = Reloads::start(args, server.renewer())?;
    output::say(&format!("serving on {}", address(args, &server)));
    drop(starting);
    supervisor::ready();
    watch_over(&reloads, &server, &requests);
    output::say("ending: no more jobs are taken");
    supervisor::stopping();
    let has_ended = server.stop(Duration::from_secs(args.drawing.drain));
    spans.finish();
    if !has_ended {
        output::say("a step still runs and is left: its jobs are drawn after the next start, or were told");
    }
    let is_compiling = reloads.is_busy();
    if is_compiling {
        output::say("models are still compiled, which is given up");
        abandon();
    }
    if !has_ended || is_compiling {
        interrupt::end_now();
    }
    Ok(())
}

/// Does what signals ask for until one asks for the end, and tells the supervisor that the server lives.
fn watch_over(reloads: &Reloads, server: &Server, requests: &Receiver<Request>) {
    let beat = supervisor::beat().unwrap_or(Duration::from_secs(3600));
    let mut next = Instant::now() + beat;
    loop {
        match requests.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Request::Reload) => reloads.ask(),
            Ok(Request::End) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                next = Instant::now() + beat;
                if server.is_alive() {
                    supervisor::lives();
                }
            }
        }
    }
}

/// As many open files, which connections are, as the system allows.
#[cfg(unix)]
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

#[cfg(not(unix))]
fn raise_file_limit() {}

fn address(args: &ServeArgs, server: &Server) -> String {
    let scheme = if args.tls_certificate.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", server.address())
}

fn new_key(name: &str) {
    let (key, line) = Keys::new_key(name);
    output::say(&format!("the key, which nothing can show again: {key}"));
    output::data(&line);
}

pub(crate) fn name_unknown_variables(called: &str) {
    let names = args::unknown(called);
    if !names.is_empty() {
        output::say(&format!("{}: no flag of kiln {called} has such a variable", names.join(", ")));
    }
}

/// The models that are asked for: those of a models file, or one.
fn configs(args: &ServeArgs) -> Result<Vec<ModelConfig>, Failure> {
    models_of(&paths::model(args.models.as_ref())?)
}

/// The models of a models file, or the model that a path is.
pub(crate) fn models_of(path: &Path) -> Result<Vec<ModelConfig>, Failure> {
    match args::is_models_file(path) {
        true => args::models(path),
        false => Ok(vec![ModelConfig { preload: true, keep: true, ..ModelConfig::new(file_name(path), path) }]),
    }
}

/// The bundles of models; those of checkpoints are made, unless the engine cache has them.
pub(crate) fn bundles(
    args: &DrawingArgs,
    configs: Vec<ModelConfig>,
) -> Result<Vec<(ModelConfig, Bundle)>, Failure> {
    let backends = args.execution.backends();
    let bundle = |config: ModelConfig| -> Result<(ModelConfig, Bundle), Failure> {
        let model = Model::open(&config.bundle)?;
        let place = backends::place(&model, &backends, None)?;
        let scheduler = config.scheduler.as_deref();
        let bundle = models::bundle(model, &args.checkpoint, &args.cache, &place, scheduler)?;
        Ok((config, bundle))
    };
    let named = |config: ModelConfig| {
        let name = config.name.clone();
        bundle(config).map_err(|failure| failure.while_doing(&format!("model {name}")))
    };
    configs.into_iter().map(named).collect()
}

pub(crate) fn runtime(args: &DrawingArgs) -> Result<Runtime, Failure> {
    Ok(Runtime {
        backends: args.execution.backends(),
        pool: args.memory_budget.map_or_else(Pool::new, |bytes| Pool::with_budget(bytes.0)),
        memory: MemoryOptions::new().offload(args.offload.into()),
        seal_key: Some(models::seal_key()?),
        kernels: Some(kiln_native::cache_dir()?.join("kernels")),
    })
}

fn keys(args: &ServeArgs) -> Result<Keys, Failure> {
    Ok(args.keys.as_deref().map(Keys::read).transpose()?.unwrap_or_default())
}

fn tls(args: &ServeArgs) -> Option<(PathBuf, PathBuf)> {
    args.tls_certificate.clone().zip(args.tls_key.clone())
}

fn options(args: &ServeArgs) -> Result<ServerOptions, Failure> {
    let state = match &args.state {
        Some(folder) => folder.clone(),
        None => kiln_native::cache_dir()?.join("serve"),
    };
    let origins = args.allow_origins.iter().map(|origin| origin.parse().map_err(Failure::unexpected));
    let queue = args.queue.unwrap_or(if args.nats.nats.is_some() { usize::MAX } else { QUEUE }).max(1);
    Ok(ServerOptions {
        listen: args.listen,
        allows_strangers: args.allow_strangers,
        keys: keys(args)?,
        tls: tls(args),
        origins: origins.collect::<Result<_, _>>()?,
        hosts: hosts::named(&args.allow_hosts),
        state,
        retention: Retention {
            age: Duration::from_secs(args.keep_hours.saturating_mul(3600)),
            bytes: args.keep_size.0,
        },
        queue,
        share: args.queue_share.unwrap_or(queue).max(1),
        max_body: usize::try_from(args.max_body.0).unwrap_or(usize::MAX),
        worker: drawing(&args.drawing),
    })
}

/// How a process draws.
pub(crate) fn drawing(args: &DrawingArgs) -> WorkerOptions {
    WorkerOptions {
        batch: args.batch.max(1),
        idle: Duration::from_secs(args.idle),
        stuck_after: Some(args.stuck_after).filter(|seconds| *seconds > 0).map(Duration::from_secs),
    }
}
