//! What is in the cache, and keeping it small.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use kiln_bundle::{Bundle, Claim, MANIFEST, SEAL};

use super::entry::{self, Entry, REASON, Record, read_record};
use super::{EngineCache, REMOVED};
use crate::CompileError;

/// Something in the cache.
#[derive(Clone, Debug)]
pub struct CacheItem {
    /// Name of its folder.
    pub name: String,
    /// The folder.
    pub path: PathBuf,
    /// What it is.
    pub kind: ItemKind,
    /// Bytes of its files; files that several items share count for each.
    pub bytes: u64,
    /// When it was last used.
    pub last_used: SystemTime,
}

/// What an item of the cache is.
#[derive(Clone, Debug)]
pub enum ItemKind {
    /// A built part.
    Entry(Box<Record>),
    /// A bundle.
    Bundle,
    /// Something whose manifest or record cannot be read, and why.
    Damaged(String),
    /// Something damaged, and why it was set aside.
    Quarantined(String),
}

/// An item that was checked.
#[derive(Debug)]
pub struct Checked {
    /// The item.
    pub item: CacheItem,
    /// What is wrong with it, if anything is.
    pub error: Option<CompileError>,
}

/// What pruning removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// The removed items.
    pub items: Vec<String>,
    /// Bytes that were freed.
    pub bytes: u64,
    /// Bytes that the rest takes.
    pub kept_bytes: u64,
}

impl EngineCache {
    /// Everything in the cache, what was used last first.
    pub fn items(&self) -> Result<Vec<CacheItem>, CompileError> {
        let mut items = Vec::new();
        for path in folders(self.root())?.into_iter().filter(|path| is_own(path, &[MANIFEST, SEAL])) {
            match Bundle::open(&path) {
                Ok(_) => items.push(item(path, ItemKind::Bundle)?),
                Err(e) => items.push(item(path, ItemKind::Damaged(e.to_string()))?),
            }
        }
        let own = |path: &PathBuf| is_own(path, &[entry::RECORD, entry::SEAL]);
        for path in folders(&self.entries())?.into_iter().filter(own) {
            let kind = match read_record(&path, None) {
                Ok(record) => ItemKind::Entry(Box::new(record)),
                Err(e) => ItemKind::Damaged(e.to_string()),
            };
            items.push(item(path, kind)?);
        }
        for path in folders(&self.quarantine())?.into_iter().filter(|path| path.join(REASON).is_file()) {
            let reason = fs::read_to_string(path.join(REASON)).unwrap_or_default().trim().to_owned();
            items.push(item(path, ItemKind::Quarantined(reason))?);
        }
        items.sort_by_key(|item| std::cmp::Reverse(item.last_used));
        Ok(items)
    }

    /// Takes every digest and checks every seal anew; what is damaged is named and set aside.
    pub fn verify(&self) -> Result<Vec<Checked>, CompileError> {
        let key = self.seal_key()?;
        let mut results = Vec::new();
        for item in self.items()? {
            let checked = match &item.kind {
                ItemKind::Quarantined(_) => continue,
                ItemKind::Bundle | ItemKind::Damaged(_) if item.path.parent() == Some(self.root()) => {
                    let bundle = Bundle::open(&item.path);
                    bundle.and_then(|bundle| bundle.verify_sealed(&key)).map_err(CompileError::from)
                }
                _ => Entry::open(&item.path, &key).and_then(|entry| entry.verify(&key)),
            };
            let mut error = checked.err();
            if let Some(found) = &error {
                error = self.set_aside(&item.path, &found.to_string()).err().or(error);
            }
            results.push(Checked { item, error });
        }
        Ok(results)
    }

