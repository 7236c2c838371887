//! The connection to the queue's server, and the streams and buckets there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, kv, object_store};
use async_nats::{Client, ConnectOptions, Event};

use crate::FleetError;
use crate::depot::Depot;
use crate::names::{Lane, Names};
use crate::records::Records;
use crate::settings::{PROTOCOL, Settings};

/// The oldest server of NATS that a fleet may ride on: older ones drop filters of consumers without a word, and hand out jobs
/// again that were done.
const OLDEST_SERVER: (u64, u64) = (2, 10);

/// How long a worker's card is kept that is not renewed.
pub(crate) const CARD_AGE: Duration = Duration::from_secs(15);

/// Within this time the server refuses to take a job of the same name twice.
const DUPLICATES: Duration = Duration::from_secs(120);

/// After this time without a worker that asks for a client's jobs its consumer is forgotten; a job makes it anew.
const IDLE_CONSUMER: Duration = Duration::from_secs(3600);

/// How long a connection and a request may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The key of the settings in their bucket.
const SETTINGS: &str = "settings";

/// Where the queue's server is, and how to come in.
#[derive(Clone, Debug, Default)]
pub struct Address {
    /// Its URLs, such as `nats://10.0.0.5:4222`; several of a cluster are separated by commas.
    pub url: String,
    /// The fleet's name.
    pub fleet: Names,
    /// File of credentials (a JWT with its seed).
    pub credentials: Option<PathBuf>,
    /// File of an nkey's seed.
    pub nkey: Option<PathBuf>,
    /// Certificates (PEM) that the server's is checked against, besides the system's.
    pub authority: Option<PathBuf>,
    /// Certificate and private key (PEM) that the server asks for.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// A connection to a fleet's queue. Cheap to clone.
#[derive(Clone)]
pub struct Broker {
    pub(crate) client: Client,
    pub(crate) context: Context,
    pub(crate) names: Names,
    pub(crate) settings: Settings,
    pub(crate) jobs: Stream,
    pub(crate) dead: Stream,
    pub(crate) records: Records,
    pub(crate) workers: kv::Store,
}

impl Address {
    /// Connects as a process of this name; the connection comes back by itself whenever it is lost.
    async fn connect(&self, name: &str) -> Result<Client, FleetError> {
        let refuse = |path: &Path, reason: String| FleetError::File { path: path.into(), reason };
        if let (Some(_), Some(nkey)) = (&self.credentials, &self.nkey) {
            return Err(refuse(nkey, "is one way to come in, and credentials are another".into()));
        }
        let mut options = ConnectOptions::new()
            .name(name)
            .connection_timeout(PATIENCE)
            .request_timeout(Some(PATIENCE))
            .event_callback(|event| async move { tell(&event) });
        if let Some(path) = &self.credentials {
            let text = std::fs::read_to_string(path).map_err(|e| refuse(path, e.to_string()))?;
            options = options.credentials(&text).map_err(|e| refuse(path, format!("no credentials: {e}")))?;
        }
        if let Some(path) = &self.nkey {
            let seed = std::fs::read_to_string(path).map_err(|e| refuse(path, e.to_string()))?;
            let seed = seed.trim().to_owned();
            if !(seed.starts_with("SU") && seed.len() == 58) {
                return Err(refuse(path, "is no user's nkey seed, which begins with SU".into()));
            }
            options = options.nkey(seed);
        }
        if let Some(path) = &self.authority {
            std::fs::metadata(path).map_err(|e| refuse(path, e.to_string()))?;
            options = options.add_root_certificates(path.clone());
        }
        if let Some((chain, key)) = &self.certificate {
            for path in [chain, key] {
                std::fs::metadata(path).map_err(|e| refuse(path, e.to_string()))?;
            }
            options = options.add_client_certificate(chain.clone(), key.clone());
        }
        let urls: Vec<&str> = self.url.split(',').map(str::trim).collect();
        let client = options.connect(urls).await;
        client.map_err(|e| FleetError::Broker(format!("{}: cannot be reached: {}", self.shown(), chain(&e))))
    }

