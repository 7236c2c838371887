//! Where pictures and packed bundles lie: the object store of the queue's server, an S3 bucket, or a folder that all machines
//! share.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::object_store::{DeleteErrorKind, GetErrorKind, ObjectStore};
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStoreExt, PutPayload};
use tokio::io::AsyncReadExt;

use crate::FleetError;
use crate::broker::Broker;

/// Largest object that is read.
const MAX_OBJECT: usize = 1 << 30;

/// A store of objects. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Depot {
    /// Of the queue's server, which forgets old ones by itself.
    Queue(Arc<Bucket>),
    /// S3 or a folder.
    Elsewhere(Arc<dyn object_store::ObjectStore>),
}

/// An object store of the queue's server, and the stream that it is.
pub(crate) struct Bucket {
    store: ObjectStore,
    stream: Stream<()>,
}

impl Depot {
    /// Where a fleet's pictures lie.
    pub(crate) async fn of_pictures(broker: &Broker) -> Result<Depot, FleetError> {
        match &broker.settings.results {
            None => Depot::of_queue(broker, broker.picture_bucket().await?, broker.names.pictures()).await,
            Some(place) => Depot::at(place, "pictures"),
        }
    }

    /// Where a fleet's packed bundles lie.
    pub(crate) async fn of_bundles(broker: &Broker) -> Result<Depot, FleetError> {
        match &broker.settings.results {
            None => Depot::of_queue(broker, broker.bundle_bucket().await?, broker.names.bundles()).await,
            Some(place) => Depot::at(place, "bundles"),
        }
    }

    async fn of_queue(broker: &Broker, store: ObjectStore, bucket: String) -> Result<Depot, FleetError> {
        let stream = broker.context.get_stream_no_info(format!("OBJ_{bucket}")).await;
        let stream = stream.map_err(|e| FleetError::broker("objects", e))?;
        Ok(Depot::Queue(Arc::new(Bucket { store, stream })))
    }

    /// A part of a bucket of S3, or of a folder.
    pub(crate) fn at(place: &str, part: &str) -> Result<Depot, FleetError> {
        let refuse = |e: object_store::Error| FleetError::Storage(format!("{place}: {e}"));
        if let Some(rest) = place.strip_prefix("s3://") {
            // What else speaks TLS in this process may have chosen first.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build().map_err(refuse)?;
            let prefix = Key::from(format!("{prefix}/{part}"));
            return Ok(Depot::Elsewhere(Arc::new(PrefixStore::new(store, prefix))));
        }
        let folder = place.strip_prefix("file://").unwrap_or(place);
        if folder.contains("://") || !Path::new(folder).is_absolute() {
            let message = format!("{place}: is neither s3://BUCKET/PREFIX nor the absolute path of a folder");
            return Err(FleetError::Refused(message));
        }
        let folder = Path::new(folder).join(part);
        let file = |e: std::io::Error| FleetError::File { path: folder.clone(), reason: e.to_string() };
        std::fs::create_dir_all(&folder).map_err(file)?;
        let store = LocalFileSystem::new_with_prefix(&folder).map_err(refuse)?.with_fsync(true);
        Ok(Depot::Elsewhere(Arc::new(store)))
    }

    /// Stores an object, whole or not at all; it outlives a crash afterwards.
    pub(crate) async fn put(&self, name: &str, bytes: Bytes) -> Result<(), FleetError> {
        match self {
            Depot::Queue(bucket) => {
                bucket.store.put(name, &mut bytes.as_ref()).await.map(drop).map_err(|e| fail(name, e))
            }
            Depot::Elsewhere(store) => {
                store.put(&Key::from(name), PutPayload::from(bytes)).await.map(drop).map_err(|e| fail(name, e))
            }
        }
    }

