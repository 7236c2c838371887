//! `kiln worker`: flags, models and signals; the rest is kiln-fleet's.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kiln_fleet::{FleetWorker, FleetWorkerOptions};

use crate::args::{WORKER, WorkerArgs, is_plain};
use crate::failure::Failure;
use crate::interrupt::{self, Request};
use crate::serve::{bundles, drawing, log, models_of, runtime, supervisor};
use crate::{fleet, output};

/// How often it is looked whether the fleet has told the worker to end.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &WorkerArgs) -> Result<(), Failure> {
    crate::serve::name_unknown_variables(WORKER);
    let address = fleet::address(&args.nats)?;
    let configs = match &args.models {
        Some(path) => models_of(path)?,
        None if args.no_fetch => {
            return Err(Failure::usage("--no-fetch: leaves a worker without MODELS nothing to draw with"));
        }
        None => Vec::new(),
    };
    let options = FleetWorkerOptions {
        name: args.name.clone().unwrap_or_else(own_name),
        drawing: drawing(&args.drawing),
        listen: args.listen,
        bundles: match (args.no_fetch, &args.bundles) {
            (true, _) => None,
            (false, Some(folder)) => Some(folder.clone()),
            (false, None) => Some(kiln_native::cache_dir()?.join("fleet")),
        },
    };
    let spans = log::start(args.drawing.log_format)?;
    let starting = supervisor::Starting::begin();
    let models = bundles(&args.drawing, configs)?;
    // Until here a signal ends the process at once.
    let (sender, requests) = mpsc::channel();
    interrupt::serve(sender);
    let worker = FleetWorker::start(&address, options, runtime(&args.drawing)?, models)?;
    output::say(&format!("worker {} draws for fleet {}", worker.name(), args.nats.fleet));
    if let Some(address) = worker.address() {
        output::say(&format!("its state is at http://{address}/readyz"));
    }
    drop(starting);
    supervisor::ready();
    watch_over(&worker, &requests);
    output::say("ending: no more jobs are taken");
    supervisor::stopping();
    let has_ended = worker.stop(Duration::from_secs(args.drawing.drain));
    spans.finish();
    if !has_ended {
        output::say("a step still runs and is left: others draw its jobs");
        interrupt::end_now();
    }
    Ok(())
}

/// Tells the supervisor that the worker lives until a signal or the fleet asks for the end.
fn watch_over(worker: &FleetWorker, requests: &Receiver<Request>) {
    let beat = supervisor::beat();
    let mut next = Instant::now();
    loop {
        match requests.recv_timeout(LOOK) {
            Ok(Request::Reload) => output::say("a worker reads its models when it starts"),
            Ok(Request::End) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) if worker.is_draining() => return,
            Err(RecvTimeoutError::Timeout) => {
                if beat.is_some() && Instant::now() >= next && worker.is_alive() {
                    supervisor::lives();
                    next = Instant::now() + beat.unwrap_or_default();
                }
            }
        }
    }
}

/// The machine's name and a random number: workers of one machine are told apart.
fn own_name() -> String {
    let machine = crate::serve::hosts::own().unwrap_or_else(|| "worker".into());
    let plain: String = machine.chars().filter(|c| is_plain(*c)).take(48).collect();
    let id = kiln_server::JobId::random();
    format!("{plain}-{}", &id.as_str()[..6])
}