    /// The URL without a password.
    fn shown(&self) -> String {
        let hide = |url: &str| match (url.find("://"), url.rfind('@')) {
            (Some(scheme), Some(at)) => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
            (None, Some(at)) => url[at + 1..].to_owned(),
            _ => url.to_owned(),
        };
        self.url.split(',').map(|url| hide(url.trim())).collect::<Vec<_>>().join(",")
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text += &format!(": {words}");
        }
        cause = error.source();
    }
    text
}

fn tell(event: &Event) {
    match event {
        Event::Disconnected => tracing::warn!("the queue's server is not connected"),
        Event::Connected => tracing::info!("the queue's server is connected"),
        Event::LameDuckMode => tracing::info!("the queue's server is about to end"),
        Event::SlowConsumer(_) => tracing::warn!("the queue's server sends faster than this process reads"),
        Event::ServerError(error) => tracing::error!("the queue's server says: {error}"),
        Event::ClientError(error) => tracing::debug!("the queue's connection: {error}"),
        _ => {}
    }
}

/// Whether a server of this version can be the queue.
fn check_version(version: &str) -> Result<(), FleetError> {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u64>().ok());
    let found = parts.next().flatten().zip(parts.next().flatten());
    match found.is_some_and(|found| found >= OLDEST_SERVER) {
        true => Ok(()),
        false => {
            let (major, minor) = OLDEST_SERVER;
            Err(FleetError::Refused(format!(
                "nats-server {version}: is older than {major}.{minor}, drops filters of consumers and hands out jobs again \
                 that were done"
            )))
        }
    }
}

impl Broker {
    /// Joins a fleet; makes it, with these settings or the usual ones, where there is none.
    pub async fn join(address: &Address, name: &str) -> Result<Broker, FleetError> {
        let (client, context) = reach(address, name).await?;
        let bucket = settings_bucket(&context, &address.fleet).await?;
        let settings = match read_settings(&bucket).await? {
            Some(settings) => settings,
            None => {
                let settings = Settings::default();
                write_settings(&bucket, &settings).await?;
                read_settings(&bucket).await?.unwrap_or(settings)
            }
        };
        Broker::over(client, context, address.fleet.clone(), settings).await
    }

    /// Makes a fleet, or changes the settings of one.
    pub async fn init(
        address: &Address,
        change: impl FnOnce(Settings) -> Settings,
    ) -> Result<Broker, FleetError> {
        let (client, context) = reach(address, "kiln fleet").await?;
        let bucket = settings_bucket(&context, &address.fleet).await?;
        let settings = change(read_settings(&bucket).await?.unwrap_or_default());
        settings.check().map_err(FleetError::Refused)?;
        if let Some(place) = &settings.results {
            Depot::at(place, "pictures")?;
        }
        let broker = Broker::over(client, context, address.fleet.clone(), settings.clone()).await?;
        broker.change_streams().await?;
        let text = serde_json::to_vec(&settings).expect("settings are JSON");
        let written = bucket.put(SETTINGS, text.into()).await;
        written.map_err(|e| FleetError::broker("settings", e))?;
        Ok(broker)
    }

    async fn over(
        client: Client,
        context: Context,
        names: Names,
        settings: Settings,
    ) -> Result<Broker, FleetError> {
        if settings.protocol > PROTOCOL {
            return Err(FleetError::Refused(format!(
                "fleet {names}: speaks protocol {}, this kiln {PROTOCOL}: update it",
                settings.protocol
            )));
        }
        let jobs = stream(&context, jobs_config(&names, &settings)).await?;
        let dead = stream(&context, dead_config(&names, &settings)).await?;
        let records = Records::new(bucket(&context, records_config(&names, &settings)).await?);
        let workers = kv::Config {
            bucket: names.workers(),
            max_age: CARD_AGE,
            num_replicas: settings.replicas,
            ..kv::Config::default()
        };
        let workers = bucket(&context, workers).await?;
        Ok(Broker { client, context, names, settings, jobs, dead, records, workers })
    }

    /// What the fleet has agreed on.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether the server is connected.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// The largest message that the server takes, in bytes.
    pub(crate) fn max_message(&self) -> usize {
        self.client.server_info().max_payload
    }

