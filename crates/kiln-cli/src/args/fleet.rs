use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use kiln_compile::Bytes;
use kiln_fleet::{Address, Names};

use super::DrawingArgs;
use super::serve::is_plain;

/// The command's name.
pub(crate) const WORKER: &str = "worker";

/// The command that sees and steers fleets.
pub(crate) const FLEET: &str = "fleet";

/// Where a fleet's queue is.
#[derive(Args, Clone)]
pub(crate) struct NatsArgs {
    /// Server of NATS whose JetStream has the queue, such as nats://10.0.0.5:4222; servers of a cluster with commas between.
    #[arg(long, value_name = "URL")]
    pub(crate) nats: Option<String>,
    /// The fleet's name, with which its streams, buckets and subjects begin.
    #[arg(long, value_name = "NAME", default_value = "kiln")]
    pub(crate) fleet: Names,
    /// File of credentials for NATS.
    #[arg(long, value_name = "FILE", requires = "nats")]
    pub(crate) nats_credentials: Option<PathBuf>,
    /// File with the seed of an nkey for NATS.
    #[arg(long, value_name = "FILE", requires = "nats")]
    pub(crate) nats_nkey: Option<PathBuf>,
    /// Certificates (PEM) that vouch for the server of NATS, besides the system's.
    #[arg(long, value_name = "FILE", requires = "nats")]
    pub(crate) nats_authority: Option<PathBuf>,
    /// Certificate chain (PEM) that the server of NATS asks for.
    #[arg(long, value_name = "FILE", requires_all = ["nats", "nats_key"])]
    pub(crate) nats_certificate: Option<PathBuf>,
    /// Private key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "nats_certificate")]
    pub(crate) nats_key: Option<PathBuf>,
}

impl NatsArgs {
    /// Where the queue is, if there is one.
    pub(crate) fn address(&self) -> Option<Address> {
        Some(Address {
            url: self.nats.clone()?,
            fleet: self.fleet.clone(),
            credentials: self.nats_credentials.clone(),
            nkey: self.nats_nkey.clone(),
            authority: self.nats_authority.clone(),
            certificate: self.nats_certificate.clone().zip(self.nats_key.clone()),
        })
    }
}

#[derive(Args, Clone)]
pub(crate) struct WorkerArgs {
    /// Models file (.yaml), checkpoint or bundle; without it, the worker draws with what it fetches from the fleet.
    pub(crate) models: Option<PathBuf>,
    /// What it is called; no other worker may be called so [default: the machine's name and a random number].
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) name: Option<String>,
    /// Address and port for /healthz, /readyz and /metrics [default: none].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    /// Fetch no bundles: draw with the models that are named here alone.
    #[arg(long)]
    pub(crate) no_fetch: bool,
    /// Folder for bundles that are fetched [default: fleet/ in kiln's cache folder].
    #[arg(long, value_name = "DIR")]
    pub(crate) bundles: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    #[command(flatten)]
    pub(crate) drawing: DrawingArgs,
}

fn hours(text: &str) -> Result<f64, &'static str> {
    let hours = text.parse().ok().filter(|hours| (1.0 / 60.0..=1e6).contains(hours));
    hours.ok_or("is not a number of hours from 1/60 to 1000000")
}

fn name(text: &str) -> Result<String, &'static str> {
    let is_name = (1..=64).contains(&text.len()) && text.chars().all(is_plain);
    is_name.then(|| text.into()).ok_or("is no name of up to 64 letters, digits, '-', '_' and '.'")
}

#[derive(Args)]
pub(crate) struct FleetArgs {
    #[command(subcommand)]
    pub(crate) command: FleetCommand,
}

#[derive(Subcommand)]
pub(crate) enum FleetCommand {
    /// Make a fleet's queue, or change what it is like; without this, the first server or worker makes the usual one.
    Init(InitArgs),
    /// Show workers, models and how much waits.
    Status(AskArgs),
    /// List jobs that wait or are drawn.
    Jobs(AskArgs),
    /// List jobs that were given up, and why.
    Dead(AskArgs),
    /// Queue jobs again that were given up.
    Retry {
        /// Names of jobs.
        #[arg(value_name = "JOB", required_unless_present = "all")]
        jobs: Vec<String>,
        /// All of them.
        #[arg(long, conflicts_with = "jobs")]
        all: bool,
        #[command(flatten)]
        nats: NatsArgs,
    },
    /// Tell a worker to finish what it draws, give the rest back and end.
    Drain {
        /// Its name.
        worker: String,
        #[command(flatten)]
        nats: NatsArgs,
    },
    /// Make a key with which a process comes in, and print its line for the server of NATS.
    NewNkey {
        /// What the process is called.
        #[arg(value_parser = name)]
        name: String,
        /// File to write the secret half to; it must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Store a bundle where workers fetch it that do not have it.
    Push {
        /// The bundle.
        bundle: PathBuf,
        /// The model's name [default: the bundle's folder].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        nats: NatsArgs,
    },
    /// Fetch a bundle, check every digest and seal it with the user's own key.
    Pull {
        /// Its model's name, its digest, or the beginning of that.
        bundle: String,
        /// Folder to write.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        nats: NatsArgs,
    },
    /// List the bundles that workers can fetch.
    Bundles(AskArgs),
}

#[derive(Args)]
pub(crate) struct AskArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
}

#[derive(Args)]
pub(crate) struct InitArgs {
    /// Where pictures and packed bundles lie: nats, s3://BUCKET/PREFIX, or the absolute path of a folder that all machines share [default: nats].
    #[arg(long, value_name = "PLACE")]
    pub(crate) results: Option<String>,
    /// Keep records, pictures and jobs that were given up for so many hours [default: 168].
    #[arg(long, value_name = "HOURS", value_parser = hours)]
    pub(crate) keep_hours: Option<f64>,
    /// Keep at most so much of pictures in NATS; the oldest leave when four fifths of it are taken [default: 4GiB].
    #[arg(long, value_name = "SIZE")]
    pub(crate) keep_size: Option<Bytes>,
    /// Give a job to another worker after so many seconds without progress [default: 60].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) lease: Option<u64>,
    /// Give a job up that has ended its worker, or found no memory, so many times [default: 3].
    #[arg(long, value_name = "N")]
    pub(crate) attempts: Option<u32>,
    /// Most jobs that wait or are drawn [default: 100000].
    #[arg(long, value_name = "N")]
    pub(crate) queue: Option<u64>,
    /// Servers of a cluster of NATS that each have everything [default: 1].
    #[arg(long, value_name = "N")]
    pub(crate) replicas: Option<usize>,
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
}
