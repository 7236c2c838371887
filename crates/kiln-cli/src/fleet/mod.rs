//! `kiln fleet`: what operators see and do of servers and workers that share a queue.

mod show;

use std::path::Path;

use kiln_fleet::{Broker, Bundles, FleetError, Nkey, Packed};
use kiln_server::JobId;
use kiln_server::config::check_name;
use serde::Serialize;
use serde_json::json as object;

use crate::args::{AskArgs, FleetArgs, FleetCommand, InitArgs, NatsArgs};
use crate::failure::Failure;
use crate::model::open_bundle;
use crate::models::seal_key;
use crate::progress::Bar;
use crate::{output, paths};

pub(crate) fn run(args: &FleetArgs) -> Result<(), Failure> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tokio = tokio.map_err(Failure::unexpected)?;
    tokio.block_on(ask(&args.command))
}

async fn ask(command: &FleetCommand) -> Result<(), Failure> {
    match command {
        FleetCommand::Init(args) => init(args).await,
        FleetCommand::Status(args) => {
            let overview = join(&args.nats).await?.overview().await?;
            tell(args, &overview, || show::overview(&overview))
        }
        FleetCommand::Jobs(args) => {
            let jobs = join(&args.nats).await?.open_jobs().await?;
            tell(args, &object!({ "jobs": jobs }), || show::jobs(&jobs))
        }
        FleetCommand::Dead(args) => {
            let jobs = join(&args.nats).await?.dead_jobs().await?;
            tell(args, &object!({ "jobs": jobs }), || show::dead(&jobs))
        }
        FleetCommand::Retry { jobs, all, nats } => retry(jobs, *all, nats).await,
        FleetCommand::Drain { worker, nats } => {
            join(nats).await?.drain(worker).await?;
            output::say(&format!("worker {worker} takes no more jobs, and ends when it has finished"));
            Ok(())
        }
        FleetCommand::NewNkey { name, out } => {
            let key = Nkey::new();
            key.save(out)?;
            output::data(&format!("{{ nkey: {} }} # {name}", key.public()));
            Ok(())
        }
        FleetCommand::Push { bundle, name, nats } => push(bundle, name.as_deref(), nats).await,
        FleetCommand::Pull { bundle, out, nats } => pull(bundle, out, nats).await,
        FleetCommand::Bundles(args) => {
            let bundles = Bundles::of(&join(&args.nats).await?).await?.list().await?;
            tell(args, &object!({ "bundles": bundles }), || show::bundles(&bundles))
        }
    }
}

/// Prints one object, or what people read.
fn tell(args: &AskArgs, value: &impl Serialize, show: impl FnOnce()) -> Result<(), Failure> {
    match args.json {
        true => output::data(&serde_json::to_string(value).map_err(Failure::unexpected)?),
        false => show(),
    }
    Ok(())
}

/// The fleet that the flags name.
async fn join(nats: &NatsArgs) -> Result<Broker, Failure> {
    Ok(Broker::join(&address(nats)?, "kiln fleet").await?)
}

/// Where the queue is.
pub(crate) fn address(nats: &NatsArgs) -> Result<kiln_fleet::Address, Failure> {
    let none = || Failure::usage("--nats: says where the fleet's queue is, and is missing");
    let hint =
        "--nats nats://HOST:4222, or a variable: KILN_NATS for kiln fleet, KILN_WORKER_NATS for kiln worker";
    nats.address().ok_or_else(|| none().with_hint(hint))
}

async fn init(args: &InitArgs) -> Result<(), Failure> {
    let address = address(&args.nats)?;
    let broker = Broker::init(&address, |mut settings| {
        settings.results = match args.results.as_deref() {
            Some("nats") => None,
            Some(place) => Some(place.into()),
            None => settings.results,
        };
        settings.keep = args.keep_hours.map_or(settings.keep, |hours| (hours * 3600.0) as u64);
        settings.keep_bytes = args.keep_size.map_or(settings.keep_bytes, |size| size.0);
        settings.lease = args.lease.unwrap_or(settings.lease);
        settings.attempts = args.attempts.unwrap_or(settings.attempts);
        settings.queue = args.queue.unwrap_or(settings.queue);
        settings.replicas = args.replicas.unwrap_or(settings.replicas);
        settings
    });
    let broker = broker.await?;
    show::settings(broker.settings());
    Ok(())
}

async fn retry(jobs: &[String], all: bool, nats: &NatsArgs) -> Result<(), Failure> {
    let broker = join(nats).await?;
    let unnamed = |job: &String| Failure::usage(format!("job {job}: is no name of a job"));
    let ids: Vec<JobId> =
        jobs.iter().map(|job| JobId::parse(job).ok_or_else(|| unnamed(job))).collect::<Result<_, _>>()?;
    let dead = broker.dead_jobs().await?;
    let is_dead = |id: &&JobId| dead.iter().any(|order| order.record.id == **id);
    if let Some(other) = ids.iter().find(|id| !is_dead(id)) {
        return Err(FleetError::Unknown(format!("job {other}: is not one that was given up")).into());
    }
    for order in dead.iter().filter(|order| all || ids.contains(&order.record.id)) {
        broker.retry(order).await?;
        output::data(order.record.id.as_str());
    }
    Ok(())
}

async fn push(path: &Path, name: Option<&str>, nats: &NatsArgs) -> Result<(), Failure> {
    let bundle = open_bundle(path)?;
    let name = name.map_or_else(|| kiln_compile::file_name(path), str::to_owned);
    check_name("name", &name).map_err(Failure::usage)?;
    let bundles = Bundles::of(&join(nats).await?).await?;
    let scratch = kiln_native::cache_dir()?.join("fleet");
    kiln_bundle::fs::create_folder(&scratch)?;
    let bar = Bar::bytes("pushing");
    let packed = bundles.push(&bundle, &name, &scratch, |done, of| bar.at(done, of)).await?;
    drop(bar);
    output::data(&packed.bundle);
    Ok(())
}

async fn pull(wanted: &str, out: &Path, nats: &NatsArgs) -> Result<(), Failure> {
    let bundles = Bundles::of(&join(nats).await?).await?;
    let all = bundles.list().await?;
    let packed = found(&all, wanted)?;
    paths::check_outputs(&[out.to_path_buf()])?;
    let key = seal_key()?;
    let bar = Bar::bytes("pulling");
    let bundle = bundles.fetch(packed, out, &key, |done, of| bar.at(done, of)).await?;
    drop(bar);
    output::data(&bundle.root().display().to_string());
    Ok(())
}

/// The one bundle that a word means.
fn found<'a>(all: &'a [Packed], wanted: &str) -> Result<&'a Packed, Failure> {
    let fits =
        |packed: &&Packed| packed.model == wanted || (wanted.len() >= 8 && packed.bundle.starts_with(wanted));
    let mut fitting = all.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(packed), None) => Ok(packed),
        (Some(one), Some(other)) => {
            let message = format!("bundle {wanted}: may be {} or {}", one.bundle, other.bundle);
            Err(Failure::usage(message).with_hint("name it by its digest"))
        }
        (None, _) => {
            let unknown = FleetError::Unknown(format!("bundle {wanted}: is not in the fleet's store"));
            Err(Failure::from(unknown).with_hint("kiln fleet push stores one; kiln fleet bundles lists them"))
        }
    }
}