    /// Gives streams and buckets that are there already what the settings say.
    async fn change_streams(&self) -> Result<(), FleetError> {
        let (names, settings) = (&self.names, &self.settings);
        let [jobs, dead] = [jobs_config(names, settings), dead_config(names, settings)];
        self.retune(&jobs.name, |config| {
            (config.max_messages, config.max_bytes) = (jobs.max_messages, jobs.max_bytes)
        })
        .await?;
        self.retune(&dead.name, |config| config.max_age = dead.max_age).await?;
        self.retune(&format!("KV_{}", names.records()), |config| config.max_age = settings.keep()).await?;
        self.retune(&format!("KV_{}", names.workers()), |_| {}).await?;
        self.retune(&format!("KV_{}", names.settings()), |_| {}).await?;
        self.picture_bucket().await?;
        self.retune(&format!("OBJ_{}", names.pictures()), |config| {
            (config.max_age, config.max_bytes) = (settings.keep(), bound(settings.keep_bytes));
        })
        .await?;
        self.bundle_bucket().await?;
        self.retune(&format!("OBJ_{}", names.bundles()), |_| {}).await
    }

    /// Changes a stream, and how many servers have it.
    async fn retune(&self, name: &str, change: impl FnOnce(&mut Config)) -> Result<(), FleetError> {
        let doing = format!("changing {name}");
        let stream = self.context.get_stream(name).await.map_err(|e| FleetError::broker(&doing, chain(&e)))?;
        let mut config = stream.cached_info().config.clone();
        change(&mut config);
        config.num_replicas = self.settings.replicas;
        self.context.update_stream(config).await.map(drop).map_err(|e| unmade(&doing, &e))
    }

    /// What hands out a client's jobs of a lane.
    pub(crate) async fn consumer(&self, lane: &Lane, client: &str) -> Result<PullConsumer, FleetError> {
        let subject = self.names.queue(lane, client);
        let config = pull::Config {
            durable_name: Some(format!("{lane}.{client}").replace('.', "_")),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.settings.lease(),
            filter_subject: subject.clone(),
            max_ack_pending: -1,
            inactive_threshold: IDLE_CONSUMER,
            ..pull::Config::default()
        };
        let doing = format!("consumer of {subject}");
        let consumer = self.jobs.create_consumer(config).await.map_err(|e| FleetError::broker(&doing, e))?;
        let made = &consumer.cached_info().config;
        if made.filter_subject != subject || made.ack_wait != self.settings.lease() {
            return Err(FleetError::Refused(format!(
                "{doing}: the server has made another one than was asked for"
            )));
        }
        Ok(consumer)
    }

    /// The object store for pictures of the queue's server.
    pub(crate) async fn picture_bucket(&self) -> Result<object_store::ObjectStore, FleetError> {
        let config = object_store::Config {
            bucket: self.names.pictures(),
            max_age: self.settings.keep(),
            max_bytes: bound(self.settings.keep_bytes),
            num_replicas: self.settings.replicas,
            ..object_store::Config::default()
        };
        objects(&self.context, config).await
    }

    /// The object store for packed bundles of the queue's server.
    pub(crate) async fn bundle_bucket(&self) -> Result<object_store::ObjectStore, FleetError> {
        let config = object_store::Config {
            bucket: self.names.bundles(),
            num_replicas: self.settings.replicas,
            ..object_store::Config::default()
        };
        objects(&self.context, config).await
    }
}

async fn reach(address: &Address, name: &str) -> Result<(Client, Context), FleetError> {
    let client = address.connect(name).await?;
    let info = client.server_info();
    check_version(&info.version)?;
    if !info.jetstream {
        return Err(FleetError::Refused(format!("{}: has no JetStream; start it with -js", address.shown())));
    }
    let mut context = jetstream::new(client.clone());
    context.set_timeout(PATIENCE);
    Ok((client, context))
}

async fn settings_bucket(context: &Context, names: &Names) -> Result<kv::Store, FleetError> {
    bucket(context, kv::Config { bucket: names.settings(), ..kv::Config::default() }).await
}

async fn read_settings(bucket: &kv::Store) -> Result<Option<Settings>, FleetError> {
    let text = bucket.get(SETTINGS).await.map_err(|e| FleetError::broker("settings", e))?;
    let read = text.map(|text| serde_json::from_slice(&text)).transpose();
    read.map_err(|e| FleetError::Refused(format!("settings: are not those of a fleet: {e}")))
}

