//! Packed bundles in the fleet's store: in parts, each with its digest, so that a transfer that breaks off goes on where it was.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;
use kiln_bundle::{Bundle, SealKey, fs, pack, unpack};
use serde::{Deserialize, Serialize};

use crate::FleetError;
use crate::broker::Broker;
use crate::depot::Depot;
use crate::settings::PROTOCOL;
use crate::worker::lane;

/// Bytes of a part.
const PART: usize = 8 << 20;

/// Most parts, which is a bundle of 512 GiB.
const MAX_PARTS: usize = 1 << 16;

/// What the store says of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// The form that it was written in.
    pub protocol: u32,
    /// The model's name.
    pub model: String,
    /// The bundle's target.
    pub class: String,
    /// The bundle's digest, as 64 hexadecimal digits.
    pub bundle: String,
    /// Bytes of the packed file.
    pub size: u64,
    /// Digests of its parts.
    pub parts: Vec<String>,
}

impl Packed {
    fn key(bundle: &str) -> String {
        format!("{}/index.json", bundle.get(..16).unwrap_or(bundle))
    }

    fn part(bundle: &str, i: usize) -> String {
        format!("{}/{i:05}", bundle.get(..16).unwrap_or(bundle))
    }

    fn check(&self) -> Result<(), FleetError> {
        let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let whole = self.size.div_ceil(PART as u64) == self.parts.len() as u64 && self.parts.len() <= MAX_PARTS;
        match self.protocol <= PROTOCOL && whole && is_digest(&self.bundle) && self.parts.iter().all(is_digest)
        {
            true => Ok(()),
            false => Err(FleetError::Storage(format!("bundle {}: its index cannot be used", self.bundle))),
        }
    }
}

/// The bundles of a fleet. Cheap to clone.
#[derive(Clone)]
pub struct Bundles(Depot);

impl Bundles {
    /// Those of a fleet.
    pub async fn of(broker: &Broker) -> Result<Bundles, FleetError> {
        Ok(Bundles(Depot::of_bundles(broker).await?))
    }

    /// Stores a bundle under a model's name; parts that are there are not sent again. `scratch` holds the packed file
    /// meanwhile, and `progress` is told how many bytes of how many are there.
    pub async fn push(
        &self,
        bundle: &Bundle,
        model: &str,
        scratch: &Path,
        progress: impl Fn(u64, u64),
    ) -> Result<Packed, FleetError> {
        let lane = lane(model, bundle);
        let file = scratch.join(format!("{}.kiln", lane.short()));
        pack(bundle, &file, 1)?;
        let pushed = self.push_file(&file, lane.class, model, &lane.bundle, progress).await;
        let _ = std::fs::remove_file(&file);
        pushed
    }

    async fn push_file(
        &self,
        path: &Path,
        class: String,
        model: &str,
        bundle: &str,
        progress: impl Fn(u64, u64),
    ) -> Result<Packed, FleetError> {
        let fail = |e: std::io::Error| FleetError::File { path: path.into(), reason: e.to_string() };
        let mut file = std::fs::File::open(path).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        let known = self.find(bundle).await?;
        let mut parts = Vec::new();
        let mut sent = 0;
        loop {
            let mut part = Vec::with_capacity(PART);
            (&mut file).take(PART as u64).read_to_end(&mut part).map_err(fail)?;
            if part.is_empty() {
                break;
            }
            let (name, digest) = (Packed::part(bundle, parts.len()), fs::digest_of(&part));
            let is_known = known.as_ref().is_some_and(|known| known.parts.get(parts.len()) == Some(&digest));
            sent += part.len() as u64;
            if !(is_known && self.0.has(&name).await?) {
                self.0.put(&name, part.into()).await?;
            }
            parts.push(digest);
            progress(sent, size);
        }
        let packed =
            Packed { protocol: PROTOCOL, model: model.into(), class, bundle: bundle.into(), size, parts };
        let index = serde_json::to_vec(&packed).expect("an index is JSON");
        self.0.put(&Packed::key(bundle), index.into()).await?;
        Ok(packed)
    }

