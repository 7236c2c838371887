use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use kiln_compile::Bytes;

use super::{CacheArgs, CheckpointArgs, ExecutionArgs, NatsArgs, OffloadChoice};

/// The command's name.
pub(crate) const SERVE: &str = "serve";

/// Flags that are not settings.
pub(crate) const ACTIONS: [&str; 3] = ["help", "new-key", "print-config"];

#[derive(Args, Clone)]
pub(crate) struct ServeArgs {
    /// Models file (.yaml), checkpoint or bundle [default: the small model, models/shapes of a checkout or package].
    pub(crate) models: Option<PathBuf>,
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7860")]
    pub(crate) listen: SocketAddr,
    /// File of API keys, one NAME:HASH a line; without it nobody is asked for a key.
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// Make an API key of this name, print it and its line for the file of keys, and end.
    #[arg(long, value_name = "NAME", value_parser = key)]
    pub(crate) new_key: Option<String>,
    /// Listen on an address that other machines reach although no key is needed.
    #[arg(long)]
    pub(crate) allow_strangers: bool,
    /// Certificate chain (PEM); with --tls-key, connections are encrypted.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Origin whose pages may call, such as https://example.org; repeatable.
    #[arg(long = "allow-origin", value_name = "ORIGIN", value_parser = origin)]
    pub(crate) allow_origins: Vec<String>,
    /// Name by which a server without keys may be called, besides addresses, localhost and the machine's own; repeatable.
    #[arg(long = "allow-host", value_name = "NAME", value_parser = host)]
    pub(crate) allow_hosts: Vec<String>,
    /// Folder for jobs and their pictures [default: serve/ in kiln's cache folder].
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Keep pictures of the job API for so many hours.
    #[arg(long, value_name = "HOURS", default_value_t = 168)]
    pub(crate) keep_hours: u64,
    /// Keep at most so much of them, the newest.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) keep_size: Bytes,
    /// Most jobs that wait; more are refused with 429 [default: 64; with --nats, as many as the fleet takes].
    #[arg(long, value_name = "N")]
    pub(crate) queue: Option<usize>,
    /// Most jobs of one API key that wait [default: all of the queue].
    #[arg(long, value_name = "N")]
    pub(crate) queue_share: Option<usize>,
    /// Largest body of a request.
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) max_body: Bytes,
    /// Print what these flags, the environment and the models file come to as YAML, and end.
    #[arg(long)]
    pub(crate) print_config: bool,
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    #[command(flatten)]
    pub(crate) drawing: DrawingArgs,
}

/// How a process draws for others.
#[derive(Args, Clone)]
pub(crate) struct DrawingArgs {
    /// Most pictures that are drawn at once, by models that gain from it.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) batch: usize,
    /// Weights of all models together that stay loaded, such as 4GiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_budget: Option<Bytes>,
    /// What is loaded when: nothing leaves, one component at a time, or one segment at a time.
    #[arg(long, value_enum, default_value_t = OffloadChoice::None)]
    pub(crate) offload: OffloadChoice,
    /// Unload a model that nobody has asked for in so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) idle: u64,
    /// At the end, finish jobs that have begun for at most so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) drain: u64,
    /// A model is stuck that takes so many seconds for one step, and 20 times as long as ever before; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub(crate) stuck_after: u64,
    /// Form of log lines on stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    #[command(flatten)]
    pub(crate) execution: ExecutionArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) checkpoint: CheckpointArgs,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// An object a line.
    Json,
}

/// What pages send as their origin (RFC 6454, 6.1), such as `https://example.org:8443`.
fn origin(text: &str) -> Result<String, &'static str> {
    let is_of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    match text.split_once("://") {
        Some((scheme, host))
            if ![scheme, host].contains(&"")
                && scheme.chars().all(is_of_scheme)
                && host.chars().all(is_host) =>
        {
            Ok(text.into())
        }
        _ => Err("is no origin, such as https://example.org"),
    }
}

/// Whether a character may stand in a name that is part of others.
pub(crate) fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

fn host(text: &str) -> Result<String, &'static str> {
    let is_name = text.len() <= 253 && text.chars().all(is_plain);
    is_name.then(|| text.into()).ok_or("is no host name")
}

fn key(text: &str) -> Result<String, &'static str> {
    let is_name = !text.is_empty() && text.chars().all(is_plain);
    is_name.then(|| text.into()).ok_or("is no name of letters, digits, '-', '_' and '.'")
}