/// Writes settings down unless others have.
async fn write_settings(bucket: &kv::Store, settings: &Settings) -> Result<(), FleetError> {
    let text = serde_json::to_vec(settings).expect("settings are JSON");
    match bucket.create(SETTINGS, text.into()).await {
        Err(error) if error.kind() != kv::CreateErrorKind::AlreadyExists => {
            Err(FleetError::broker("settings", error))
        }
        _ => Ok(()),
    }
}

/// A limit as JetStream takes it.
fn bound(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn jobs_config(names: &Names, settings: &Settings) -> Config {
    Config {
        name: names.jobs(),
        subjects: vec![names.all_jobs()],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        max_messages: bound(settings.queue),
        max_bytes: bound(settings.queue_bytes()),
        duplicate_window: DUPLICATES,
        storage: StorageType::File,
        num_replicas: settings.replicas,
        ..Config::default()
    }
}

fn dead_config(names: &Names, settings: &Settings) -> Config {
    Config {
        name: names.dead(),
        subjects: vec![names.all_dead()],
        max_messages_per_subject: 1,
        max_age: settings.keep(),
        storage: StorageType::File,
        num_replicas: settings.replicas,
        ..Config::default()
    }
}

fn records_config(names: &Names, settings: &Settings) -> kv::Config {
    kv::Config {
        bucket: names.records(),
        max_age: settings.keep(),
        num_replicas: settings.replicas,
        ..kv::Config::default()
    }
}

/// Why a stream or bucket was not made.
fn unmade(doing: &str, error: &dyn std::error::Error) -> FleetError {
    let reason = chain(error);
    match reason.contains("insufficient storage") {
        true => FleetError::Refused(format!(
            "{doing}: the server has too little storage for it; kiln fleet init --keep-size makes a smaller fleet"
        )),
        false => FleetError::broker(doing, reason),
    }
}

/// A stream, made where it is not there, and refused where it is of another kind.
async fn stream(context: &Context, config: Config) -> Result<Stream, FleetError> {
    let doing = format!("stream {}", config.name);
    let stream = match context.get_or_create_stream(config.clone()).await {
        Ok(stream) => stream,
        // Another process has made it in between.
        Err(error) if matches!(error.kind(), CreateStreamErrorKind::JetStream(_)) => {
            let found = context.get_stream(&config.name).await;
            found.map_err(|_| unmade(&doing, &error))?
        }
        Err(error) => return Err(unmade(&doing, &error)),
    };
    let made = &stream.cached_info().config;
    let same = made.subjects == config.subjects
        && made.retention == config.retention
        && made.discard == config.discard
        && made.max_messages_per_subject.max(0) == config.max_messages_per_subject;
    match same {
        true => Ok(stream),
        false => Err(FleetError::Refused(format!("{doing}: is there, and is not one of a fleet of kiln's"))),
    }
}

async fn bucket(context: &Context, config: kv::Config) -> Result<kv::Store, FleetError> {
    let name = config.bucket.clone();
    let find = || async { context.get_key_value(&name).await.ok() };
    made(&format!("bucket {name}"), find, context.create_key_value(config)).await
}

async fn objects(
    context: &Context,
    config: object_store::Config,
) -> Result<object_store::ObjectStore, FleetError> {
    let name = config.bucket.clone();
    let find = || async { context.get_object_store(&name).await.ok() };
    made(&format!("object store {name}"), find, context.create_object_store(config)).await
}

/// What is there, or is made, by this process or by another one in between.
async fn made<T, E: std::error::Error, F: Future<Output = Option<T>>>(
    doing: &str,
    find: impl Fn() -> F,
    make: impl Future<Output = Result<T, E>>,
) -> Result<T, FleetError> {
    if let Some(found) = find().await {
        return Ok(found);
    }
    match make.await {
        Ok(made) => Ok(made),
        Err(error) => find().await.ok_or_else(|| unmade(doing, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_refused_by_name() {
        for good in ["2.10.25", "2.15.1", "2.12.0-RC.1", "3.0.0"] {
            check_version(good).expect(good);
        }
        for old in ["2.9.10", "1.4.1", "", "next"] {
            let error = check_version(old).expect_err(old).to_string();
            assert!(error.contains(&format!("nats-server {old}:")), "{error}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let address = |url: &str| Address { url: url.into(), ..Address::default() };
        assert_eq!(address("nats://me:secret@box:4222, nats://b").shown(), "nats://box:4222,nats://b");
    }
}