    /// Removes quarantined items, items unused for `older_than`, and then the least recently used until the rest takes at
    /// most `max_bytes`; the bundles `keep` and what they are made of are never removed, nor what a process uses now, nor what
    /// kiln did not make. With `dry_run` it only tells.
    pub fn prune(
        &self,
        max_bytes: Option<u64>,
        older_than: Option<Duration>,
        keep: &[&Path],
        dry_run: bool,
    ) -> Result<Pruned, CompileError> {
        if !dry_run {
            self.remove_abandoned()?;
        }
        let items = self.items()?;
        let is_kept = |item: &CacheItem| {
            keep.iter().any(|keep| item.path == *keep || shares_files(&item.path, keep).unwrap_or(true))
        };
        let is_stale = |item: &CacheItem| {
            let age = item.last_used.elapsed().unwrap_or_default();
            matches!(item.kind, ItemKind::Quarantined(_) | ItemKind::Damaged(_))
                || older_than.is_some_and(|limit| age > limit)
        };
        let (mut remove, mut rest): (Vec<_>, Vec<_>) =
            items.into_iter().partition(|item| is_stale(item) && !is_kept(item));
        if let Some(max_bytes) = max_bytes {
            while disk_bytes(&rest)? > max_bytes {
                let Some(last) = rest.iter().rposition(|item| !is_kept(item)) else { break };
                remove.push(rest.remove(last));
            }
        }
        let all = disk_bytes(rest.iter().chain(&remove))?;
        let mut removed = Vec::new();
        for item in remove {
            match dry_run || self.remove(&item)? {
                true => removed.push(item.name),
                false => rest.push(item),
            }
        }
        let kept_bytes = disk_bytes(&rest)?;
        Ok(Pruned { items: removed, bytes: all.saturating_sub(kept_bytes), kept_bytes })
    }

    /// Removes an item, unless a process uses it.
    fn remove(&self, item: &CacheItem) -> Result<bool, CompileError> {
        let refuse = |e: io::Error| CompileError::io(&item.path, &e);
        let claim = match Claim::take(&item.path) {
            Ok(Some(claim)) => claim,
            Ok(None) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(e) => return Err(refuse(e)),
        };
        // Who opens it from now on finds nothing, rather than half of it.
        let aside = tempfile::Builder::new().prefix(REMOVED).tempdir_in(self.root()).map_err(refuse)?;
        let moved = fs::rename(&item.path, aside.path().join(&item.name));
        drop(claim);
        match moved.and_then(|()| aside.close()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(refuse(e)),
            _ => Ok(true),
        }
    }
}

/// Whether a folder is one that kiln makes: by its name, which ends in a key, and by one of the files that it puts there.
fn is_own(path: &Path, files: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let key = name.rsplit_once('-').map_or("", |(_, key)| key);
    key.len() == 16
        && key.bytes().all(|b| b.is_ascii_hexdigit())
        && files.iter().any(|file| path.join(file).is_file())
}

fn item(path: PathBuf, kind: ItemKind) -> Result<CacheItem, CompileError> {
    Ok(CacheItem {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        bytes: files(&path)?.values().sum(),
        last_used: Entry::last_used(&path),
        path,
        kind,
    })
}

/// Folders in a folder, but for hidden ones; none where there is no folder.
fn folders(folder: &Path) -> Result<BTreeSet<PathBuf>, CompileError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(BTreeSet::new()) };
    let mut found = BTreeSet::new();
    for entry in entries {
        let path = entry.map_err(|e| CompileError::io(folder, &e))?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !is_hidden {
            found.insert(path);
        }
    }
    Ok(found)
}

/// Bytes of every file under a folder, by what identifies it on its disk.
fn files(folder: &Path) -> Result<BTreeMap<(u64, u64), u64>, CompileError> {
    let mut found = BTreeMap::new();
    // What another process has removed meanwhile takes nothing.
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.map_err(|e| CompileError::io(folder, &e))?.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.insert(identity(&path, &metadata), metadata.len());
        }
    }
    Ok(found)
}

/// Bytes that items take together; a file with several names counts once.
fn disk_bytes<'a>(items: impl IntoIterator<Item = &'a CacheItem>) -> Result<u64, CompileError> {
    let mut all = BTreeMap::new();
    for item in items {
        all.extend(files(&item.path)?);
    }
    Ok(all.values().sum())
}

fn shares_files(a: &Path, b: &Path) -> Result<bool, CompileError> {
    let (a, b) = (files(a)?, files(b)?);
    Ok(a.keys().any(|file| b.contains_key(file)))
}

#[cfg(unix)]
fn identity(_path: &Path, metadata: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
fn identity(path: &Path, _metadata: &fs::Metadata) -> (u64, u64) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    (0, hasher.finish())
}