    /// An object, if it is there.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Bytes>, FleetError> {
        match self {
            Depot::Queue(bucket) => {
                let mut object = match bucket.store.get(name).await {
                    Ok(object) => object,
                    Err(error) if error.kind() == GetErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(fail(name, error)),
                };
                let mut bytes = Vec::with_capacity(bounded(name, object.info().size as u64)?);
                // Checks the digest as it reads.
                object.read_to_end(&mut bytes).await.map_err(|e| fail(name, e))?;
                Ok(Some(bytes.into()))
            }
            Depot::Elsewhere(store) => match store.get(&Key::from(name)).await {
                Ok(found) => {
                    bounded(name, found.meta.size)?;
                    Ok(Some(found.bytes().await.map_err(|e| fail(name, e))?))
                }
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(fail(name, error)),
            },
        }
    }

    /// Whether an object is there.
    pub(crate) async fn has(&self, name: &str) -> Result<bool, FleetError> {
        match self {
            Depot::Queue(bucket) => Ok(bucket.store.info(name).await.is_ok_and(|info| !info.deleted)),
            Depot::Elsewhere(store) => match store.head(&Key::from(name)).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(fail(name, error)),
            },
        }
    }

    /// Removes an object; one that is not there is no error.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), FleetError> {
        match self {
            Depot::Queue(bucket) => match bucket.store.delete(name).await {
                Err(error) if error.kind() != DeleteErrorKind::NotFound => Err(fail(name, error)),
                _ => Ok(()),
            },
            Depot::Elsewhere(store) => match store.delete(&Key::from(name)).await {
                Err(error) if !matches!(error, object_store::Error::NotFound { .. }) => Err(fail(name, error)),
                _ => Ok(()),
            },
        }
    }

    /// The names of all objects.
    pub(crate) async fn names(&self) -> Result<Vec<String>, FleetError> {
        match self {
            Depot::Queue(bucket) => {
                let listed = bucket.store.list().await.map_err(|e| fail("objects", e))?;
                listed.map_ok(|object| object.name).try_collect().await.map_err(|e| fail("objects", e))
            }
            Depot::Elsewhere(store) => {
                let listed = store.list(None).map_ok(|object| object.location.to_string());
                listed.try_collect().await.map_err(|e| fail("objects", e))
            }
        }
    }

    /// Bytes that are in the store of the queue's server; none elsewhere, where they are not counted.
    pub(crate) async fn bytes(&self) -> Result<u64, FleetError> {
        let Depot::Queue(bucket) = self else { return Ok(0) };
        let info = bucket.stream.get_info().await.map_err(|e| fail("objects", e))?;
        Ok(info.state.bytes)
    }

    /// Removes objects that are older than this, where the store does not by itself; how many.
    pub(crate) async fn prune(&self, age: Duration) -> Result<usize, FleetError> {
        let Depot::Elsewhere(store) = self else { return Ok(0) };
        let Some(oldest) = SystemTime::now().checked_sub(age) else { return Ok(0) };
        let mut listed = store.list(None);
        let mut n_gone = 0;
        while let Some(object) = listed.try_next().await.map_err(|e| fail("objects", e))? {
            if SystemTime::from(object.last_modified) < oldest {
                self.delete(object.location.as_ref()).await?;
                n_gone += 1;
            }
        }
        Ok(n_gone)
    }
}

/// The size of an object that may be read.
fn bounded(name: &str, size: u64) -> Result<usize, FleetError> {
    let bounded = usize::try_from(size).ok().filter(|size| *size <= MAX_OBJECT);
    bounded.ok_or_else(|| fail(name, format!("has {size} bytes, the limit is {MAX_OBJECT}")))
}

fn fail(name: &str, error: impl std::fmt::Display) -> FleetError {
    FleetError::Storage(format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn objects_lie_in_a_folder_until_they_are_too_old() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().display().to_string();
        let depot = Depot::at(&place, "pictures").expect("a depot");
        depot.put("out/a/0.png", Bytes::from_static(b"pixels")).await.expect("stored");
        assert_eq!(depot.get("out/a/0.png").await.expect("an answer"), Some(Bytes::from_static(b"pixels")));
        assert_eq!(depot.get("out/a/1.png").await.expect("an answer"), None);
        assert!(depot.has("out/a/0.png").await.expect("an answer"));
        assert_eq!(depot.names().await.expect("names"), ["out/a/0.png"]);
        assert_eq!(depot.prune(Duration::from_secs(3600)).await.expect("pruned"), 0);
        assert_eq!(depot.prune(Duration::ZERO).await.expect("pruned"), 1);
        depot.delete("out/a/0.png").await.expect("nothing to do");
        assert!(!depot.has("out/a/0.png").await.expect("an answer"));
    }

    #[test]
    fn places_are_buckets_or_absolute_folders() {
        for wrong in ["pictures", "ftp://host/x", "./x"] {
            assert!(matches!(Depot::at(wrong, "pictures"), Err(FleetError::Refused(_))), "{wrong}");
        }
    }
}