    /// What the store says of a bundle, by its digest or the first 16 digits of it.
    pub async fn find(&self, bundle: &str) -> Result<Option<Packed>, FleetError> {
        let Some(index) = self.0.get(&Packed::key(bundle)).await? else { return Ok(None) };
        let packed: Packed = serde_json::from_slice(&index)
            .map_err(|e| FleetError::Storage(format!("bundle {bundle}: its index cannot be read: {e}")))?;
        packed.check()?;
        Ok(Some(packed))
    }

    /// All bundles.
    pub async fn list(&self) -> Result<Vec<Packed>, FleetError> {
        let mut bundles = Vec::new();
        for name in self.0.names().await? {
            if let Some(bundle) = name.strip_suffix("/index.json") {
                bundles.extend(self.find(bundle).await?);
            }
        }
        bundles.sort_by(|a, b| (&a.model, &a.bundle).cmp(&(&b.model, &b.bundle)));
        Ok(bundles)
    }

    /// Makes a stored bundle a folder of this machine, checks every digest and seals it with the user's own key. What is
    /// there of it is not fetched again, even where it is half of the packed file.
    pub async fn fetch(
        &self,
        packed: &Packed,
        folder: &Path,
        key: &SealKey,
        progress: impl Fn(u64, u64),
    ) -> Result<Bundle, FleetError> {
        let there = || Bundle::open(folder).ok().filter(|there| there.digest() == packed.bundle);
        if let Some(there) = there() {
            return Ok(there);
        }
        let fail = |e: std::io::Error| FleetError::File { path: folder.into(), reason: e.to_string() };
        std::fs::create_dir_all(folder.parent().unwrap_or(folder)).map_err(fail)?;
        let half = folder.with_added_extension("part");
        let lock = half.with_added_extension("lock");
        // Another worker of this machine may be at it.
        let locked = tokio::task::spawn_blocking(move || fs::Lock::acquire(&lock)).await;
        let _lock = locked.map_err(|e| FleetError::Storage(e.to_string()))??;
        if let Some(there) = there() {
            return Ok(there);
        }
        self.fetch_file(packed, &half, progress).await?;
        let (from, to) = (half.clone(), folder.to_path_buf());
        let unpacked = tokio::task::spawn_blocking(move || unpack(&from, &to)).await;
        let unpacked = unpacked.map_err(|e| FleetError::Storage(e.to_string()))??;
        let _ = std::fs::remove_file(&half);
        if unpacked.digest() != packed.bundle {
            let _ = std::fs::remove_dir_all(folder);
            let message = format!("bundle {}: is another one, {}", packed.bundle, unpacked.digest());
            return Err(FleetError::Storage(message));
        }
        unpacked.seal(key)?;
        Ok(unpacked)
    }

    /// Fills a file up with parts; those that are in it already stay.
    async fn fetch_file(
        &self,
        packed: &Packed,
        half: &Path,
        progress: impl Fn(u64, u64),
    ) -> Result<(), FleetError> {
        let fail = |e: std::io::Error| FleetError::File { path: half.into(), reason: e.to_string() };
        let options = std::fs::File::options().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(half).map_err(fail)?;
        let mut n_bytes = 0;
        for (i, digest) in packed.parts.iter().enumerate() {
            let start = (i * PART) as u64;
            let length = (packed.size - start).min(PART as u64);
            let mut there = Vec::new();
            file.seek(SeekFrom::Start(start)).map_err(fail)?;
            (&mut file).take(length).read_to_end(&mut there).map_err(fail)?;
            if fs::digest_of(&there) != *digest {
                let part = self.part(packed, i, digest).await?;
                file.seek(SeekFrom::Start(start)).map_err(fail)?;
                file.write_all(&part).map_err(fail)?;
            }
            n_bytes += length;
            progress(n_bytes, packed.size);
        }
        file.set_len(packed.size).and_then(|()| file.sync_all()).map_err(fail)
    }

    async fn part(&self, packed: &Packed, i: usize, digest: &str) -> Result<Bytes, FleetError> {
        let name = Packed::part(&packed.bundle, i);
        let part = self.0.get(&name).await?;
        match part.filter(|part| fs::digest_of(part) == digest) {
            Some(part) => Ok(part),
            None => Err(FleetError::Storage(format!(
                "bundle {}: part {i} of {} is missing or damaged",
                packed.bundle,
                packed.parts.len()
            ))),
        }
    }
}
